// The linear kernels for 64-bit ARM with the dot product instructions: 32 weights at once.
#include "neon_lanes.inl"

#include "kernels_head.inl"

namespace {

constexpr int kChunk = 32;
constexpr std::size_t kMostTogether = 8;
constexpr bool kFromLowest = false;

// Quantised activations as high and low bytes, value = 256 * high + low. Of four neighbours two are
// in `outer`, two in `inner`.
struct Piece {
    std::int8_t high_outer[16], high_inner[16], low_outer[16], low_inner[16];
};

inline void arrange(const std::int16_t* values, Piece& piece) {
    for (int i = 0; i < kChunk; ++i) {
        const int at = i / 4 * 2 + i % 2;
        const int high = (values[i] + 128) >> 8, low = values[i] - high * 256;
        (i % 4 < 2 ? piece.high_outer : piece.high_inner)[at] = static_cast<std::int8_t>(high);
        (i % 4 < 2 ? piece.low_outer : piece.low_inner)[at] = static_cast<std::int8_t>(low);
    }
}

struct Weights {
    int8x16_t outer, inner;
};

template <int bits>
class Decoder {
  public:
    static constexpr int kBytes = kChunk * bits / 8;

    explicit Decoder(const std::int8_t (&level)[1 << kMaxBits]) {
        std::uint8_t spread[16];
        std::int8_t table[16];
        for (int i = 0; i < 16; ++i) {
            // Each 16-bit lane gets the bytes of four codes.
            const int byte = i / 2 * bits / 2 + i % 2;
            spread[i] = static_cast<std::uint8_t>(byte < kBytes ? byte : 0);
            table[i] = level[i % (1 << bits)];
        }
        spread_ = vld1q_u8(spread);
        table_ = vld1q_s8(table);
    }

    __attribute__((always_inline)) Weights operator()(const std::uint8_t* codes) const {
        std::uint8_t bytes[16] = {};
        __builtin_memcpy(bytes, codes, kBytes);
        uint16x8_t fours = vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(bytes), spread_));
        if constexpr (bits == 3) fours = vshlq_u16(fours, int16x8_t{0, -4, 0, -4, 0, -4, 0, -4});
        return {levels(fours), levels(vshrq_n_u16(fours, 2 * bits))};
    }

  private:
    // The two lowest codes of each 16-bit lane, one to a byte.
    __attribute__((always_inline)) int8x16_t levels(uint16x8_t codes) const {
        const uint16x8_t apart = vsliq_n_u16(codes, codes, 8 - bits);
        const uint8x16_t code = vandq_u8(vreinterpretq_u8_u16(apart), vdupq_n_u8((1 << bits) - 1));
        return vqtbl1q_s8(table_, code);
    }

    uint8x16_t spread_;
    int8x16_t table_;
};

struct Product {
    int32x4_t high, low;

    __attribute__((always_inline)) void add(const Weights& weights, const Piece& piece) {
        high = vdotq_s32(high, weights.outer, vld1q_s8(piece.high_outer));
        low = vdotq_s32(low, weights.outer, vld1q_s8(piece.low_outer));
        high = vdotq_s32(high, weights.inner, vld1q_s8(piece.high_inner));
        low = vdotq_s32(low, weights.inner, vld1q_s8(piece.low_inner));
    }
    __attribute__((always_inline)) I total() const {
        return reinterpret_cast<I>(vaddq_s32(vshlq_n_s32(high, 8), low));
    }
};

inline int32x4_t add_four(const I* v) {
    const auto lanes = [&](int i) { return reinterpret_cast<int32x4_t>(v[i]); };
    return vpaddq_s32(vpaddq_s32(lanes(0), lanes(1)), vpaddq_s32(lanes(2), lanes(3)));
}

template <class Octet>
__attribute__((always_inline)) inline void add_lanes(const I (&v)[8], Octet& sums) {
    const int32x4_t halves[] = {add_four(v), add_four(v + 4)};
    __builtin_memcpy(&sums, halves, sizeof sums);
}

#include "linear.inl"

#include "activations.inl"
#include "rotated.inl"

}  // namespace

extern const tq3::LinearKernels kNeonLinear;
const tq3::LinearKernels kNeonLinear = {"neon",   quantised_bytes, quantise,
                                        multiply, rotate,          decode};
