// A packed layer times quantised activations.
//
// A warp does the units of a tile of 32 rows that are its turn: it decodes each weight once, to
// bytes that a tensor core multiplies by the high and the low bytes of four tokens at a time. The
// terms of its groups go to the partial sums that docs/kernels.md gives them (section 2.5); the
// warps of a block add those up in the end.
#include "products.cuh"

constexpr int kWarpsATile = 8;
constexpr int kPartialSums = 8;
// Floats of a token's rows in shared memory: four tokens of eight rows lie in different banks.
constexpr int kLine = kTile + 8;

// What a block is to multiply of several layers: tokens `first` to `end` by layer `layer`.
struct alignas(16) Job {
    int layer, first, end, unused;
};

// Groups whose numbers differ by eight share a partial sum, and a warp has all units of some
// partial sums: where units hold several groups, fewer warps do a tile, and a block several tiles.
template <int group>
struct Turns {
    static constexpr int tiles_a_block = Shape<group>::groups_a_unit;
    static constexpr int warps_a_tile = kWarpsATile / tiles_a_block;
};

// Blocks that the compiler is told to find room for on a multiprocessor, 0 for what it thinks best:
// so none of bfloat16 spills, and two blocks run in groups of 128 (tests/cuda/test_limits.py).
template <int group, int columns>
constexpr int kBlocksAtOnce = columns == 1                                   ? 2
                              : columns == 2 || (group > 128 && columns < 8) ? 1
                                                                             : 0;

// First codes and norms on their way, then the partial sums of one column of tokens.
template <int bits, int group>
union Shared {
    Ring<bits, group> rings[kWarpsATile];
    float partial[Turns<group>::tiles_a_block][kPartialSums][kTokens][kLine];
};

__device__ __forceinline__ float add_up(float (&partial)[kPartialSums][kTokens][kLine], int token,
                                        int row) {
    float p[kPartialSums];
#pragma unroll
    for (int k = 0; k < kPartialSums; ++k) p[k] = partial[k][token][row];
#pragma unroll
    for (int half = kPartialSums / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) p[k] = __fadd_rn(p[k], p[k + half]);
    return p[0];
}

// words: (layers, tiles, units, bits, 32, 4); norms: (layers, tiles, groups of the units, 8, 4),
// both of layout.repack. quantised, worths: of rotate_quantise. y: (tokens, rows).
// jobs: one for each column of the grid; null for one layer, where column i has the tokens from
// 4 * columns * i on. Rows of the grid: a block for each Turns<group>::tiles_a_block tiles.
// Threads: kWarpsATile warps.
template <Dtype dtype, int bits, int group, int columns>
__global__ void __launch_bounds__(kWarpsATile* kLanes, (kBlocksAtOnce<group, columns>))
    multiply(const Words* __restrict__ words, const Floats* __restrict__ norms,
             const signed char* __restrict__ quantised, const float* __restrict__ worths,
             void* __restrict__ y, int rows, int units, int tokens, const Job* __restrict__ jobs) {
    using S = Shape<group>;
    using T = Turns<group>;
    __shared__ Shared<bits, group> shared;
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int in_block = warp / T::warps_a_tile, turn = warp % T::warps_a_tile;
    const int first_tile = blockIdx.y * T::tiles_a_block, tile = first_tile + in_block;
    // What is to be done may be the word of the kernel before.
    if (jobs) after_previous();
    const Job job = jobs ? jobs[blockIdx.x]
                         : Job{0, static_cast<int>(blockIdx.x) * columns * kTokens, tokens, 0};
    if (job.first >= job.end) return;

    float totals[S::groups_a_unit][columns][4] = {};
    const long long tiles = (rows + kTile - 1) / kTile, at = job.layer * tiles + tile;
    const int groups = units / S::units_a_group * S::groups_a_unit;
    const Work work{words + at * units * bits * kLanes,
                    norms + at * groups * 8,
                    quantised,
                    worths,
                    tile < tiles ? units : 0,
                    tokens,
                    job.first,
                    job.end};
    each_group<bits, group, columns>(work, shared.rings[warp], turn, T::warps_a_tile, lane,
                                     [&](int, int k, int c, const float (&terms)[4]) {
#pragma unroll
                                         for (int i = 0; i < 4; ++i)
                                             totals[k][c][i] = __fadd_rn(totals[k][c][i], terms[i]);
                                     });
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < S::groups_a_unit; ++k)
            for (int i = 0; i < 4; ++i)
                shared.partial[in_block][turn * S::groups_a_unit + k][lane % 4][lane / 4 + 8 * i] =
                    totals[k][c][i];
        __syncthreads();
        constexpr int results = T::tiles_a_block * kTokens * kTile;
        for (int i = threadIdx.x; i < results; i += kWarpsATile * kLanes) {
            const int of_tile = i / (kTokens * kTile), in_column = i / kTile % kTokens;
            const int token = job.first + c * kTokens + in_column;
            const int row = (first_tile + of_tile) * kTile + i % kTile;
            if (row >= rows || token >= job.end) continue;
            const long long place = static_cast<long long>(token) * rows + row;
            store<dtype>(y, place, add_up(shared.partial[of_tile], in_column, i % kTile));
        }
    }
}
