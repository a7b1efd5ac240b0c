// Vectors of 16-bit lanes, in which the costs of a trellis lie, and moving them.
//
// The instruction-set file may define TQ3_HAVE_SATURATION, with what follows it here.

constexpr int kBlock8 = 8;  // lanes of 128 bits, within which moving is cheap
constexpr int kWideLanes = 2 * kLanes;
using W = std::uint16_t __attribute__((vector_size(2 * kWideLanes)));

#ifndef TQ3_HAVE_SATURATION
using Eight = std::uint16_t __attribute__((vector_size(16)));
inline Eight add_saturated(Eight a, Eight b) {
    const Eight sum = a + b;
    return sum | reinterpret_cast<Eight>(sum < a);
}
// The first of the least of eight.
struct First {
    int value, at;
};
inline First first_least(Eight values) {
    First best = {values[0], 0};
    for (int i = 1; i < 8; ++i)
        if (values[i] < best.value) best = {values[i], i};
    return best;
}
#endif

inline W least(W a, W b) {
    return a < b ? a : b;
}

// A cycle has as many lanes as rows. A vector holds several cycles, or a part of one.
template <int bits>
constexpr int kCodes = 1 << bits;
template <int bits>
constexpr int kCycles = kWideLanes < kCodes<bits> ? 1 : kWideLanes / kCodes<bits>;
template <int bits>
constexpr int kParts = kWideLanes < kCodes<bits> ? kCodes<bits> / kWideLanes : 1;

template <int bits>
struct Row {
    W part[kParts<bits>];
};

// A pattern says for each lane which of the lanes of two vectors comes there.

#if __has_builtin(__builtin_shufflevector)
template <class Pattern, int... lane>
inline W arranged(W a, W b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, Pattern::from(lane)...);
}
#else
template <class Pattern, int... lane>
inline W arranged(W a, W b, std::integer_sequence<int, lane...>) {
    return __builtin_shuffle(a, b, W{Pattern::from(lane)...});
}
#endif

template <class Pattern>
inline W arranged(W a, W b) {
    return arranged<Pattern>(a, b, std::make_integer_sequence<int, kWideLanes>());
}

template <int first>
struct Interleave {  // four lanes of each block of both, from `first` on
    static constexpr int from(int lane) {
        const int i = lane % kBlock8;
        return lane - i + first + i / 2 + i % 2 * kWideLanes;
    }
};

template <int half>
struct JoinHalves {  // the same half of sixteen lanes of both
    static constexpr int from(int lane) {
        const int i = lane % (2 * kBlock8);
        return lane - i + half * kBlock8 + i % kBlock8 + i / kBlock8 * kWideLanes;
    }
};

template <int distance>
struct Exchange {
    static constexpr int from(int lane) { return lane ^ distance; }
};

struct FrontOfBlock {
    static constexpr int from(int lane) { return lane / kBlock8 * kBlock8; }
};

struct NextOfBlock {  // the lane after, the front after the last
    static constexpr int from(int lane) { return lane / kBlock8 * kBlock8 + (lane + 1) % kBlock8; }
};

// Rows become lanes within blocks: each time, the address of a value, row and lane, is rotated.
template <int bits>
__attribute__((always_inline)) inline void transpose_blocks(Row<bits>* rows, int part) {
#pragma GCC unroll 3
    for (int round = 0; round < 3; ++round) {
        W next[8];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const W a = rows[i].part[part], b = rows[i + 4].part[part];
            next[2 * i] = arranged<Interleave<0>>(a, b);
            next[2 * i + 1] = arranged<Interleave<4>>(a, b);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) rows[i].part[part] = next[i];
    }
}

template <int bits>
__attribute__((always_inline)) inline void transpose_codes(Row<bits>* rows) {
#pragma GCC unroll 4
    for (int i = 0; i < kCodes<bits>; i += 8)
        for (int part = 0; part < kParts<bits>; ++part) transpose_blocks<bits>(rows + i, part);
    if constexpr (bits == 4) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            W &right = rows[i].part[kParts<bits> - 1], &left = rows[i + 8].part[0];
            const W a = right, b = left;
            right = kParts<bits> == 2 ? b : arranged<JoinHalves<0>>(a, b);
            left = kParts<bits> == 2 ? a : arranged<JoinHalves<1>>(a, b);
        }
    }
}
