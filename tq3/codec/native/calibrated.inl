// Codes under second moments: columns are coded one after the other, each as if it had to make up
// for the errors before it. docs/calibration.md is the arithmetic, tq3/codec/calibrated.py the same
// in numpy.
//
// Rows lie side by side in the lanes, kSets vectors of them at a time. What a column is given is
// summed when its turn comes, in the order of the columns before it, so the sums are those of a
// loop that hands on every error at once; a few columns at a time share what is loaded.

constexpr int kPanel = 8;                           // of Feedback::spread
constexpr int kAtOnce = kLanes >= 16 ? kPanel : 4;  // columns whose sums stay in registers
constexpr float kRatios[] = {1.0F, 0.94F, 1.06F, 0.88F, 1.12F};
constexpr std::int32_t kTooLargeF16 = 0x477ff000;  // 65520, the first float32 that F16 rounds up

using Rows = F[kSets];

struct Spread {
    const float* panels;
    int columns;
    // What column `row` hands on to the kPanel columns from `column` on.
    const float* at(int row, int column) const {
        return panels + (static_cast<std::size_t>(column / kPanel) * columns + row) * kPanel +
               column % kPanel;
    }
};

// sum[c] += what `count` columns from `first` on hand on to columns `to + c`.
inline void receive(Rows (&sum)[kAtOnce], const Rows* delta, const Spread& spread, int first,
                    int count, int to) {
    const float* factor = spread.at(first, to);
    for (int j = 0; j < count; ++j, factor += kPanel)
#pragma GCC unroll 8
        for (int c = 0; c < kAtOnce; ++c)
#pragma GCC unroll 2
            for (int set = 0; set < kSets; ++set) sum[c][set] += delta[j][set] * factor[c];
}

// The group at hand of kSets * kLanes rows. `first`: its first column in the order of the block.
struct Group {
    const Tables& tables;
    Levels levels;
    Spread spread;
    const float* weight;
    int first;
    bool half_norms;
    Rows y[kMaxGroup], target[kMaxGroup];
    Rows loss, norm;
    I code[kMaxGroup][kSets];
    Rows error[kMaxGroup];
};

inline F storable_norm(F norm, bool half) {
    if (!half) return norm;
    const I bits = as_bits(norm);
    const I held = (bits >= kSmallestNormalF16) & (bits < kTooLargeF16);
    return held ? f16_to_float(float_to_f16(norm)) : norm;
}

template <int bits>
inline I nearest_code(F value, const I (&threshold)[kThresholds<bits>]) {
    constexpr int half = 1 << (bits - 1);
    const I word = as_bits(value), size = word & INT32_MAX;
    I magnitude = {};
#pragma GCC unroll 8
    for (int k = 0; k < kThresholds<bits>; ++k)
        magnitude = count_where_greater(magnitude, size, threshold[k]);
    const I positive = word > 0;  // all ones where it is
    // half + magnitude, or its complement, half - 1 - magnitude, and so for zero.
    return (magnitude + half) ^ (~positive & (2 * half - 1));
}

// Codes with these norms; lanes that lose less than so far, and are allowed to, keep what comes
// out.
template <int bits>
void try_norms(Group& group, const Rows& norm, const I (&allowed)[kSets]) {
    Rows delta[kMaxGroup], error[kMaxGroup];
    I code[kMaxGroup][kSets];
    const int size = group.tables.group;
    Rows scale, loss = {};
    I threshold[kSets][kThresholds<bits>];
    for (int set = 0; set < kSets; ++set) {
        scale[set] = norm[set] * group.tables.root_group;
        for (int k = 0; k < kThresholds<bits>; ++k)
            threshold[set][k] = as_bits(scale[set] * group.tables.boundary[k]);
    }
    for (int first = 0; first < size; first += kAtOnce) {
        Rows target[kAtOnce];
        __builtin_memcpy(target, group.target + first, sizeof target);
        receive(target, delta, group.spread, group.first, first, group.first + first);
#pragma GCC unroll 8
        for (int c = 0; c < kAtOnce; ++c) {
            const int j = first + c;
            const float* factor = group.spread.at(group.first + j, group.first + first);
            const float weight = group.weight[group.first + j];
#pragma GCC unroll 2
            for (int set = 0; set < kSets; ++set) {
                code[j][set] = nearest_code<bits>(target[c][set], threshold[set]);
                const F value = scale[set] * lookup<bits>(group.levels, code[j][set]);
                error[j][set] = target[c][set] - value;
                loss[set] += weight * (error[j][set] * error[j][set]);
                delta[j][set] = group.y[j][set] - value;
#pragma GCC unroll 8
                for (int later = c + 1; later < kAtOnce; ++later)
                    target[later][set] += delta[j][set] * factor[later];
            }
        }
    }
    for (int set = 0; set < kSets; ++set) {
        const I better = (loss[set] < group.loss[set]) & allowed[set];
        group.loss[set] = better ? loss[set] : group.loss[set];
        group.norm[set] = better ? norm[set] : group.norm[set];
        for (int j = 0; j < size; ++j) {
            group.code[j][set] = better ? code[j][set] : group.code[j][set];
            group.error[j][set] = better ? error[j][set] : group.error[j][set];
        }
    }
}

// The scale at which the codes lose least: errors are linear in it.
template <int bits>
void refit(const Group& group, Rows& scale) {
    Rows level[kMaxGroup];
    Rows numerator = {}, denominator = {};
    for (int first = 0; first < group.tables.group; first += kAtOnce) {
        Rows reached[kAtOnce];
        for (int c = 0; c < kAtOnce; ++c)
            for (int set = 0; set < kSets; ++set)
                level[first + c][set] = reached[c][set] =
                    lookup<bits>(group.levels, group.code[first + c][set]);
        receive(reached, level, group.spread, group.first, first, group.first + first);
#pragma GCC unroll 8
        for (int c = 0; c < kAtOnce; ++c) {
            const int j = first + c;
            const float* factor = group.spread.at(group.first + j, group.first + first);
            const float weight = group.weight[group.first + j];
            for (int set = 0; set < kSets; ++set) {
                for (int later = c + 1; later < kAtOnce; ++later)
                    reached[later][set] += level[j][set] * factor[later];
                numerator[set] += weight * (group.error[j][set] * reached[c][set]);
                denominator[set] += weight * (reached[c][set] * reached[c][set]);
            }
        }
    }
    for (int set = 0; set < kSets; ++set)
        scale[set] = group.norm[set] * group.tables.root_group + numerator[set] / denominator[set];
}

template <int bits>
void choose(Group& group) {
    const Tables& tables = group.tables;
    Rows gain;
    for (int set = 0; set < kSets; ++set) {
        F target[kMaxGroup], square = {}, size;
        for (int j = 0; j < tables.group; ++j) {
            target[j] = group.target[j][set];
            square += target[j] * target[j];
        }
        for (int lane = 0; lane < kLanes; ++lane) size[lane] = __builtin_sqrtf(square[lane]);
        gain[set] = search<bits>(target, size, tables).fit.gain;
        group.loss[set] = as_float(every_lane(kInfinity));
        group.norm[set] = F{};
        for (int j = 0; j < tables.group; ++j) {
            group.code[j][set] = every_lane((1 << (bits - 1)) - 1);
            group.error[j][set] = F{};
        }
    }
    const I all[kSets] = {~I{}, ~I{}};
    for (const float ratio : kRatios) {
        Rows norm;
        for (int set = 0; set < kSets; ++set)
            norm[set] =
                storable_norm(gain[set] * ratio * tables.inverse_root_group, group.half_norms);
        try_norms<bits>(group, norm, all);
    }
    Rows norm;
    I positive[kSets];
    refit<bits>(group, norm);
    for (int set = 0; set < kSets; ++set) {
        norm[set] = storable_norm(norm[set] * tables.inverse_root_group, group.half_norms);
        positive[set] = norm[set] > F{};
    }
    try_norms<bits>(group, norm, positive);
}

// What is left of the group: packed codes and norms into their rows, errors for later columns.
template <int bits>
void finish(const Group& group, Rows* delta, std::uint8_t* const (&packed)[kSets][kLanes],
            float* const (&norms)[kSets][kLanes]) {
    const Tables& tables = group.tables;
    const F infinite = as_float(every_lane(kInfinity));
    for (int set = 0; set < kSets; ++set) {
        const I good = group.loss[set] < infinite;
        const F scale = group.norm[set] * tables.root_group;
        I words[kMaxWords], *to = words;
        for (int first = 0; first < tables.group; first += 4 * kPiece, to += bits) {
            I piece[4] = {};
            for (int i = 4 * kPiece - 1; i >= 0; --i)
                piece[i / kPiece] = piece[i / kPiece] << bits | group.code[first + i][set];
            join_pieces<bits>(piece, to);
        }
        for (int j = 0; j < tables.group; ++j) {
            const F value = scale * lookup<bits>(group.levels, group.code[j][set]);
            delta[j][set] = good ? group.y[j][set] - value : F{};
        }
        const F norm = good ? group.norm[set] : infinite;
        const std::size_t bytes = static_cast<std::size_t>(tables.group) * bits / 8;
        for (int lane = 0; lane < kLanes && norms[set][lane]; ++lane) {
            *norms[set][lane] = norm[lane];
            for (std::size_t word = 0; word < bytes / 4; ++word)
                store(packed[set][lane] + 4 * word, words[word][lane]);
        }
    }
}

template <Dtype D>
void load_rows(const WordOf<D>* matrix, const Shape& shape, std::size_t row, std::size_t column,
               const EncodeSigns& signs, const Tables& tables, Rows* y) {
    char room[kSets][kLanes][kMaxGroup * 4];
    F x[kSets][kMaxGroup];
    const auto group = static_cast<std::size_t>(tables.group);
    const std::size_t left = shape.cols - column;
    const int valid = static_cast<int>(left < group ? left : group);
    const char* source[kSets][kLanes];
    for (int set = 0; set < kSets; ++set)
        for (int lane = 0; lane < kLanes; ++lane) {
            const std::size_t at = row + static_cast<std::size_t>(set * kLanes + lane);
            const bool is_there = at < shape.rows;
            const auto* here = matrix + (is_there ? at : 0) * shape.cols + column;
            source[set][lane] =
                staged<D>(here, is_there ? valid : 0, tables.group, room[set][lane]);
        }
    F norm[kSets];
    load_groups<D>(source, signs, tables.group, x, norm);
    for (int set = 0; set < kSets; ++set) {
        butterflies_between_runs(x[set], tables.group);
        butterflies_within_runs(x[set], tables.group);
        for (int j = 0; j < tables.group; ++j)
            y[j][set] = as_float(as_bits(x[set][j]) ^ signs.d2[j]);
    }
}

template <Dtype D, int bits>
void encode_block(const Tables& tables, const Feedback& feedback, const Shape& shape,
                  const void* words, std::uint8_t* packed, float* norms) {
    Rows delta[kMaxBlock];
    const EncodeSigns signs = encode_signs<D>(tables);
    const auto size = static_cast<std::size_t>(tables.group);
    const std::size_t bytes = size * bits / 8;
    float level[16];
    for (int i = 0; i < 16; ++i) level[i] = tables.level[i & ((1 << bits) - 1)];
    Group group = {tables,
                   repeated_levels(level),
                   {feedback.spread, feedback.groups * tables.group},
                   feedback.weight,
                   0,
                   feedback.half_norms,
                   {},
                   {},
                   {},
                   {},
                   {},
                   {}};
    for (std::size_t row = 0; row < shape.rows; row += kSets * kLanes) {
        for (int place = 0; place < feedback.groups; ++place) {
            const std::size_t at =
                feedback.first_group + static_cast<std::size_t>(feedback.order[place]);
            group.first = place * tables.group;
            load_rows<D>(static_cast<const WordOf<D>*>(words), shape, row, at * size, signs, tables,
                         group.y);
            for (int j = 0; j < tables.group; j += kAtOnce) {
                Rows target[kAtOnce];
                __builtin_memcpy(target, group.y + j, sizeof target);
                receive(target, delta, group.spread, 0, group.first, group.first + j);
                __builtin_memcpy(group.target + j, target, sizeof target);
            }
            choose<bits>(group);
            std::uint8_t* codes[kSets][kLanes] = {};
            float* norm[kSets][kLanes] = {};
            for (std::size_t lane = 0; lane < kSets * kLanes && row + lane < shape.rows; ++lane) {
                const std::size_t number = (row + lane) * shape.groups_a_row + at;
                codes[lane / kLanes][lane % kLanes] = packed + number * bytes;
                norm[lane / kLanes][lane % kLanes] = norms + number;
            }
            finish<bits>(group, delta + group.first, codes, norm);
        }
    }
}

template <Dtype D>
void encode_block_words(const Tables& tables, const Feedback& feedback, const Shape& shape,
                        const void* words, std::uint8_t* packed, float* norms) {
    if (tables.bits == 2) return encode_block<D, 2>(tables, feedback, shape, words, packed, norms);
    if (tables.bits == 3) return encode_block<D, 3>(tables, feedback, shape, words, packed, norms);
    return encode_block<D, 4>(tables, feedback, shape, words, packed, norms);
}

void encode_calibrated(const Tables& tables, const Feedback& feedback, Shape shape, Dtype dtype,
                       const void* words, std::uint8_t* packed, float* norms) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return encode_block_words<Dtype::kBF16>(tables, feedback, shape, words, packed, norms);
    if (dtype == Dtype::kF16)
        return encode_block_words<Dtype::kF16>(tables, feedback, shape, words, packed, norms);
    return encode_block_words<Dtype::kF32>(tables, feedback, shape, words, packed, norms);
}

// K = N diag(v^2) N' in place: v^2 on the diagonal, N above it.
void decompose(std::size_t n, double* matrix) {
    const DefaultFloatEnvironment environment;
    double column[kMaxBlock];
    for (std::size_t j = n; j-- > 0;) {
        for (std::size_t i = 0; i < j; ++i) column[i] = matrix[i * n + j] / matrix[j * n + j];
        for (std::size_t i = 0; i < j; ++i) {
            const double here = matrix[i * n + j];
            double* row = matrix + i * n;
            for (std::size_t k = i; k < j; ++k) row[k] -= here * column[k];
            row[j] = column[i];
        }
    }
}
