// Rows of a packed layer as numbers, for a product with many tokens: levels times norms, in rotated
// space, each rounded once.
//
// A warp does one unit of one tile. Of a group's levels times its norm there are few: they are
// multiplied and rounded once, and their bytes are looked up, four at once. docs/kernels.md shows
// how a warp writes (section 7).
#include "codes.cuh"
#include "values.cuh"

constexpr int kWarps = 8;

template <Dtype dtype>
constexpr int kBytes = dtype == Dtype::kF32 ? 4 : 2;

// The positive levels of a group times its norm, as words of their format: byte b of the i-th is
// byte i % 4 of bytes[b][i / 4].
template <Dtype dtype>
struct Magnitudes {
    unsigned bytes[kBytes<dtype>][2];
};

template <Dtype dtype, int count>
__device__ __forceinline__ Magnitudes<dtype> magnitudes(const float (&levels)[count], float norm) {
    Magnitudes<dtype> all = {};
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const unsigned word = rounded<dtype>(__fmul_rn(levels[i], norm));
#pragma unroll
        for (int b = 0; b < kBytes<dtype>; ++b)
            all.bytes[b][i / 4] |= (word >> 8 * b & 0xffU) << i % 4 * 8;
    }
    return all;
}

// Nibbles: which magnitude a weight has, and 1 where it is negative.
struct Weights {
    unsigned magnitude, negative;
};

// Codes count levels from the lowest one, so the largest magnitude comes first and last. Those of 4
// bits have their two highest bits exchanged (layout.py).
template <int bits>
__device__ __forceinline__ Weights weights_of(unsigned codes) {
    constexpr unsigned kOnes = 0x11111111U, kLargest = (1U << (bits - 1)) - 1;
    if constexpr (bits == 4)
        codes = (codes & 3 * kOnes) | (codes & 4 * kOnes) << 1 | (codes >> 1 & 4 * kOnes);
    const unsigned negative = ~codes >> (bits - 1) & kOnes;
    return {(codes ^ negative * kLargest) & kOnes * kLargest, negative};
}

// The lowest four weights, one after the other, as memory has them.
template <Dtype dtype>
__device__ __forceinline__ void look_up(const Magnitudes<dtype>& all, const Weights& weights,
                                        unsigned* words) {
    unsigned bytes[kBytes<dtype>];
#pragma unroll
    for (int b = 0; b < kBytes<dtype>; ++b)
        bytes[b] = permute(all.bytes[b][0], all.bytes[b][1], weights.magnitude);
    bytes[kBytes<dtype> - 1] ^= permute(0x8000U, 0, weights.negative);

    constexpr unsigned kFirstTwo = 0x5140U, kLastTwo = 0x7362U;
    words[0] = permute(bytes[0], bytes[1], kFirstTwo);
    words[1] = permute(bytes[0], bytes[1], kLastTwo);
    if constexpr (kBytes<dtype> == 4) {
        const unsigned lower[2] = {words[0], words[1]};
        const unsigned upper[2] = {permute(bytes[2], bytes[3], kFirstTwo),
                                   permute(bytes[2], bytes[3], kLastTwo)};
        for (int i = 0; i < 4; ++i)
            words[i] = permute(lower[i / 2], upper[i / 2], i % 2 ? 0x7632U : 0x5410U);
    }
}

// 32 inputs of eight rows: a lane has eight weights of its row, and four lanes write 64 bytes of it
// side by side. Floats need two such stores; for each a lane takes the codes that it lies on.
// line: where the row's 32 values go, if `exists`.
template <Dtype dtype, int bits>
__device__ __forceinline__ void store_stretch(const Magnitudes<dtype>& all, unsigned codes,
                                              Words* line, bool exists) {
    const int lane = threadIdx.x % kLanes, t = lane % 4;
    if constexpr (kBytes<dtype> == 2) {
        const Weights eight = weights_of<bits>(codes);
        Words sixteen_bytes;
        look_up(all, eight, sixteen_bytes.word);
        look_up(all, {eight.magnitude >> 16, eight.negative >> 16}, sixteen_bytes.word + 2);
        if (exists) line[t] = sixteen_bytes;
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned eight = __shfl_sync(kAllLanes, codes, lane - t + 2 * half + t / 2);
            Words sixteen_bytes;
            look_up(all, weights_of<bits>(eight >> t % 2 * 16), sixteen_bytes.word);
            if (exists) line[4 * half + t] = sixteen_bytes;
        }
    }
}

// words, norms: of layout.repack, from the tile of the first of `rows` on. levels: the format's,
// all 1 << bits. weights: (rows, columns); columns are whole groups, aligned to 16 bytes. Threads:
// kWarps warps a block, a warp for each unit of each tile.
template <Dtype dtype, int bits, int group>
__global__ void __launch_bounds__(kWarps* kLanes)
    decode(const Words* __restrict__ words, const Floats* __restrict__ norms,
           const float* __restrict__ levels, void* __restrict__ weights, int rows, int columns,
           int units) {
    constexpr int stretches_a_group = group < kUnit ? group / 32 : kUnit / 32;
    constexpr int count = 1 << (bits - 1);
    const int lane = threadIdx.x % kLanes;
    const int job = blockIdx.x * kWarps + threadIdx.x / kLanes;
    const int tile = job / units, unit = job % units;
    if (tile * kTile >= rows) return;

    const Packed<bits> packed =
        load_packed<bits>(words + static_cast<long long>(job) * bits * kLanes + lane);
    float positive[count];
    for (int i = 0; i < count; ++i) positive[i] = levels[count + i];
#pragma unroll
    for (int first = 0; first < kUnit / 32; first += stretches_a_group) {
        // Groups follow each other from tile to tile, as units do; one of 256 is that of two units.
        const long long g = (static_cast<long long>(job) * kUnit + first * 32) / group;
        const Floats norm = load_floats(norms + g * 8 + lane / 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned codes[4];
            spread(packed, i, codes);
            const Magnitudes<dtype> all = magnitudes<dtype>(positive, norm.value[i]);
            const int row = tile * kTile + 8 * i + lane / 4;
#pragma unroll
            for (int s = first; s < first + stretches_a_group; ++s) {
                const int column = unit * kUnit + s * 32;
                if (column >= columns) continue;
                const long long at = static_cast<long long>(row) * columns + column;
                char* line = static_cast<char*>(weights) + at * kBytes<dtype>;
                store_stretch<dtype, bits>(all, codes[s], reinterpret_cast<Words*>(line),
                                           row < rows);
            }
        }
    }
}
