// Dequantize: codes and scales of a source that is quantised already -> float32, row by row.
//
// kLanes neighbouring weights of a row lie in the lanes. Codes of fewer than eight bits are spread
// to bytes first, a part of a row at a time, so that all kinds of codes are read alike.

using Byte = std::uint8_t __attribute__((vector_size(kLanes)));

constexpr std::size_t kSpread = 1024;  // codes that are bytes at one time; a multiple of eight

// By way of F16, which has the same fields, but wider ones and an exponent whose bias is larger by
// eight: denormals need no care. Codes 7f and ff become NaN of F16, whose exponent is all ones.
inline F e4m3_to_float(Half codes) {
    const Half magnitude = codes & 0x7f;
    const Half nan = (magnitude == 0x7f) & 0x7c00;
    return f16_to_float((codes & 0x80) << 8 | magnitude << 7 | nan) * 256.0f;
}

// 2^(code - 127), the first of which is a denormal, and the last NaN.
inline F e8m0_to_float(I codes) {
    const I power = codes == 0 ? every_lane(1 << 22) : codes << 23;
    return as_float(codes == 255 ? every_lane(0x7fc00000) : power);
}

// Scale number `at` in every lane.
inline F scale_in_every_lane(const Quantised& source, std::size_t at) {
    const auto word = [&] {
        return Half{} + load<std::uint16_t>(source.scales + at * sizeof(std::uint16_t));
    };
    switch (source.scale_type) {
        case ScaleType::kE4M3:
            return e4m3_to_float(Half{} + source.scales[at]);
        case ScaleType::kE8M0:
            return e8m0_to_float(every_lane(std::int32_t{source.scales[at]}));
        case ScaleType::kF16:
            return f16_to_float(word());
        case ScaleType::kBF16:
            return as_float(widen(word()) << 16);
        case ScaleType::kF32:
            break;
    }
    return every_lane(load<float>(source.scales + at * sizeof(float)));
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

// What the weights of one block in one row have in common.
struct Block {
    F scale, global_scale;
    I zero;
};

// (value of code * scale), then the global scale: each product and quotient is rounded once.
template <Codes codes, GlobalScale global>
inline F dequantize_lanes(Byte bytes, const Levels& e2m1, const Block& block) {
    const Half half = __builtin_convertvector(bytes, Half);
    F value;
    if constexpr (codes == Codes::kE4M3) value = e4m3_to_float(half);
    if constexpr (codes == Codes::kE2M1) value = lookup<4>(e2m1, widen(half));
    if constexpr (codes == Codes::kInteger)
        value = __builtin_convertvector(widen(half) - block.zero, F);
    value *= block.scale;
    if constexpr (global == GlobalScale::kMultiplies) value *= block.global_scale;
    if constexpr (global == GlobalScale::kDivides) value /= block.global_scale;
    return value;
}

template <Codes codes, GlobalScale global>
inline void dequantize_run(const std::uint8_t* bytes, std::size_t count, const Levels& e2m1,
                           const Block& block, float* out) {
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        store(out + i, dequantize_lanes<codes, global>(load<Byte>(bytes + i), e2m1, block));
    if (i == count) return;
    Byte last = {};
    __builtin_memcpy(&last, bytes + i, count - i);
    const F values = dequantize_lanes<codes, global>(last, e2m1, block);
    __builtin_memcpy(out + i, &values, (count - i) * sizeof *out);
}

// One row, whose first scale is number `scale`.
template <Codes codes, GlobalScale global>
void dequantize_row(const Quantised& source, const std::uint8_t* row, std::size_t scale,
                    float global_scale, const Levels& e2m1, float* out) {
    alignas(64) std::uint8_t room[kSpread];
    Block block = {{}, every_lane(global_scale), every_lane(1 << (source.bits - 1))};
    std::size_t left = 0;  // weights of the block that are still to come
    for (std::size_t first = 0; first < source.cols; first += kSpread) {
        const std::size_t count = source.cols - first < kSpread ? source.cols - first : kSpread;
        const std::uint8_t* bytes = codes_as_bytes(source, row, first, count, room);
        for (std::size_t i = 0; i < count;) {
            if (!left) {
                block.scale = scale_in_every_lane(source, scale);
                if (source.zero_points)
                    block.zero = every_lane(std::int32_t{source.zero_points[scale]});
                ++scale;
                left = source.block;
            }
            const std::size_t run = count - i < left ? count - i : left;
            dequantize_run<codes, global>(bytes + i, run, e2m1, block, out + first + i);
            i += run;
            left -= run;
        }
    }
}

template <Codes codes, GlobalScale global>
void dequantize_rows(const Quantised& source, float* out) {
    const float e2m1[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    const Levels levels = repeated_levels(e2m1);
    for (std::size_t i = 0; i < source.rows; ++i) {
        const std::size_t scale = static_cast<std::size_t>(source.lines[i]) * source.scales_a_line;
        const float global_scale = global == GlobalScale::kNone ? 1 : source.global_scale[i];
        dequantize_row<codes, global>(source, source.codes + i * source.bytes_a_row, scale,
                                      global_scale, levels, out + i * source.cols);
    }
}

void dequantize(const Quantised& source, float* out) {
    const DefaultFloatEnvironment environment;
    switch (source.global) {
        case GlobalScale::kMultiplies:
            return dequantize_rows<Codes::kE2M1, GlobalScale::kMultiplies>(source, out);
        case GlobalScale::kDivides:
            return dequantize_rows<Codes::kE2M1, GlobalScale::kDivides>(source, out);
        case GlobalScale::kNone:
            break;
    }
    switch (source.kind) {
        case Codes::kE4M3:
            return dequantize_rows<Codes::kE4M3, GlobalScale::kNone>(source, out);
        case Codes::kE2M1:
            return dequantize_rows<Codes::kE2M1, GlobalScale::kNone>(source, out);
        case Codes::kInteger:
            return dequantize_rows<Codes::kInteger, GlobalScale::kNone>(source, out);
    }
}
