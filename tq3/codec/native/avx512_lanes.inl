// AVX-512 F, BW, DQ and VL: sixteen lanes, and what lanes.inl and its users ask of an instruction
// set.
#include <immintrin.h>

namespace {

constexpr int kLanes = 16;

// Comparisons give mask registers here; going through a vector of -1 and 0 would cost an
// instruction each.
#define TQ3_HAVE_COUNT
using Lanes = int __attribute__((vector_size(64)));
inline Lanes count_where_greater(Lanes total, Lanes a, Lanes b) {
    const auto counts = reinterpret_cast<__m512i>(total);
    const __mmask16 greater =
        _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
    return reinterpret_cast<Lanes>(
        _mm512_mask_add_epi32(counts, greater, counts, _mm512_set1_epi32(1)));
}

#define TQ3_HAVE_TALLY
inline void tally(float __attribute__((vector_size(64))) & sum, Lanes& count, Lanes size,
                  Lanes threshold) {
    const auto sizes = reinterpret_cast<__m512i>(size), counts = reinterpret_cast<__m512i>(count);
    const __mmask16 above = _mm512_cmpgt_epi32_mask(sizes, reinterpret_cast<__m512i>(threshold));
    sum = _mm512_mask_add_ps(sum, above, sum, _mm512_castsi512_ps(sizes));
    count =
        reinterpret_cast<Lanes>(_mm512_mask_add_epi32(counts, above, counts, _mm512_set1_epi32(1)));
}

#define TQ3_HAVE_F16
inline __m512 f16_to_float(unsigned short __attribute__((vector_size(32))) words) {
    return _mm512_cvtph_ps(reinterpret_cast<__m256i>(words));
}
inline auto float_to_f16(__m512 values) {
    return reinterpret_cast<unsigned short __attribute__((vector_size(32)))>(
        _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#define TQ3_HAVE_LOOKUP
using Levels = __m512;
inline Levels repeated_levels(const float (&level)[16]) {
    return _mm512_loadu_ps(level);
}
template <int bits>
inline __m512 lookup(const Levels& levels, Lanes code) {
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(code), levels);
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
using ThirtyTwo = unsigned short __attribute__((vector_size(64)));
inline ThirtyTwo add_saturated(ThirtyTwo a, ThirtyTwo b) {
    return reinterpret_cast<ThirtyTwo>(
        _mm512_adds_epu16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

#define TQ3_HAVE_PAIRS
inline auto load_pairs(const void* from) {
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i shifts =
        _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i words =
        _mm512_castsi128_si512(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
    return reinterpret_cast<unsigned __attribute__((vector_size(64)))>(
        _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, words), shifts));
}

}  // namespace
