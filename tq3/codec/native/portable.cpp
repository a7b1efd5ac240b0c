// The kernels with the instructions that every processor of the architecture has: four groups side
// by side.
namespace {
constexpr int kLanes = 4;
}

#include "kernels.inl"

extern const tq3::Kernels kPortableKernels;
const tq3::Kernels kPortableKernels = {
    "portable",        encode,   decode, cast, dequantize, encode_trellis, decode_trellis,
    encode_calibrated, decompose};
