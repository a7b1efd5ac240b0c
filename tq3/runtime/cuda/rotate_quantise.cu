// Activations of a packed layer: rotated, quantised, and laid out as the multiplication reads them.
//
// One warp does one group of one token. docs/kernels.md fixes every rounding (sections 2.1
// and 2.2): so each operation is an intrinsic, which no compiler fuses with another. This file
// needs no header, and compiles for sm_80 and later.

#include "instructions.cuh"
#include "rotation.cuh"
#include "values.cuh"

constexpr int kWarpsABlock = 8;
constexpr float kLargest = 32512.0F;
constexpr unsigned kSmallest = (127U - 100U) << 23;  // 2**-100

template <int count>
__device__ __forceinline__ unsigned largest_magnitude(const float (&values)[count]) {
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const unsigned magnitude = __float_as_uint(values[i]) & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return __reduce_max_sync(kAllLanes, largest);
}

// Where the byte of an input lies in its unit. A lane t of four multiplies inputs 8 t to 8 t + 7 of
// each 32: those of two times 32 inputs lie together, so that it reads 16 bytes at once.
__device__ __forceinline__ int place_in_unit(int input) {
    const int stretch = input / 32, t = input % 32 / 8;
    return stretch / 2 * 64 + t * 16 + stretch % 2 * 8 + input % 8;
}

// x: tokens rows of `columns`, contiguous. first_signs, second_signs: D1 and D2, `group` floats.
// padded_groups: of a row, a whole number of units; what lies beyond the columns is zero.
// quantised: (padded_groups * group / 128, tokens, 2, 128) bytes, the high ones and the low ones:
// value = 256 high + low. worths: (padded_groups, tokens), the scale of the group times `unit`.
// Threads: kWarpsABlock warps a block, a warp for each of padded_groups * tokens.
template <Dtype dtype, int group, int rotation>
__global__ void __launch_bounds__(kWarpsABlock* kLanes)
    rotate_quantise(const void* __restrict__ x, int columns, int tokens, int padded_groups,
                    const float* __restrict__ first_signs, const float* __restrict__ second_signs,
                    float unit, signed char* __restrict__ quantised, float* __restrict__ worths) {
    constexpr int count = group / kLanes;
    const int lane = threadIdx.x % kLanes;
    const long long job = static_cast<long long>(blockIdx.x) * kWarpsABlock + threadIdx.x / kLanes;
    after_previous();
    let_next_start();
    if (job >= static_cast<long long>(padded_groups) * tokens) return;
    const int g = static_cast<int>(job / tokens), token = static_cast<int>(job % tokens);

    float values[count];
    load_rotated<dtype, rotation>(x, columns, token, g, first_signs, second_signs, values);

    const unsigned largest = largest_magnitude(values);
    const float magnitude = __uint_as_float(largest);
    const bool finite = largest < kInfinity, some = finite && largest >= kSmallest;
    const float step = some ? __fdiv_rn(kLargest, magnitude) : 0.0F;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        // Not clamped: two roundings take the largest magnitude to less than 32512.01.
        const int whole = finite ? __float2int_rn(__fmul_rn(values[i], step)) : 0;
        const signed char low = static_cast<signed char>(whole & 0xff);
        const int column = g * group + i * kLanes + lane;
        const long long token_unit = static_cast<long long>(column / kUnit) * tokens + token;
        signed char* bytes = quantised + token_unit * 2 * kUnit + place_in_unit(column % kUnit);
        bytes[0] = static_cast<signed char>((whole - low) / 256);
        bytes[kUnit] = low;
    }
    if (lane > 0) return;
    const float scale = some ? __fdiv_rn(magnitude, kLargest) : 0.0F;
    worths[job] = finite ? __fmul_rn(scale, unit) : __uint_as_float(0x7fc00000U);
}
