// Runs one kernel on a request from standard input: scripts/check_neon.sh starts it under an
// emulator.
//
// Request: the int64 of `Field`, the tables of `tables.py` as float32, those of a trellis code if
// it is one, the input. Answer: the output, and an int64, what overflowed in a cast.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "dispatch.h"

namespace {

enum Operation { kEncode, kDecode, kCast, kDequantize, kEncodeCalibrated, kDecompose };
enum Field {
    kOperation,
    kKernel,
    kBits,
    kGroup,
    kRows,
    kCols,
    kDtype,
    kOtherDtype,
    kScale,
    kIsTrellis,
    kBytesIn,
    kBytesOut,
    // What follows is of kDequantize, and kGlobal and kBlock of kEncodeCalibrated: whether norms
    // are halves, and the number of groups.
    kKind,
    kCodeBits,
    kScaleType,
    kGlobal,
    kBlock,
    kBytesOfScales,
    kBytesOfZeroPoints,
    kFields
};

void read_exactly(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(bytes == 0 ? 0 : 1);
}

// Each array its own allocation without slack, so that the emulator has a chance to fault.
std::vector<char> read_bytes(std::size_t bytes) {
    std::vector<char> data(bytes);
    if (bytes) read_exactly(data.data(), bytes);
    return data;
}

tq3::Tables read_tables(int bits, int group) {
    tq3::Tables tables = {};
    tables.bits = bits;
    tables.group = group;
    read_exactly(tables.level, sizeof(float) * (std::size_t{1} << bits));
    read_exactly(tables.boundary, sizeof(float) * ((std::size_t{1} << (bits - 1)) - 1));
    read_exactly(tables.d1, sizeof(float) * static_cast<std::size_t>(group));
    read_exactly(tables.d2, sizeof(float) * static_cast<std::size_t>(group));
    read_exactly(&tables.root_group, sizeof(float));
    read_exactly(&tables.inverse_root_group, sizeof(float));
    return tables;
}

tq3::Trellis read_trellis(int bits) {
    tq3::Trellis code = {};
    for (int* table : {code.first, code.second})
        for (int i = 0; i < 1 << bits; ++i) {
            float value;
            read_exactly(&value, sizeof value);
            table[i] = static_cast<int>(value);
        }
    for (float* constant : {&code.rms, &code.from_norm, &code.from_peak, &code.unit})
        read_exactly(constant, sizeof *constant);
    return code;
}

// The input: lines, global scales, scales, zero points, codes.
tq3::Quantised quantised(const std::int64_t (&request)[kFields], const std::vector<char>& in) {
    const auto size = [&](Field field) { return static_cast<std::size_t>(request[field]); };
    tq3::Quantised source = {};
    source.kind = static_cast<tq3::Codes>(request[kKind]);
    source.bits = static_cast<int>(request[kCodeBits]);
    source.scale_type = static_cast<tq3::ScaleType>(request[kScaleType]);
    source.global = static_cast<tq3::GlobalScale>(request[kGlobal]);
    source.rows = size(kRows);
    source.cols = size(kCols);
    source.block = size(kBlock);
    source.scales_a_line = (source.cols + source.block - 1) / source.block;
    source.lines = reinterpret_cast<const std::int64_t*>(in.data());
    source.global_scale = reinterpret_cast<const float*>(in.data() + 8 * source.rows);
    source.scales = reinterpret_cast<const std::uint8_t*>(in.data() + 12 * source.rows);
    const std::uint8_t* zero_points = source.scales + size(kBytesOfScales);
    if (request[kBytesOfZeroPoints]) source.zero_points = zero_points;
    source.codes = zero_points + size(kBytesOfZeroPoints);
    const std::size_t before =
        static_cast<std::size_t>(source.codes - reinterpret_cast<const std::uint8_t*>(in.data()));
    source.bytes_a_row = (in.size() - before) / source.rows;
    return source;
}

// The input: order, weight, spread, words.
tq3::Feedback feedback(const std::int64_t (&request)[kFields], const std::vector<char>& in) {
    const auto groups = static_cast<std::size_t>(request[kBlock]);
    const std::size_t columns = groups * static_cast<std::size_t>(request[kGroup]);
    const auto* weight = reinterpret_cast<const float*>(in.data() + 8 * groups);
    const auto* order = reinterpret_cast<const std::int64_t*>(in.data());
    return {0, static_cast<int>(groups), order, weight + columns, weight, request[kGlobal] != 0};
}

// A caller that flushes denormals to zero must not change a byte.
void flush_denormals() {
#if defined(__aarch64__)
    const std::uint64_t flush_to_zero = 1 << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush_to_zero));
#endif
}

}  // namespace

int main() {
    flush_denormals();
    const std::vector<const tq3::Kernels*> available = tq3::kernels_that_run_here();
    std::int64_t request[kFields];
    while (std::fread(request, sizeof request, 1, stdin) == 1) {
        const auto size = [&](Field field) { return static_cast<std::size_t>(request[field]); };
        const tq3::Tables tables =
            read_tables(static_cast<int>(request[kBits]), static_cast<int>(request[kGroup]));
        const bool is_trellis = request[kIsTrellis];
        const tq3::Trellis code =
            is_trellis ? read_trellis(static_cast<int>(request[kBits])) : tq3::Trellis{};
        const std::vector<char> in = read_bytes(size(kBytesIn));
        std::vector<char> out(size(kBytesOut));

        const tq3::Kernels& kernels = *available.at(size(kKernel));
        const auto dtype = static_cast<tq3::Dtype>(request[kDtype]);
        const auto other = static_cast<tq3::Dtype>(request[kOtherDtype]);
        const auto scale = static_cast<tq3::Scale>(request[kScale]);
        const std::size_t groups_a_row = (size(kCols) + size(kGroup) - 1) / size(kGroup);
        const tq3::Shape shape = {size(kRows), size(kCols), groups_a_row};
        // Norms follow the packed codes, in both directions.
        const std::size_t packed_bytes =
            size(kRows) * groups_a_row * size(kGroup) * size(kBits) / 8;
        std::int64_t overflowed = 0;
        auto* bytes = reinterpret_cast<std::uint8_t*>(out.data());
        const auto* codes = reinterpret_cast<const std::uint8_t*>(in.data());
        auto* norms = reinterpret_cast<float*>(out.data() + packed_bytes);
        const auto* scales = reinterpret_cast<const float*>(in.data() + packed_bytes);
        if (request[kOperation] == kEncode && is_trellis)
            kernels.encode_trellis(tables, code, scale, shape, dtype, in.data(), bytes, norms);
        else if (request[kOperation] == kEncode)
            kernels.encode(tables, scale, shape, dtype, in.data(), bytes, norms);
        else if (request[kOperation] == kDecode && is_trellis)
            kernels.decode_trellis(tables, code, shape, codes, scales, dtype, out.data());
        else if (request[kOperation] == kDecode)
            kernels.decode(tables, shape, codes, scales, dtype, out.data());
        else if (request[kOperation] == kDequantize)
            kernels.dequantize(quantised(request, in), reinterpret_cast<float*>(out.data()));
        else if (request[kOperation] == kEncodeCalibrated) {
            const std::size_t columns = size(kBlock) * size(kGroup);
            const char* words = in.data() + 8 * size(kBlock) + 4 * (columns + columns * columns);
            kernels.encode_calibrated(tables, feedback(request, in), shape, dtype, words,
                                      reinterpret_cast<std::uint8_t*>(out.data()),
                                      reinterpret_cast<float*>(out.data() + packed_bytes));
        } else if (request[kOperation] == kDecompose) {
            out = in;
            kernels.decompose(size(kRows), reinterpret_cast<double*>(out.data()));
        } else
            overflowed = static_cast<std::int64_t>(
                kernels.cast(size(kCols), dtype, in.data(), other, out.data()));
        std::fwrite(out.data(), 1, out.size(), stdout);
        std::fwrite(&overflowed, sizeof overflowed, 1, stdout);
        std::fflush(stdout);
    }
}
