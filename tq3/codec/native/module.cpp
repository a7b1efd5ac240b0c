// The Python face of the kernels: checks every array, releases the interpreter, calls. No
// mathematics.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "dispatch.h"

namespace nb = nanobind;
using namespace tq3;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;
using Constants = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what, const std::string& found,
                         const std::string& expected) {
    throw nb::value_error((what + ": found " + found + ", expected " + expected).c_str());
}

std::string shape_text(const std::vector<std::size_t>& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i)
        text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + ")";
}

Dtype dtype_of(const std::string& name) {
    if (name == "BF16") return Dtype::kBF16;
    if (name == "F16") return Dtype::kF16;
    if (name == "F32") return Dtype::kF32;
    refuse("dtype", "'" + name + "'", "'BF16', 'F16' or 'F32'");
}

Scale scale_of(const std::string& name) {
    if (name == "norm") return Scale::kNorm;
    if (name == "search") return Scale::kSearch;
    refuse("scale", "'" + name + "'", "'norm' or 'search'");
}

nb::dlpack::dtype word_type(Dtype dtype) {
    return dtype == Dtype::kF32 ? nb::dtype<std::uint32_t>() : nb::dtype<std::uint16_t>();
}

template <class AnyArray>
std::vector<std::size_t> shape_of(const AnyArray& array) {
    std::vector<std::size_t> shape;
    for (std::size_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
    return shape;
}

template <class AnyArray>
void require_contiguous(const char* what, const AnyArray& array, nb::dlpack::dtype type) {
    if (array.dtype() != type) {
        const char* kinds[] = {"int", "uint", "float"};
        const auto text = [&](nb::dlpack::dtype t) {
            return (t.code < 3 ? kinds[t.code] : "other") + std::to_string(t.bits);
        };
        refuse(std::string(what) + ".dtype", text(array.dtype()), text(type));
    }
    std::int64_t stride = 1;
    for (std::size_t i = array.ndim(); i-- > 0; stride *= static_cast<std::int64_t>(array.shape(i)))
        if (array.shape(i) > 1 && array.stride(i) != stride && array.size() > 0)
            refuse(what, "strided memory", "a C-contiguous array");
}

template <class AnyArray>
void require_shape(const char* what, const AnyArray& array,
                   const std::vector<std::size_t>& expected) {
    if (shape_of(array) != expected)
        refuse(std::string(what) + ".shape", shape_text(shape_of(array)), shape_text(expected));
}

void fill(const char* what, const Constants& from, float* to, std::size_t count) {
    require_shape(what, from, {count});
    for (std::size_t i = 0; i < count; ++i) to[i] = from(i);
}

void make_tables(Tables* tables, int bits, int group, Constants levels, Constants boundaries,
                 Constants d1, Constants d2, float root_group, float inverse_root_group) {
    if (bits < 2 || bits > kMaxBits) refuse("bits", std::to_string(bits), "2, 3 or 4");
    if (group != 32 && group != 64 && group != 128 && group != kMaxGroup)
        refuse("group", std::to_string(group), "32, 64, 128 or 256");
    new (tables) Tables{bits, group, {}, {}, {}, {}, root_group, inverse_root_group};
    fill("levels", levels, tables->level, std::size_t{1} << bits);
    fill("boundaries", boundaries, tables->boundary, (std::size_t{1} << (bits - 1)) - 1);
    fill("d1", d1, tables->d1, static_cast<std::size_t>(group));
    fill("d2", d2, tables->d2, static_cast<std::size_t>(group));
}

// What encode and decode agree on: the arrays of one compressed matrix.
template <class Words, class Packed>
Shape checked_shape(const Tables& tables, const Words& words, Dtype dtype, const Packed& packed,
                    const Packed& norms) {
    if (words.ndim() != 2)
        refuse("words.shape", shape_text(shape_of(words)), "two dimensions, (rows, cols)");
    require_contiguous("words", words, word_type(dtype));
    require_contiguous("packed", packed, nb::dtype<std::uint8_t>());
    require_contiguous("norms", norms, nb::dtype<float>());
    const auto group = static_cast<std::size_t>(tables.group);
    const Shape shape = {words.shape(0), words.shape(1), (words.shape(1) + group - 1) / group};
    require_shape("norms", norms, {shape.rows, shape.groups_a_row});
    require_shape(
        "packed", packed,
        {shape.rows * shape.groups_a_row, group * static_cast<std::size_t>(tables.bits) / 8});
    return shape;
}

void encode(const Kernels& kernels, const Tables& tables, Array words, const std::string& dtype,
            OutArray packed, OutArray norms, const std::string& scale) {
    const Dtype type = dtype_of(dtype);
    const Scale how = scale_of(scale);
    const Shape shape = checked_shape(tables, words, type, packed, norms);
    const nb::gil_scoped_release release;
    kernels.encode(tables, how, shape, type, words.data(),
                   static_cast<std::uint8_t*>(packed.data()), static_cast<float*>(norms.data()));
}

void decode(const Kernels& kernels, const Tables& tables, Array packed, Array norms, OutArray words,
            const std::string& dtype) {
    const Dtype type = dtype_of(dtype);
    const Shape shape = checked_shape(tables, words, type, packed, norms);
    const nb::gil_scoped_release release;
    kernels.decode(tables, shape, static_cast<const std::uint8_t*>(packed.data()),
                   static_cast<const float*>(norms.data()), type, words.data());
}

std::size_t cast(const Kernels& kernels, Array words, const std::string& dtype, OutArray out,
                 const std::string& out_dtype) {
    const Dtype from = dtype_of(dtype), to = dtype_of(out_dtype);
    require_contiguous("words", words, word_type(from));
    require_contiguous("out", out, word_type(to));
    require_shape("out", out, shape_of(words));
    const nb::gil_scoped_release release;
    return kernels.cast(words.size(), from, words.data(), to, out.data());
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(
        false);  // backend.py keeps its kernels and tables as long as the interpreter lives
    nb::class_<Tables>(m, "Tables")
        .def("__init__", &make_tables, nb::kw_only(), nb::arg("bits"), nb::arg("group"),
             nb::arg("levels"), nb::arg("boundaries"), nb::arg("d1"), nb::arg("d2"),
             nb::arg("root_group"), nb::arg("inverse_root_group"));
    nb::class_<Kernels>(m, "Kernels")
        .def_ro("name", &Kernels::name)
        .def("encode", &encode, nb::arg("tables"), nb::arg("words"), nb::arg("dtype"),
             nb::arg("packed"), nb::arg("norms"), nb::arg("scale"))
        .def("decode", &decode, nb::arg("tables"), nb::arg("packed"), nb::arg("norms"),
             nb::arg("words"), nb::arg("dtype"))
        .def("cast", &cast, nb::arg("words"), nb::arg("dtype"), nb::arg("out"),
             nb::arg("out_dtype"));
    m.def("kernels_that_run_here", &kernels_that_run_here, nb::rv_policy::reference, "Best first.");
}
