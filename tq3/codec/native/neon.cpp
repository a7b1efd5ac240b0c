// The kernels for 64-bit ARM, all of which have NEON: four groups side by side.
#include "neon_lanes.inl"

#include "kernels.inl"

extern const tq3::Kernels kNeonKernels;
const tq3::Kernels kNeonKernels = {"neon",     encode,         decode,         cast,
                                   dequantize, encode_trellis, decode_trellis, encode_calibrated,
                                   decompose};
