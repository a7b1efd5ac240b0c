// What a linear kernel is: five functions over plain memory, and the constants they are given.
//
// A kernel knows no Python, throws nothing, allocates nothing and may run on many threads at once.
// Its arithmetic is docs/kernels.md; tq3/runtime/reference.py says the same in torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace tq3 {

// The constants of one (bits, group, rotation), filled from tq3/runtime/arithmetic.py.
struct Width {
    int bits, group, rotation;
    std::int8_t whole_level[1 << kMaxBits];  // levels as whole numbers
    float unit;                              // of a level times a quantised activation
    float level[1 << kMaxBits];              // as the format has them
    float d1[kMaxGroup], d2[kMaxGroup];
    float inverse_root_rotation;  // 1 / sqrt(rotation)
};

// One packed layer: rows of `groups` groups each.
struct Layer {
    std::size_t rows, groups;
    const std::uint8_t* packed;
    const float* norms;
};

struct Range {
    std::size_t first, last;
};

struct LinearKernels {
    const char* name;
    // Memory that quantised tokens take, a multiple of 64.
    std::size_t (*quantised_bytes)(const Width&, std::size_t groups, std::size_t tokens);
    // x: `columns` values of `token`, one of `tokens`. `quantised`: the memory of all, aligned to
    // 64 bytes, zero at first.
    void (*quantise)(const Width&, std::size_t groups, std::size_t columns, Dtype, const void* x,
                     std::size_t tokens, std::size_t token, char* quantised);
    // Outputs `rows` of all tokens; out is (tokens, layer.rows).
    void (*multiply)(const Width&, const Layer&, Range rows, std::size_t tokens, char* quantised,
                     Dtype, void* out);
    // The other way, for many tokens: activations and weights in rotated space, for a GEMM.
    void (*rotate)(const Width&, std::size_t groups, std::size_t columns, Dtype, const void* x,
                   Dtype out_dtype, void* out);
    void (*decode)(const Width&, const Layer&, Range rows, Dtype, void* out);
};

}  // namespace tq3
