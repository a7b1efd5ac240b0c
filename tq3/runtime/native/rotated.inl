// Activations and weights in rotated space as numbers of another type, for a GEMM.

template <Dtype X, Dtype Out>
void rotate_token(const Width& width, std::size_t groups, std::size_t columns, const void* x,
                  void* out) {
    auto* to = static_cast<WordOf<Out>*>(out);
    for (std::size_t g = 0; g < groups; ++g) {
        F group[kMaxGroup / kLanes];
        rotate_group<X>(width, static_cast<const WordOf<X>*>(x), columns, g, group);
        for (int i = 0; i < width.group / kLanes; ++i, to += kLanes)
            store_values<Out>(group[i] * width.inverse_root_rotation, to);
    }
}

template <Dtype X>
void rotate_from(const Width& width, std::size_t groups, std::size_t columns, const void* x,
                 Dtype dtype, void* out) {
    if (dtype == Dtype::kBF16) return rotate_token<X, Dtype::kBF16>(width, groups, columns, x, out);
    if (dtype == Dtype::kF16) return rotate_token<X, Dtype::kF16>(width, groups, columns, x, out);
    return rotate_token<X, Dtype::kF32>(width, groups, columns, x, out);
}

void rotate(const Width& width, std::size_t groups, std::size_t columns, Dtype dtype, const void* x,
            Dtype out_dtype, void* out) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16)
        return rotate_from<Dtype::kBF16>(width, groups, columns, x, out_dtype, out);
    if (dtype == Dtype::kF16)
        return rotate_from<Dtype::kF16>(width, groups, columns, x, out_dtype, out);
    return rotate_from<Dtype::kF32>(width, groups, columns, x, out_dtype, out);
}

// Eight codes lie in one 32-bit word: lane l holds that of code first + l, moved to its lowest
// bits.
template <int bits, int... lane>
inline I codes_at(const std::uint8_t* codes, int first, std::integer_sequence<int, lane...>) {
    const auto word = [&](int eight) { return load<std::uint32_t>(codes + eight * bits); };
    const int eight = first / 8;
    U words = U{} + word(eight);
    if constexpr (kLanes > 8) words = I{(lane < 8)...} != 0 ? words : U{} + word(eight + 1);
    const std::uint32_t skipped = static_cast<std::uint32_t>(first % 8 * bits);
    return reinterpret_cast<I>(words >> skipped >> U{(lane % 8 * bits)...});
}

// The words that the codes of a group stand for, each in 32 bits.
template <Dtype D>
inline Levels words_of_levels(const float (&level)[16], float norm) {
    WordOf<D> words[16];
    std::uint32_t wide[16];
    for (int i = 0; i < 16; i += kLanes) store_values<D>(load<F>(level + i) * norm, words + i);
    for (int i = 0; i < 16; ++i) wide[i] = words[i];
    float table[16];
    __builtin_memcpy(table, wide, sizeof table);
    return repeated_levels(table);
}

template <Dtype D, int bits>
inline void decode_group(const float (&level)[16], const std::uint8_t* packed, float norm,
                         int group, WordOf<D>* to) {
    const Levels words = words_of_levels<D>(level, norm);
    std::uint8_t codes[kMaxGroup * bits / 8 + 4];  // a word may end behind the last code
    __builtin_memcpy(codes, packed, static_cast<std::size_t>(group * bits / 8));
    for (int i = 0; i < group; i += kLanes) {
        const I code = codes_at<bits>(codes, i, std::make_integer_sequence<int, kLanes>());
        const I word = as_bits(lookup<bits>(words, code));
        if constexpr (sizeof(WordOf<D>) == 4)
            store(to + i, word);
        else
            store(to + i, narrow(word));
    }
}

template <Dtype D, int bits>
void decode_rows(const Width& width, const Layer& layer, Range rows, void* out) {
    const int group = width.group;
    float level[16];
    for (int i = 0; i < 16; ++i) level[i] = width.level[i & ((1 << bits) - 1)];
    auto* to = static_cast<WordOf<D>*>(out);
    for (std::size_t g = rows.first * layer.groups; g < rows.last * layer.groups; ++g, to += group)
        decode_group<D, bits>(level, layer.packed + g * static_cast<std::size_t>(group * bits / 8),
                              layer.norms[g], group, to);
}

template <Dtype D>
void decode_to(const Width& width, const Layer& layer, Range rows, void* out) {
    if (width.bits == 2) return decode_rows<D, 2>(width, layer, rows, out);
    if (width.bits == 3) return decode_rows<D, 3>(width, layer, rows, out);
    return decode_rows<D, 4>(width, layer, rows, out);
}

void decode(const Width& width, const Layer& layer, Range rows, Dtype dtype, void* out) {
    const DefaultFloatEnvironment environment;
    if (dtype == Dtype::kBF16) return decode_to<Dtype::kBF16>(width, layer, rows, out);
    if (dtype == Dtype::kF16) return decode_to<Dtype::kF16>(width, layer, rows, out);
    return decode_to<Dtype::kF32>(width, layer, rows, out);
}
