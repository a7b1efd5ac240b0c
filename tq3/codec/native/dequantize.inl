// Dequantize: codes and scales of a source that is quantised already -> float32, row by row.
//
// kLanes neighbouring weights of a row lie in the lanes. Codes of fewer than eight bits are spread
// to bytes first, a part of a row at a time, so that all kinds of codes are read alike.

using Byte = std::uint8_t __attribute__((vector_size(kLanes)));

constexpr std::size_t kSpread = 1024;  // codes that are bytes at one time; a multiple of eight

// A sign, an exponent with the usual bias, a mantissa. A denormal is given an implicit one, which
// the subtraction takes away exactly.
template <int exponent_bits, int mantissa_bits>
inline F small_float(I codes) {
    constexpr int bits = exponent_bits + mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
    constexpr std::int32_t smallest = (128 - bias) << 23;
    const I magnitude = codes & ((1 << bits) - 1), fields = magnitude << (23 - mantissa_bits);
    const I tiny = as_bits(as_float(fields + smallest) - as_float(every_lane(smallest)));
    const I value = magnitude < (1 << mantissa_bits) ? tiny : fields + ((127 - bias) << 23);
    return as_float(value | (codes & (1 << bits)) << (31 - bits));
}

// Codes 7f and ff become NaN: an exponent of ones.
#ifdef TQ3_HAVE_F16
// By way of F16, which has the same fields, but wider ones and an exponent whose bias is larger by
// eight: denormals need no care.
inline F e4m3_to_float(Byte bytes) {
    const Half codes = __builtin_convertvector(bytes, Half), magnitude = codes & 0x7f;
    const Half nan = (magnitude == 0x7f) & 0x7c00;
    return f16_to_float((codes & 0x80) << 8 | magnitude << 7 | nan) * 256.0f;
}
#else
inline F e4m3_to_float(Byte bytes) {
    const I codes = widen(__builtin_convertvector(bytes, Half));
    const I nan = ((codes & 0x7f) == 0x7f) & kInfinity;
    return as_float(as_bits(small_float<4, 3>(codes)) | nan);
}
#endif

#ifdef TQ3_HAVE_LOOKUP
inline F e2m1_to_float(I codes) {
    const float values[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    return lookup<4>(repeated_levels(values), codes);
}
#else
inline F e2m1_to_float(I codes) {
    return small_float<2, 1>(codes);
}
#endif

// 2^(code - 127), the first of which is a denormal, and the last NaN.
inline F e8m0_to_float(Byte bytes) {
    const I codes = widen(__builtin_convertvector(bytes, Half));
    const I power = codes == 0 ? every_lane(1 << 22) : codes << 23;
    return as_float(codes == 255 ? every_lane(0x7fc00000) : power);
}

template <ScaleType type>
constexpr std::size_t kScaleBytes = type == ScaleType::kF32                               ? 4
                                    : type == ScaleType::kBF16 || type == ScaleType::kF16 ? 2
                                                                                          : 1;

template <ScaleType type>
inline F load_scales(const std::uint8_t* from) {
    if constexpr (type == ScaleType::kF32) return load<F>(from);
    if constexpr (type == ScaleType::kBF16) return as_float(widen(load<Half>(from)) << 16);
    if constexpr (type == ScaleType::kF16) return f16_to_float(load<Half>(from));
    if constexpr (type == ScaleType::kE8M0) return e8m0_to_float(load<Byte>(from));
    if constexpr (type == ScaleType::kE4M3) return e4m3_to_float(load<Byte>(from));
}

template <ScaleType type>
void scales_to_float(const std::uint8_t* from, std::size_t count, float* to) {
    constexpr std::size_t size = kScaleBytes<type>;
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load_scales<type>(from + i * size));
    if (i == count) return;
    std::uint8_t last[kLanes * size] = {};
    __builtin_memcpy(last, from + i * size, (count - i) * size);
    const F values = load_scales<type>(last);
    __builtin_memcpy(to + i, &values, (count - i) * sizeof *to);
}

// `count` scales from number `at` on.
inline void read_scales(const Quantised& source, std::size_t at, std::size_t count, float* to) {
    const std::uint8_t* scales = source.scales;
    switch (source.scale_type) {
        case ScaleType::kE4M3:
            return scales_to_float<ScaleType::kE4M3>(scales + at, count, to);
        case ScaleType::kE8M0:
            return scales_to_float<ScaleType::kE8M0>(scales + at, count, to);
        case ScaleType::kF16:
            return scales_to_float<ScaleType::kF16>(scales + at * 2, count, to);
        case ScaleType::kBF16:
            return scales_to_float<ScaleType::kBF16>(scales + at * 2, count, to);
        case ScaleType::kF32:
            return scales_to_float<ScaleType::kF32>(scales + at * 4, count, to);
    }
}

constexpr std::uint64_t low_bits(int count) {
    return (std::uint64_t{1} << count) - 1;
}

// Eight codes of `bits` bits, one after the other, to a byte each: halves, quarters, eighths.
template <int bits>
inline std::uint64_t spread_eight(std::uint64_t x) {
    constexpr std::uint64_t half = low_bits(4 * bits);
    constexpr std::uint64_t quarter = low_bits(2 * bits) * 0x0000000100000001;
    constexpr std::uint64_t eighth = low_bits(bits) * 0x0001000100010001;
    x = (x & half) | (x >> 4 * bits & half) << 32;
    x = (x & quarter) | (x >> 2 * bits & quarter) << 16;
    return (x & eighth) | (x >> bits & eighth) << 8;
}

// `count` codes from the beginning of `from`, of which `bytes` may be read. (count + 7) / 8 * 8
// bytes of `to` are written.
template <int bits>
void spread(const std::uint8_t* __restrict from, std::size_t bytes, std::size_t count,
            std::uint8_t* __restrict to) {
    // Eight codes of four bits are a word, which compilers take several of at one time.
    using Word = std::conditional_t<bits == 4, std::uint32_t, std::uint64_t>;
    const std::size_t eights = (count + 7) / 8;
    const std::size_t readable = bytes < sizeof(Word) ? 0 : (bytes - sizeof(Word)) / bits + 1;
    const std::size_t whole = eights < readable ? eights : readable;
    std::size_t i = 0;
    for (; i < whole; ++i) store(to + 8 * i, spread_eight<bits>(load<Word>(from + i * bits)));
    for (; i < eights; ++i) {
        std::uint64_t last = 0;
        const std::size_t left = bytes - i * bits;
        __builtin_memcpy(&last, from + i * bits, left < 8 ? left : 8);
        store(to + 8 * i, spread_eight<bits>(last));
    }
}

// Codes as bytes, from number `first` of a row on, which is a multiple of eight.
inline const std::uint8_t* codes_as_bytes(const Quantised& source, const std::uint8_t* row,
                                          std::size_t first, std::size_t count,
                                          std::uint8_t* room) {
    const std::size_t begin = first / 8 * static_cast<std::size_t>(source.bits);
    const std::uint8_t* from = row + begin;
    const std::size_t bytes = source.bytes_a_row - begin;
    switch (source.bits) {
        case 3:
            spread<3>(from, bytes, count, room);
            break;
        case 4:
            spread<4>(from, bytes, count, room);
            break;
        case 5:
            spread<5>(from, bytes, count, room);
            break;
        case 6:
            spread<6>(from, bytes, count, room);
            break;
        case 7:
            spread<7>(from, bytes, count, room);
            break;
        default:
            return from;
    }
    return room;
}

// How kLanes codes are read: a byte each, or two in a byte. The latter needs shifts of each lane by
// a number of its own, which SSE2 does not have.
enum class Read { kBytes, kPairs };
constexpr bool kReadsPairs = kLanes > 4;

template <Read read>
constexpr std::size_t kReadBytes = read == Read::kPairs ? kLanes / 2 : kLanes;

// What the weights of one block in one row have in common.
struct Block {
    F scale, global_scale;
    I zero;
};

// (value of code * scale), then the global scale: each product and quotient is rounded once.
template <Codes codes, GlobalScale global, Read read>
inline F dequantize_lanes(const std::uint8_t* from, const Block& block) {
    F value;
    if constexpr (codes == Codes::kE4M3) {
        value = e4m3_to_float(load<Byte>(from));
    } else {
        I code;
        if constexpr (read == Read::kPairs)
            code = reinterpret_cast<I>(load_pairs(from) & 15);
        else
            code = widen(__builtin_convertvector(load<Byte>(from), Half));
        if constexpr (codes == Codes::kE2M1)
            value = e2m1_to_float(code);
        else
            value = __builtin_convertvector(code - block.zero, F);
    }
    value *= block.scale;
    if constexpr (global == GlobalScale::kMultiplies) value *= block.global_scale;
    if constexpr (global == GlobalScale::kDivides) value /= block.global_scale;
    return value;
}

template <Codes codes, GlobalScale global, Read read>
inline void dequantize_run(const std::uint8_t* from, std::size_t count, const Block& block,
                           float* out) {
    constexpr auto lanes = dequantize_lanes<codes, global, read>;
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes, from += kReadBytes<read>)
        store(out + i, lanes(from, block));
    if (i == count) return;
    std::uint8_t last[kLanes] = {};
    __builtin_memcpy(last, from, read == Read::kPairs ? (count - i + 1) / 2 : count - i);
    const F values = lanes(last, block);
    __builtin_memcpy(out + i, &values, (count - i) * sizeof *out);
}

// One row, whose first scale is number `scale`. Blocks of pairs are whole vectors.
template <Codes codes, GlobalScale global, Read read>
void dequantize_row(const Quantised& source, const std::uint8_t* row, std::size_t scale,
                    float global_scale, float* out) {
    alignas(64) std::uint8_t room[kSpread];
    alignas(64) float scales[kSpread + 1];
    Block block = {{}, every_lane(global_scale), every_lane(1 << (source.bits - 1))};
    for (std::size_t first = 0; first < source.cols; first += kSpread) {
        const std::size_t count = source.cols - first < kSpread ? source.cols - first : kSpread;
        const std::size_t number = first / source.block;
        const std::size_t blocks = (first + count - 1) / source.block + 1 - number;
        read_scales(source, scale + number, blocks, scales);
        const std::uint8_t* from = read == Read::kPairs
                                       ? row + first / 2
                                       : codes_as_bytes(source, row, first, count, room);
        std::size_t i = 0, end = (number + 1) * source.block - first;
        for (std::size_t b = 0; b < blocks; ++b, end += source.block) {
            if (source.zero_points)
                block.zero = every_lane(std::int32_t{source.zero_points[scale + number + b]});
            block.scale = every_lane(scales[b]);
            const std::size_t stop = end < count ? end : count;
            const std::size_t begin = read == Read::kPairs ? i / 2 : i;
            dequantize_run<codes, global, read>(from + begin, stop - i, block, out + first + i);
            i = stop;
        }
    }
}

template <Codes codes, GlobalScale global, Read read>
void dequantize_rows(const Quantised& source, float* out) {
    for (std::size_t i = 0; i < source.rows; ++i) {
        const std::size_t scale = static_cast<std::size_t>(source.lines[i]) * source.scales_a_line;
        const float global_scale = global == GlobalScale::kNone ? 1 : source.global_scale[i];
        dequantize_row<codes, global, read>(source, source.codes + i * source.bytes_a_row, scale,
                                            global_scale, out + i * source.cols);
    }
}

template <Codes codes, GlobalScale global>
void dequantize_read(const Quantised& source, float* out) {
    if constexpr (kReadsPairs)
        if (source.bits == 4 && source.block % kLanes == 0)
            return dequantize_rows<codes, global, Read::kPairs>(source, out);
    dequantize_rows<codes, global, Read::kBytes>(source, out);
}

void dequantize(const Quantised& source, float* out) {
    const DefaultFloatEnvironment environment;
    switch (source.global) {
        case GlobalScale::kMultiplies:
            return dequantize_read<Codes::kE2M1, GlobalScale::kMultiplies>(source, out);
        case GlobalScale::kDivides:
            return dequantize_read<Codes::kE2M1, GlobalScale::kDivides>(source, out);
        case GlobalScale::kNone:
            break;
    }
    switch (source.kind) {
        case Codes::kE4M3:
            return dequantize_rows<Codes::kE4M3, GlobalScale::kNone, Read::kBytes>(source, out);
        case Codes::kE2M1:
            return dequantize_read<Codes::kE2M1, GlobalScale::kNone>(source, out);
        case Codes::kInteger:
            return dequantize_read<Codes::kInteger, GlobalScale::kNone>(source, out);
    }
}
