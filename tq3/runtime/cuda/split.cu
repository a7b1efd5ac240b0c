// The same for layers with too few tiles to keep a device busy: more warps do a tile, each leaves
// its terms in memory, and a second kernel adds them up in the order of docs/kernels.md (section
// 2.5).
#include "products.cuh"

constexpr int kWarpsABlock = 8;
// Of a multiprocessor, so that registers allow them. For sm_120 the compiler needs more registers
// than three blocks leave it, or spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kBlocks = 2;
#else
constexpr int kBlocks = 3;
#endif

// Arguments as of multiply.cu. terms: (groups of the units, tokens, rows).
// tokens: up to four. Columns of the grid share the units of a tile; rows of the grid are tiles.
template <int bits, int group>
__global__ void __launch_bounds__(kWarpsABlock* kLanes, kBlocks)
    multiply_terms(const Words* __restrict__ words, const Floats* __restrict__ norms,
                   const signed char* __restrict__ quantised, const float* __restrict__ worths,
                   float* __restrict__ terms, int rows, int units, int tokens) {
    using S = Shape<group>;
    __shared__ Ring<bits, group> rings[kWarpsABlock];
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, tile = blockIdx.y;
    const int groups = units / S::units_a_group * S::groups_a_unit;
    const Work work{words + static_cast<long long>(tile) * units * bits * kLanes,
                    norms + static_cast<long long>(tile) * groups * 8,
                    quantised,
                    worths,
                    units,
                    tokens,
                    0,
                    tokens};
    each_group<bits, group>(work, rings[warp], blockIdx.x * kWarpsABlock + warp,
                            gridDim.x * kWarpsABlock, lane,
                            [&](int step, int k, const float (&of_rows)[4]) {
                                const long long g = step * S::groups_a_unit + k;
                                const int token = lane % 4;
                                for (int i = 0; i < 4; ++i) {
                                    const int row = tile * kTile + lane / 4 + 8 * i;
                                    if (row >= rows || token >= tokens) continue;
                                    terms[(g * tokens + token) * rows + row] = of_rows[i];
                                }
                            });
}

// A thread for each result of rows first_row to first_row + of_rows - 1 of `rows`.
// terms: (groups, tokens, of_rows), or partial sums in the place of groups, which share.cu has
// added up to eight or fewer; y: (tokens, rows)
template <Dtype dtype>
__global__ void __launch_bounds__(kWarpsABlock* kLanes)
    add_terms(const float* __restrict__ terms, void* __restrict__ y, int groups, int tokens,
              int first_row, int of_rows, int rows) {
    const int i = blockIdx.x * kWarpsABlock * kLanes + threadIdx.x, results = tokens * of_rows;
    after_previous();
    let_next_start();
    if (i >= results) return;
    float p[kPartialSums] = {};
    for (int g = 0; g < groups; g += kPartialSums)
#pragma unroll
        for (int k = 0; k < kPartialSums; ++k)
            if (g + k < groups)
                p[k] = __fadd_rn(p[k], terms[static_cast<long long>(g + k) * results + i]);
#pragma unroll
    for (int half = kPartialSums / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) p[k] = __fadd_rn(p[k], p[k + half]);
    store<dtype>(y, static_cast<long long>(i / of_rows) * rows + first_row + i % of_rows, p[0]);
}
