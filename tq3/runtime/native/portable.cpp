// The linear kernels with the instructions that every processor of the architecture has: 32 weights
// at once.
namespace {
constexpr int kLanes = 4;
}

#include "kernels_head.inl"

namespace {

constexpr int kChunk = 32;
constexpr std::size_t kMostTogether = 8;
constexpr bool kFromLowest = false;

struct Piece {
    std::int16_t values[kChunk];
};

inline void arrange(const std::int16_t* values, Piece& piece) {
    __builtin_memcpy(&piece, values, sizeof piece);
}

struct Weights {
    std::int16_t levels[kChunk];
};

template <int bits>
class Decoder {
  public:
    static constexpr int kBytes = kChunk * bits / 8;

    explicit Decoder(const std::int8_t (&level)[1 << kMaxBits]) {
        for (int code = 0; code < 1 << bits; ++code) level_[code] = level[code];
    }

    Weights operator()(const std::uint8_t* codes) const {
        Weights weights;
        for (int i = 0; i < kChunk; i += 8, codes += bits) {
            std::uint32_t eight = 0;
            for (int byte = 0; byte < bits; ++byte)
                eight |= static_cast<std::uint32_t>(codes[byte]) << 8 * byte;
            for (int k = 0; k < 8; ++k)
                weights.levels[i + k] = level_[eight >> k * bits & ((1 << bits) - 1)];
        }
        return weights;
    }

  private:
    std::int16_t level_[1 << bits];
};

struct Product {
    std::int32_t sum;

    void add(const Weights& weights, const Piece& piece) {
        for (int i = 0; i < kChunk; ++i) sum += weights.levels[i] * piece.values[i];
    }
    I total() const { return I{sum}; }
};

template <class Octet>
inline void add_lanes(const I (&v)[8], Octet& sums) {
    for (int i = 0; i < 8; ++i) sums[i] = v[i][0];
}

#include "linear.inl"

#include "activations.inl"
#include "rotated.inl"

}  // namespace

extern const tq3::LinearKernels kPortableLinear;
const tq3::LinearKernels kPortableLinear = {"portable", quantised_bytes, quantise,
                                            multiply,   rotate,          decode};
