// The linear kernels for x86-64 with AVX-512 VNNI and VBMI, 128 weights at once, and with AMX.
#include "avx512_lanes.inl"

#include "kernels_head.inl"

namespace {

constexpr int kChunk = 128;
constexpr std::size_t kMostTogether = 4;  // more tokens are a matter of blocks.inl

// vpdpbusd wants bytes without sign: levels are counted from the lowest one.
constexpr bool kFromLowest = true;

// Quantised activations as high and low bytes, value = 256 * high + low. Each 32-bit lane of a sum
// gets eight neighbours: four from `first`, four from `second`.
struct Piece {
    __m512i high_first, high_second, low_first, low_second;
};

inline void arrange(const std::int16_t* values, Piece& piece) {
    const __m512i half_a_byte = _mm512_set1_epi16(1 << 7);
    __m512i high[2], low[2];
    for (int half = 0; half < 2; ++half) {
        __m256i bytes[2][2];
        for (int i = 0; i < 2; ++i) {
            const __m512i value = _mm512_loadu_si512(values + 64 * half + 32 * i);
            bytes[0][i] =
                _mm512_cvtepi16_epi8(_mm512_srai_epi16(_mm512_add_epi16(value, half_a_byte), 8));
            bytes[1][i] = _mm512_cvtepi16_epi8(value);
        }
        high[half] = _mm512_inserti64x4(_mm512_castsi256_si512(bytes[0][0]), bytes[0][1], 1);
        low[half] = _mm512_inserti64x4(_mm512_castsi256_si512(bytes[1][0]), bytes[1][1], 1);
    }
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i next = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    piece.high_first = _mm512_permutex2var_epi32(high[0], even, high[1]);
    piece.high_second = _mm512_permutex2var_epi32(high[0], next, high[1]);
    piece.low_first = _mm512_permutex2var_epi32(low[0], even, low[1]);
    piece.low_second = _mm512_permutex2var_epi32(low[0], next, low[1]);
}

struct Weights {
    __m512i first, second;
};

template <int bits>
class Decoder {
  public:
    static constexpr int kBytes = kChunk * bits / 8;

    explicit Decoder(const std::int8_t (&level)[1 << kMaxBits]) {
        alignas(64) std::uint8_t spread[64], from_first[64], from_second[64], table[64];
        for (int i = 0; i < 64; ++i) {
            // Each 32-bit lane gets the bytes of eight codes.
            const int byte = i % 4 < bits ? i % 4 : 0;
            spread[i] = static_cast<std::uint8_t>(i / 4 * bits + byte);
            const int code = i / 4 % 2 * 32 + i % 4 * bits;
            from_first[i] = static_cast<std::uint8_t>(code);
            from_second[i] = static_cast<std::uint8_t>(code + 4 * bits);
            // The bits above a code are the next code's: any of them will do.
            table[i] = static_cast<std::uint8_t>(level[i % (1 << bits)] - level[0]);
        }
        spread_ = _mm512_load_si512(spread);
        from_first_ = _mm512_load_si512(from_first);
        from_second_ = _mm512_load_si512(from_second);
        table_ = _mm512_load_si512(table);
    }

    // Weights behind `n_bytes` of codes are any.
    __attribute__((always_inline)) Weights operator()(const std::uint8_t* codes,
                                                      int n_bytes = kBytes) const {
        const __mmask64 there = ~std::uint64_t{0} >> (64 - n_bytes);
        const __m512i bytes = _mm512_maskz_loadu_epi8(there, codes);
        // Eight codes of 4 bits fill a lane as they lie.
        const __m512i eights = bits == 4 ? bytes : _mm512_permutexvar_epi8(spread_, bytes);
        const __m512i first = _mm512_multishift_epi64_epi8(from_first_, eights);
        const __m512i second = _mm512_multishift_epi64_epi8(from_second_, eights);
        return {_mm512_permutexvar_epi8(first, table_), _mm512_permutexvar_epi8(second, table_)};
    }

  private:
    __m512i spread_, from_first_, from_second_, table_;
};

struct Product {
    __m512i high, low;

    __attribute__((always_inline)) void add(const Weights& weights, const Piece& piece) {
        high = _mm512_dpbusd_epi32(high, weights.first, piece.high_first);
        low = _mm512_dpbusd_epi32(low, weights.first, piece.low_first);
        high = _mm512_dpbusd_epi32(high, weights.second, piece.high_second);
        low = _mm512_dpbusd_epi32(low, weights.second, piece.low_second);
    }
    __attribute__((always_inline)) I total() const {
        return reinterpret_cast<I>(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    }
};

template <int low, int high>
inline __m512i add_quarters(I a, I b) {
    const auto u = reinterpret_cast<__m512i>(a), v = reinterpret_cast<__m512i>(b);
    return _mm512_add_epi32(_mm512_shuffle_i64x2(u, v, low), _mm512_shuffle_i64x2(u, v, high));
}

// Quarter q of vector j is group 4j + q.
template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[2], Octet& sums) {
    const auto a = reinterpret_cast<__m512i>(v[0]), b = reinterpret_cast<__m512i>(v[1]);
    const __m512i pairs =
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i odd = _mm512_setr_epi32(1, 5, 9, 13, 3, 7, 11, 15, 0, 0, 0, 0, 0, 0, 0, 0);
    sums = reinterpret_cast<Octet>(
        _mm256_add_epi32(_mm512_castsi512_si256(_mm512_permutexvar_epi32(even, pairs)),
                         _mm512_castsi512_si256(_mm512_permutexvar_epi32(odd, pairs))));
}

// Half h of vector j is group 2j + h.
template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[4], Octet& sums) {
    I quarters[2];
    for (int j = 0; j < 2; ++j)
        quarters[j] = reinterpret_cast<I>(add_quarters<0x88, 0xdd>(v[2 * j], v[2 * j + 1]));
    add_lanes(quarters, sums);
}

template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[8], Octet& sums) {
    I halves[4];
    for (int j = 0; j < 4; ++j)
        halves[j] = reinterpret_cast<I>(add_quarters<0x44, 0xee>(v[2 * j], v[2 * j + 1]));
    add_lanes(halves, sums);
}

#include "linear.inl"

#include "activations.inl"

// Tokens from which on blocks are faster, though lanes may be empty.
constexpr std::size_t kFewestForBlocks = 6, kTokenLanes = 16, kFewerLanes = 8;
constexpr std::size_t kSumRows = 16;

template <int lanes>
struct Tokens;
template <>
struct Tokens<16> {
    using I = ::I;
    using F = ::F;
};
template <>
struct Tokens<8> {
    using I = std::int32_t __attribute__((vector_size(32)));
    using F = float __attribute__((vector_size(32)));
};

// Four pairs of each eight neighbours: 0 2, 1 3, 4 6, 5 7, each in a vector of its own.
inline void order_pairs(const std::int16_t* values, std::int32_t (&pairs)[kChunk / 2]) {
    std::int16_t words[4][2 * kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
        for (int k = 0; k < 4; ++k) {
            words[k][2 * lane] = values[8 * lane + k / 2 * 4 + k % 2];
            words[k][2 * lane + 1] = values[8 * lane + k / 2 * 4 + k % 2 + 2];
        }
    __builtin_memcpy(pairs, words, sizeof pairs);
}

inline void store_pairs(const Weights& weights, std::int32_t* to) {
    const __m512i even = _mm512_set1_epi16(0xff);
    _mm512_storeu_si512(to, _mm512_and_si512(weights.first, even));
    _mm512_storeu_si512(to + 16, _mm512_srli_epi16(weights.first, 8));
    _mm512_storeu_si512(to + 32, _mm512_and_si512(weights.second, even));
    _mm512_storeu_si512(to + 48, _mm512_srli_epi16(weights.second, 8));
}

__attribute__((always_inline)) inline Tokens<16>::I multiply_pairs(Tokens<16>::I total,
                                                                   Tokens<16>::I levels,
                                                                   Tokens<16>::I pairs) {
    return reinterpret_cast<Tokens<16>::I>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(total),
                                                               reinterpret_cast<__m512i>(levels),
                                                               reinterpret_cast<__m512i>(pairs)));
}
__attribute__((always_inline)) inline Tokens<8>::I multiply_pairs(Tokens<8>::I total,
                                                                  Tokens<8>::I levels,
                                                                  Tokens<8>::I pairs) {
    return reinterpret_cast<Tokens<8>::I>(_mm256_dpwssd_epi32(reinterpret_cast<__m256i>(total),
                                                              reinterpret_cast<__m256i>(levels),
                                                              reinterpret_cast<__m256i>(pairs)));
}

#include "blocks.inl"
#include "rotated.inl"

#ifdef TQ3_AMX
#include "amx.inl"
#endif

}  // namespace

extern const tq3::LinearKernels kAvx512VnniLinear;
const tq3::LinearKernels kAvx512VnniLinear = {
    "avx512vnni", quantised_bytes_for_blocks, quantise_for_blocks, multiply_for_blocks, rotate,
    decode};
#ifdef TQ3_AMX
extern const tq3::LinearKernels kAmxLinear;
const tq3::LinearKernels kAmxLinear = {
    "amx", quantised_bytes_for_tiles, quantise_for_tiles, multiply_by_tiles, rotate, decode};
#endif
