// Vectors of kLanes 32-bit lanes, and moving data between memory order and lane order.
//
// The instruction-set file defines kLanes and may define hooks (TQ3_HAVE_...) before it includes
// kernels.inl. GCC and Clang vector extensions only: `+`, `>` and `?:` work lane by lane on every
// processor.

using F = float __attribute__((vector_size(4 * kLanes)));
using I = std::int32_t __attribute__((vector_size(4 * kLanes)));
using U = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Quad = std::int32_t __attribute__((vector_size(16)));

constexpr std::int32_t kSignBit = INT32_MIN;

inline F as_float(I bits) {
    return reinterpret_cast<F>(bits);
}
inline I as_bits(F value) {
    return reinterpret_cast<I>(value);
}
inline I shift_right_logical(I a, int by) {
    return reinterpret_cast<I>(reinterpret_cast<U>(a) >> by);
}
inline I every_lane(std::int32_t value) {
    return I{} + value;
}
inline F every_lane(float value) {
    return as_float(every_lane(__builtin_bit_cast(std::int32_t, value)));
}

template <class T>
inline T load(const void* from) {
    T value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
inline void store(void* to, T value) {
    __builtin_memcpy(to, &value, sizeof value);
}

#ifndef TQ3_HAVE_COUNT
// total + 1 in each lane where a > b: a true comparison is -1.
inline I count_where_greater(I total, I a, I b) {
    return total - (a > b);
}
#endif

// A float for each code; the levels of fewer bits than four are repeated.
#ifndef TQ3_HAVE_LOOKUP
struct Levels {
    float level[16];
};
inline Levels repeated_levels(const float (&level)[16]) {
    return __builtin_bit_cast(Levels, level);
}

template <int bits>
inline F lookup(const Levels& levels, I code) {
    F value;
    for (int lane = 0; lane < kLanes; ++lane) value[lane] = levels.level[code[lane] & 15];
    return value;
}
#endif

// kLanes codes of four bits, the low nibble of a byte first; above them a lane has others.
#ifndef TQ3_HAVE_PAIRS
inline U load_pairs(const void* from) {
    U shifts;
    for (unsigned lane = 0; lane < kLanes; ++lane) shifts[lane] = 4 * lane;
    std::uint32_t word = 0;
    __builtin_memcpy(&word, from, kLanes / 2);
    return (U{} + word) >> shifts;
}
#endif

// --- Four rows become four columns
// ----------------------------------------------------------------------------
//
// Lane l belongs to group l. Four 32-bit words of every group are read as kLanes quads; quad j of
// the four vectors below holds the words of groups j, j+4, j+8, ..., so a 4x4 transposition inside
// each quad puts word k of group l into lane l of vector k. The transposition is its own inverse.

constexpr int pick(int lane, int from_a0, int from_b0, int from_a1, int from_b1) {
    const int choice[] = {from_a0, from_b0, from_a1, from_b1};
    const int c = choice[lane % 4];  // 0..3 is a lane of a's quad, 4..7 of b's
    return lane / 4 * 4 + c % 4 + (c < 4 ? 0 : kLanes);
}

#if __has_builtin(__builtin_shufflevector)
template <int p0, int p1, int p2, int p3, int... lane>
inline I shuffle_quads(I a, I b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, pick(lane, p0, p1, p2, p3)...);
}

template <class Half, int... i>
inline auto concatenate(Half a, Half b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, i...);
}

// One quad of each of the groups from[0], from[4], ... side by side.
template <int quads>
inline auto gather_quads(const char* const* from, std::size_t offset) {
    if constexpr (quads == 1) {
        return load<Quad>(from[0] + offset);
    } else {
        return concatenate(gather_quads<quads / 2>(from, offset),
                           gather_quads<quads / 2>(from + 2 * quads, offset),
                           std::make_integer_sequence<int, 4 * quads>());
    }
}

template <int first, int... i>
inline Quad quad_of(I v, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(v, v, (first + i)...);
}
#else  // GCC 11 and older: the last two go through memory, which is slower
template <int p0, int p1, int p2, int p3, int... lane>
inline I shuffle_quads(I a, I b, std::integer_sequence<int, lane...>) {
    return __builtin_shuffle(a, b, I{pick(lane, p0, p1, p2, p3)...});
}

template <int quads>
inline I gather_quads(const char* const* from, std::size_t offset) {
    Quad quad[quads];
    for (int i = 0; i < quads; ++i) quad[i] = load<Quad>(from[4 * i] + offset);
    return load<I>(quad);
}

template <int first, int... i>
inline Quad quad_of(I v, std::integer_sequence<int, i...>) {
    return load<Quad>(reinterpret_cast<const char*>(&v) + 4 * first);
}
#endif

template <int p0, int p1, int p2, int p3>
inline I shuffle_quads(I a, I b) {
    return shuffle_quads<p0, p1, p2, p3>(a, b, std::make_integer_sequence<int, kLanes>());
}

inline void transpose_quads(I (&v)[4]) {
    const I low01 = shuffle_quads<0, 4, 1, 5>(v[0], v[1]),
            high01 = shuffle_quads<2, 6, 3, 7>(v[0], v[1]);
    const I low23 = shuffle_quads<0, 4, 1, 5>(v[2], v[3]),
            high23 = shuffle_quads<2, 6, 3, 7>(v[2], v[3]);
    v[0] = shuffle_quads<0, 1, 4, 5>(low01, low23);
    v[1] = shuffle_quads<2, 3, 6, 7>(low01, low23);
    v[2] = shuffle_quads<0, 1, 4, 5>(high01, high23);
    v[3] = shuffle_quads<2, 3, 6, 7>(high01, high23);
}

template <int... quad>
inline void scatter_quads(I v, char* const* to, std::size_t offset,
                          std::integer_sequence<int, quad...>) {
    (store(to[4 * quad] + offset, quad_of<4 * quad>(v, std::make_integer_sequence<int, 4>())), ...);
}

// Words 4k .. 4k+3 of kLanes groups: vector i holds word 4k+i of every group.
inline void load_words(I (&v)[4], const char* const (&group)[kLanes], std::size_t offset) {
    for (int j = 0; j < 4; ++j) v[j] = gather_quads<kLanes / 4>(group + j, offset);
    transpose_quads(v);
}

inline void store_words(I (&v)[4], char* const (&group)[kLanes], std::size_t offset) {
    transpose_quads(v);
    for (int j = 0; j < 4; ++j)
        scatter_quads(v[j], group + j, offset, std::make_integer_sequence<int, kLanes / 4>());
}
