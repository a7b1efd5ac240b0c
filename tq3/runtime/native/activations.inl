// Activations in rotated space: D2 H D1 of each group, and their quantisation.

// Lane l takes lane l ^ stride.
#if __has_builtin(__builtin_shufflevector)
template <int stride, int... lane>
inline F exchange(F v, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(v, v, (lane ^ stride)...);
}
#else  // GCC 11 and older
template <int stride, int... lane>
inline F exchange(F v, std::integer_sequence<int, lane...>) {
    return __builtin_shuffle(v, I{(lane ^ stride)...});
}
#endif

template <int stride, int... lane>
constexpr I sign_of_second(std::integer_sequence<int, lane...>) {
    return I{(lane & stride ? kSignBit : 0)...};
}

// Strides below kLanes: (a, b) become (a + b, a - b) within a vector.
template <int stride>
inline F butterflies_within(F v) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
    const F other = exchange<stride>(v, lanes);
    v = other + as_float(as_bits(v) ^ sign_of_second<stride>(lanes));
    if constexpr (stride > 1) return butterflies_within<stride / 2>(v);
    return v;
}

// The transform without its factor, of each block of a group.
inline void transform(F* group, int vectors, int vectors_a_block) {
    for (int stride = vectors_a_block / 2; stride; stride /= 2)
        for (int block = 0; block < vectors; block += 2 * stride)
            for (int i = block; i < block + stride; ++i) {
                const F a = group[i], b = group[i + stride];
                group[i] = a + b;
                group[i + stride] = a - b;
            }
    for (int i = 0; i < vectors; ++i) group[i] = butterflies_within<kLanes / 2>(group[i]);
}

// A group of x, padded with zeros; `valid` values of it exist.
template <Dtype D>
inline void load_group(const WordOf<D>* x, int valid, int vectors, F* group) {
    int i = 0;
    for (; (i + 1) * kLanes <= valid; ++i) group[i] = load_values<D>(x + i * kLanes);
    for (; i < vectors; ++i) {
        WordOf<D> words[kLanes] = {};
        const int left = valid - i * kLanes;
        if (left > 0)
            __builtin_memcpy(words, x + i * kLanes, static_cast<std::size_t>(left) * sizeof *x);
        group[i] = load_values<D>(words);
    }
}

template <Dtype D>
inline void rotate_group(const Width& width, const WordOf<D>* x, std::size_t columns, std::size_t g,
                         F* group) {
    const std::size_t size = static_cast<std::size_t>(width.group), first = g * size;
    const int vectors = width.group / kLanes;
    const std::size_t left = columns - first;
    load_group<D>(x + first, static_cast<int>(left < size ? left : size), vectors, group);
    for (int i = 0; i < vectors; ++i) group[i] *= load<F>(width.d1 + i * kLanes);
    transform(group, vectors, width.rotation / kLanes);
    for (int i = 0; i < vectors; ++i) group[i] *= load<F>(width.d2 + i * kLanes);
}

inline float scalar(std::int32_t bits) {
    return __builtin_bit_cast(float, bits);
}

// As whole numbers the magnitudes of floats are in order, and a NaN is the largest of all.
inline std::int32_t largest_magnitude(const F* group, int vectors) {
    I largest = {};
    for (int i = 0; i < vectors; ++i) {
        const I magnitude = as_bits(group[i]) & INT32_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    std::int32_t one = 0;
    for (int lane = 0; lane < kLanes; ++lane) one = largest[lane] > one ? largest[lane] : one;
    return one;
}

constexpr float kLargest = 32512.0F;
constexpr std::int32_t kSmallest = (127 - 100) << 23;  // 2**-100 as float32 bits
// Added to a float below 2**22, its last bit is worth one: so a sum is rounded to a whole number.
constexpr float kRounder = 12582912.0F;

// The scale; `whole` becomes the nearest whole numbers.
inline float quantise_group(const F* group, int vectors, std::int16_t* whole) {
    const std::int32_t largest = largest_magnitude(group, vectors);
    const bool finite = largest < kInfinity, some = finite && largest >= kSmallest;
    const float step = some ? kLargest / scalar(largest) : 0.0F;
    for (int i = 0; i < vectors; ++i) {
        const F value = finite ? group[i] * step : F{};
        I nearest = as_bits(value + kRounder) - __builtin_bit_cast(std::int32_t, kRounder);
        nearest = nearest > 32512 ? every_lane(32512) : nearest;
        nearest = nearest < -32512 ? every_lane(-32512) : nearest;
        store(whole + i * kLanes, narrow(nearest));
    }
    if (!finite) return scalar(0x7fc00000);
    return some ? scalar(largest) / kLargest : 0.0F;
}

// `place` takes the chunks of whole numbers and, of each group, what a step is worth and what its
// sums have too much.
template <Dtype D, class Place>
void quantise_token(const Width& width, std::size_t groups, std::size_t columns, const void* x,
                    const Place& place) {
    const auto size = static_cast<std::size_t>(width.group);
    // Two groups of 32 and more fill a chunk: they are quantised to a stretch of whole chunks.
    constexpr std::size_t kStretch = kChunk > kMaxGroup ? kChunk : kMaxGroup;
    alignas(64) std::int16_t whole[kStretch];
    const std::size_t groups_a_stretch = kStretch / size, padded = octets(groups) * kOctet;
    for (std::size_t first = 0; first < padded; first += groups_a_stretch) {
        for (std::size_t i = 0; i < groups_a_stretch && first + i < padded; ++i) {
            const std::size_t g = first + i;
            std::int16_t* to = whole + i * size;
            F group[kMaxGroup / kLanes];
            float scale = 0;
            if (g < groups) {
                rotate_group<D>(width, static_cast<const WordOf<D>*>(x), columns, g, group);
                scale = quantise_group(group, width.group / kLanes, to);
            } else {
                __builtin_memset(to, 0, size * sizeof *to);
            }
            std::int32_t sum = 0;
            for (std::size_t k = 0; k < size; ++k) sum += to[k];
            place.put_group(g, scale * width.unit, sum * -width.whole_level[0]);
        }
        for (std::size_t k = 0; k < kStretch && first * size + k < padded * size; k += kChunk)
            place.put_chunk((first * size + k) / kChunk, whole + k);
    }
}

template <class Place>
void quantise_into(const Place& place, const Width& width, std::size_t groups, std::size_t columns,
                   Dtype dtype, const void* x) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return quantise_token<Dtype::kBF16>(width, groups, columns, x, place);
    if (dtype == Dtype::kF16) return quantise_token<Dtype::kF16>(width, groups, columns, x, place);
    return quantise_token<Dtype::kF32>(width, groups, columns, x, place);
}

void quantise(const Width& width, std::size_t groups, std::size_t columns, Dtype dtype,
              const void* x, std::size_t, std::size_t token, char* quantised) {
    char* memory = quantised + token * token_bytes(width, groups);
    quantise_into(token_in(width, groups, memory), width, groups, columns, dtype, x);
}
