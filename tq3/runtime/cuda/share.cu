// A packed layer times more tokens than a tensor core takes at once.
//
// The eight warps of a block do a tile each, and all of them the same unit at the same time: so a
// block asks for its activations once, not once a tile. The partial sums of a tile
// (docs/kernels.md, section 2.5) are had one after another, in the order in which they are added
// up; a block has all of them or some, whose sum it leaves in memory for add_terms (split.cu).
#include "products.cuh"

constexpr int kWarpsABlock = 8;
constexpr int kThreads = kWarpsABlock * kLanes;

// A unit of activations, as lanes read it: 16 bytes of each 64 inputs, those of a warp side by
// side.
template <int group, int columns>
struct Stage {
    Words halves[2][columns][kLanes];
    float worths[Shape<group>::groups_a_unit][columns * kTokens];
};

template <int bits, int group, int columns>
struct Shared {
    static constexpr int results = Shape<group>::groups_a_unit * columns * 4;

    // Of one unit and, while it is multiplied, of the next.
    struct {
        Slot<bits, group> weights[kWarpsABlock];
        Stage<group, columns> activations;
    } slots[2];
    // Sums that wait for others, each thread's its own. A launch asks for as many as it needs.
    float waiting[3][results][kThreads];
};

// A unit that a block does. It does those of one turn after another.
template <int group>
struct Unit {
    using S = Shape<group>;

    // first: the number of the first turn; turns: how many, a power of two; units: of a row.
    int first, turns, units, turn, number;

    __device__ __forceinline__ Unit(int first, int turns, int units)
        : first(first), turns(turns), units(units), turn(0), number(first * S::units_a_group) {
        find();
    }

    __device__ __forceinline__ bool exists() const { return turn < turns; }

    __device__ __forceinline__ void go_on() {
        const bool step_ends = (number + 1) % S::units_a_group == 0;
        number += step_ends ? (kTurns<group> - 1) * S::units_a_group + 1 : 1;
        find();
    }

    // Behind the last of a turn comes the first one of another. Numbers with their bits in reverse,
    // 0 4 2 6 1 5 3 7, are the order in which sums meet in pairs, pairs of these, and so on.
    __device__ __forceinline__ void find() {
        while (number >= units && ++turn < turns) {
            const int reversed = (turn & 1) << 2 | (turn & 2) | turn >> 2;
            number = (first + reversed / S::groups_a_unit) * S::units_a_group;
        }
    }
};

// A warp's tile. Where it lies is counted in its units from the first of the layers on, in 32 bits:
// registers are scarce.
template <int bits, int group>
struct Tile {
    const Words* words;
    const Floats* norms;
    unsigned first;

    __device__ __forceinline__ void ask(Slot<bits, group>& slot, const Unit<group>& unit,
                                        int lane) const {
        using S = Shape<group>;
        const unsigned at = first + unit.number;
        const bool ends = (unit.number + 1) % S::units_a_group == 0;
        slot.ask(words + (at * (bits * kLanes) + lane), unit.exists(),
                 norms + (at / S::units_a_group * Slot<bits, group>::n_norms + lane), ends, lane);
    }
};

// The column of four tokens that a warp asks for, for all. token: the lane's; in the place of those
// that are not there is the last one. 32 bits count 16 bytes each of 64 GiB of activations.
template <int group, int columns>
struct Column {
    const Words* bytes;
    const float* worths;
    int tokens, token;

    // All warps must have read the stage.
    __device__ __forceinline__ void ask(Stage<group, columns>& stage, const Unit<group>& unit,
                                        int warp, int lane) const {
        using S = Shape<group>;
        if (columns < kWarpsABlock && warp >= columns) return;
        const int part = lane / 4 % 2, t = lane % 4, k = lane % 8;
        const unsigned at = unit.number * tokens + token;
        const Words* from = bytes + (at * 16 + part * 8 + t);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            copy_async(&stage.halves[half][warp][lane], from + half * 4, unit.exists());
        const unsigned g = unit.number / S::units_a_group * S::groups_a_unit + k;
        copy_async(stage.worths[0] + k * columns * kTokens + warp * kTokens + lane / 8,
                   worths + (g * tokens + token), unit.exists() && k < S::groups_a_unit);
    }
};

// Adds a unit's products to the sums of its group, and where groups end their terms to `totals`.
template <int bits, int group, int columns>
__device__ __forceinline__ void multiply_unit(
    const unsigned (&codes)[4][4], const Floats (&norms)[Shape<group>::groups_a_unit],
    const Stage<group, columns>& stage, bool step_ends, int lane, int (&sums)[columns][2][4],
    float (&totals)[Shape<group>::groups_a_unit][columns][4]) {
    using S = Shape<group>;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        const Activations x{{stage.halves[0][c][lane], stage.halves[1][c][lane]}};
#pragma unroll
        for (int stretch = 0; stretch < 4; ++stretch) {
            multiply_stretch<bits>(codes, stretch, x, sums[c]);
            if (!step_ends || (stretch + 1) % S::stretches_a_group != 0) continue;
            const int k = stretch / S::stretches_a_group;
            float terms[4];
            take_terms(sums[c], stage.worths[k][c * kTokens + lane % 4], norms[k], terms);
#pragma unroll
            for (int i = 0; i < 4; ++i) totals[k][c][i] = __fadd_rn(totals[k][c][i], terms[i]);
        }
    }
}

// Adds to the sums of the i-th turn those that wait for it, and leaves them to wait, and zeros, if
// another turn `follows`.
template <int count>
__device__ __forceinline__ void add_waiting(float (*waiting)[count][kThreads], int i, bool follows,
                                            float (&totals)[count]) {
    const int thread = threadIdx.x % kThreads;  // as the compiler does not know
    for (; i % 2; i /= 2, ++waiting)
#pragma unroll
        for (int k = 0; k < count; ++k) totals[k] = __fadd_rn((*waiting)[k][thread], totals[k]);
    if (!follows) return;
#pragma unroll
    for (int k = 0; k < count; ++k) {
        (*waiting)[k][thread] = totals[k];
        totals[k] = 0.0F;
    }
}

// What a block is to do: its own job, or `most` tokens of one layer.
__device__ __forceinline__ Job job_of(const Job* jobs, int most, int tokens) {
    return jobs ? jobs[blockIdx.x] : Job{0, static_cast<int>(blockIdx.x) * most, tokens, 0};
}

// Arguments as of multiply.cu. sums: (partial sums, tokens, of_rows) of rows 32 * first_tile and
// following, those of a block in one: there are eight over `turns`, how many turns a block has.
// Columns and jobs of the grid as there; rows: a block for eight tiles; its layers: kTurns<group>
// over `turns`.
template <int bits, int group, int columns>
__global__ void __launch_bounds__(kThreads, 2)
    multiply_shared(const Words* __restrict__ words, const Floats* __restrict__ norms,
                    const signed char* __restrict__ quantised, const float* __restrict__ worths,
                    float* __restrict__ sums, int rows, int first_tile, int of_rows, int units,
                    int tokens, int turns, const Job* jobs) {
    using S = Shape<group>;
    auto& shared = *static_cast<Shared<bits, group, columns>*>(shared_memory());
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int number = blockIdx.y * kWarpsABlock + warp;  // from first_tile on
    // What is to be done may be the word of the kernel before.
    if (jobs) after_previous();
    const Job job = job_of(jobs, columns * kTokens, tokens);
    if (job.first >= job.end) return;

    const int tiles = (rows + kTile - 1) / kTile;
    // A warp without a tile does the last one again, in step with the others, and stores nothing.
    const unsigned tile_of_all = job.layer * tiles + min(first_tile + number, tiles - 1);
    const Tile<bits, group> tile{words, norms, tile_of_all * units};
    const Column<group, columns> column{reinterpret_cast<const Words*>(quantised), worths, tokens,
                                        min(job.first + warp * kTokens + lane / 8, job.end - 1)};

    Unit<group> next(blockIdx.z, turns, units);
    const Unit<group> first = next;
    tile.ask(shared.slots[0].weights[warp], first, lane);
    next.go_on();
    tile.ask(shared.slots[1].weights[warp], next, lane);
    end_batch();
    after_previous();
    let_next_start();
    column.ask(shared.slots[0].activations, first, warp, lane);
    end_batch();
    end_batch();  // Where the loop asks for weights.

    int of_group[columns][2][4] = {}, turn_of_unit = first.turn, slot = 0;
    float totals[S::groups_a_unit][columns][4] = {};
    for (int turn = 0; turn < turns; ++turn) {
        while (turn_of_unit == turn) {
#pragma unroll
            for (int part = 0; part < S::units_a_group; ++part) {
                wait_for_batches<1>();
                __syncthreads();  // All have waited, and have read the other activations.
                column.ask(shared.slots[slot ^ 1].activations, next, warp, lane);
                end_batch();
                turn_of_unit = next.turn;
                next.go_on();
                auto& weights = shared.slots[slot].weights[warp];
                const Packed<bits> packed = load_packed<bits>(weights.words[0] + lane);
                Floats of_rows[S::groups_a_unit];
                const bool step_ends = part + 1 == S::units_a_group;
#pragma unroll
                for (int k = 0; k < S::groups_a_unit; ++k)
                    if (step_ends) of_rows[k] = load_floats(weights.norms + k * 8 + lane / 4);
                unsigned codes[4][4];
#pragma unroll
                for (int row = 0; row < 4; ++row) spread<bits>(packed, row, codes[row]);
                __syncwarp();  // All lanes have read theirs.
                tile.ask(weights, next, lane);
                end_batch();
                multiply_unit<bits, group, columns>(codes, of_rows, shared.slots[slot].activations,
                                                    step_ends, lane, of_group, totals);
                slot ^= 1;
            }
        }
        constexpr int count = Shared<bits, group, columns>::results;
        add_waiting(shared.waiting, turn, turn + 1 < turns,
                    reinterpret_cast<float (&)[count]>(totals));
    }
    // Read anew: no register holds it meanwhile.
    const auto [layer, first_token, end, unused] = job_of(jobs, columns * kTokens, tokens);
#pragma unroll
    for (int k = 0; k < S::groups_a_unit; ++k)
        for (int c = 0; c < columns; ++c)
            for (int i = 0; i < 4; ++i) {
                const int row = number * kTile + lane / 4 + 8 * i;
                const int token = first_token + c * kTokens + lane % 4;
                if (row >= of_rows || token >= end) continue;
                const long long p = blockIdx.z * S::groups_a_unit + k;
                sums[(p * tokens + token) * of_rows + row] = totals[k][c][i];
            }
}
