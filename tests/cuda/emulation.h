// A CUDA device on a processor: what a kernel calls, over the threads of fibers.h.
//
// A kernel's own source is included below this file and compiled for the host.
// tests/cuda/test_emulation.py holds each function against what the manuals say.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "fibers.h"

namespace emulation {

inline Index thread_index() {
    return {self->index, 0, 0};
}

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline unsigned lane() {
    return self->index % kLanes;
}

inline void need_all_lanes(unsigned mask, const char* operation) {
    if (mask != 0xffffffffU) fail(std::string(operation) + " of some lanes only");
}

}  // namespace emulation

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time.
#define __shared__ static
#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)

using std::max;
using std::min;

inline void __syncthreads() {
    emulation::meet(emulation::block->barrier);
}

inline void __syncwarp() {
    emulation::exchange("wait of a warp", {});
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from) {
    emulation::need_all_lanes(mask, "shuffle");
    const auto word = emulation::same_bits<std::uint32_t>(value);
    const auto& all = emulation::exchange("shuffle", {word});
    return emulation::same_bits<T>(all[static_cast<unsigned>(from) % emulation::kLanes][0]);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return __shfl_sync(mask, value, static_cast<int>(emulation::lane()) ^ distance);
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    emulation::need_all_lanes(mask, "maximum");
    unsigned most = 0;
    for (const auto& words : emulation::exchange("maximum", {value})) most = max(most, words[0]);
    return most;
}

inline float __uint_as_float(unsigned bits) {
    return emulation::same_bits<float>(bits);
}
inline unsigned __float_as_uint(float value) {
    return emulation::same_bits<unsigned>(value);
}

// Each rounds once: this is compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __int2float_rn(int value) {
    return static_cast<float>(value);
}
inline int __float2int_rn(float value) {
    return static_cast<int>(std::nearbyint(value));
}

// Four bytes of eight, or their signs.
inline unsigned permute(unsigned low, unsigned high, unsigned selectors) {
    const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
    unsigned chosen = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned selector = selectors >> 4 * i & 15;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (selector & 7) & 0xff);
        if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
        chosen |= byte << 8 * i;
    }
    return chosen;
}

namespace emulation {

inline int signed_byte(unsigned word, unsigned i) {
    return static_cast<std::int8_t>(word >> 8 * i);
}

}  // namespace emulation

inline int __dp4a(int a, int b, int sum) {
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i)
        sum += emulation::signed_byte(static_cast<unsigned>(a), i) *
               emulation::signed_byte(static_cast<unsigned>(b), i);
    return sum;
}

#define TQ3_INSTRUCTIONS  // instructions.cuh is not needed

inline void copy_async(void* to, const void* from, bool is_wanted) {
    if (is_wanted) emulation::copy_later(to, from, 16);
}
inline void copy_async(float* to, const float* from, bool is_wanted) {
    if (is_wanted) emulation::copy_later(to, from, 4);
}
inline void* shared_memory() {
    return emulation::block->shared.data();
}
inline void end_batch() {
    emulation::self->copies.emplace_back();
}
template <int may_lack>
inline void wait_for_batches() {
    emulation::let_copies_come(may_lack);
}

// Launches follow one another here; only the order of the two is seen.
inline void after_previous() {
    emulation::self->is_after_previous = true;
}
inline void let_next_start() {
    if (!emulation::self->is_after_previous)
        emulation::fail("lets the next kernel start before it has waited for the previous one");
}

// mma.m16n8k32.s8: sum (16 x 8) += a (16 x 32) times b (32 x 8), in the fragments of the PTX
// manual. A lane is (r, t) = (lane / 4, lane % 4), and four bytes lie in a word:
//   a[i]    row r + 8 (i % 2), columns 4 t + 16 (i / 2) and following
//   b[i]    rows 4 t + 16 i and following, column r
//   sum[i]  row r + 8 (i / 2), column 2 t + i % 2
inline void mma_m16n8k32(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const auto& all = emulation::exchange("mma", {a[0], a[1], a[2], a[3], b[0], b[1]});
    const unsigned r = emulation::lane() / 4, t = emulation::lane() % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = r + 8 * (i / 2), column = 2 * t + i % 2;
        for (unsigned quarter = 0; quarter < 4; ++quarter) {
            const auto& left = all[row % 8 * 4 + quarter];
            const auto& right = all[column * 4 + quarter];
            for (unsigned half = 0; half < 2; ++half)
                sum[i] = __dp4a(static_cast<int>(left[row / 8 + 2 * half]),
                                static_cast<int>(right[4 + half]), sum[i]);
        }
    }
}
