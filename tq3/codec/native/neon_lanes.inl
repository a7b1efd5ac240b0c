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

#define TQ3_HAVE_SATURATION
using Eight = unsigned short __attribute__((vector_size(16)));
inline Eight add_saturated(Eight a, Eight b) {
    return reinterpret_cast<Eight>(
        vqaddq_u16(reinterpret_cast<uint16x8_t>(a), reinterpret_cast<uint16x8_t>(b)));
}
struct First {
    int value, at;
};
inline First first_least(Eight values) {
    const auto found = reinterpret_cast<uint16x8_t>(values);
    const unsigned short least = vminvq_u16(found);
    const Eight places = {0, 1, 2, 3, 4, 5, 6, 7};
    const auto others = vmvnq_u16(vceqq_u16(found, vdupq_n_u16(least)));
    return {least, vminvq_u16(vorrq_u16(reinterpret_cast<uint16x8_t>(places), others))};
}

}  // namespace
