// The kernels for x86-64 with AVX-512 F, BW, DQ and VL: sixteen groups side by side.
#include "avx512_lanes.inl"

#include "kernels.inl"

extern const tq3::Kernels kAvx512Kernels;
const tq3::Kernels kAvx512Kernels = {"avx512",   encode,         decode,         cast,
                                     dequantize, encode_trellis, decode_trellis, encode_calibrated,
                                     decompose};
