// The instructions that CUDA C++ has no exact function for without headers. tests/cuda/emulation.h
// stands in for them.
#ifndef TQ3_INSTRUCTIONS
#define TQ3_INSTRUCTIONS

// sum (16 x 8) += a (16 x 32) times b (32 x 8), signed bytes, in the fragments of the PTX manual.
__device__ __forceinline__ void mma_m16n8k32(int (&sum)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four bytes of eight, by the lowest four nibbles of `selectors`: three bits choose a byte, the
// highest asks for its sign instead, in all eight bits.
__device__ __forceinline__ unsigned permute(unsigned low, unsigned high, unsigned selectors) {
    unsigned chosen;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(chosen) : "r"(low), "r"(high), "r"(selectors));
    return chosen;
}

// Where `is_wanted`, 16 bytes begin to come from global memory into shared memory: past the first
// cache, whose room is for what is read again. A branch would cost more than the copy.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_wanted) {
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile(
        "{ .reg .pred %%wanted; setp.ne.b32 %%wanted, %2, 0; "
        "@%%wanted cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(at),
        "l"(from), "r"(static_cast<int>(is_wanted))
        : "memory");
}

// The same for four bytes, which only come through the first cache.
__device__ __forceinline__ void copy_async(float* to, const float* from, bool is_wanted) {
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile(
        "{ .reg .pred %%wanted; setp.ne.b32 %%wanted, %2, 0; "
        "@%%wanted cp.async.ca.shared.global [%0], [%1], 4; }" ::"r"(at),
        "l"(from), "r"(static_cast<int>(is_wanted))
        : "memory");
}

// The shared memory that a launch asks for.
__device__ __forceinline__ void* shared_memory() {
    extern __shared__ uint4 memory[];
    return memory;
}

// What this thread asked for since the last one is a batch; an empty one counts, too.
__device__ __forceinline__ void end_batch() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until of the batches of this thread only the newest `may_lack` may not have come.
template <int may_lack>
__device__ __forceinline__ void wait_for_batches() {
    asm volatile("cp.async.wait_group %0;" ::"n"(may_lack) : "memory");
}

// A kernel that is launched with Call.early may start before the one ahead of it in the stream has
// ended. From here on all is there that kernels before wrote, and may be overwritten that they
// read. Below sm_90 kernels start when the one before has ended.
__device__ __forceinline__ void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start, if it is launched so, up to its own `after_previous`. Only behind this
// kernel's own one: so whatever wrote the weights has ended when a kernel asks for them early.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
