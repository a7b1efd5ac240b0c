// A packed layer applied to tokens: which thread does what.
#pragma once

#include "linear.h"
#include "threads.h"

namespace tq3 {

// x: (tokens, columns) of `dtype`, out: (tokens, layer.rows) of the same
void apply_layer(const LinearKernels&, const Width&, const Layer&, const Threads&,
                 std::size_t tokens, std::size_t columns, Dtype dtype, const void* x, void* out);

// Activations and some rows of weights in rotated space: (tokens, groups * group) and
// (rows, groups * group) of out_dtype
void rotate_tokens(const LinearKernels&, const Width&, const Threads&, std::size_t groups,
                   std::size_t tokens, std::size_t columns, Dtype dtype, const void* x,
                   Dtype out_dtype, void* out);
void decode_rows(const LinearKernels&, const Width&, const Layer&, const Threads&, Range rows,
                 Dtype out_dtype, void* out);

}  // namespace tq3
