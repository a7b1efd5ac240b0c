// Decode: codes and norms -> words, kLanes groups at a time.

// Two BF16 weights leave as one 32-bit word; other types leave as float32 (F16 is narrowed on the
// way to its row).
template <Dtype D>
constexpr int kWeightsOut = D == Dtype::kBF16 ? 2 : 1;

struct DecodeConstants {
    Levels levels;
    std::int32_t flip[kMaxGroup * kMaxBits /
                      32];   // complements each code whose D2 is -1: the codebook is symmetric
    float scale[kMaxGroup];  // D1 / sqrt(group)
};

inline DecodeConstants decode_constants(const Tables& tables) {
    DecodeConstants constants = {};
    float level[16];
    const int bits = tables.bits, mask = (1 << bits) - 1;
    for (int i = 0; i < 16; ++i) level[i] = tables.level[i & mask];
    constants.levels = repeated_levels(level);
    for (int i = 0; i < tables.group; ++i) {
        constants.scale[i] = tables.inverse_root_group * tables.d1[i];
        if (tables.d2[i] > 0) continue;
        const int start = i * bits;
        const std::uint64_t field = static_cast<std::uint64_t>(mask) << start % 32;
        constants.flip[start / 32] |= static_cast<std::int32_t>(field);
        if (field >> 32) constants.flip[start / 32 + 1] |= static_cast<std::int32_t>(field >> 32);
    }
    return constants;
}

// 32 codes of each group from `bits` words; what lies above a code in its lane is rubbish, which
// `lookup` ignores.
template <int bits>
__attribute__((always_inline)) inline void levels_of_codes(const I* words, const Levels& levels,
                                                           F* x) {
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) {
        const int start = i * bits, word = start / 32, shift = start % 32;
        I code = shift_right_logical(words[word], shift);
        if (shift + bits > 32) code |= words[word + 1] << (32 - shift);
        x[i] = lookup<bits>(levels, code);
    }
}

// Word i of kLanes groups, `bytes` apart; lanes beyond `count` repeat the last group.
inline void load_packed(const std::uint8_t* packed, std::size_t bytes, std::size_t count,
                        I* words) {
    const char* group[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane)
        group[lane] =
            reinterpret_cast<const char*>(packed) + bytes * (lane < count ? lane : count - 1);
    std::size_t offset = 0;
    for (; offset + 16 <= bytes; offset += 16, words += 4) {
        I four[4];
        load_words(four, group, offset);
        __builtin_memcpy(words, four, sizeof four);
    }
    for (; offset < bytes; offset += 4, ++words)
        for (int lane = 0; lane < kLanes; ++lane)
            (*words)[lane] = load<std::int32_t>(group[lane] + offset);
}

// A quiet NaN without payload, so that rounding its bits cannot carry into the sign.
inline F canonical(F norm) {
    return norm == norm ? norm : as_float(every_lane(0x7fc00000));
}

// norm * (D1 * (H * level)), the last strides and the way out in one pass.
template <Dtype D>
void store_weights(const F* x, F norm, const float* scale, int group, Prefetch upcoming,
                   char* const (&to)[kLanes]) {
    for (int i = 0; i < group; i += kRun) {
        upcoming.step<kToWrite>();
        F v[kRun];
#pragma GCC unroll 16
        for (int j = 0; j < kRun; ++j) v[j] = x[i + j];
        butterflies<kRun>(v);
#pragma GCC unroll 16
        for (int j = 0; j < kRun; ++j) v[j] = v[j] * scale[i + j] * norm;
#pragma GCC unroll 4
        for (int j = 0; j < kRun; j += 4 * kWeightsOut<D>) {
            I w[4];
            for (int k = 0; k < 4; ++k) {
                if constexpr (kWeightsOut<D> == 2)
                    w[k] = shift_right_logical(round_to_bf16(v[j + 2 * k]), 16) |
                           (round_to_bf16(v[j + 2 * k + 1]) & ~0xffff);
                else
                    w[k] = as_bits(v[j + k]);
            }
            store_words(w, to, static_cast<std::size_t>(i + j) * 4 / kWeightsOut<D>);
        }
    }
}

// The weights of one group from where they were decoded to their row, without the padding.
template <Dtype D>
void unstage(const char* room, int valid, WordOf<D>* to) {
    if constexpr (D == Dtype::kF16) {
        int i = 0;
        for (; i + kLanes <= valid; i += kLanes) store_values<D>(load<F>(room + 4 * i), to + i);
        WordOf<D> last[kLanes];
        if (i < valid) store_values<D>(load<F>(room + 4 * i), last);
        __builtin_memcpy(to + i, last, static_cast<std::size_t>(valid - i) * sizeof *to);
    } else {
        __builtin_memcpy(to, room, static_cast<std::size_t>(valid) * sizeof *to);
    }
}

// Each kLanes groups: fill(x, packed words) makes D2 * levels of them, `scale` is D1 / sqrt(group).
template <Dtype D, class Fill>
void decode_groups(const Shape& shape, int group, int bits, const std::uint8_t* packed,
                   const float* norms, const float* scale, void* words, Fill fill) {
    auto* matrix = static_cast<WordOf<D>*>(words);
    const std::size_t groups = shape.rows * shape.groups_a_row,
                      bytes = static_cast<std::size_t>(group / 8 * bits);
    GroupWalk walk(shape, group);

    alignas(64) char room[kLanes][kMaxGroup * 4];
    F x[kMaxGroup];
    I packed_words[kMaxGroup * kMaxBits / 32];
    for (std::size_t first = 0; first < groups; first += kLanes) {
        const std::size_t count = groups - first < kLanes ? groups - first : kLanes;
        load_packed(packed + first * bytes, bytes, count, packed_words);
        fill(x, packed_words);
        butterflies_between_runs(x, group);

        F norm = {};
        __builtin_memcpy(&norm, norms + first, count * sizeof *norms);
        Span span[kLanes];
        char* to[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            span[lane] = walk.next();
            const bool in_place = D != Dtype::kF16 && span[lane].valid == group;
            to[lane] =
                in_place ? reinterpret_cast<char*>(matrix + span[lane].first_word) : room[lane];
        }
        const Prefetch upcoming(matrix + walk.position(), sizeof *matrix * kLanes * group,
                                group / kRun);
        store_weights<D>(x, canonical(norm), scale, group, upcoming, to);
        for (int lane = 0; lane < kLanes; ++lane)
            if (to[lane] == room[lane])
                unstage<D>(room[lane], span[lane].valid, matrix + span[lane].first_word);
    }
}

template <Dtype D, int bits>
void decode_matrix(const Tables& tables, const Shape& shape, const std::uint8_t* packed,
                   const float* norms, void* words) {
    const DecodeConstants constants = decode_constants(tables);
    const int group = tables.group;
    decode_groups<D>(
        shape, group, bits, packed, norms, constants.scale, words, [&](F* x, I* packed_words) {
            for (int i = 0; i < group / 32 * bits; ++i) packed_words[i] ^= constants.flip[i];
            for (int i = 0; i < group / 32; ++i)
                levels_of_codes<bits>(packed_words + i * bits, constants.levels, x + i * 32);
        });
}

template <Dtype D>
void decode_words(const Tables& tables, const Shape& shape, const std::uint8_t* packed,
                  const float* norms, void* words) {
    if (tables.bits == 2) return decode_matrix<D, 2>(tables, shape, packed, norms, words);
    if (tables.bits == 3) return decode_matrix<D, 3>(tables, shape, packed, norms, words);
    return decode_matrix<D, 4>(tables, shape, packed, norms, words);
}

void decode(const Tables& tables, Shape shape, const std::uint8_t* packed, const float* norms,
            Dtype dtype, void* words) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return decode_words<Dtype::kBF16>(tables, shape, packed, norms, words);
    if (dtype == Dtype::kF16) return decode_words<Dtype::kF16>(tables, shape, packed, norms, words);
    return decode_words<Dtype::kF32>(tables, shape, packed, norms, words);
}
