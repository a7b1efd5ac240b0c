// The linear kernels for x86-64 with AVX2 and F16C: 64 weights at once.
#include "avx2_lanes.inl"

#include "kernels_head.inl"

namespace {

constexpr int kChunk = 64;
constexpr std::size_t kMostTogether = 4;  // more tokens are a matter of blocks.inl

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

// Each 16-bit word gets four codes. Shifted to the lowest bits of its lower byte, a code is looked
// up by vpshufb; the upper byte looks up code 0, which is 0.
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
        const __m256i words = fours(codes);
        Weights weights;
        weights.levels[0] = level(lowest<0>(words));
        weights.levels[1] = level(lowest<1>(words));
        weights.levels[2] = level(lowest<2>(words));
        weights.levels[3] = level(lowest<3>(words));
        return weights;
    }

  private:
    // 2 bits: in the upper byte of each word. 3 bits: from bit 0 on in lower words, which are even,
    // from bit 4 on in upper ones. 4 bits: as they lie.
    __attribute__((always_inline)) __m256i fours(const std::uint8_t* codes) const {
        if constexpr (bits == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
        if constexpr (bits == 2)
            return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(lower), spread_);
        const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 8));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(lower), upper, 1);
        return _mm256_shuffle_epi8(both, spread_);
    }

    // Code k of each word in its lowest bits, the upper byte 0. Bits 3 to 6 of a lower byte are any
    // where vpshufb does not see them: of 3 bits the levels are there twice.
    template <int k>
    __attribute__((always_inline)) static __m256i lowest(__m256i words) {
        const __m256i mask = _mm256_set1_epi16((1 << bits) - 1);
        if constexpr (bits == 3) {
            // A product shifts lower words by another number of bits than upper ones, and other
            // units of a processor multiply than shift and shuffle.
            if constexpr (k == 0)
                return _mm256_srli_epi16(_mm256_mullo_epi16(words, _mm256_set1_epi32(0x02002000)),
                                         13);
            const __m256i shifted =
                _mm256_mulhi_epu16(words, _mm256_set1_epi32(1 << (28 - 3 * k) | 1 << (16 - 3 * k)));
            return k == 3 ? shifted : _mm256_and_si256(shifted, mask);
        }
        const __m256i shifted = _mm256_srli_epi16(words, 16 - (4 - k) * bits);
        return k == 3 ? shifted : _mm256_and_si256(shifted, mask);
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

// The halves of a, then those of b, each added up: one shuffle, as processors have few units for
// them.
inline __m256i add_halves(I a, I b) {
    const auto u = reinterpret_cast<__m256i>(a), v = reinterpret_cast<__m256i>(b);
    return _mm256_add_epi32(_mm256_blend_epi32(u, v, 0xf0), _mm256_permute2x128_si256(u, v, 0x21));
}

// Half h of vector j is group 2j + h.
template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[4], Octet& sums) {
    __m256i pairs[2];
    for (int j = 0; j < 2; ++j) {
        const auto a = reinterpret_cast<__m256i>(v[2 * j]),
                   b = reinterpret_cast<__m256i>(v[2 * j + 1]);
        pairs[j] = _mm256_add_epi32(_mm256_blend_epi32(a, b, 0xcc), _mm256_alignr_epi8(b, a, 8));
    }
    const __m256i sum = _mm256_hadd_epi32(pairs[0], pairs[1]);  // groups 0 2 4 6, 1 3 5 7
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    sums = reinterpret_cast<Octet>(_mm256_permutevar8x32_epi32(sum, order));
}

template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[8], Octet& sums) {
    I halves[4];
    for (int j = 0; j < 4; ++j) halves[j] = reinterpret_cast<I>(add_halves(v[2 * j], v[2 * j + 1]));
    add_lanes(halves, sums);
}

#include "linear.inl"

#include "activations.inl"

// Tokens from which on blocks are faster, though lanes may be empty.
constexpr std::size_t kFewestForBlocks = 5, kTokenLanes = 8, kFewerLanes = 8;
constexpr std::size_t kSumRows = 8;

template <int>
struct Tokens {
    using I = ::I;
    using F = ::F;
};

// Lanes in the order of Decoder, as in Piece.
inline void order_pairs(const std::int16_t* values, std::int32_t (&pairs)[kChunk / 2]) {
    Piece piece;
    arrange(values, piece);
    __builtin_memcpy(pairs, &piece, sizeof pairs);
}

inline void store_pairs(const Weights& weights, std::int32_t* to) {
    for (int k = 0; k < 4; ++k)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + k, weights.levels[k]);
}

__attribute__((always_inline)) inline I multiply_pairs(I total, I levels, I pairs) {
    total += reinterpret_cast<I>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(levels), reinterpret_cast<__m256i>(pairs)));
    // Else GCC gathers products before it adds them, more than there are registers.
    asm("" : "+x"(total));
    return total;
}

#include "blocks.inl"
#include "rotated.inl"

}  // namespace

extern const tq3::LinearKernels kAvx2Linear;
const tq3::LinearKernels kAvx2Linear = {
    "avx2", quantised_bytes_for_blocks, quantise_for_blocks, multiply_for_blocks, rotate, decode};
