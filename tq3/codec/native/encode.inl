// Encode: words -> codes and norms, a block of groups at a time, nothing larger than the
// first-level cache between.

// A sum in index order waits for each addition; two vectors of groups take turns.
constexpr int kSets = 2;
constexpr int kBlock = kSets * kLanes;

constexpr int kPiece = 8;  // codes gathered in one lane: 8 * bits <= 32 bits
constexpr int kMaxWords = kMaxGroup * kMaxBits / 32;  // packed 32-bit words of a group

// BF16 is read two weights to a lane; the other types one (F16 is widened to float32 first).
template <Dtype D>
constexpr int kWeightsInLane = D == Dtype::kBF16 ? 2 : 1;

struct EncodeSigns {
    std::int32_t d1[kMaxGroup];  // for each lane-wide word as it is loaded
    std::int32_t d2[kMaxGroup];
};

template <Dtype D>
EncodeSigns encode_signs(const Tables& tables) {
    EncodeSigns signs;
    for (int i = 0; i < tables.group; ++i) signs.d2[i] = sign_bit(tables.d2[i]);
    for (int i = 0; i < tables.group / kWeightsInLane<D>; ++i) {
        if constexpr (kWeightsInLane<D> == 2)
            signs.d1[i] =
                sign_bit(tables.d1[2 * i + 1]) | (sign_bit(tables.d1[2 * i]) >> 16 & 0x8000);
        else
            signs.d1[i] = sign_bit(tables.d1[i]);
    }
    return signs;
}

// A copy of a group that cannot be read where it lies: it is F16, or the row ends inside it.
template <Dtype D>
__attribute__((noinline)) const char* staged(const WordOf<D>* words, int valid, int group,
                                             char* room) {
    if constexpr (D == Dtype::kF16) {
        int i = 0;
        for (; i + kLanes <= valid; i += kLanes) store(room + 4 * i, load_values<D>(words + i));
        WordOf<D> last[kLanes] = {};
        __builtin_memcpy(last, words + i, static_cast<std::size_t>(valid - i) * sizeof *words);
        for (; i < group; i += kLanes) {
            store(room + 4 * i, load_values<D>(last));
            __builtin_memset(last, 0, sizeof last);
        }
    } else {
        const auto bytes = static_cast<std::size_t>(valid) * sizeof *words;
        __builtin_memcpy(room, words, bytes);
        __builtin_memset(room + bytes, 0, static_cast<std::size_t>(group) * sizeof *words - bytes);
    }
    return room;
}

// D1 * x of all groups into x, their norms into norm.
template <Dtype D>
void load_groups(const char* const (&source)[kSets][kLanes], const EncodeSigns& signs, int group,
                 F (&x)[kSets][kMaxGroup], F (&norm)[kSets]) {
    constexpr int per_lane = kWeightsInLane<D>;
    F squares[kSets] = {};
    for (int word = 0; word < group / per_lane; word += 4) {
#pragma GCC unroll 2
        for (int set = 0; set < kSets; ++set) {
            I w[4];
            load_words(w, source[set], static_cast<std::size_t>(word) * 4);
            F* to = x[set] + word * per_lane;
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const I signed_word = w[k] ^ signs.d1[word + k];
                if constexpr (per_lane == 2) {
                    const F even = as_float(signed_word << 16),
                            odd = as_float(signed_word & ~0xffff);
                    squares[set] += even * even;
                    squares[set] += odd * odd;
                    to[2 * k] = even;
                    to[2 * k + 1] = odd;
                } else {
                    const F value = as_float(signed_word);
                    squares[set] += value * value;
                    to[k] = value;
                }
            }
        }
    }
    for (int set = 0; set < kSets; ++set)
        for (int lane = 0; lane < kLanes; ++lane)
            norm[set][lane] = __builtin_sqrtf(squares[set][lane]);
}

constexpr std::int32_t every_field(int bits, std::int32_t value) {
    std::uint32_t word = 0;
    for (int i = 0; i < kPiece; ++i) word = word << bits | static_cast<std::uint32_t>(value);
    return static_cast<std::int32_t>(word);
}

// Eight codes of each group, code i at bit i*bits. `above[k]` counts the magnitudes above threshold
// k.
template <int bits>
__attribute__((always_inline)) inline I piece_of_codes(const F* rotated, const std::int32_t* d2,
                                                       const I (&threshold)[kThresholds<bits>],
                                                       I (&above)[kThresholds<bits>]) {
    I magnitudes = {}, positive = {};
#pragma GCC unroll 8
    for (int i = kPiece - 1; i >= 0; --i) {
        const I y = as_bits(rotated[i]) ^ d2[i], size = y & INT32_MAX;
        magnitudes <<= bits;
#pragma GCC unroll 8
        for (int k = 0; k < kThresholds<bits>; ++k) {
            magnitudes = count_where_greater(magnitudes, size, threshold[k]);
            above[k] = count_where_greater(above[k], size, threshold[k]);
        }
        positive = count_where_greater(positive << bits, y, I{});
    }
    // Positive: half + magnitude; otherwise its complement, half - 1 - magnitude, and so for zero.
    const I other = positive ^ every_field(bits, 1);
    return (magnitudes | every_field(bits, 1 << (bits - 1))) ^ ((other << bits) - other);
}

// Four pieces are `bits` words of the little-endian stream.
template <int bits>
__attribute__((always_inline)) inline void join_pieces(const I (&piece)[4], I* words) {
    I joined[bits] = {};
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
        const int start = p * kPiece * bits, word = start / 32, shift = start % 32;
        joined[word] |= piece[p] << shift;
        if (shift + kPiece * bits > 32)
            joined[word + 1] |= shift_right_logical(piece[p], 32 - shift);
    }
#pragma GCC unroll 4
    for (int i = 0; i < bits; ++i) words[i] = joined[i];
}

// norm / norm of the chosen levels, which is summed in double from the smallest level up.
template <int bits>
F stored_norm(F norm, const I (&above)[kThresholds<bits>], const Tables& tables) {
    constexpr int half = 1 << (bits - 1);
    double total[kLanes] = {};
    I at_least = every_lane(tables.group);
    for (int k = 0; k < half; ++k) {
        const double square = static_cast<double>(tables.level[half + k]) * tables.level[half + k];
        const I beyond = k < kThresholds<bits> ? above[k] : I{};
        const I count = at_least - beyond;
        for (int lane = 0; lane < kLanes; ++lane) total[lane] += count[lane] * square;
        at_least = beyond;
    }
    F result;
    for (int lane = 0; lane < kLanes; ++lane)
        result[lane] = norm[lane] / static_cast<float>(__builtin_sqrt(total[lane]));
    return result;
}

inline I is_not_finite(F norm) {
    return (as_bits(norm) & kInfinity) == kInfinity;
}

// A norm that is not finite leaves a group its signs alone: no magnitude is above infinity, and NaN
// counts as zero.
template <int bits>
void allow_not_finite(F norm, F* rotated, int group, I (&threshold)[kThresholds<bits>]) {
    const I not_finite = is_not_finite(norm);
    bool any = false;
    for (int lane = 0; lane < kLanes; ++lane) any |= not_finite[lane] != 0;
    if (!any) return;
    for (I& t : threshold) t = not_finite ? every_lane(kInfinity) : t;
    for (int i = 0; i < group; ++i) rotated[i] = rotated[i] == rotated[i] ? rotated[i] : F{};
}

// x = D1 * weights of kLanes groups -> packed words, stored norm.
template <int bits>
F quantize(F* x, F norm, Scale scale, const std::int32_t* d2, const Tables& tables,
           Prefetch& upcoming, I* words) {
    butterflies_between_runs(x, tables.group);
    butterflies_within_runs(x, tables.group);

    F unit = norm * tables.root_group, gain = {};
    if (scale == Scale::kSearch) {
        const Found best = search<bits>(x, unit, tables);
        unit *= best.ratio;
        gain = best.fit.gain;
    }
    I threshold[kThresholds<bits>], above[kThresholds<bits>] = {};
    for (int k = 0; k < kThresholds<bits>; ++k) threshold[k] = as_bits(unit * tables.boundary[k]);
    allow_not_finite<bits>(norm, x, tables.group, threshold);

    for (int i = 0; i < tables.group; i += 4 * kPiece, words += bits) {
        upcoming.step<kToRead>();
        I piece[4];
        for (int p = 0; p < 4; ++p) {
            const int first = i + p * kPiece;
            piece[p] = piece_of_codes<bits>(x + first, d2 + first, threshold, above);
        }
        join_pieces<bits>(piece, words);
    }
    if (scale == Scale::kSearch)
        return is_not_finite(norm) ? norm : gain * tables.inverse_root_group;
    return stored_norm<bits>(norm, above, tables);
}

// Word i of lane l -> word i of group l; lanes beyond `count` belong to no group.
inline void store_packed(I* words, std::size_t bytes, std::uint8_t* packed, std::size_t count) {
    char nowhere[kMaxWords * 4];
    char* group[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane)
        group[lane] = lane < count ? reinterpret_cast<char*>(packed) + bytes * lane : nowhere;
    std::size_t offset = 0;
    for (; offset + 16 <= bytes; offset += 16, words += 4) {
        I four[4] = {words[0], words[1], words[2], words[3]};
        store_words(four, group, offset);
    }
    for (; offset < bytes; offset += 4, ++words)
        for (int lane = 0; lane < kLanes; ++lane) store(group[lane] + offset, (*words)[lane]);
}

// D1 * weights of each kLanes groups, in the order of the groups: each(x, norm, upcoming, first,
// count), `first` the number of the first group.
template <Dtype D, class Each>
void each_groups(const Tables& tables, const Shape& shape, const void* words,
                 const EncodeSigns& signs, Each each) {
    const auto* matrix = static_cast<const WordOf<D>*>(words);
    const int group = tables.group;
    const std::size_t groups = shape.rows * shape.groups_a_row;
    GroupWalk walk(shape, group);

    alignas(64) char room[kSets][kLanes][kMaxGroup * 4];
    F x[kSets][kMaxGroup], norm[kSets];
    for (std::size_t first = 0; first < groups; first += kBlock) {
        const char* source[kSets][kLanes];
        for (int set = 0; set < kSets; ++set) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const Span span = walk.next();
                const auto* here = matrix + span.first_word;
                const bool in_place = D != Dtype::kF16 && span.valid == group;
                source[set][lane] = in_place ? reinterpret_cast<const char*>(here)
                                             : staged<D>(here, span.valid, group, room[set][lane]);
            }
        }
        load_groups<D>(source, signs, group, x, norm);
        Prefetch upcoming(matrix + walk.position(), sizeof *matrix * kBlock * group,
                          kSets * group / (4 * kPiece));
        for (int set = 0; set < kSets; ++set) {
            const std::size_t begin = first + static_cast<std::size_t>(set) * kLanes;
            if (begin >= groups) break;
            const std::size_t count = groups - begin < kLanes ? groups - begin : kLanes;
            each(x[set], norm[set], upcoming, begin, count);
        }
    }
}

template <Dtype D, int bits>
void encode_matrix(const Tables& tables, Scale scale, const Shape& shape, const void* words,
                   std::uint8_t* packed, float* norms) {
    const EncodeSigns signs = encode_signs<D>(tables);
    const std::size_t bytes = static_cast<std::size_t>(tables.group) * bits / 8;
    I packed_words[kMaxWords];
    each_groups<D>(tables, shape, words, signs,
                   [&](F* x, F norm, Prefetch& upcoming, std::size_t first, std::size_t count) {
                       const F stored =
                           quantize<bits>(x, norm, scale, signs.d2, tables, upcoming, packed_words);
                       store_packed(packed_words, bytes, packed + first * bytes, count);
                       __builtin_memcpy(norms + first, &stored, count * sizeof *norms);
                   });
}

template <Dtype D>
void encode_words(const Tables& tables, Scale scale, const Shape& shape, const void* words,
                  std::uint8_t* packed, float* norms) {
    if (tables.bits == 2) return encode_matrix<D, 2>(tables, scale, shape, words, packed, norms);
    if (tables.bits == 3) return encode_matrix<D, 3>(tables, scale, shape, words, packed, norms);
    return encode_matrix<D, 4>(tables, scale, shape, words, packed, norms);
}

void encode(const Tables& tables, Scale scale, Shape shape, Dtype dtype, const void* words,
            std::uint8_t* packed, float* norms) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return encode_words<Dtype::kBF16>(tables, scale, shape, words, packed, norms);
    if (dtype == Dtype::kF16)
        return encode_words<Dtype::kF16>(tables, scale, shape, words, packed, norms);
    return encode_words<Dtype::kF32>(tables, scale, shape, words, packed, norms);
}
