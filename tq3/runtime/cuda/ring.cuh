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

// What one warp waits for: a slot for each unit, with the norms of the groups that end in it. Eight
// warps have at most 48 KiB, so that two blocks run where a multiprocessor has 100; the slots of a
// group's units follow each other.
template <int bits, int group>
struct Ring {
    static constexpr int slots = bits < 4 && group <= kUnit ? 3 : 2;
    static constexpr int norms_a_slot = Shape<group>::groups_a_unit * 8;
    static_assert(slots % Shape<group>::units_a_group == 0);

    Words words[slots][bits][kLanes];
    Floats norms[slots][norms_a_slot];
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
#pragma unroll
        for (int i = 0; i < bits; ++i)
            copy_async(&ring.words[slot][i][lane], words + part * unit_words + i * kLanes, exists);
        if (ends)
            copy_async(&ring.norms[slot][lane % Ring<bits, group>::norms_a_slot], norms + lane,
                       exists && lane < Ring<bits, group>::norms_a_slot);
        end_batch();
        if (!ends) return;
        step += stride;
        words += stride * S::units_a_group * unit_words;
        norms += stride * S::groups_a_unit * 8;
    }
};
