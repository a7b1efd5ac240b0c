// The codes of a packed layer, in the order that layout.py brings them into.
#pragma once

#include "values.cuh"

constexpr int kTile = 32;

struct alignas(16) Words {
    unsigned word[4];
};
struct alignas(16) Floats {
    float value[4];
};

// What a lane holds of a unit of a tile: the codes of rows r, r + 8, r + 16 and r + 24.
template <int bits>
struct Packed {
    Words words[bits];
};

// words: of the unit.
template <int bits>
__device__ __forceinline__ Packed<bits> load_packed(const Words* words, int lane) {
    Packed<bits> packed;
#pragma unroll
    for (int i = 0; i < bits; ++i) packed.words[i] = words[i * kLanes + lane];
    return packed;
}

// The codes of row r + 8 * row in nibbles, eight for each 32 inputs of the unit.
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
    } else {
        constexpr unsigned kOnes = 0x11111111U, kCodes = 7 * kOnes;
        for (int i = 0; i < 3; ++i) codes[i] = words[i] & kCodes;
        codes[3] =
            (words[0] >> 3 & kOnes) | (words[1] >> 2 & 2 * kOnes) | (words[2] >> 1 & 4 * kOnes);
    }
}
