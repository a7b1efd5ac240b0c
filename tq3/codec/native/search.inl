// The scale search: for each group the thresholds that give the smallest error. docs/quality.md
// says why these candidates.

// The search halves its step, from a quarter of the norm's scale on.
constexpr float kSearchSteps[] = {0.25F, 0.125F, 0.0625F, 0.03125F};

template <int bits>
constexpr int kThresholds = (1 << (bits - 1)) - 1;

#ifndef TQ3_HAVE_TALLY
// Adds `size` to the sum, and 1 to the count, of each lane whose size is above the threshold.
// Floats that are neither negative nor NaN are ordered like their bits.
inline void tally(F& sum, I& count, I size, I threshold) {
    const I above = size > threshold;
    sum += as_float(size & above);
    count -= above;
}
#endif

// Least squares: the length of a group's projection on the levels that its thresholds choose, the
// longer the smaller the error is, and the gain that makes it from them.
struct Fit {
    F length, gain;
};

// `total`: the sum of magnitudes of each group.
template <int bits>
Fit fit(const F* rotated, F total, F scale, const Tables& tables) {
    constexpr int half = 1 << (bits - 1);
    I threshold[kThresholds<bits>], count[kThresholds<bits>] = {};
    F sum[kThresholds<bits>] = {};
    for (int k = 0; k < kThresholds<bits>; ++k) threshold[k] = as_bits(scale * tables.boundary[k]);
#pragma GCC unroll 4
    for (int i = 0; i < tables.group; ++i) {
        const I size = as_bits(rotated[i]) & INT32_MAX;
#pragma GCC unroll 8
        for (int k = 0; k < kThresholds<bits>; ++k) tally(sum[k], count[k], size, threshold[k]);
    }

    const float* level = tables.level + half;
    F product = total * level[0];
    F square = every_lane(static_cast<float>(tables.group) * (level[0] * level[0]));
    for (int k = 0; k < kThresholds<bits>; ++k) {
        product += sum[k] * (level[k + 1] - level[k]);
        square += __builtin_convertvector(count[k], F) *
                  (level[k + 1] * level[k + 1] - level[k] * level[k]);
    }
    F length;
    for (int lane = 0; lane < kLanes; ++lane)
        length[lane] = product[lane] / __builtin_sqrtf(square[lane]);
    return {length, product / square};
}

// The best scale so far, in units of the norm's.
struct Found {
    F ratio;
    Fit fit;
};

inline void keep_better(Found& best, F ratio, Fit fit) {
    const I longer = fit.length > best.fit.length;
    best.ratio = longer ? ratio : best.ratio;
    best.fit.length = longer ? fit.length : best.fit.length;
    best.fit.gain = longer ? fit.gain : best.fit.gain;
}

// Each step tries a smaller and a larger scale than the best one so far. `unit` is the norm's
// scale.
template <int bits>
Found search(const F* rotated, F unit, const Tables& tables) {
    F total = {};
    for (int i = 0; i < tables.group; ++i) total += as_float(as_bits(rotated[i]) & INT32_MAX);

    Found best = {every_lane(1.0F), fit<bits>(rotated, total, unit, tables)};
    for (const float step : kSearchSteps) {
        const F smaller = best.ratio - step, larger = best.ratio + step;
        keep_better(best, smaller, fit<bits>(rotated, total, unit * smaller, tables));
        keep_better(best, larger, fit<bits>(rotated, total, unit * larger, tables));
    }
    return best;
}
