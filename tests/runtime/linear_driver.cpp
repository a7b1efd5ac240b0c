// Runs a linear kernel on a request from standard input: scripts/check_neon.sh starts it under an
// emulator, scripts/sanitize.sh under sanitizers. With an argument it prints the kernels' names.
//
// Request: ten int64 (operation, kernel, bits, group, rotation, rows, groups in a row, columns,
// tokens, dtype), the Width as it lies in memory, x, packed, norms. Answer: (tokens, rows) of
// dtype, or the decoded rows.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "layer.h"
#include "linear_dispatch.h"

namespace {

enum Operation { kLinear, kDecode };
enum Field {
    kOperation,
    kKernel,
    kBits,
    kGroup,
    kRotation,
    kRows,
    kGroups,
    kColumns,
    kTokens,
    kDtype,
    kFields
};

// Each array its own allocation without slack, so that reading beyond it is seen.
template <class T>
std::vector<T> read_values(std::size_t count) {
    std::vector<T> data(count);
    if (count && std::fread(data.data(), sizeof(T), count, stdin) != count) std::exit(1);
    return data;
}

}  // namespace

int main(int arguments, char**) {
    const auto available = tq3::linear_kernels_that_run_here();
    if (arguments > 1) {
        for (const tq3::LinearKernels* kernels : available) std::printf("%s\n", kernels->name);
        return 0;
    }
    std::int64_t request[kFields];
    while (std::fread(request, sizeof request, 1, stdin) == 1) {
        const auto size = [&](Field field) { return static_cast<std::size_t>(request[field]); };
        const auto width = read_values<tq3::Width>(1);
        const auto dtype = static_cast<tq3::Dtype>(request[kDtype]);
        const std::size_t word = dtype == tq3::Dtype::kF32 ? 4 : 2,
                          all = size(kRows) * size(kGroups);
        const auto x = read_values<char>(size(kTokens) * size(kColumns) * word);
        const auto packed = read_values<std::uint8_t>(all * size(kGroup) * size(kBits) / 8);
        const auto norms = read_values<float>(all);

        const tq3::LinearKernels& kernels = *available.at(size(kKernel));
        const tq3::Layer layer = {size(kRows), size(kGroups), packed.data(), norms.data()};
        const tq3::Threads threads = {nullptr, 2};
        const bool decode = request[kOperation] == kDecode;
        std::vector<char> out(decode ? all * size(kGroup) * word
                                     : size(kTokens) * size(kRows) * word);
        if (decode)
            tq3::decode_rows(kernels, width[0], layer, threads, {0, size(kRows)}, dtype,
                             out.data());
        else
            tq3::apply_layer(kernels, width[0], layer, threads, size(kTokens), size(kColumns),
                             dtype, x.data(), out.data());
        std::fwrite(out.data(), 1, out.size(), stdout);
        std::fflush(stdout);
    }
}
