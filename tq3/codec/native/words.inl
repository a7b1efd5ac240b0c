// Weights as stored words (BF16, F16, F32) and as float32 values, contiguous in memory; the cast
// between them.

template <Dtype>
struct Word {
    using Type = std::uint16_t;
};
template <>
struct Word<Dtype::kF32> {
    using Type = std::uint32_t;
};
template <Dtype D>
using WordOf = typename Word<D>::Type;

using Half = std::uint16_t __attribute__((vector_size(2 * kLanes)));

inline I widen(Half words) {
    return __builtin_convertvector(words, I);
}
inline Half narrow(I words) {
    return __builtin_convertvector(words, Half);
}

constexpr std::int32_t kInfinity = 0x7f800000;
constexpr int kF16Shift = 23 - 10;                     // between the mantissas of F32 and F16
constexpr std::int32_t kF16Rebias = (127 - 15) << 23;  // between their exponents
constexpr std::int32_t kSmallestNormalF16 = (127 - 14) << 23;  // 2**-14 as float32 bits

#ifndef TQ3_HAVE_F16
inline F f16_to_float(Half words) {
    const I word = widen(words);
    const I magnitude = (word & 0x7fff) << kF16Shift;
    const I normal = magnitude + kF16Rebias;
    const I infinite = normal + kF16Rebias;  // exponent 31 becomes 255
    // A denormal is given an implicit one, which the subtraction takes away exactly.
    const I tiny = as_bits(as_float(magnitude + kSmallestNormalF16) -
                           as_float(every_lane(kSmallestNormalF16)));
    I value = magnitude < (31 << 23) ? normal : infinite;
    value = magnitude < (1 << 23) ? tiny : value;
    return as_float(value | (word & 0x8000) << 16);
}

inline Half float_to_f16(F values) {
    constexpr std::int32_t kTooLarge =
        (127 + 16) << 23;  // 65536; 65520 and above round up to infinity by themselves
    const I bits = as_bits(values);
    const I magnitude = bits & INT32_MAX;
    const I rounded =
        (magnitude - kF16Rebias + 0xfff + ((magnitude >> kF16Shift) & 1)) >> kF16Shift;
    // One half has the exponent at which the last bit of a float32 is the last bit of a denormal
    // F16.
    const I tiny = as_bits(as_float(magnitude) + 0.5f) - as_bits(every_lane(0.5f));
    const I nan = ((magnitude >> kF16Shift) & 0x1ff) | 0x7e00;
    I word = magnitude < kSmallestNormalF16 ? tiny : rounded;
    word = magnitude < kTooLarge ? word : every_lane(0x7c00);
    word = magnitude > kInfinity ? nan : word;
    return narrow(word | (shift_right_logical(bits, 16) & 0x8000));
}
#endif

// The upper half of each lane, rounded to nearest even; the lower half keeps rubbish. Right for
// every value but a NaN with a payload down there, whose carry may run into the sign.
inline I round_to_bf16(F value) {
    const U bits = reinterpret_cast<U>(value);
    return reinterpret_cast<I>(bits + 0x7fff + ((bits >> 16) & 1));
}

inline Half float_to_bf16(F values) {
    const I bits = as_bits(values);
    const I quiet_nan = bits | 0x400000;
    const I rounded = (bits & INT32_MAX) > kInfinity ? quiet_nan : round_to_bf16(values);
    return narrow(shift_right_logical(rounded, 16));
}

// kLanes neighbouring weights.
template <Dtype D>
inline F load_values(const WordOf<D>* words) {
    if constexpr (D == Dtype::kF32) return load<F>(words);
    if constexpr (D == Dtype::kBF16) return as_float(widen(load<Half>(words)) << 16);
    if constexpr (D == Dtype::kF16) return f16_to_float(load<Half>(words));
}

template <Dtype D>
inline void store_values(F values, WordOf<D>* words) {
    if constexpr (D == Dtype::kF32) store(words, values);
    if constexpr (D == Dtype::kBF16) store(words, float_to_bf16(values));
    if constexpr (D == Dtype::kF16) store(words, float_to_f16(values));
}

// The first float32 magnitude that rounds to infinity in each type: its largest finite value and
// half a step.
template <Dtype D>
constexpr std::int32_t kOverflow = D == Dtype::kBF16  ? 0x7f7f8000
                                   : D == Dtype::kF16 ? 0x477ff000
                                                      : kInfinity;

template <Dtype From, Dtype To>
inline I cast_lanes(const WordOf<From>* from, WordOf<To>* to, I overflowed) {
    const F values = load_values<From>(from);
    store_values<To>(values, to);
    const I magnitude = as_bits(values) & INT32_MAX;
    return overflowed - ((magnitude >= kOverflow<To>)&(magnitude < kInfinity));
}

template <Dtype From, Dtype To>
std::size_t cast_words(std::size_t count, const void* words, void* out) {
    constexpr std::size_t kChunk = std::size_t{1} << 24;  // a lane's counter cannot overflow
    const auto* from = static_cast<const WordOf<From>*>(words);
    auto* to = static_cast<WordOf<To>*>(out);
    std::size_t total = 0;
    for (std::size_t first = 0; first < count; first += kChunk) {
        const std::size_t end = count - first < kChunk ? count : first + kChunk;
        I overflowed = {};
        std::size_t i = first;
        for (; i + kLanes <= end; i += kLanes)
            overflowed = cast_lanes<From, To>(from + i, to + i, overflowed);
        if (i < end) {
            WordOf<From> last[kLanes] = {};
            WordOf<To> last_out[kLanes];
            __builtin_memcpy(last, from + i, (end - i) * sizeof *from);
            overflowed = cast_lanes<From, To>(last, last_out, overflowed);
            __builtin_memcpy(to + i, last_out, (end - i) * sizeof *to);
        }
        for (int lane = 0; lane < kLanes; ++lane)
            total += static_cast<std::size_t>(overflowed[lane]);
    }
    return total;
}

template <Dtype From>
std::size_t cast_from(std::size_t count, const void* words, Dtype to, void* out) {
    if (to == Dtype::kBF16) return cast_words<From, Dtype::kBF16>(count, words, out);
    if (to == Dtype::kF16) return cast_words<From, Dtype::kF16>(count, words, out);
    return cast_words<From, Dtype::kF32>(count, words, out);
}
