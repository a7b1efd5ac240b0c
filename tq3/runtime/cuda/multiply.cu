// A packed layer of 2 or 3 bits times quantised activations, up to 32 tokens a launch.
//
// A warp does the units of a tile of 32 rows that are its turn: it decodes each weight once, to
// bytes that a tensor core multiplies by the high and the low bytes of four tokens at a time. The
// terms of its groups go to the partial sums that docs/kernels.md gives them (sections 2.3 to 2.6);
// the warps of a block add those up in the end.
#include "codes.cuh"
#include "tensor_core.cuh"
#include "values.cuh"

constexpr int kWarps = 8;
constexpr int kPartialSums = 8;
// Tokens that a tensor core takes at once: eight columns of high or low bytes.
constexpr int kTokens = 4;

// Levels, code 0 first, as bytes of two words; 2 bits use the first.
template <int bits>
struct Levels;
template <>
struct Levels<2> {
    static constexpr unsigned kLow = 0x0a03fdf6U, kHigh = 0;  // -10 -3 3 10
};
template <>
struct Levels<3> {
    static constexpr unsigned kLow = 0xf6e1c9a8U;   // -88 -55 -31 -10
    static constexpr unsigned kHigh = 0x58371f0aU;  // 10 31 55 88
};

// The bytes of 16 rows and 32 inputs, from the codes of a row and of the row eight below.
template <int bits>
__device__ __forceinline__ void decode(unsigned upper, unsigned lower, unsigned (&a)[4]) {
    constexpr unsigned low = Levels<bits>::kLow, high = Levels<bits>::kHigh;
    a[0] = __byte_perm(low, high, upper);
    a[1] = __byte_perm(low, high, lower);
    a[2] = __byte_perm(low, high, upper >> 16);
    a[3] = __byte_perm(low, high, lower >> 16);
}

// What a lane holds of a unit of activations: a token's high or low bytes, of 8 inputs in each 32.
struct Activations {
    Words half[2];
};

__device__ __forceinline__ Activations load_activations(const signed char* quantised, int unit,
                                                        int tokens, int first_token, int lane) {
    const int token = first_token + lane / 8, part = lane / 4 % 2, t = lane % 4;
    if (token >= tokens) return {};
    const long long token_unit = static_cast<long long>(unit) * tokens + token;
    const signed char* bytes = quantised + (token_unit * 2 + part) * kUnit + t * 16;
    return {*reinterpret_cast<const Words*>(bytes),
            *reinterpret_cast<const Words*>(bytes + kUnit / 2)};
}

// Adds the products of inputs 32 * stretch and following: sums[s] of rows 16 s to 16 s + 15.
template <int bits>
__device__ __forceinline__ void multiply_stretch(const unsigned (&selectors)[4][4], int stretch,
                                                 const Activations& x, int (&sums)[2][4]) {
    const Words& words = x.half[stretch / 2];
    const unsigned b[2] = {words.word[stretch % 2 * 2], words.word[stretch % 2 * 2 + 1]};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        unsigned a[4];
        decode<bits>(selectors[2 * s][stretch], selectors[2 * s + 1][stretch], a);
        mma_m16n8k32(sums[s], a, b);
    }
}

// The sums of a group become terms, are added to the totals of a lane's four rows, and start anew.
__device__ __forceinline__ void add_terms(int (&sums)[2][4], float worth, const Floats& norm,
                                          float (&totals)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int &high = sums[i / 2][i % 2 * 2], &low = sums[i / 2][i % 2 * 2 + 1];
        const float sum = __int2float_rn(256 * high + low);
        totals[i] = __fadd_rn(totals[i], __fmul_rn(__fmul_rn(sum, worth), norm.value[i]));
        high = low = 0;
    }
}

// How groups, units and the warps of a block go together. Groups whose numbers differ by eight
// share a partial sum, and a warp has all units of some partial sums: where units hold several
// groups, fewer warps do a tile.
template <int group>
struct Shape {
    static constexpr int groups_a_unit = group < kUnit ? kUnit / group : 1;
    static constexpr int units_a_group = group < kUnit ? 1 : group / kUnit;
    static constexpr int stretches_a_group = group < kUnit ? group / 32 : 4;
    static constexpr int tiles_a_block = groups_a_unit;
    static constexpr int warps_a_tile = kWarps / tiles_a_block;
};

// What a block is given; pointers to weights and norms are those of its warp's tile. tokens: all of
// the activations, of which this launch does those from `first` on that its columns take.
struct Work {
    const Words* words;
    const Floats* norms;
    const signed char* quantised;
    const float* worths;
    int units, tokens, first;
};

// Totals of the partial sums that are this warp's: of units `turn`, `turn` + warps_a_tile, ... (of
// pairs in groups of 256).
template <int bits, int group, int columns>
__device__ __forceinline__ void sum_terms(
    const Work& work, int turn, int lane,
    float (&totals)[Shape<group>::groups_a_unit][columns][4]) {
    using S = Shape<group>;
    for (int step = turn; step < work.units / S::units_a_group; step += S::warps_a_tile) {
        int sums[columns][2][4] = {};
#pragma unroll
        for (int part = 0; part < S::units_a_group; ++part) {
            const int unit = step * S::units_a_group + part;
            const Packed<bits> packed =
                load_packed<bits>(work.words + static_cast<long long>(unit) * bits * kLanes, lane);
            unsigned selectors[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) spread(packed, i, selectors[i]);
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const int first = work.first + c * kTokens, token = first + lane % 4;
                const Activations x =
                    load_activations(work.quantised, unit, work.tokens, first, lane);
#pragma unroll
                for (int stretch = 0; stretch < 4; ++stretch) {
                    multiply_stretch<bits>(selectors, stretch, x, sums[c]);
                    const bool group_ends = (stretch + 1) % S::stretches_a_group == 0;
                    if (!group_ends || part + 1 < S::units_a_group) continue;
                    const int k = stretch / S::stretches_a_group;
                    const long long g = step * S::groups_a_unit + k;
                    const float worth =
                        token < work.tokens ? work.worths[g * work.tokens + token] : 0.0F;
                    add_terms(sums[c], worth, work.norms[g * 8 + lane / 4], totals[k][c]);
                }
            }
        }
    }
}

__device__ __forceinline__ float add_up(float (&partial)[kPartialSums][kTokens][kTile + 1],
                                        int token, int row) {
    float p[kPartialSums];
#pragma unroll
    for (int k = 0; k < kPartialSums; ++k) p[k] = partial[k][token][row];
#pragma unroll
    for (int half = kPartialSums / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) p[k] = __fadd_rn(p[k], p[k + half]);
    return p[0];
}

// words: (tiles, units, bits, 32, 4); norms: (tiles, groups of the units, 8, 4), both of
// layout.repack. quantised, worths: of rotate_quantise. y: (tokens, rows), of which a launch writes
// 4 * columns tokens from `first` on, if there are as many.
// Threads: kWarps warps a block, a block for each Shape<group>::tiles_a_block tiles.
template <Dtype dtype, int bits, int group, int columns>
__global__ void __launch_bounds__(kWarps* kLanes)
    multiply(const Words* __restrict__ words, const Floats* __restrict__ norms,
             const signed char* __restrict__ quantised, const float* __restrict__ worths,
             void* __restrict__ y, int rows, int units, int tokens, int first) {
    using S = Shape<group>;
    // The last float keeps rows of one partial sum out of each other's banks.
    __shared__ float partial[S::tiles_a_block][kPartialSums][kTokens][kTile + 1];
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int in_block = warp / S::warps_a_tile, turn = warp % S::warps_a_tile;
    const long long tile = blockIdx.x * S::tiles_a_block + in_block;

    float totals[S::groups_a_unit][columns][4] = {};
    if (tile * kTile < rows) {
        const long long groups = units * S::groups_a_unit / S::units_a_group;
        const Work work{words + tile * units * bits * kLanes,
                        norms + tile * groups * 8,
                        quantised,
                        worths,
                        units,
                        tokens,
                        first};
        sum_terms<bits, group, columns>(work, turn, lane, totals);
    }
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        if (c > 0) __syncthreads();
#pragma unroll
        for (int k = 0; k < S::groups_a_unit; ++k)
            for (int i = 0; i < 4; ++i)
                partial[in_block][turn * S::groups_a_unit + k][lane % 4][lane / 4 + 8 * i] =
                    totals[k][c][i];
        __syncthreads();
        constexpr int results = S::tiles_a_block * kTokens * kTile;
        for (int i = threadIdx.x; i < results; i += kWarps * kLanes) {
            const int of_tile = i / (kTokens * kTile), in_column = i / kTile % kTokens;
            const int token = first + c * kTokens + in_column;
            const int row = (blockIdx.x * S::tiles_a_block + of_tile) * kTile + i % kTile;
            if (row >= rows || token >= tokens) continue;
            const long long at = static_cast<long long>(token) * rows + row;
            store<dtype>(y, at, add_up(partial[of_tile], in_column, i % kTile));
        }
    }
}
