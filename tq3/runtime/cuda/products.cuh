// The sums of products of a group, as integers that tensor cores add up, and their terms
// (docs/kernels.md, sections 2.3 and 2.4): what both multiplications share.
#pragma once

#include "ring.cuh"

// Tokens that a tensor core takes at once: eight columns of high or low bytes.
constexpr int kTokens = 4;
// Groups whose numbers differ by eight share a partial sum. So do all of steps whose numbers differ
// by so many, which are a turn: a step is a unit, or the two of a group of 256.
constexpr int kPartialSums = 8;
template <int group>
constexpr int kTurns = kPartialSums / Shape<group>::groups_a_unit;

// What a block is to multiply of several layers: tokens `first` to `end` by layer `layer`.
struct alignas(16) Job {
    int layer, first, end, unused;
};

// What a warp multiplies: a tile, by tokens `first` to `end`, four at most, of activations of
// `tokens` in all.
struct Work {
    const Words* words;
    const Floats* norms;
    const signed char* quantised;
    const float* worths;
    int units, tokens, first, end;
};

// What a lane holds of a unit of activations: a token's high or low bytes, of 8 inputs in each 32.
struct Activations {
    Words half[2];
};

// bytes: of the token, the part and the inputs that are the lane's.
__device__ __forceinline__ Activations load_activations(const signed char* bytes, bool is_some) {
    if (!is_some) return {};
    return {*reinterpret_cast<const Words*>(bytes),
            *reinterpret_cast<const Words*>(bytes + kUnit / 2)};
}

// Adds the products of inputs 32 * stretch and following: sums[s] of rows 16 s to 16 s + 15.
template <int bits>
__device__ __forceinline__ void multiply_stretch(const unsigned (&codes)[4][4], int stretch,
                                                 const Activations& x, int (&sums)[2][4]) {
    const Words& words = x.half[stretch / 2];
    const unsigned b[2] = {words.word[stretch % 2 * 2], words.word[stretch % 2 * 2 + 1]};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        const unsigned upper = codes[2 * s][stretch], lower = codes[2 * s + 1][stretch];
        const unsigned a[4] = {levels<bits>(upper), levels<bits>(lower), levels<bits>(upper >> 16),
                               levels<bits>(lower >> 16)};
        mma_m16n8k32(sums[s], a, b);
    }
}

// The sums of a group become the terms of a lane's four rows, and start anew.
__device__ __forceinline__ void take_terms(int (&sums)[2][4], float worth, const Floats& norm,
                                           float (&terms)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int &high = sums[i / 2][i % 2 * 2], &low = sums[i / 2][i % 2 * 2 + 1];
        const float sum = __int2float_rn(256 * high + low);
        terms[i] = __fmul_rn(__fmul_rn(sum, worth), norm.value[i]);
        high = low = 0;
    }
}

// Where a lane reads: the activations of a unit, the worths of its group or first group.
struct Place {
    const signed char* bytes;
    const float* worths;
};

template <int group>
__device__ __forceinline__ Place place_of(const Work& work, int step, int lane) {
    using S = Shape<group>;
    const long long unit = step * S::units_a_group, g = step * S::groups_a_unit;
    const long long token_unit = unit * work.tokens + work.first + lane / 8;
    return {work.quantised + (token_unit * 2 + lane / 4 % 2) * kUnit + lane % 4 * 16,
            work.worths + g * work.tokens + work.first + lane % 4};
}

template <int bits, int group>
__device__ __forceinline__ Units<bits, group> units_of(const Work& work, int step, int stride,
                                                       int lane) {
    using S = Shape<group>;
    const long long unit = step * S::units_a_group, g = step * S::groups_a_unit;
    return {work.words + unit * bits * kLanes + lane, work.norms + g * 8, step, stride,
            work.units / S::units_a_group};
}

// Does steps `step`, `step` + `stride`, ...: a unit each, or the two of a group of 256. For the
// k-th group of a step: take(step, k, terms of rows r, r + 8, ...), of token `first` + lane % 4.
//
// Weights are asked for before kernels ahead in the stream have ended, everything else is read
// after. In the end no copy into `ring`, which is the warp's own, is under way.
template <int bits, int group, class Take>
__device__ __forceinline__ void each_group(const Work& work, Ring<bits, group>& ring, int step,
                                           int stride, int lane, Take take) {
    using S = Shape<group>;
    constexpr int slots = Ring<bits, group>::slots;
    const int unit_bytes = work.tokens * 2 * kUnit;
    Units<bits, group> coming = units_of<bits, group>(work, step, stride, lane);
#pragma unroll
    for (int slot = 0; slot < slots; ++slot) coming.ask(ring, slot, slot % S::units_a_group, lane);
    after_previous();
    let_next_start();

    Place at = place_of<group>(work, step, lane);
    const bool is_some[2] = {work.first + lane / 8 < work.end, work.first + lane % 4 < work.end};
    int sums[2][4] = {}, slot = 0;
    for (; step < coming.steps; step += stride) {
#pragma unroll
        for (int part = 0; part < S::units_a_group; ++part) {
            const bool step_ends = part + 1 == S::units_a_group;
            wait_for_batches<slots - 1>();
            __syncwarp();  // Norms were asked for by other lanes.
            const Packed<bits> packed = load_packed<bits>(ring.slot[slot].words[0] + lane);
            Floats norms[S::groups_a_unit];
#pragma unroll
            for (int k = 0; k < S::groups_a_unit; ++k)
                if (step_ends) norms[k] = load_floats(ring.slot[slot].norms + k * 8 + lane / 4);
            unsigned codes[4][4];
#pragma unroll
            for (int row = 0; row < 4; ++row) spread<bits>(packed, row, codes[row]);
            __syncwarp();  // All lanes have read the slot.
            coming.ask(ring, slot, part, lane);
            slot = slot + 1 == slots ? 0 : slot + 1;
            const Activations x = load_activations(at.bytes, is_some[0]);
#pragma unroll
            for (int stretch = 0; stretch < 4; ++stretch) {
                multiply_stretch<bits>(codes, stretch, x, sums);
                if (!step_ends || (stretch + 1) % S::stretches_a_group != 0) continue;
                const int k = stretch / S::stretches_a_group;
                const float worth = is_some[1] ? at.worths[k * work.tokens] : 0.0F;
                float terms[4];
                take_terms(sums, worth, norms[k], terms);
                take(step, k, terms);
            }
            const int units_on = step_ends ? (stride - 1) * S::units_a_group + 1 : 1;
            at.bytes += static_cast<long long>(units_on) * unit_bytes;
        }
        at.worths += static_cast<long long>(stride * S::groups_a_unit) * work.tokens;
    }
}
