// One small kernel for each thing that the emulation stands in for.
#include "emulation.h"

namespace {

std::string failure;

template <class Body>
const char* one_block(unsigned threads, int order, Body body) {
    failure = emulation::launch({1, 1, 1}, threads, static_cast<emulation::Order>(order), body);
    return failure.c_str();
}

// Every thread takes what the thread opposite left, `rounds` times.
__global__ void turn_around(int* values, int rounds, bool all_barriers) {
    __shared__ int shared[1024];
    const unsigned i = threadIdx.x, n = blockDim.x;
    for (int round = 0; round < rounds; ++round) {
        shared[i] = values[i] + round;
        __syncthreads();
        values[i] = shared[n - 1 - i];
        if (all_barriers) __syncthreads();
    }
}

}  // namespace

extern "C" {

const char* turned_around(int threads, int order, int* values, int rounds, int all_barriers) {
    return one_block(threads, order, [=] { turn_around(values, rounds, all_barriers); });
}

const char* barrier_of_some(int threads, int order, int some) {
    return one_block(threads, order, [=] {
        if (threadIdx.x < static_cast<unsigned>(some)) __syncthreads();
    });
}

const char* shuffled(int threads, int order, const int* from, int* values, int distance) {
    return one_block(threads, order, [=] {
        const unsigned i = threadIdx.x;
        int value = __shfl_sync(0xffffffffU, values[i], from[i]);
        value = __shfl_xor_sync(0xffffffffU, value, distance);
        values[i] = value;
    });
}

const char* shuffle_of_some(int threads, int order, int some) {
    return one_block(threads, order, [=] {
        if (threadIdx.x < static_cast<unsigned>(some)) __shfl_xor_sync(0xffffffffU, 1, 1);
    });
}

const char* shuffle_beside_maximum(int threads, int order) {
    return one_block(threads, order, [=] {
        if (threadIdx.x % 2)
            __shfl_xor_sync(0xffffffffU, 1, 1);
        else
            __reduce_max_sync(0xffffffffU, 1);
    });
}

// Each thread asks for its sixteen bytes twice, in batches of their own, and after the other in its
// place; leaves what it finds when it has waited for all but `may_lack` batches, and waits for all.
const char* copied(int threads, int order, const int* from, int* found, int may_lack, int waits) {
    return one_block(threads, order, [=] {
        __shared__ int shared[1024];
        const unsigned at = 4 * threadIdx.x;
        for (unsigned i = 0; i < 4; ++i) shared[at + i] = -1;
        copy_async(shared + at, from + at, true);
        end_batch();
        copy_async(shared + at, from + 4 * blockDim.x + at, true);
        copy_async(shared + at, from, false);
        end_batch();
        may_lack == 2   ? wait_for_batches<2>()
        : may_lack == 1 ? wait_for_batches<1>()
                        : wait_for_batches<0>();
        for (unsigned i = 0; i < 4; ++i) found[at + i] = shared[at + i];
        if (waits) wait_for_batches<0>();
    });
}

const char* left_beside_a_shuffle(int threads, int order) {
    return one_block(threads, order, [=] {
        if (threadIdx.x % 2)
            __syncwarp();
        else
            __shfl_xor_sync(0xffffffffU, 1, 1);
    });
}

const char* started(int order, int waits) {
    return one_block(32, order, [=] {
        if (waits) after_previous();
        let_next_start();
    });
}

const char* maxima(int threads, int order, unsigned* values) {
    return one_block(threads, order, [=] {
        values[threadIdx.x] = __reduce_max_sync(0xffffffffU, values[threadIdx.x]);
    });
}

// sums: (32, 4) fragments; a: (32, 4) words; b: (32, 2) words.
const char* multiplied(int order, int* sums, const unsigned* a, const unsigned* b) {
    return one_block(32, order, [=] {
        const unsigned i = threadIdx.x;
        int sum[4];
        unsigned left[4], right[2];
        std::memcpy(sum, sums + 4 * i, sizeof sum);
        std::memcpy(left, a + 4 * i, sizeof left);
        std::memcpy(right, b + 2 * i, sizeof right);
        mma_m16n8k32(sum, left, right);
        std::memcpy(sums + 4 * i, sum, sizeof sum);
    });
}

const char* permuted(int n, const unsigned* low, const unsigned* high, unsigned* selectors) {
    return one_block(n, 0, [=] {
        const unsigned i = threadIdx.x;
        selectors[i] = permute(low[i], high[i], selectors[i]);
    });
}

const char* dot_products(int n, const int* a, const int* b, int* sums) {
    return one_block(n, 0, [=] {
        const unsigned i = threadIdx.x;
        sums[i] = __dp4a(a[i], b[i], sums[i]);
    });
}

const char* rounded(int n, const float* values, int* whole) {
    return one_block(n, 0, [=] { whole[threadIdx.x] = __float2int_rn(values[threadIdx.x]); });
}

// Fused, a * b - c would not be zero where c is a * b rounded.
const char* products_less_themselves(int n, const float* a, const float* b, float* left) {
    return one_block(n, 0, [=] {
        const unsigned i = threadIdx.x;
        const float product = __fmul_rn(a[i], b[i]);
        left[i] = __fsub_rn(__fmul_rn(a[i], b[i]), product);
    });
}

}  // extern "C"
