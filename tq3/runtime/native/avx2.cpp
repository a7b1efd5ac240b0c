// The linear kernels for x86-64 with AVX2 and F16C: 64 weights at once.
#include "avx2_lanes.inl"

#include "kernels_head.inl"

namespace {

constexpr int kChunk = 64;

// Levels are counted from the lowest one, so that code 0 is 0: see Decoder.
constexpr bool kFromLowest = true;

// Each 32-bit lane of a sum gets eight neighbours, 0 and 4 from values[0], ..., 3 and 7 from
// values[3].
struct Piece {
    __m256i values[4];
};

inline void arrange(const std::int16_t* values, Piece& piece) {
    std::int16_t words[4][16];
    for (int lane = 0; lane < 8; ++lane)
        for (int k = 0; k < 4; ++k) {
            words[k][2 * lane] = values[8 * lane + k];
            words[k][2 * lane + 1] = values[8 * lane + 4 + k];
        }
    __builtin_memcpy(&piece, words, sizeof words);
}

struct Weights {
    __m256i levels[4];
};

// Each 16-bit word gets four codes in its highest bits. Shifted to the lowest ones of its lower
// byte, a code is looked up by vpshufb; the upper byte looks up code 0, which is 0.
template <int bits>
class Decoder {
  public:
    static constexpr int kBytes = kChunk * bits / 8;

    explicit Decoder(const std::int8_t (&level)[1 << kMaxBits]) {
        alignas(32) std::uint8_t spread[32], table[32];
        for (int i = 0; i < 32; ++i) {
            const int lane = i / 4 % 4, byte = i % 4;
            // The upper half of three bytes is loaded from eight bytes further back.
            const int start = lane * bits + (bits == 3 && i >= 16   ? 4
                                             : bits == 2 && i >= 16 ? 8
                                                                    : 0);
            const int three_bits[] = {0, 1, 1, 2}, two_bits[] = {0x80, 0, 0x80, 1};
            const int from = bits == 3 ? three_bits[byte] : two_bits[byte];
            spread[i] = static_cast<std::uint8_t>(from == 0x80 ? from : start + from);
            table[i] = static_cast<std::uint8_t>(level[i % (1 << bits)] - level[0]);
        }
        spread_ = _mm256_load_si256(reinterpret_cast<const __m256i*>(spread));
        table_ = _mm256_load_si256(reinterpret_cast<const __m256i*>(table));
    }

    __attribute__((always_inline)) Weights operator()(const std::uint8_t* codes) const {
        const __m256i mask = _mm256_set1_epi16((1 << bits) - 1);
        const __m256i words = fours(codes);
        Weights weights;
        weights.levels[0] = level(_mm256_and_si256(_mm256_srli_epi16(words, 16 - 4 * bits), mask));
        weights.levels[1] = level(_mm256_and_si256(_mm256_srli_epi16(words, 16 - 3 * bits), mask));
        weights.levels[2] = level(_mm256_and_si256(_mm256_srli_epi16(words, 16 - 2 * bits), mask));
        weights.levels[3] = level(_mm256_srli_epi16(words, 16 - bits));
        return weights;
    }

  private:
    __attribute__((always_inline)) __m256i fours(const std::uint8_t* codes) const {
        if constexpr (bits == 4)  // as they lie
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
        if constexpr (bits == 2)
            return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(lower), spread_);
        const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 8));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(lower), upper, 1);
        // Lower words end four bits early.
        return _mm256_mullo_epi16(_mm256_shuffle_epi8(both, spread_), _mm256_set1_epi32(0x10010));
    }
    __attribute__((always_inline)) __m256i level(__m256i codes) const {
        return _mm256_shuffle_epi8(table_, codes);
    }

    __m256i spread_, table_;
};

struct Product {
    __m256i sum;

    __attribute__((always_inline)) void add(const Weights& weights, const Piece& piece) {
        const auto product = [&](int k) {
            return _mm256_madd_epi16(weights.levels[k], piece.values[k]);
        };
        const __m256i outer = _mm256_add_epi32(product(0), product(1));
        const __m256i inner = _mm256_add_epi32(product(2), product(3));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(outer, inner));
    }
    __attribute__((always_inline)) I total() const { return reinterpret_cast<I>(sum); }
};

// Half h of vector j is group 2j + h.
template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[4], Octet& sums) {
    __m256i pairs[2];
    for (int j = 0; j < 2; ++j) {
        const auto a = reinterpret_cast<__m256i>(v[2 * j]),
                   b = reinterpret_cast<__m256i>(v[2 * j + 1]);
        pairs[j] = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    }
    const __m256i sum = _mm256_hadd_epi32(pairs[0], pairs[1]);  // groups 0 2 4 6, 1 3 5 7
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    sums = reinterpret_cast<Octet>(_mm256_permutevar8x32_epi32(sum, order));
}

template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[8], Octet& sums) {
    I halves[4];
    for (int j = 0; j < 4; ++j) {
        const auto a = reinterpret_cast<__m256i>(v[2 * j]),
                   b = reinterpret_cast<__m256i>(v[2 * j + 1]);
        halves[j] = reinterpret_cast<I>(_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                                         _mm256_permute2x128_si256(a, b, 0x31)));
    }
    add_lanes(halves, sums);
}

#include "linear.inl"

#include "activations.inl"
#include "rotated.inl"

}  // namespace

extern const tq3::LinearKernels kAvx2Linear;
const tq3::LinearKernels kAvx2Linear = {"avx2",   quantised_bytes, quantise,
                                        multiply, rotate,          decode};
