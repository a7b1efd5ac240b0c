// What every instruction set needs first: types, vectors and words, the codec's own.

#include <utility>

#include "float_environment.h"
#include "linear.h"

namespace {

using namespace tq3;

#include "lanes.inl"
#include "words.inl"

}  // namespace
