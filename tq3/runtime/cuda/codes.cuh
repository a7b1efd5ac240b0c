// The codes of a packed layer as layout.py brings them into memory, and the levels they stand for
// as bytes.
#pragma once

#include "instructions.cuh"
#include "values.cuh"

constexpr int kTile = 32;

struct alignas(16) Words {
    unsigned word[4];
};
struct alignas(16) Floats {
    float value[4];
};

// In one access, not one for each that is used.
__device__ __forceinline__ Floats load_floats(const Floats* floats) {
    const Words words = *reinterpret_cast<const Words*>(floats);
    Floats loaded;
#pragma unroll
    for (int i = 0; i < 4; ++i) loaded.value[i] = __uint_as_float(words.word[i]);
    return loaded;
}

// What a lane holds of a unit of a tile: the codes of rows r, r + 8, r + 16 and r + 24.
template <int bits>
struct Packed {
    Words words[bits];
};

// words: the lane's first.
template <int bits>
__device__ __forceinline__ Packed<bits> load_packed(const Words* words) {
    Packed<bits> packed;
#pragma unroll
    for (int i = 0; i < bits; ++i) packed.words[i] = words[i * kLanes];
    return packed;
}

// The codes of row r + 8 * row in nibbles, eight for each 32 inputs of the unit; above a code may
// lie bits of others.
template <int bits>
__device__ __forceinline__ void spread(const Packed<bits>& packed, int row, unsigned (&codes)[4]) {
    unsigned words[bits];
#pragma unroll
    for (int i = 0; i < bits; ++i) {
        const int at = row * bits + i;
        words[i] = packed.words[at / 4].word[at % 4];
    }
    if constexpr (bits == 2) {
        constexpr unsigned kCodes = 0x33333333U;
        for (int i = 0; i < 4; ++i) codes[i] = words[i / 2] >> i % 2 * 2 & kCodes;
    } else if constexpr (bits == 3) {
        constexpr unsigned kOnes = 0x11111111U, kCodes = 7 * kOnes;
        for (int i = 0; i < 3; ++i) codes[i] = words[i] & kCodes;
        codes[3] =
            (words[0] >> 3 & kOnes) | (words[1] >> 2 & 2 * kOnes) | (words[2] >> 1 & 4 * kOnes);
    } else {
        for (int i = 0; i < 4; ++i) codes[i] = words[i];
    }
}

// A table for `permute`, in a register of its own. Blocks are one row of threads, so y is 0, which
// the compiler does not know: else it takes constants from a uniform register anew for each use.
__device__ __forceinline__ unsigned kept(unsigned table) {
    return table ^ threadIdx.y;
}

// The integer levels of the lowest four codes, as bytes. docs/kernels.md, section 7, has the
// tables.
template <int bits>
__device__ __forceinline__ unsigned levels(unsigned codes) {
    if constexpr (bits == 2) return permute(kept(0x0a03fdf6U), 0, codes);  // -10 -3 3 10
    // -88 -55 -31 -10, 10 31 55 88
    if constexpr (bits == 3) return permute(kept(0xf6e1c9a8U), 0x58371f0aU, codes);
    // -114 -86 -67 -52, 5 16 27 39: where a code's highest bit is set, their signs
    const unsigned near_end = permute(kept(0xccbdaa8eU), 0x271b1005U, codes);
    // The complements of -39 -27 -16 -5, and 52 67 86 114: none is negative, so 0 where it is not.
    const unsigned other = permute(kept(0x040f1a26U), 0x72564334U, codes ^ 0x8888U);
    return near_end ^ other;
}
