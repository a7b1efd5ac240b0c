// libFuzzer's target: every kernel that runs here gives the bytes of the last one, the portable
// one, for any shape, type, width and any words. Built with ASan and UBSan by scripts/fuzz.sh.
//
// The tables are not those of the format but of its form, with signs from the input: the kernels
// must agree for any.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dispatch.h"

namespace {

using namespace tq3;

// The input as an endless stream: what is behind the first bytes is repeated, changed each time.
class Stream {
  public:
    Stream(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    unsigned below(unsigned limit) { return (byte() | unsigned{byte()} << 8) % limit; }
    void fill(void* to, std::size_t bytes) {
        for (std::size_t i = 0; i < bytes; ++i) static_cast<std::uint8_t*>(to)[i] = byte();
    }

  private:
    std::uint8_t byte() {
        const std::size_t at = at_++;
        if (!size_) return 0;
        return static_cast<std::uint8_t>(data_[at % size_] + at / size_);
    }
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

// Exactly as long as it is asked for, so that a byte too many is seen; not always on a boundary
// wider than an element, so that a kernel which expects one is seen.
class Memory {
  public:
    Memory(std::size_t bytes, std::size_t shift) : base_(bytes + shift, 0xA5), shift_(shift) {}
    std::uint8_t* data() { return base_.data() + shift_; }
    template <class T>
    T* as() {
        return reinterpret_cast<T*>(data());
    }
    std::size_t size() const { return base_.size() - shift_; }

  private:
    std::vector<std::uint8_t> base_;
    std::size_t shift_;
};

std::size_t bytes_of(Dtype dtype) {
    return dtype == Dtype::kF32 ? 4 : 2;
}

Tables make_tables(Stream& in) {
    Tables tables = {};
    tables.bits = 2 + static_cast<int>(in.below(3));
    tables.group = 32 << in.below(4);
    tables.root_group = std::sqrt(static_cast<float>(tables.group));
    tables.inverse_root_group = 1 / tables.root_group;
    const int half = 1 << (tables.bits - 1);
    for (int i = 0; i < half; ++i) {
        const float level = (static_cast<float>(i) + 0.5f) / static_cast<float>(half);
        tables.level[half + i] = level * 2 * tables.inverse_root_group;
        tables.level[half - 1 - i] = -tables.level[half + i];
    }
    for (int i = 0; i + 1 < half; ++i)
        tables.boundary[i] = (tables.level[half + i] + tables.level[half + i + 1]) * 0.5f;
    for (int i = 0; i < tables.group; ++i) {
        tables.d1[i] = in.below(2) ? 1.0f : -1.0f;
        tables.d2[i] = in.below(2) ? 1.0f : -1.0f;
    }
    return tables;
}

bool is_nan(const std::uint8_t* word, Dtype dtype) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, word, bytes_of(dtype));
    if (dtype == Dtype::kBF16) return (bits & 0x7FFF) > 0x7F80;
    if (dtype == Dtype::kF16) return (bits & 0x7FFF) > 0x7C00;
    return (bits & 0x7FFFFFFF) > 0x7F800000;
}

[[noreturn]] void differ(const char* what, const Kernels& kernels, std::size_t at) {
    std::fprintf(stderr, "%s of %s differs from the portable one at %zu\n", what, kernels.name, at);
    std::abort();
}

// Bit for bit, but any NaN equals any other.
void compare_words(const char* what, const Kernels& kernels, Memory& found, Memory& expected,
                   Dtype dtype) {
    for (std::size_t at = 0; at < found.size(); at += bytes_of(dtype)) {
        const std::uint8_t *a = found.data() + at, *b = expected.data() + at;
        const bool both_nan = is_nan(a, dtype) && is_nan(b, dtype);
        if (std::memcmp(a, b, bytes_of(dtype)) != 0 && !both_nan) differ(what, kernels, at);
    }
}

struct Job {
    Stream in;
    Tables tables = make_tables(in);
    Dtype dtype = static_cast<Dtype>(in.below(3));
    Dtype other = static_cast<Dtype>(in.below(3));
    Scale scale = static_cast<Scale>(in.below(2));
    std::size_t rows = in.below(40);
    std::size_t cols = in.below(600);
    std::size_t shift = in.below(2) * 4;
    std::size_t group = static_cast<std::size_t>(tables.group);
    Shape shape = {rows, cols, (cols + group - 1) / group};
    std::size_t groups = rows * shape.groups_a_row;
    std::size_t packed_bytes = groups * group * static_cast<std::size_t>(tables.bits) / 8;

    Memory filled(std::size_t bytes) {
        Memory memory(bytes, shift);
        in.fill(memory.data(), bytes);
        return memory;
    }
    Memory empty(std::size_t bytes) const { return Memory(bytes, shift); }
};

void check_encode(Job& job, const std::vector<const Kernels*>& all) {
    Memory words = job.filled(job.rows * job.cols * bytes_of(job.dtype));
    Memory packed = job.empty(job.packed_bytes), norms = job.empty(job.groups * 4);
    const auto encode = [&](const Kernels& kernels, Memory& codes, Memory& gains) {
        kernels.encode(job.tables, job.scale, job.shape, job.dtype, words.data(), codes.data(),
                       gains.as<float>());
    };
    encode(*all.back(), packed, norms);
    for (const Kernels* kernels : all) {
        Memory codes = job.empty(packed.size()), gains = job.empty(norms.size());
        encode(*kernels, codes, gains);
        compare_words("a norm", *kernels, gains, norms, Dtype::kF32);
        const std::size_t bytes = job.groups ? packed.size() / job.groups : 0;
        for (std::size_t i = 0; i < job.groups; ++i) {
            // Codes below a norm that is none are never written to a file.
            const bool counts = std::isfinite(norms.as<float>()[i]);
            if (counts && std::memcmp(codes.data() + i * bytes, packed.data() + i * bytes, bytes))
                differ("a code", *kernels, i);
        }
    }
}

void check_decode(Job& job, const std::vector<const Kernels*>& all) {
    Memory packed = job.filled(job.packed_bytes), norms = job.filled(job.groups * 4);
    Memory words = job.empty(job.rows * job.cols * bytes_of(job.dtype));
    const auto decode = [&](const Kernels& kernels, Memory& out) {
        kernels.decode(job.tables, job.shape, packed.data(), norms.as<float>(), job.dtype,
                       out.data());
    };
    decode(*all.back(), words);
    for (const Kernels* kernels : all) {
        Memory found = job.empty(words.size());
        decode(*kernels, found);
        compare_words("a weight", *kernels, found, words, job.dtype);
    }
}

void check_cast(Job& job, const std::vector<const Kernels*>& all) {
    const std::size_t count = job.rows * job.cols;
    Memory words = job.filled(count * bytes_of(job.dtype));
    Memory out = job.empty(count * bytes_of(job.other));
    const auto cast = [&](const Kernels& kernels, Memory& to) {
        return kernels.cast(count, job.dtype, words.data(), job.other, to.data());
    };
    const std::size_t overflowed = cast(*all.back(), out);
    for (const Kernels* kernels : all) {
        Memory found = job.empty(out.size());
        if (cast(*kernels, found) != overflowed) differ("the count", *kernels, count);
        compare_words("a cast word", *kernels, found, out, job.other);
    }
}

void check_dequantize(Job& job, const std::vector<const Kernels*>& all) {
    Quantised source = {};
    source.kind = static_cast<Codes>(job.in.below(3));
    const bool is_e2m1 = source.kind == Codes::kE2M1, is_integer = source.kind == Codes::kInteger;
    source.bits = is_e2m1 ? 4 : is_integer ? 3 + static_cast<int>(job.in.below(6)) : 8;
    source.scale_type = static_cast<ScaleType>(job.in.below(5));
    if (is_e2m1) source.global = static_cast<GlobalScale>(job.in.below(3));
    source.rows = job.rows;
    source.cols = job.cols * (1 + job.in.below(4));
    source.block = 1 + job.in.below(200);
    source.bytes_a_row = (source.cols * static_cast<std::size_t>(source.bits) + 7) / 8;
    if (is_integer) source.bytes_a_row = (source.bytes_a_row + 3) / 4 * 4;
    source.scales_a_line = (source.cols + source.block - 1) / source.block;
    const std::size_t n_lines = 1 + job.in.below(8);
    const std::size_t widths[] = {4, 2, 2, 1, 1};  // in the order of ScaleType

    std::vector<std::int64_t> lines(job.rows);
    for (std::int64_t& line : lines)
        line = static_cast<std::int64_t>(job.in.below(static_cast<unsigned>(n_lines)));
    const std::size_t n_scales = n_lines * source.scales_a_line;
    Memory scales = job.filled(n_scales * widths[static_cast<int>(source.scale_type)]);
    Memory zeros = job.filled(n_scales), factors = job.filled(job.rows * 4);
    Memory codes = job.filled(job.rows * source.bytes_a_row);
    source.codes = codes.data();
    source.scales = scales.data();
    source.lines = lines.data();
    if (is_integer && job.in.below(2)) source.zero_points = zeros.data();
    source.global_scale = factors.as<float>();

    Memory expected = job.empty(job.rows * source.cols * 4);
    all.back()->dequantize(source, expected.as<float>());
    for (const Kernels* kernels : all) {
        Memory found = job.empty(expected.size());
        kernels->dequantize(source, found.as<float>());
        compare_words("a source's weight", *kernels, found, expected, Dtype::kF32);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<const Kernels*> all = kernels_that_run_here();
    if (!size) return 0;
    Job job{Stream(data + 1, size - 1)};
    void (*const checks[])(Job&, const std::vector<const Kernels*>&) = {
        check_encode, check_decode, check_cast, check_dequantize};
    checks[data[0] % 4](job, all);
    return 0;
}
