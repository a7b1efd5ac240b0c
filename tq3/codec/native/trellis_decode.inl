// Codes of a trellis become weights again: only what they are worth differs from scalar codes.

struct TrellisLevels {
    Levels first, second;
    float unit[kMaxGroup];   // D2 * unit
    float scale[kMaxGroup];  // D1 / sqrt(group)
};

inline TrellisLevels trellis_levels(const Tables& tables, const Trellis& code) {
    TrellisLevels levels = {};
    float first[16], second[16];
    for (int i = 0; i < 16; ++i) {
        first[i] = static_cast<float>(code.first[i & ((1 << tables.bits) - 1)]);
        second[i] = static_cast<float>(code.second[i & ((1 << tables.bits) - 1)]);
    }
    levels.first = repeated_levels(first);
    levels.second = repeated_levels(second);
    for (int i = 0; i < tables.group; ++i) {
        levels.unit[i] = code.unit * tables.d2[i];
        levels.scale[i] = tables.inverse_root_group * tables.d1[i];
    }
    return levels;
}

// D2 * levels of the 32 weights of four columns. words: one of each plane, `stride` apart; above a
// code may lie others, which `lookup` ignores. last, before: of the codes before, then of these.
template <int bits>
__attribute__((always_inline)) inline void levels_of_columns(const I* words, int stride,
                                                             const TrellisLevels& levels,
                                                             const float* unit, I& last, I& before,
                                                             F* x) {
    I plane[4];
    for (int p = 0; p < bits; ++p) plane[p] = words[p * stride];
    if constexpr (bits == 3)
        plane[3] = (shift_right_logical(plane[0], 3) & 0x11111111) |
                   (shift_right_logical(plane[1], 2) & 0x22222222) |
                   (shift_right_logical(plane[2], 1) & 0x44444444);
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) {
        const I code = shift_right_logical(plane[i % 4], i / 4 * 4);
        const F value =
            lookup<bits>(levels.first, code ^ before) + lookup<bits>(levels.second, last);
        x[i] = value * unit[i];
        before = last;
        last = code;
    }
}

template <int bits>
void levels_of_ring(const I* words, int cycle, const TrellisLevels& levels, const float* unit,
                    F* x) {
    const int stride = cycle / 32;
    const I* end = words + stride - 1;
    const auto last_of = [&](int p) { return shift_right_logical(end[p * stride], 28); };
    I before = last_of(2), last;
    if constexpr (bits == 3)
        last = (shift_right_logical(last_of(0), 3) & 1) | (shift_right_logical(last_of(1), 2) & 2) |
               (shift_right_logical(last_of(2), 1) & 4);
    else
        last = last_of(3);
    for (int i = 0; i < stride; ++i)
        levels_of_columns<bits>(words + i, stride, levels, unit + 32 * i, last, before, x + 32 * i);
}

template <Dtype D, int bits>
void decode_trellis_matrix(const Tables& tables, const Trellis& code, const Shape& shape,
                           const std::uint8_t* packed, const float* norms, void* words) {
    const TrellisLevels levels = trellis_levels(tables, code);
    const int group = tables.group, cycle = group < kMaxCycle ? group : kMaxCycle;
    decode_groups<D>(shape, group, bits, packed, norms, levels.scale, words,
                     [&](F* x, const I* packed_words) {
                         for (int i = 0; i < group; i += cycle)
                             levels_of_ring<bits>(packed_words + i / 32 * bits, cycle, levels,
                                                  levels.unit + i, x + i);
                     });
}

template <Dtype D>
void decode_trellis_words(const Tables& tables, const Trellis& code, const Shape& shape,
                          const std::uint8_t* packed, const float* norms, void* words) {
    if (tables.bits == 3)
        return decode_trellis_matrix<D, 3>(tables, code, shape, packed, norms, words);
    return decode_trellis_matrix<D, 4>(tables, code, shape, packed, norms, words);
}

void decode_trellis(const Tables& tables, const Trellis& code, Shape shape,
                    const std::uint8_t* packed, const float* norms, Dtype dtype, void* words) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return decode_trellis_words<Dtype::kBF16>(tables, code, shape, packed, norms, words);
    if (dtype == Dtype::kF16)
        return decode_trellis_words<Dtype::kF16>(tables, code, shape, packed, norms, words);
    return decode_trellis_words<Dtype::kF32>(tables, code, shape, packed, norms, words);
}
