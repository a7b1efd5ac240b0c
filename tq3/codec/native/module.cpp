// The Python face of the kernels: checks every array, releases the interpreter, calls. No
// mathematics.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
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

void make_trellis(Trellis* code, const Tables& tables, Constants first, Constants second, float rms,
                  float from_norm, float from_peak, float unit) {
    new (code) Trellis{{}, {}, rms, from_norm, from_peak, unit};
    float values[2][1 << kMaxBits];
    fill("first", first, values[0], std::size_t{1} << tables.bits);
    fill("second", second, values[1], std::size_t{1} << tables.bits);
    for (int i = 0; i < 1 << tables.bits; ++i) {
        code->first[i] = static_cast<int>(values[0][i]);
        code->second[i] = static_cast<int>(values[1][i]);
    }
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

// With a trellis code, or with scalar ones.
void encode(const Kernels& kernels, const Tables& tables, Array words, const std::string& dtype,
            OutArray packed, OutArray norms, const std::string& scale,
            const std::optional<Trellis>& trellis) {
    const Dtype type = dtype_of(dtype);
    const Scale how = scale_of(scale);
    const Shape shape = checked_shape(tables, words, type, packed, norms);
    const nb::gil_scoped_release release;
    auto* codes = static_cast<std::uint8_t*>(packed.data());
    auto* scales = static_cast<float*>(norms.data());
    if (trellis)
        kernels.encode_trellis(tables, *trellis, how, shape, type, words.data(), codes, scales);
    else
        kernels.encode(tables, how, shape, type, words.data(), codes, scales);
}

void decode(const Kernels& kernels, const Tables& tables, Array packed, Array norms, OutArray words,
            const std::string& dtype, const std::optional<Trellis>& trellis) {
    const Dtype type = dtype_of(dtype);
    const Shape shape = checked_shape(tables, words, type, packed, norms);
    const nb::gil_scoped_release release;
    const auto* codes = static_cast<const std::uint8_t*>(packed.data());
    const auto* scales = static_cast<const float*>(norms.data());
    if (trellis)
        kernels.decode_trellis(tables, *trellis, shape, codes, scales, type, words.data());
    else
        kernels.decode(tables, shape, codes, scales, type, words.data());
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

void encode_calibrated(const Kernels& kernels, const Tables& tables, Array words,
                       const std::string& dtype, std::size_t first_group, Array order, Array spread,
                       Array weight, bool half_norms, OutArray packed, OutArray norms) {
    const Dtype type = dtype_of(dtype);
    const Shape shape = checked_shape(tables, words, type, packed, norms);
    require_contiguous("order", order, nb::dtype<std::int64_t>());
    const std::size_t groups = order.ndim() ? order.shape(0) : 0;
    const std::size_t n = groups * static_cast<std::size_t>(tables.group);
    if (order.ndim() != 1 || n == 0 || n > kMaxBlock)
        refuse("order.shape", shape_text(shape_of(order)),
               "at most " + std::to_string(kMaxBlock) + " columns in groups");
    const auto* places = static_cast<const std::int64_t*>(order.data());
    for (std::size_t i = 0; i < groups; ++i)
        if (places[i] < 0 || static_cast<std::size_t>(places[i]) >= groups)
            refuse("order", std::to_string(places[i]), "a group of the block");
    if (first_group > shape.groups_a_row || groups > shape.groups_a_row - first_group)
        refuse("first_group", std::to_string(first_group), "that of a block inside the row");
    require_contiguous("spread", spread, nb::dtype<float>());
    require_shape("spread", spread, {n / 8, n, 8});
    require_contiguous("weight", weight, nb::dtype<float>());
    require_shape("weight", weight, {n});
    const Feedback feedback = {first_group,
                               static_cast<int>(groups),
                               places,
                               static_cast<const float*>(spread.data()),
                               static_cast<const float*>(weight.data()),
                               half_norms};
    const nb::gil_scoped_release release;
    kernels.encode_calibrated(tables, feedback, shape, type, words.data(),
                              static_cast<std::uint8_t*>(packed.data()),
                              static_cast<float*>(norms.data()));
}

void decompose(const Kernels& kernels, OutArray matrix) {
    require_contiguous("matrix", matrix, nb::dtype<double>());
    const std::size_t n = matrix.ndim() ? matrix.shape(0) : 0;
    require_shape("matrix", matrix, {n, n});
    if (n > kMaxBlock)
        refuse("matrix.shape", shape_text(shape_of(matrix)),
               "at most " + std::to_string(kMaxBlock) + " rows");
    const nb::gil_scoped_release release;
    kernels.decompose(n, static_cast<double*>(matrix.data()));
}

// Kinds of quantised sources by their names in Python, with the bits that a code may have.
struct NamedKind {
    const char* name;
    Codes codes;
    int fewest_bits, most_bits;
    bool has_global_scale;
};
const NamedKind kKinds[] = {{"e4m3", Codes::kE4M3, 8, 8, false},
                            {"e2m1", Codes::kE2M1, 4, 4, false},
                            {"nvfp4", Codes::kE2M1, 4, 4, true},
                            {"packed_int", Codes::kInteger, 3, 8, false}};

const NamedKind& kind_of(const std::string& name) {
    for (const NamedKind& kind : kKinds)
        if (name == kind.name) return kind;
    refuse("kind", "'" + name + "'", "'e4m3', 'e2m1', 'nvfp4' or 'packed_int'");
}

struct NamedScaleType {
    const char* name;
    ScaleType type;
    nb::dlpack::dtype words;
};

const NamedScaleType& scale_type_of(const std::string& name) {
    static const NamedScaleType types[] = {
        {"F32", ScaleType::kF32, nb::dtype<std::uint32_t>()},
        {"BF16", ScaleType::kBF16, nb::dtype<std::uint16_t>()},
        {"F16", ScaleType::kF16, nb::dtype<std::uint16_t>()},
        {"F8_E8M0", ScaleType::kE8M0, nb::dtype<std::uint8_t>()},
        {"U8", ScaleType::kE8M0, nb::dtype<std::uint8_t>()},
        {"F8_E4M3", ScaleType::kE4M3, nb::dtype<std::uint8_t>()}};
    for (const NamedScaleType& type : types)
        if (name == type.name) return type;
    refuse("scale_dtype", "'" + name + "'", "'F32', 'BF16', 'F16', 'F8_E8M0', 'U8' or 'F8_E4M3'");
}

struct Arrays {
    Array codes, scales, lines;
    std::optional<Array> zero_points, global_scale;
    OutArray out;
};

void require_lines(const Array& lines, std::size_t rows, std::size_t limit) {
    require_contiguous("lines", lines, nb::dtype<std::int64_t>());
    require_shape("lines", lines, {rows});
    const auto* line = static_cast<const std::int64_t*>(lines.data());
    for (std::size_t i = 0; i < rows; ++i)
        if (line[i] < 0 || static_cast<std::size_t>(line[i]) >= limit)
            refuse("lines", std::to_string(line[i]), "a row of scales");
}

// `source` but for its pointers, once the arrays are what it says.
void check_arrays(const Quantised& source, nb::dlpack::dtype scale_words, const Arrays& arrays) {
    require_contiguous("out", arrays.out, nb::dtype<float>());
    require_contiguous("codes", arrays.codes, nb::dtype<std::uint8_t>());
    require_shape("codes", arrays.codes, {source.rows, source.bytes_a_row});
    require_contiguous("scales", arrays.scales, scale_words);
    const std::size_t lines = arrays.scales.ndim() ? arrays.scales.shape(0) : 0;
    require_shape("scales", arrays.scales, {lines, source.scales_a_line});
    require_lines(arrays.lines, source.rows, lines);
    if (arrays.zero_points) {
        if (source.kind != Codes::kInteger) refuse("zero_points", "some", "none for this kind");
        require_contiguous("zero_points", *arrays.zero_points, nb::dtype<std::uint8_t>());
        require_shape("zero_points", *arrays.zero_points, {lines, source.scales_a_line});
    }
    if (arrays.global_scale.has_value() != (source.global != GlobalScale::kNone))
        refuse("global_scale", arrays.global_scale ? "some" : "none", "some for 'nvfp4' only");
    if (arrays.global_scale) {
        require_contiguous("global_scale", *arrays.global_scale, nb::dtype<float>());
        require_shape("global_scale", *arrays.global_scale, {source.rows});
    }
}

void dequantize(const Kernels& kernels, const std::string& kind, int bits, std::size_t block,
                const std::string& scale_dtype, bool is_divided, Array codes, Array scales,
                Array lines, OutArray out, std::optional<Array> zero_points,
                std::optional<Array> global_scale) {
    const NamedKind& named = kind_of(kind);
    const NamedScaleType& scale_type = scale_type_of(scale_dtype);
    if (bits < named.fewest_bits || bits > named.most_bits)
        refuse("bits", std::to_string(bits), "what codes of kind '" + kind + "' have");
    if (!block) refuse("block", "0", "at least 1");
    if (out.ndim() != 2)
        refuse("out.shape", shape_text(shape_of(out)), "two dimensions, (rows, columns)");
    Quantised source = {};
    source.kind = named.codes;
    source.bits = bits;
    source.scale_type = scale_type.type;
    source.rows = out.shape(0), source.cols = out.shape(1);
    const std::size_t row_bits = source.cols * static_cast<std::size_t>(bits);
    source.bytes_a_row =
        named.codes == Codes::kInteger ? (row_bits + 31) / 32 * 4 : (row_bits + 7) / 8;
    source.block = block;
    source.scales_a_line = source.cols / block + (source.cols % block != 0);
    if (named.has_global_scale)
        source.global = is_divided ? GlobalScale::kDivides : GlobalScale::kMultiplies;

    const auto bytes = [](const Array& array) {
        return static_cast<const std::uint8_t*>(array.data());
    };
    check_arrays(source, scale_type.words, {codes, scales, lines, zero_points, global_scale, out});
    source.codes = bytes(codes);
    source.scales = bytes(scales);
    source.lines = static_cast<const std::int64_t*>(lines.data());
    if (zero_points) source.zero_points = bytes(*zero_points);
    if (global_scale) source.global_scale = static_cast<const float*>(global_scale->data());
    const nb::gil_scoped_release release;
    kernels.dequantize(source, static_cast<float*>(out.data()));
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(
        false);  // backend.py keeps its kernels and tables as long as the interpreter lives
    nb::class_<Tables>(m, "Tables")
        .def("__init__", &make_tables, nb::kw_only(), nb::arg("bits"), nb::arg("group"),
             nb::arg("levels"), nb::arg("boundaries"), nb::arg("d1"), nb::arg("d2"),
             nb::arg("root_group"), nb::arg("inverse_root_group"));
    nb::class_<Trellis>(m, "Trellis")
        .def("__init__", &make_trellis, nb::arg("tables"), nb::kw_only(), nb::arg("first"),
             nb::arg("second"), nb::arg("rms"), nb::arg("from_norm"), nb::arg("from_peak"),
             nb::arg("unit"));
    nb::class_<Kernels>(m, "Kernels")
        .def_ro("name", &Kernels::name)
        .def("encode", &encode, nb::arg("tables"), nb::arg("words"), nb::arg("dtype"),
             nb::arg("packed"), nb::arg("norms"), nb::arg("scale"), nb::arg("trellis").none())
        .def("decode", &decode, nb::arg("tables"), nb::arg("packed"), nb::arg("norms"),
             nb::arg("words"), nb::arg("dtype"), nb::arg("trellis").none())
        .def("cast", &cast, nb::arg("words"), nb::arg("dtype"), nb::arg("out"),
             nb::arg("out_dtype"))
        .def("dequantize", &dequantize, nb::arg("kind"), nb::arg("bits"), nb::arg("block"),
             nb::arg("scale_dtype"), nb::arg("is_divided"), nb::arg("codes"), nb::arg("scales"),
             nb::arg("lines"), nb::arg("out"), nb::arg("zero_points").none(),
             nb::arg("global_scale").none())
        .def("encode_calibrated", &encode_calibrated, nb::arg("tables"), nb::arg("words"),
             nb::arg("dtype"), nb::arg("first_group"), nb::arg("order"), nb::arg("spread"),
             nb::arg("weight"), nb::arg("half_norms"), nb::arg("packed"), nb::arg("norms"))
        .def("decompose", &decompose, nb::arg("matrix"));
    m.def("kernels_that_run_here", &kernels_that_run_here, nb::rv_policy::reference, "Best first.");
}
