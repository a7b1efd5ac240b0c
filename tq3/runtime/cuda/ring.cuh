// Codes and norms on their way: a warp has asked for its next units before it multiplies this one,
// by asynchronous copies into shared memory.
#pragma once

#include "codes.cuh"

// How groups and units go together.
template <int group>
struct Shape {
    static constexpr int groups_a_unit = group < kUnit ? kUnit / group : 1;
    static constexpr int units_a_group = group < kUnit ? 1 : group / kUnit;
    static constexpr int stretches_a_group = group < kUnit ? group / 32 : 4;
};

// A unit of a tile on its way to a warp, with the norms of the groups that end in it.
template <int bits, int group>
struct Slot {
    static constexpr int n_norms = Shape<group>::groups_a_unit * 8;

    Words words[bits][kLanes];
    Floats norms[n_norms];

    // words, norms: the lane's own. All lanes must have read what was here.
    __device__ __forceinline__ void ask(const Words* of_unit, bool exists, const Floats* of_groups,
                                        bool ends, int lane) {
#pragma unroll
        for (int i = 0; i < bits; ++i) copy_async(words[i] + lane, of_unit + i * kLanes, exists);
        copy_async(norms + lane, of_groups, exists && ends && lane < n_norms);
    }
};

// What one warp waits for. Eight warps have at most 48 KiB, so that two blocks run where a
// multiprocessor has 100; the slots of a group's units follow each other.
template <int bits, int group>
struct Ring {
    static constexpr int slots = bits < 4 && group <= kUnit ? 3 : 2;
    static_assert(slots % Shape<group>::units_a_group == 0);

    Slot<bits, group> slot[slots];
};

// Where the units lie that a warp takes: each `stride`-th step, which is a unit or the two of a
// group of 256. words: a lane's own of the first step; norms: those of its groups.
template <int bits, int group>
struct Units {
    using S = Shape<group>;
    static constexpr int unit_words = bits * kLanes;

    const Words* words;
    const Floats* norms;
    int step, stride, steps;

    // Asks for unit `part` of the step, and behind the last one for the norms; beyond the last step
    // for nothing. Each time is a batch. The slot must have been read by all lanes.
    __device__ __forceinline__ void ask(Ring<bits, group>& ring, int slot, int part, int lane) {
        const bool exists = step < steps, ends = part + 1 == S::units_a_group;
        ring.slot[slot].ask(words + part * unit_words, exists, norms + lane, ends, lane);
        end_batch();
        if (!ends) return;
        step += stride;
        words += stride * S::units_a_group * unit_words;
        norms += stride * S::groups_a_unit * 8;
    }
};
