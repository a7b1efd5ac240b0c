// A group of a token's activations in the lanes of a warp, rotated (docs/kernels.md, section 2.1):
// value 32 * i + lane of the group is the i-th of the lane.
#pragma once

#include "values.cuh"

// The transform of each block of `rotation` values, without its factor: (a, b) become (a + b, a -
// b).
template <int rotation, int count>
__device__ __forceinline__ void transform(float (&values)[count], int lane) {
#pragma unroll
    for (int stride = rotation / 2 / kLanes; stride > 0; stride /= 2)
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (i & stride) continue;
            const float a = values[i], b = values[i + stride];
            values[i] = __fadd_rn(a, b);
            values[i + stride] = __fsub_rn(a, b);
        }
#pragma unroll
    for (int stride = kLanes / 2; stride > 0; stride /= 2)
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const float mine = values[i], other = __shfl_xor_sync(kAllLanes, mine, stride);
            values[i] = lane & stride ? __fsub_rn(other, mine) : __fadd_rn(mine, other);
        }
}

// x: rows of `columns`, contiguous; what lies beyond them is zero. first_signs: D1. factors: D2, or
// D2 times what the transform lacks; both of a group's length.
template <Dtype dtype, int rotation, int count>
__device__ __forceinline__ void load_rotated(const void* x, int columns, int token, int g,
                                             const float* first_signs, const float* factors,
                                             float (&values)[count]) {
    const int lane = threadIdx.x % kLanes;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const int in_group = i * kLanes + lane, column = g * count * kLanes + in_group;
        const long long at = static_cast<long long>(token) * columns + column;
        const float value = column < columns ? load<dtype>(x, at) : 0.0F;
        values[i] = __fmul_rn(value, first_signs[in_group]);
    }
    transform<rotation>(values, lane);
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = __fmul_rn(values[i], factors[i * kLanes + lane]);
}
