// The kernels for x86-64 with AVX2 and F16C: eight groups side by side.
#include "avx2_lanes.inl"

#include "kernels.inl"

extern const tq3::Kernels kAvx2Kernels;
const tq3::Kernels kAvx2Kernels = {"avx2",     encode,         decode,         cast,
                                   dequantize, encode_trellis, decode_trellis, encode_calibrated,
                                   decompose};
