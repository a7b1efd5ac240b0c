// Groups become codes of a trellis: the scale of each, its path, planes of bytes.

// The search halves its step.
constexpr float kTrellisSteps[] = {0.08F, 0.04F};

// kLanes groups coded at one scale each. length: of the projection of a group on its values.
struct Coded {
    std::uint8_t codes[kLanes][kMaxGroup];
    F length, norm;
};

// A number without a fraction, ties to even, of less than 2**22.
inline std::int32_t rounded(float value) {
    constexpr float kOnesPlace = 12582912.0F;  // 1.5 * 2**23
    return __builtin_bit_cast(std::int32_t, value + kOnesPlace) -
           __builtin_bit_cast(std::int32_t, kOnesPlace);
}

// A group in parts of a level, and in whole levels, none far beyond the values.
inline void to_levels(const float* y, float inverse, int group, std::int16_t* fine,
                      std::int16_t* levels) {
    for (int i = 0; i < group; ++i) {
        const std::int32_t part = rounded(y[i] * inverse);
        const std::int32_t level = (part + kFraction / 2) >> kFractionBits;
        fine[i] = static_cast<std::int16_t>(part);
        levels[i] = static_cast<std::int16_t>(level < -128 ? -128 : level > 128 ? 128 : level);
    }
}

inline float dot(const std::int16_t* a, const std::int16_t* b, int count) {
    std::int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += a[i] * b[i];
    return static_cast<float>(sum);
}

template <int bits>
class TrellisEncoder {
  public:
    TrellisEncoder(const Trellis& code, int group)
        : code_(code),
          paths_(make_paths<bits>(code)),
          group_(group),
          cycle_(group < kMaxCycle ? group : kMaxCycle) {}

    // D2 * H' * D1 * x of kLanes groups, of which `count` are some -> `best`.
    void encode(const F* x, F norm, Scale scale, int count, Coded& best) {
        const I finite = (as_bits(norm) & kInfinity) != kInfinity;
        char* rows[kLanes];
        for (int lane = 0; lane < kLanes; ++lane)
            rows[lane] = reinterpret_cast<char*>(rotated_[lane]);
        I peak = {};
        for (int i = 0; i < group_; i += 4) {
            I four[4];
            for (int j = 0; j < 4; ++j) {
                four[j] = as_bits(x[i + j]) & finite;
                const I size = four[j] & INT32_MAX;
                peak = size > peak ? size : peak;
            }
            store_words(four, rows, static_cast<std::size_t>(i) * 4);
        }
        const F first = code_.from_norm * norm + code_.from_peak * as_float(peak);
        const I usable = finite & (norm > 0.0F);
        code_groups(first, usable, count, best);
        if (scale == Scale::kSearch) search(first, usable, count, best);
        best.norm = finite ? best.norm : norm;
    }

  private:
    void search(F first, I usable, int count, Coded& best) {
        F ratio = every_lane(1.0F);
        for (const float step : kTrellisSteps) {
            const F others[] = {ratio - step, ratio + step};
            for (const F other : others) {
                code_groups(first * other, usable, count, tried_);
                const I better = tried_.length > best.length;
                for (int lane = 0; lane < count; ++lane)
                    if (better[lane])
                        __builtin_memcpy(best.codes[lane], tried_.codes[lane],
                                         static_cast<std::size_t>(group_));
                best.length = better ? tried_.length : best.length;
                best.norm = better ? tried_.norm : best.norm;
                ratio = better ? other : ratio;
            }
        }
    }

    void code_groups(F scale, I usable, int count, Coded& coded) {
        const F quotient = every_lane(kFraction * code_.rms) / scale;
        const F inverse = usable ? quotient : F{};
        for (int lane = 0; lane < kLanes; ++lane)
            to_levels(rotated_[lane], inverse[lane], group_, fine_[lane], levels_[lane]);
        const int cycles_a_group = group_ / cycle_;
        for (int cycle = 0; cycle < count * cycles_a_group; cycle += kCycles<bits>)
            code_cycles(cycle, cycles_a_group, coded);

        F product = {}, square = every_lane(1.0F);
        for (int lane = 0; lane < count; ++lane) {
            set_first_values(coded.codes[lane], values_[lane]);
            product[lane] = dot(fine_[lane], values_[lane], group_);
            square[lane] = dot(values_[lane], values_[lane], group_);
        }
        F root;
        for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(square[lane]);
        coded.length = scale * (product / root);
        const F norm = scale * (product / (square * static_cast<float>(kFraction)));
        coded.norm = product > 0.0F ? norm : F{};
    }

    // kCycles neighbouring cycles of the groups.
    void code_cycles(int first, int cycles_a_group, Coded& coded) {
        std::uint8_t* codes[kCycles<bits>];
        std::int16_t* values[kCycles<bits>];
        constexpr int blocks = kWideLanes / kCycles<bits> / kBlock8;
        auto* eights = reinterpret_cast<char*>(cycles_.eight);
        for (int c = 0; c < kCycles<bits>; ++c) {
            const int lane = (first + c) / cycles_a_group;
            const int start = (first + c) % cycles_a_group * cycle_;
            codes[c] = coded.codes[lane] + start;
            values[c] = values_[lane] + start;
            cycles_.of[c] = levels_[lane] + start;
            for (int i = 0; i < cycle_ / 8; ++i)
                for (int block = 0; block < blocks; ++block)
                    __builtin_memcpy(eights + (i * kWideLanes + (c * blocks + block) * kBlock8) * 2,
                                     cycles_.of[c] + 8 * i, 16);
        }
        best_rings<bits>(paths_, cycles_, cycle_, costs_, codes, values);
    }

    // Of the first two of a cycle, whose codes before are its last ones.
    void set_first_values(const std::uint8_t* codes, std::int16_t* values) const {
        for (int start = 0; start < group_; start += cycle_)
            for (int i = 0; i < 2; ++i) {
                const int last = codes[start + (i + cycle_ - 1) % cycle_];
                const int old = codes[start + (i + cycle_ - 2) % cycle_];
                values[start + i] = static_cast<std::int16_t>(code_.first[codes[start + i] ^ old] +
                                                              code_.second[last]);
            }
    }

    const Trellis& code_;
    const Paths<bits> paths_;
    const int group_, cycle_;
    alignas(64) float rotated_[kLanes][kMaxGroup];
    alignas(64) std::int16_t fine_[kLanes][kMaxGroup], levels_[kLanes][kMaxGroup];
    alignas(64) std::int16_t values_[kLanes][kMaxGroup];
    Levels16 cycles_;
    Costs<bits> costs_;
    Coded tried_;
};

// Codes of a group -> its planes.
template <int bits>
void pack_planes(const std::uint8_t* codes, int group, std::uint8_t* packed) {
    const int cycle = group < kMaxCycle ? group : kMaxCycle, columns = cycle / 8;
    for (int start = 0; start < group; start += cycle, packed += columns * bits)
        for (int column = 0; column < columns; ++column, codes += 8) {
            std::uint8_t nibbles[4];
            for (int p = 0; p < 4; ++p)
                nibbles[p] = static_cast<std::uint8_t>(codes[p] | codes[p + 4] << 4);
            for (int p = 0; p < bits; ++p) {
                const int last = bits == 3 ? (nibbles[3] >> p & 0x11) << 3 : 0;
                packed[p * columns + column] = static_cast<std::uint8_t>(nibbles[p] | last);
            }
        }
}

template <Dtype D, int bits>
void encode_trellis_matrix(const Tables& tables, const Trellis& code, Scale scale,
                           const Shape& shape, const void* words, std::uint8_t* packed,
                           float* norms) {
    const EncodeSigns signs = encode_signs<D>(tables);
    const int group = tables.group;
    TrellisEncoder<bits> encoder(code, group);
    Coded coded;
    each_groups<D>(tables, shape, words, signs,
                   [&](F* x, F norm, Prefetch&, std::size_t first, std::size_t count) {
                       butterflies_between_runs(x, group);
                       butterflies_within_runs(x, group);
                       for (int i = 0; i < group; ++i) x[i] = as_float(as_bits(x[i]) ^ signs.d2[i]);
                       encoder.encode(x, norm, scale, static_cast<int>(count), coded);
                       for (std::size_t lane = 0; lane < count; ++lane)
                           pack_planes<bits>(coded.codes[lane], group,
                                             packed + (first + lane) * (group / 8 * bits));
                       __builtin_memcpy(norms + first, &coded.norm, count * sizeof *norms);
                   });
}

template <Dtype D>
void encode_trellis_words(const Tables& tables, const Trellis& code, Scale scale,
                          const Shape& shape, const void* words, std::uint8_t* packed,
                          float* norms) {
    if (tables.bits == 3)
        return encode_trellis_matrix<D, 3>(tables, code, scale, shape, words, packed, norms);
    return encode_trellis_matrix<D, 4>(tables, code, scale, shape, words, packed, norms);
}

void encode_trellis(const Tables& tables, const Trellis& code, Scale scale, Shape shape,
                    Dtype dtype, const void* words, std::uint8_t* packed, float* norms) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return encode_trellis_words<Dtype::kBF16>(tables, code, scale, shape, words, packed, norms);
    if (dtype == Dtype::kF16)
        return encode_trellis_words<Dtype::kF16>(tables, code, scale, shape, words, packed, norms);
    return encode_trellis_words<Dtype::kF32>(tables, code, scale, shape, words, packed, norms);
}
