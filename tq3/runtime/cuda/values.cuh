// What the kernels share: number formats of activations and results, and how values lie in memory.
#pragma once

enum class Dtype { kBF16, kF16, kF32 };

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
// Inputs whose bytes lie together: what a warp multiplies at once (layout.py).
constexpr int kUnit = 128;
// Magnitudes of floats are in order as whole numbers, and a NaN's is above that of infinity.
constexpr unsigned kMagnitude = 0x7fffffffU;
constexpr unsigned kInfinity = 0x7f800000U;

// A half has five bits of exponent, biased by 15: shifted into a float's place they count from
// -127.
__device__ __forceinline__ float float_of_half(unsigned half) {
    const float magnitude = __uint_as_float((half & 0x7fffU) << 13);
    const unsigned scaled =
        __float_as_uint(__fmul_rn(magnitude, 5.192296858534828e+33F));  // 2**112
    const bool finite = (half & 0x7c00U) != 0x7c00U;
    return __uint_as_float((finite ? scaled : scaled | kInfinity) | (half & 0x8000U) << 16);
}

// To the nearest, half to even.
__device__ __forceinline__ unsigned half_of_float(float value) {
    const unsigned bits = __float_as_uint(value), magnitude = bits & kMagnitude;
    unsigned half;
    if (magnitude > kInfinity) {
        half = 0x7e00U;
    } else if (magnitude >= 0x477ff000U) {  // 65520, half a step above the largest
        half = 0x7c00U;
    } else if (magnitude >= 0x38800000U) {  // 2**-14, the smallest normal one
        half = (magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
    } else {  // Beside 0.5 the last bit of a float is worth 2**-24, as that of a denormal half.
        half = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0.5F)) - 0x3f000000U;
    }
    return half | (bits >> 16 & 0x8000U);
}

__device__ __forceinline__ unsigned bfloat_of_float(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & kMagnitude) > kInfinity) return 0x7fc0U;
    return (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
}

template <Dtype dtype>
__device__ __forceinline__ float load(const void* x, long long i) {
    if constexpr (dtype == Dtype::kF32) return static_cast<const float*>(x)[i];
    const unsigned word = static_cast<const unsigned short*>(x)[i];
    if constexpr (dtype == Dtype::kBF16) return __uint_as_float(word << 16);
    return float_of_half(word);
}

// The word of a value in its format.
template <Dtype dtype>
__device__ __forceinline__ unsigned rounded(float value) {
    if constexpr (dtype == Dtype::kF32) return __float_as_uint(value);
    return dtype == Dtype::kBF16 ? bfloat_of_float(value) : half_of_float(value);
}

template <Dtype dtype>
__device__ __forceinline__ void store(void* y, long long i, float value) {
    if constexpr (dtype == Dtype::kF32)
        static_cast<float*>(y)[i] = value;
    else
        static_cast<unsigned short*>(y)[i] = static_cast<unsigned short>(rounded<dtype>(value));
}
