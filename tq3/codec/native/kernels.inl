// The kernels, written once for any number of lanes. docs/format.md is the arithmetic.
//
// Groups lie side by side in the lanes of vectors: lane l of x[i] is weight i of group l. So every
// step of the transform is a plain addition of two vectors, and a sum over a group runs in index
// order as the format demands.
//
// The including file is one instruction set. Everything here is in an unnamed namespace and calls
// no inline function of the standard library: the linker keeps one copy of those, and it may be the
// one with the wrong instructions.

#include <type_traits>
#include <utility>

#include "float_environment.h"
#include "kernels.h"

namespace {

using namespace tq3;

#include "lanes.inl"
#include "transform.inl"
#include "words.inl"

#include "search.inl"

#include "decode.inl"
#include "encode.inl"

#include "calibrated.inl"
#include "dequantize.inl"

#include "trellis_lanes.inl"

#include "trellis.inl"

#include "trellis_decode.inl"
#include "trellis_encode.inl"

std::size_t cast(std::size_t count, Dtype from, const void* words, Dtype to, void* out) {
    const DefaultFloatEnvironment environment;
    if (from == Dtype::kBF16) return cast_from<Dtype::kBF16>(count, words, to, out);
    if (from == Dtype::kF16) return cast_from<Dtype::kF16>(count, words, to, out);
    return cast_from<Dtype::kF32>(count, words, to, out);
}

}  // namespace
