// Walking over the groups of a matrix, and the Walsh-Hadamard transform of kLanes groups.

// Where the next group lies. At the end of a row `valid` may be less than the group, beyond the
// matrix it is 0.
struct Span {
    std::size_t first_word;
    int valid;
};

class GroupWalk {
  public:
    GroupWalk(const Shape& shape, int group)
        : cols_(shape.cols),
          end_(shape.rows * shape.cols),
          group_(static_cast<std::size_t>(group)) {}

    // Its first word, counted from the start of the matrix.
    std::size_t position() const { return next_word_; }

    Span next() {
        if (left_in_row_ == 0 && next_word_ < end_) left_in_row_ = cols_;
        const std::size_t valid = left_in_row_ < group_ ? left_in_row_ : group_;
        const Span span = {next_word_, static_cast<int>(valid)};
        next_word_ += valid;
        left_in_row_ -= valid;
        return span;
    }

  private:
    std::size_t cols_, end_, group_, next_word_ = 0, left_in_row_ = 0;
};

// Asks for memory that the next block will touch, a few lines at each step of this one: asked for
// all at once, or left to the processor's own guess, it arrives too late.
constexpr int kToRead = 0, kToWrite = 1;

class Prefetch {
  public:
    Prefetch(const void* from, std::size_t bytes, int steps)
        : next_(reinterpret_cast<std::uintptr_t>(from)),
          lines_a_step_(static_cast<int>(bytes) / steps / kLine) {}

    template <int purpose>
    void step() {
        for (int i = 0; i < lines_a_step_; ++i, next_ += kLine)
            __builtin_prefetch(reinterpret_cast<const void*>(next_), purpose);
    }

  private:
    static constexpr int kLine = 64;
    std::uintptr_t
        next_;  // may lie beyond the matrix, which a prefetch forgives and a pointer does not
    int lines_a_step_;
};

// A diagonal of +1 and -1 multiplies by its sign bits.
inline std::int32_t sign_bit(float plus_minus) {
    return __builtin_bit_cast(std::int32_t, plus_minus) & kSignBit;
}

// Strides n/2, n/4, ..., 1 over n vectors, which the compiler keeps in registers.
template <int n>
__attribute__((always_inline)) inline void butterflies(F* v) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
        const F a = v[i], b = v[i + n / 2];
        v[i] = a + b;
        v[i + n / 2] = a - b;
    }
    if constexpr (n > 2) {
        butterflies<n / 2>(v);
        butterflies<n / 2>(v + n / 2);
    }
}

// A group is `radix` runs of kRun neighbours. This does every stride of kRun and more, the strides
// below kRun are done run by run: so each vector is loaded and stored once for four strides, not
// once a stride.
constexpr int kRun = 16;

template <int radix>
inline void butterflies_between_runs(F* x) {
    for (int j = 0; j < kRun; ++j) {
        F v[radix];
#pragma GCC unroll 16
        for (int i = 0; i < radix; ++i) v[i] = x[i * kRun + j];
        butterflies<radix>(v);
#pragma GCC unroll 16
        for (int i = 0; i < radix; ++i) x[i * kRun + j] = v[i];
    }
}

inline void butterflies_between_runs(F* x, int group) {
    switch (group / kRun) {
        case 2:
            return butterflies_between_runs<2>(x);
        case 4:
            return butterflies_between_runs<4>(x);
        case 8:
            return butterflies_between_runs<8>(x);
        case 16:
            return butterflies_between_runs<16>(x);
    }
}

inline void butterflies_within_runs(F* x, int group) {
    for (F* run = x; run < x + group; run += kRun) {
        F v[kRun];
#pragma GCC unroll 16
        for (int j = 0; j < kRun; ++j) v[j] = run[j];
        butterflies<kRun>(v);
#pragma GCC unroll 16
        for (int j = 0; j < kRun; ++j) run[j] = v[j];
    }
}
