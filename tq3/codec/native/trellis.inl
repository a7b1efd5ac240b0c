// The path of a trellis code through the levels of a group: Viterbi's algorithm on rings of codes.
// docs/format.md, section 10; tq3/codec/trellis.py says the same in numpy.
//
// Costs are 16-bit numbers, several cycles side by side in a vector. A cycle has one lane for each
// last code c1 and a row for each code before it, c2:
//
//     row c2, lane c1  ->  row c0, lane c1 = least over c2 of row c2 + error[c0 ^ c2]
//
// So a step moves no lanes; then rows and lanes are transposed, as c0 becomes the last code and c1
// the one before.

constexpr int kMaxCycle = 128;
constexpr int kWindow = 16;  // steps before and after a cycle's edge that decide what is held there
constexpr int kFractionBits = 7;  // of a level
constexpr int kFraction = 1 << kFractionBits;
constexpr std::uint16_t kMostCost = 65535;

template <int bits>
struct Paths {
    static constexpr int n = kCodes<bits>;
    Row<bits> value[n];            // first[a] + second[c1]: row a, lane c1
    std::uint16_t after[n][n][n];  // [c1][c0][c2]: what c0 is worth
};

template <int bits>
Paths<bits> make_paths(const Trellis& code) {
    constexpr int n = kCodes<bits>;
    Paths<bits> paths;
    for (int a = 0; a < n; ++a)
        for (int i = 0; i < kWideLanes * kParts<bits>; ++i)
            paths.value[a].part[i / kWideLanes][i % kWideLanes] =
                static_cast<std::uint16_t>(code.first[a] + code.second[i % n]);
    for (int c1 = 0; c1 < n; ++c1)
        for (int c0 = 0; c0 < n; ++c0)
            for (int c2 = 0; c2 < n; ++c2)
                paths.after[c1][c0][c2] =
                    static_cast<std::uint16_t>(code.first[c0 ^ c2] + code.second[c1]);
    return paths;
}

// Levels of the cycles in a vector. of[cycle] are a cycle's; eight[i] are the i-th eight of each,
// in each of its blocks.
struct Levels16 {
    std::int16_t* of[kWideLanes / kBlock8];  // as many as there are
    W eight[kMaxCycle / 8];
};

// Costs before the first step and after each: row c0, lane c1.
template <int bits>
struct Costs {
    Row<bits> after[kMaxCycle + 1][kCodes<bits>];
};

template <int bits>
__attribute__((always_inline)) inline void take_off_least(Row<bits>* rows) {
    W all = rows[0].part[0];
    for (int i = 0; i < kCodes<bits>; ++i)
        for (const W& part : rows[i].part) all = least(all, part);
    all = least(all, arranged<Exchange<1>>(all, all));
    all = least(all, arranged<Exchange<2>>(all, all));
    all = least(all, arranged<Exchange<4>>(all, all));
    if constexpr (bits == 4 && kParts<bits> == 1) all = least(all, arranged<Exchange<8>>(all, all));
    for (int i = 0; i < kCodes<bits>; ++i)
        for (W& part : rows[i].part) part -= all;
}

// One step of a part: costs of row c2, lane c1 -> row c0, lane c1.
template <int bits>
__attribute__((always_inline)) inline void step(const Paths<bits>& paths, W level, int part,
                                                const Row<bits>* before, Row<bits>* after) {
    W error[kCodes<bits>];
#pragma GCC unroll 16
    for (int a = 0; a < kCodes<bits>; ++a) {
        const W difference = level - paths.value[a].part[part];
        error[a] = difference * difference;
    }
#pragma GCC unroll 16
    for (int c0 = 0; c0 < kCodes<bits>; ++c0) {
        W best = add_saturated(before[0].part[part], error[c0]);
#pragma GCC unroll 16
        for (int c2 = 1; c2 < kCodes<bits>; ++c2)
            best = least(best, add_saturated(before[c2].part[part], error[c0 ^ c2]));
        after[c0].part[part] = best;
    }
}

// From costs.after[0] on through `eights` times eight levels, from the first-th of `all` on.
template <int bits>
void walk(const Paths<bits>& paths, const W* levels, int first, int eights, int all,
          Costs<bits>& costs) {
    Row<bits> before[kCodes<bits>];
    __builtin_memcpy(before, costs.after[0], sizeof before);
    auto* after = costs.after + 1;
    for (int i = 0; i < eights; ++i) {
        W level = levels[(first + i) % all];
        for (int k = 0; k < 8; ++k, ++after) {
            transpose_codes<bits>(before);
            Row<bits> next[kCodes<bits>];
            for (int part = 0; part < kParts<bits>; ++part)
                step<bits>(paths, arranged<FrontOfBlock>(level, level), part, before, next);
            if (k == 7) take_off_least<bits>(next);
            __builtin_memcpy(*after, next, sizeof next);
            __builtin_memcpy(before, next, sizeof next);
            level = arranged<NextOfBlock>(level, level);
        }
    }
}

// The last two codes of each cycle.
template <int bits>
struct Ends {
    int last[kCycles<bits>], before[kCycles<bits>];
};

template <int bits>
__attribute__((always_inline)) inline int code_before(const std::uint16_t* costs,
                                                      const std::uint16_t* values, int level) {
    First best = {};
#pragma GCC unroll 2
    for (int i = 0; i < kCodes<bits>; i += 8) {
        const Eight difference = static_cast<std::uint16_t>(level) - load<Eight>(values + i);
        const First found =
            first_least(add_saturated(load<Eight>(costs + i), difference * difference));
        if (i == 0 || found.value < best.value) best = {found.value, found.at + i};
    }
    return best.at;
}

// Back from the last of `steps` levels, from the first-th of `cycle` on, over `count` of them.
// Codes go to their places, and what they are worth, if there is a place.
template <int bits, class Take>
__attribute__((always_inline)) inline void back(const Paths<bits>& paths, const Levels16& levels,
                                                const Costs<bits>& costs, int first, int cycle,
                                                int steps, int count, Ends<bits>& ends, Take take) {
    for (int t = steps - 1; t >= steps - count; --t) {
        const int at = (first + t) % cycle;
#pragma GCC unroll 4
        for (int c = 0; c < kCycles<bits>; ++c) {
            const int last = ends.last[c], before = ends.before[c];
            const auto* row = reinterpret_cast<const std::uint16_t*>(&costs.after[t][before]);
            const std::uint16_t* values = paths.after[before][last];
            const int old = code_before<bits>(row + c * kCodes<bits>, values, levels.of[c][at]);
            take(c, at, last, values[old]);
            ends.last[c] = before;
            ends.before[c] = old;
        }
    }
}

template <int bits>
inline int cost_of(const Costs<bits>& costs, int steps, int row, int lane) {
    return costs.after[steps][row].part[lane / kWideLanes][lane % kWideLanes];
}

// The first of the pairs of last codes that cost the least after `steps`.
template <int bits>
Ends<bits> cheapest(const Costs<bits>& costs, int steps) {
    constexpr int n = kCodes<bits>;
    Ends<bits> ends;
    for (int c = 0; c < kCycles<bits>; ++c) {
        int least_cost = kMostCost + 1;
        for (int last = 0; last < n; ++last)
            for (int before = 0; before < n; ++before) {
                const int cost = cost_of<bits>(costs, steps, last, c * n + before);
                if (cost >= least_cost) continue;
                least_cost = cost;
                ends.last[c] = last;
                ends.before[c] = before;
            }
    }
    return ends;
}

// Codes of the cycles whose levels these are, and what they are worth.
template <int bits>
void best_rings(const Paths<bits>& paths, const Levels16& levels, int cycle, Costs<bits>& costs,
                std::uint8_t* const* codes, std::int16_t* const* values) {
    constexpr int n = kCodes<bits>;
    __builtin_memset(costs.after[0], 0, sizeof costs.after[0]);
    walk<bits>(paths, levels.eight, (cycle - kWindow) / 8, kWindow / 4, cycle / 8, costs);
    Ends<bits> ends = cheapest<bits>(costs, 2 * kWindow);
    back<bits>(paths, levels, costs, cycle - kWindow, cycle, 2 * kWindow, kWindow, ends,
               [](int, int, int, int) {});

    __builtin_memset(costs.after[0], 0xff, sizeof costs.after[0]);
    for (int c = 0; c < kCycles<bits>; ++c) {
        const int lane = c * n + ends.before[c];
        costs.after[0][ends.last[c]].part[lane / kWideLanes][lane % kWideLanes] = 0;
    }
    walk<bits>(paths, levels.eight, 0, cycle / 8, cycle / 8, costs);
    back<bits>(paths, levels, costs, 0, cycle, cycle, cycle, ends,
               [&](int c, int at, int code, std::uint16_t value) {
                   codes[c][at] = static_cast<std::uint8_t>(code);
                   values[c][at] = static_cast<std::int16_t>(value);
               });
}
