// NEON: four lanes, and what lanes.inl and its users ask of an instruction set.
#include <arm_neon.h>

namespace {

constexpr int kLanes = 4;

#define TQ3_HAVE_F16
using Half4 = unsigned short __attribute__((vector_size(8)));
using Float4 = float __attribute__((vector_size(16)));
inline Float4 f16_to_float(Half4 words) {
    return reinterpret_cast<Float4>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(words)));
}
inline Half4 float_to_f16(Float4 values) {
    return reinterpret_cast<Half4>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(values)));
}

// A table of 64 bytes is looked up byte by byte: float i is bytes 4i .. 4i+3.
#define TQ3_HAVE_LOOKUP
using Levels = uint8x16x4_t;
inline Levels repeated_levels(const float (&level)[16]) {
    return vld1q_u8_x4(reinterpret_cast<const unsigned char*>(level));
}
template <int bits>
inline Float4 lookup(const Levels& levels, int __attribute__((vector_size(16))) code) {
    const auto index = reinterpret_cast<uint8x16_t>((code & 15) * 0x04040404 + 0x03020100);
    return reinterpret_cast<Float4>(vqtbl4q_u8(levels, index));
}

}  // namespace
