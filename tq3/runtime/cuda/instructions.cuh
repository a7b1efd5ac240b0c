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

#endif
