// The kernels of one file under the emulation, called as a driver calls them: by name, with a grid
// and the addresses of the arguments. INSTANCES: KERNEL_INSTANCE(name<...>) for each that is
// wanted.
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulation.h"

#include KERNEL

namespace {

struct Grid {
    unsigned x, y, z, threads, shared;
    int order;
};
using Launch = std::string (*)(void** arguments, const Grid& grid);

template <class Parameters, std::size_t... i>
auto read(void** arguments, std::index_sequence<i...>) {
    return Parameters(*static_cast<std::tuple_element_t<i, Parameters>*>(arguments[i])...);
}

template <auto kernel, class... Parameter>
std::string launch(void (*)(Parameter...), void** arguments, const Grid& grid) {
    using Parameters = std::tuple<std::remove_cv_t<Parameter>...>;
    const auto read_once = read<Parameters>(arguments, std::index_sequence_for<Parameter...>());
    const auto order = static_cast<emulation::Order>(grid.order);
    return emulation::launch(
        {grid.x, grid.y, grid.z}, grid.threads, order, [&] { std::apply(kernel, read_once); },
        grid.shared);
}

template <auto kernel>
std::string launch_instance(void** arguments, const Grid& grid) {
    return launch<kernel>(kernel, arguments, grid);
}

const std::map<std::string, Launch>& instances() {
#define KERNEL_INSTANCE(...) {#__VA_ARGS__, launch_instance<&__VA_ARGS__>},
    static const std::map<std::string, Launch> all{
#include INSTANCES
    };
    return all;
}

}  // namespace

// Returns what went wrong, or an empty text; valid until the next call.
extern "C" const char* launch_emulated(const char* instance, void** arguments, unsigned x,
                                       unsigned y, unsigned z, unsigned threads, unsigned shared,
                                       int order) {
    static std::string failure;
    const auto found = instances().find(instance);
    failure = found == instances().end()
                  ? std::string("no such instance: ") + instance
                  : found->second(arguments, {x, y, z, threads, shared, order});
    return failure.c_str();
}

extern "C" const char* floats_of_halves(int n, const unsigned short* halves, float* floats) {
    for (int i = 0; i < n; ++i) floats[i] = load<Dtype::kF16>(halves, i);
    return "";
}

extern "C" const char* stored(int dtype, int n, const float* values, void* words) {
    for (int i = 0; i < n; ++i)
        if (dtype == static_cast<int>(Dtype::kBF16))
            store<Dtype::kBF16>(words, i, values[i]);
        else
            store<Dtype::kF16>(words, i, values[i]);
    return "";
}
