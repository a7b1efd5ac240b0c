// Activations of a packed layer, rotated: what is multiplied by weights that decode.cu wrote.
//
// One warp does one group of one token, and rounds each value once to the format of x.
#include "rotation.cuh"
#include "values.cuh"

constexpr int kWarps = 8;

// x: (tokens, columns). first_signs: D1; factors: D2 over the root of `rotation`; `group` floats.
// rotated: (tokens, groups * group), where groups hold all columns.
// Threads: kWarps warps a block, a warp for each of tokens * groups.
template <Dtype dtype, int group, int rotation>
__global__ void __launch_bounds__(kWarps* kLanes)
    rotate(const void* __restrict__ x, int columns, int tokens, int groups,
           const float* __restrict__ first_signs, const float* __restrict__ factors,
           void* __restrict__ rotated) {
    constexpr int count = group / kLanes;
    const int lane = threadIdx.x % kLanes;
    const int job = blockIdx.x * kWarps + threadIdx.x / kLanes;
    const int token = job / groups, g = job % groups;
    if (token >= tokens) return;

    float values[count];
    load_rotated<dtype, rotation>(x, columns, token, g, first_signs, factors, values);
#pragma unroll
    for (int i = 0; i < count; ++i)
        store<dtype>(rotated, static_cast<long long>(job) * group + i * kLanes + lane, values[i]);
}
