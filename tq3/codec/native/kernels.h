// What a kernel is: a few functions over plain memory, and the constants of the format they are
// given.
//
// A kernel knows no Python, throws nothing, allocates nothing and may run on many threads at once.
// Its arithmetic is docs/format.md, "Encoding", "Decoding" and "Sources that are quantised";
// tq3/codec/reference.py, quantised.py and calibrated.py say the same in numpy.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tq3 {

constexpr int kMaxGroup = 256;
constexpr int kMaxBits = 4;
constexpr int kMaxBlock = 512;  // columns of which second moments are known together

enum class Dtype { kBF16, kF16, kF32 };

// How codes and norms are chosen: the norm is corrected, or the smallest error is looked for.
enum class Scale { kNorm, kSearch };

// The constants of one (bits, group), filled from tq3/codec/tables.py: they are stated there and
// nowhere else.
struct Tables {
    int bits;
    int group;
    float level[1 << kMaxBits];            // ascending, 2**bits of them
    float boundary[1 << (kMaxBits - 1)];   // between positive levels, 2**(bits-1) - 1 of them
    float d1[kMaxGroup], d2[kMaxGroup];    // +1 or -1
    float root_group, inverse_root_group;  // sqrt(group) and 1 / sqrt(group), each rounded once
};

// The constants of a trellis code of some bits, from tq3/codec/tables.py, too.
struct Trellis {
    int first[1 << kMaxBits], second[1 << kMaxBits];
    float rms, from_norm, from_peak;
    float unit;  // what one is worth in a group of the norm 1
};

// A row-major matrix of weights. Each row is `groups_a_row` groups, the last one padded with zeros.
struct Shape {
    std::size_t rows, cols;
    std::size_t groups_a_row;
};

// A block of groups that are coded in turn, and what the columns of one hand on to the next ones:
// `Feedback` of tq3/codec/calibrated.py. n = groups * group columns, at most kMaxBlock.
struct Feedback {
    std::size_t first_group;  // of a row
    int groups;
    const std::int64_t* order;  // of these groups, counted from the first one
    const float* spread;        // (n / 8, n, 8)
    const float* weight;        // (n)
    bool half_norms;            // whether norms are rounded to F16
};

// What codes of a quantised source stand for: floats of 8 or 4 bits, or integers of 3 to 8.
enum class Codes { kE4M3, kE2M1, kInteger };
enum class ScaleType { kF32, kBF16, kF16, kE8M0, kE4M3 };
// One more scale for each row, of E2M1 codes only.
enum class GlobalScale { kNone, kMultiplies, kDivides };

// Rows of a quantised weight. `block` neighbouring columns share a scale, fewer at the end of a
// row; rows that share scales have the same line.
struct Quantised {
    Codes kind;
    int bits;
    ScaleType scale_type;
    GlobalScale global;
    std::size_t rows, cols;
    std::size_t bytes_a_row;  // of codes, a little-endian bit stream in each row
    std::size_t block;
    std::size_t scales_a_line;
    const std::uint8_t *codes, *scales;
    const std::int64_t* lines;        // of scales and zero points: one for each row
    const std::uint8_t* zero_points;  // nullptr: 2**(bits-1), the middle
    const float* global_scale;        // one for each row
};

struct Kernels {
    const char* name;
    void (*encode)(const Tables&, Scale, Shape, Dtype, const void* words, std::uint8_t* packed,
                   float* norms);
    void (*decode)(const Tables&, Shape, const std::uint8_t* packed, const float* norms, Dtype,
                   void* words);
    // Returns how many finite values became infinite.
    std::size_t (*cast)(std::size_t count, Dtype from, const void* words, Dtype to, void* out);
    void (*dequantize)(const Quantised&, float* out);
    // As encode and decode; of the tables only signs and roots count.
    void (*encode_trellis)(const Tables&, const Trellis&, Scale, Shape, Dtype, const void* words,
                           std::uint8_t* packed, float* norms);
    void (*decode_trellis)(const Tables&, const Trellis&, Shape, const std::uint8_t* packed,
                           const float* norms, Dtype, void* words);
    // The groups of one block, in every row.
    void (*encode_calibrated)(const Tables&, const Feedback&, Shape, Dtype, const void* words,
                              std::uint8_t* packed, float* norms);
    // An (n, n) matrix, n at most kMaxBlock.
    void (*decompose)(std::size_t n, double* matrix);
};

}  // namespace tq3
