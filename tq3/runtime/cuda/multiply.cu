// A packed layer times quantised activations of up to four tokens.
//
// A warp does the units of a tile of 32 rows that are its turn: it decodes each weight once, to
// bytes that a tensor core multiplies by the high and the low bytes of all tokens at once. The
// terms of its groups go to the partial sums that docs/kernels.md gives them (section 2.5); the
// warps of a block add those up in the end.
#include "products.cuh"

constexpr int kWarpsABlock = 8;
// Floats of a token's rows in shared memory: four tokens of eight rows lie in different banks.
constexpr int kLine = kTile + 8;

// A warp has a turn: where units hold several groups, fewer warps do a tile, and a block several
// tiles.
template <int group>
constexpr int kTilesABlock = kWarpsABlock / kTurns<group>;

// First codes and norms on their way, then partial sums.
template <int bits, int group>
union Shared {
    Ring<bits, group> rings[kWarpsABlock];
    float partial[kTilesABlock<group>][kPartialSums][kTokens][kLine];
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
// jobs: one for each column of the grid, of up to four tokens; null for one layer and all tokens.
// Rows of the grid: a block for each kTilesABlock<group> tiles. Threads: kWarpsABlock warps.
template <Dtype dtype, int bits, int group>
__global__ void __launch_bounds__(kWarpsABlock* kLanes, 2)
    multiply(const Words* __restrict__ words, const Floats* __restrict__ norms,
             const signed char* __restrict__ quantised, const float* __restrict__ worths,
             void* __restrict__ y, int rows, int units, int tokens, const Job* __restrict__ jobs) {
    using S = Shape<group>;
    __shared__ Shared<bits, group> shared;
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int in_block = warp / kTurns<group>, turn = warp % kTurns<group>;
    const int first_tile = blockIdx.y * kTilesABlock<group>, tile = first_tile + in_block;
    // What is to be done may be the word of the kernel before.
    if (jobs) after_previous();
    const Job job = jobs ? jobs[blockIdx.x] : Job{0, 0, tokens, 0};
    if (job.first >= job.end) return;

    float totals[S::groups_a_unit][4] = {};
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
    each_group<bits, group>(work, shared.rings[warp], turn, kTurns<group>, lane,
                            [&](int, int k, const float (&terms)[4]) {
#pragma unroll
                                for (int i = 0; i < 4; ++i)
                                    totals[k][i] = __fadd_rn(totals[k][i], terms[i]);
                            });
    __syncthreads();
#pragma unroll
    for (int k = 0; k < S::groups_a_unit; ++k)
        for (int i = 0; i < 4; ++i)
            shared.partial[in_block][turn * S::groups_a_unit + k][lane % 4][lane / 4 + 8 * i] =
                totals[k][i];
    __syncthreads();
    constexpr int results = kTilesABlock<group> * kTokens * kTile;
    for (int i = threadIdx.x; i < results; i += kWarpsABlock * kLanes) {
        const int of_tile = i / (kTokens * kTile), of_job = i / kTile % kTokens;
        const int token = job.first + of_job;
        const int row = (first_tile + of_tile) * kTile + i % kTile;
        if (row >= rows || token >= job.end) continue;
        const long long place = static_cast<long long>(token) * rows + row;
        store<dtype>(y, place, add_up(shared.partial[of_tile], of_job, i % kTile));
    }
}
