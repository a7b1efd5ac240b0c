// A packed layer applied to tokens: which thread does what.
#include "layer.h"

#include <cstring>
#include <memory>

#include "recent.h"

namespace tq3 {
namespace {

// A block of rows takes some five microseconds: no less than it costs to wake a thread, and short
// beside a layer. Kernels take rows by the dozen: blocks are a multiple of what the widest takes.
constexpr std::size_t kWeightsABlock = std::size_t{1} << 18, kRowsTogether = 32;

// Weights times tokens, some 30 microseconds, below which one thread does all: a second one saves
// little, and where other programs want the processors, too, it may be waited for for milliseconds.
constexpr std::size_t kWorthThreads = std::size_t{1} << 20;

thread_local Recent recent;

std::size_t words_size(Dtype dtype) {
    return dtype == Dtype::kF32 ? 4 : 2;
}

std::size_t ceil_div(std::size_t a, std::size_t b) {
    return (a + b - 1) / b;
}

Threads as_many_as_worth(const Threads& threads, std::size_t work) {
    return {threads.torch, work < kWorthThreads ? 1 : threads.count};
}

template <class Work>
void for_each_range(const Threads& threads, Range all, std::size_t weights_a_row,
                    const Work& work) {
    const std::size_t step =
        ceil_div(kWeightsABlock, weights_a_row * kRowsTogether) * kRowsTogether;
    for_each_block(threads, ceil_div(all.last - all.first, step), [&](std::size_t block) {
        const std::size_t first = all.first + block * step, last = first + step;
        work(Range{first, last < all.last ? last : all.last});
    });
}

void quantise_tokens(const LinearKernels& kernels, const Width& width, const Threads& threads,
                     std::size_t groups, std::size_t tokens, std::size_t columns, Dtype dtype,
                     const void* x, char* quantised) {
    std::memset(quantised, 0, kernels.quantised_bytes(width, groups, tokens));
    const auto* words = static_cast<const char*>(x);
    for_each_block(as_many_as_worth(threads, tokens * columns), tokens, [&](std::size_t t) {
        kernels.quantise(width, groups, columns, dtype, words + t * columns * words_size(dtype),
                         tokens, t, quantised);
    });
}

void multiply_quantised(const LinearKernels& kernels, const Width& width, const Layer& layer,
                        const Threads& threads, std::size_t tokens, char* quantised, Dtype dtype,
                        void* out) {
    const std::size_t row = layer.groups * static_cast<std::size_t>(width.group);
    const Threads several = as_many_as_worth(threads, layer.rows * row * tokens);
    for_each_range(several, {0, layer.rows}, row, [&](Range rows) {
        kernels.multiply(width, layer, rows, tokens, quantised, dtype, out);
    });
}

}  // namespace

void apply_layer(const LinearKernels& kernels, const Width& width, const Layer& layer,
                 const Threads& threads, std::size_t tokens, std::size_t columns, Dtype dtype,
                 const void* x, void* out) {
    const std::size_t size = kernels.quantised_bytes(width, layer.groups, tokens);
    const std::size_t bytes = tokens * columns * words_size(dtype);
    const auto quantise = [&](char* quantised) {
        quantise_tokens(kernels, width, threads, layer.groups, tokens, columns, dtype, x,
                        quantised);
    };
    const auto multiply = [&](char* quantised) {
        multiply_quantised(kernels, width, layer, threads, tokens, quantised, dtype, out);
    };
    if (bytes <= Recent::kMost) {
        const Form form = {&kernels,     width.bits, width.group, width.rotation,
                           layer.groups, tokens,     columns,     dtype};
        multiply(recent.of(form, x, bytes, size, quantise));
    } else {
        const std::unique_ptr<Line[]> memory(new Line[size / sizeof(Line)]);
        quantise(memory[0].bytes);
        multiply(memory[0].bytes);
    }
}

void rotate_tokens(const LinearKernels& kernels, const Width& width, const Threads& threads,
                   std::size_t groups, std::size_t tokens, std::size_t columns, Dtype dtype,
                   const void* x, Dtype out_dtype, void* out) {
    const std::size_t padded = groups * static_cast<std::size_t>(width.group);
    for_each_range(threads, {0, tokens}, padded, [&](Range range) {
        for (std::size_t t = range.first; t < range.last; ++t)
            kernels.rotate(width, groups, columns, dtype,
                           static_cast<const char*>(x) + t * columns * words_size(dtype), out_dtype,
                           static_cast<char*>(out) + t * padded * words_size(out_dtype));
    });
}

void decode_rows(const LinearKernels& kernels, const Width& width, const Layer& layer,
                 const Threads& threads, Range rows, Dtype out_dtype, void* out) {
    const std::size_t padded = layer.groups * static_cast<std::size_t>(width.group);
    for_each_range(threads, rows, padded, [&](Range range) {
        kernels.decode(
            width, layer, range, out_dtype,
            static_cast<char*>(out) + (range.first - rows.first) * padded * words_size(out_dtype));
    });
}

}  // namespace tq3
