// The activations that a thread quantised last. Layers that read one input follow one another (q, k
// and v; gate and up; a token's experts), and nobody needs to say which they are: an input is the
// same if its bytes are.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "linear.h"

namespace tq3 {

struct alignas(64) Line {
    char bytes[64];
};

// What the quantised form of an input depends on beside its values.
struct Form {
    const LinearKernels* kernels;
    int bits, group, rotation;
    std::size_t groups, tokens, columns;
    Dtype dtype;

    bool operator==(const Form&) const = default;
};

class Recent {
  public:
    // Bytes of an input beyond which nothing is kept: comparing and copying stay in the cache, and
    // a thread keeps a few of these.
    static constexpr std::size_t kMost = std::size_t{1} << 20;

    // The quantised form of the input, `bytes` long; where it is another than the last one,
    // quantise(memory) writes it, of `size` bytes.
    template <class Quantise>
    char* of(const Form& form, const void* x, std::size_t bytes, std::size_t size,
             const Quantise& quantise) {
        if (form == form_ && input_.size() == bytes &&
            (bytes == 0 || std::memcmp(input_.data(), x, bytes) == 0))
            return memory_[0].bytes;
        form_ = {};  // until all of it is written
        if (const std::size_t lines = size / sizeof(Line) + 1; lines > lines_) {
            memory_.reset(new Line[lines]);
            lines_ = lines;
        }
        const auto* first = static_cast<const char*>(x);
        input_.assign(first, first + bytes);
        quantise(memory_[0].bytes);
        form_ = form;
        return memory_[0].bytes;
    }

  private:
    Form form_ = {};
    std::vector<char> input_;
    std::unique_ptr<Line[]> memory_;
    std::size_t lines_ = 0;
};

}  // namespace tq3
