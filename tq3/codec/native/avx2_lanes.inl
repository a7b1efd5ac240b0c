// AVX2 and F16C: eight lanes, and what lanes.inl and its users ask of an instruction set.
#include <immintrin.h>

namespace {

constexpr int kLanes = 8;

#define TQ3_HAVE_F16
inline __m256 f16_to_float(unsigned short __attribute__((vector_size(16))) words) {
    return _mm256_cvtph_ps(reinterpret_cast<__m128i>(words));
}
inline auto float_to_f16(__m256 values) {
    using Half = unsigned short __attribute__((vector_size(16)));
    return reinterpret_cast<Half>(
        _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#define TQ3_HAVE_LOOKUP
struct Levels {
    __m256 lower, upper;
};
inline Levels repeated_levels(const float (&level)[16]) {
    return {_mm256_loadu_ps(level), _mm256_loadu_ps(level + 8)};
}
template <int bits>
inline __m256 lookup(const Levels& levels, int __attribute__((vector_size(32))) code) {
    const __m256i index = reinterpret_cast<__m256i>(code);
    const __m256 lower = _mm256_permutevar8x32_ps(levels.lower, index);
    if constexpr (bits < 4) return lower;
    const __m256 upper = _mm256_permutevar8x32_ps(levels.upper, index);
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

#define TQ3_HAVE_SATURATION
using Eight = unsigned short __attribute__((vector_size(16)));
inline Eight add_saturated(Eight a, Eight b) {
    return reinterpret_cast<Eight>(
        _mm_adds_epu16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
struct First {
    int value, at;
};
inline First first_least(Eight values) {
    const auto both = static_cast<unsigned>(
        _mm_cvtsi128_si32(_mm_minpos_epu16(reinterpret_cast<__m128i>(values))));
    return {static_cast<int>(both & 0xffff), static_cast<int>(both >> 16)};
}
using Sixteen = unsigned short __attribute__((vector_size(32)));
inline Sixteen add_saturated(Sixteen a, Sixteen b) {
    return reinterpret_cast<Sixteen>(
        _mm256_adds_epu16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

}  // namespace
