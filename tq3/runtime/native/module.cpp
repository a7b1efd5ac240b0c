// The Python face of the linear kernels. No mathematics, and no checks but those of the constants:
// tq3/runtime/arguments.py has checked the tensors, and native.py hands over their addresses, since
// taking them apart here would cost more than a small layer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "layer.h"
#include "linear_dispatch.h"

namespace nb = nanobind;
using namespace tq3;

namespace {

using Address = std::uintptr_t;

template <class T>
using Constants = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
void fill(const char* what, const Constants<T>& from, T* to, std::size_t count) {
    if (from.size() != count) {
        const std::string text = std::string(what) + ": found " + std::to_string(from.size()) +
                                 " values, expected " + std::to_string(count);
        throw nb::value_error(text.c_str());
    }
    for (std::size_t i = 0; i < count; ++i) to[i] = from(i);
}

void make_width(Width* width, int bits, int group, int rotation,
                Constants<std::int8_t> whole_levels, float unit, Constants<float> levels,
                Constants<float> d1, Constants<float> d2, float inverse_root_rotation) {
    const auto is_size = [](int n) { return n == 32 || n == 64 || n == 128 || n == kMaxGroup; };
    if (bits < 2 || bits > kMaxBits || !is_size(group) || !is_size(rotation) || rotation > group)
        throw nb::value_error("no such width");
    new (width) Width{bits, group, rotation, {}, unit, {}, {}, {}, inverse_root_rotation};
    const std::size_t count = std::size_t{1} << bits;
    fill("whole_levels", whole_levels, width->whole_level, count);
    fill("levels", levels, width->level, count);
    fill("d1", d1, width->d1, static_cast<std::size_t>(group));
    fill("d2", d2, width->d2, static_cast<std::size_t>(group));
}

void make_threads(Threads* threads, Address torch_parallel_for, std::size_t count) {
    new (threads) Threads{reinterpret_cast<ParallelFor>(torch_parallel_for), count};
}

Layer layer_at(Address packed, Address norms, std::size_t rows, std::size_t groups) {
    return {rows, groups, reinterpret_cast<const std::uint8_t*>(packed),
            reinterpret_cast<const float*>(norms)};
}

void linear(const LinearKernels& kernels, const Width& width, const Threads& threads, Address x,
            std::size_t tokens, std::size_t columns, int dtype, Address packed, Address norms,
            std::size_t rows, std::size_t groups, Address out) {
    const nb::gil_scoped_release release;
    apply_layer(kernels, width, layer_at(packed, norms, rows, groups), threads, tokens, columns,
                static_cast<Dtype>(dtype), reinterpret_cast<const void*>(x),
                reinterpret_cast<void*>(out));
}

void rotate(const LinearKernels& kernels, const Width& width, const Threads& threads, Address x,
            std::size_t tokens, std::size_t columns, int dtype, std::size_t groups, int out_dtype,
            Address out) {
    const nb::gil_scoped_release release;
    rotate_tokens(kernels, width, threads, groups, tokens, columns, static_cast<Dtype>(dtype),
                  reinterpret_cast<const void*>(x), static_cast<Dtype>(out_dtype),
                  reinterpret_cast<void*>(out));
}

void decode(const LinearKernels& kernels, const Width& width, const Threads& threads,
            Address packed, Address norms, std::size_t groups, std::size_t first, std::size_t last,
            int out_dtype, Address out) {
    const nb::gil_scoped_release release;
    decode_rows(kernels, width, layer_at(packed, norms, last, groups), threads, {first, last},
                static_cast<Dtype>(out_dtype), reinterpret_cast<void*>(out));
}

}  // namespace

NB_MODULE(_linear, m) {
    nb::set_leak_warnings(false);  // native.py keeps kernels and constants for ever
    nb::class_<Width>(m, "Width")
        .def("__init__", &make_width, nb::kw_only(), nb::arg("bits"), nb::arg("group"),
             nb::arg("rotation"), nb::arg("whole_levels"), nb::arg("unit"), nb::arg("levels"),
             nb::arg("d1"), nb::arg("d2"), nb::arg("inverse_root_rotation"));
    nb::class_<Threads>(m, "Threads")
        .def("__init__", &make_threads, nb::arg("torch_parallel_for"), nb::arg("count"));
    nb::class_<LinearKernels>(m, "Kernels")
        .def_ro("name", &LinearKernels::name)
        .def("linear", &linear)
        .def("rotate", &rotate)
        .def("decode", &decode);
    m.def("kernels_that_run_here", &linear_kernels_that_run_here, nb::rv_policy::reference,
          "Best first.");
    m.def("multiplies_bf16_fast", &multiplies_bf16_fast);
}
