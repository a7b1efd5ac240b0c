// The one instruction that CUDA C++ has no function for without headers. tests/cuda/emulation.h
// stands in for it.
#ifndef TQ3_TENSOR_CORE
#define TQ3_TENSOR_CORE

// sum (16 x 8) += a (16 x 32) times b (32 x 8), signed bytes, in the fragments of the PTX manual.
__device__ __forceinline__ void mma_m16n8k32(int (&sum)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
