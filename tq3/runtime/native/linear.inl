// The linear kernels, written once for any instruction set. docs/kernels.md is the arithmetic.
//
// The including file says how many weights are decoded at once (kChunk) and how (Decoder), for how
// many tokens (kMostTogether), how they are multiplied by a chunk of a token (Piece, Product), and
// how the lanes of eight groups are added up (add_lanes). Everything is in an unnamed namespace and
// calls no inline function of the standard library: the linker keeps one copy of those, and it may
// be the one with the wrong instructions.

// Eight neighbouring groups of a row: one term each for the eight partial sums.
constexpr int kOctet = 8;
using Octet = std::int32_t __attribute__((vector_size(4 * kOctet)));
using OctetF = float __attribute__((vector_size(4 * kOctet)));

inline std::size_t octets(std::size_t groups) {
    return (groups + kOctet - 1) / kOctet;
}

// A token in memory: its chunks, then for each group what a step is worth, then what its sums have
// too much where levels are counted from the lowest one (kFromLowest).
struct Token {
    char *pieces, *worths, *surpluses;

    void put_chunk(std::size_t chunk, const std::int16_t* values) const {
        arrange(values, reinterpret_cast<Piece*>(pieces)[chunk]);
    }
    void put_group(std::size_t g, float worth, std::int32_t surplus) const {
        store(worths + g * sizeof worth, worth);
        store(surpluses + g * sizeof surplus, surplus);
    }
};

inline std::size_t chunks(const Width& width, std::size_t groups) {
    return octets(groups) * kOctet * static_cast<std::size_t>(width.group) / kChunk;
}

inline std::size_t token_bytes(const Width& width, std::size_t groups) {
    return chunks(width, groups) * sizeof(Piece) + octets(groups) * 2 * sizeof(Octet);
}

std::size_t quantised_bytes(const Width& width, std::size_t groups, std::size_t tokens) {
    return tokens * token_bytes(width, groups);
}

inline Token token_in(const Width& width, std::size_t groups, char* memory) {
    char* worths = memory + chunks(width, groups) * sizeof(Piece);
    return {memory, worths, worths + octets(groups) * sizeof(Octet)};
}

// Lanes that add up to the sum of one group or, where a chunk holds several, of these, for each
// token. Each weight is decoded once.
template <int chunks, int tokens, class AnyDecoder>
__attribute__((always_inline)) inline void sum_chunks(const AnyDecoder& decoder,
                                                      const std::uint8_t* codes, int first,
                                                      const char* const (&pieces)[tokens],
                                                      Product (&products)[tokens]) {
    for (int chunk = first; chunk < first + chunks; ++chunk) {
        const auto weights = decoder(codes + chunk * AnyDecoder::kBytes);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t)
            products[t].add(weights, reinterpret_cast<const Piece*>(pieces[t])[chunk]);
    }
}

// Sums over eight groups of levels times activations, for each token.
template <int group, int tokens, class AnyDecoder>
__attribute__((always_inline)) inline void sum_octet(const AnyDecoder& decoder,
                                                     const std::uint8_t* codes,
                                                     const char* const (&pieces)[tokens],
                                                     std::size_t groups, Octet (&sums)[tokens]) {
    constexpr int chunks = group > kChunk ? group / kChunk : 1;
    constexpr int vectors = kOctet * group / kChunk / chunks;
    I lanes[tokens][vectors];
    const auto sum = [&](int i) __attribute__((always_inline)) {
        Product products[tokens] = {};
        sum_chunks<chunks>(decoder, codes, i * chunks, pieces, products);
        for (int t = 0; t < tokens; ++t) lanes[t][i] = products[t].total();
    };
    // Codes of groups that are not there are not read.
    const int some = static_cast<int>(groups) * group;
    const auto sum_or_zero = [&](int i) __attribute__((always_inline)) {
        if (i * chunks * kChunk < some) return sum(i);
        for (int t = 0; t < tokens; ++t) lanes[t][i] = I{};
    };
    if constexpr (tokens == 1 && chunks == 1) {  // lanes stay in registers
#pragma GCC unroll 8
        for (int i = 0; i < vectors; ++i) sum_or_zero(i);
    } else {
#pragma GCC unroll 1
        for (int i = 0; i < vectors; ++i) sum_or_zero(i);
    }
#pragma GCC unroll 1
    for (int t = 0; t < tokens; ++t) add_lanes(lanes[t], sums[t]);
}

// Octets from asking the memory for one to using it; twice as many where rows are read together.
constexpr std::size_t kAhead = 8;

// Rows that one token is multiplied by together, octet after octet, where its activations are more
// bytes than stay in the innermost cache beside weights: they are read from the next one, for all
// of these rows once.
constexpr int kRowsTogether = 4;
constexpr std::size_t kInnermost = std::size_t{24} << 10;

// What lies `ahead` may be behind the weights, which a prefetch forgives and a pointer does not.
inline void ask_for(const void* now, std::size_t ahead, std::size_t bytes) {
    const auto start = reinterpret_cast<std::uintptr_t>(now) + ahead;
    for (std::size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(start + i));
}

template <int bits, int group, int tokens>
struct Multiplication {
    static constexpr std::size_t kCodes = kOctet * group * bits / 8;  // bytes of an octet

    const Layer& layer;
    Decoder<bits> decoder;
    Token token[tokens];

    // The terms of octet `o` of one row.
    __attribute__((always_inline)) void add_octet(std::size_t o, const std::uint8_t* codes,
                                                  const float* norms, std::size_t groups,
                                                  OctetF (&partial)[tokens]) const {
        const char* pieces[tokens];
        for (int t = 0; t < tokens; ++t)
            pieces[t] = token[t].pieces + o * (kOctet * group / kChunk) * sizeof(Piece);
        Octet sums[tokens];
        sum_octet<group, tokens>(decoder, codes, pieces, groups, sums);
        OctetF norm, worth;
        Octet surplus;
        __builtin_memcpy(&norm, norms, sizeof norm);
        for (int t = 0; t < tokens; ++t) {
            __builtin_memcpy(&worth, token[t].worths + o * sizeof worth, sizeof worth);
            __builtin_memcpy(&surplus, token[t].surpluses + o * sizeof surplus, sizeof surplus);
            if constexpr (kFromLowest) sums[t] -= surplus;
            partial[t] += __builtin_convertvector(sums[t], OctetF) * worth * norm;
        }
    }

    // The last octet of a row is not full: nothing is read behind it.
    void add_last_octet(const std::uint8_t* codes, const float* norms,
                        OctetF (&partial)[tokens]) const {
        const std::size_t left = layer.groups % kOctet, whole = layer.groups / kOctet;
        float some_norms[kOctet] = {};
        for (std::size_t i = 0; i < left; ++i) some_norms[i] = norms[i];
        if (group >= kChunk) return add_octet(whole, codes, some_norms, left, partial);
        std::uint8_t some_codes[kCodes] = {};  // the last chunk may end behind the row
        __builtin_memcpy(some_codes, codes, left * (group * bits / 8));
        add_octet(whole, some_codes, some_norms, left, partial);
    }

    // The outputs `row` and those of the rows behind it, of each token.
    template <int rows>
    void add_rows(std::size_t row, float (&results)[rows][tokens]) const {
        OctetF partial[rows][tokens] = {};
        const std::size_t row_bytes = layer.groups * (group * bits / 8);
        const std::uint8_t* codes = layer.packed + row * row_bytes;
        const float* norms = layer.norms + row * layer.groups;
        const std::size_t whole = layer.groups / kOctet;
        for (std::size_t o = 0; o < whole; ++o) {
            // Behind the end of a row come others that are read now, and then those that will be.
            constexpr std::size_t octets_ahead = rows == 1 ? kAhead : 2 * kAhead;
            const std::size_t others = o + octets_ahead < whole ? 0 : rows - 1;
            const std::size_t ahead = octets_ahead * kOctet + others * layer.groups;
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const std::uint8_t* of_row = codes + r * row_bytes;
                const float* its_norms = norms + r * layer.groups;
                ask_for(of_row, ahead * (group * bits / 8), kCodes);
                ask_for(its_norms, ahead * sizeof *norms, sizeof(OctetF));
                add_octet(o, of_row, its_norms, kOctet, partial[r]);
            }
            codes += kCodes;
            norms += kOctet;
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            if (layer.groups % kOctet)
                add_last_octet(codes + r * row_bytes, norms + r * layer.groups, partial[r]);
            for (int t = 0; t < tokens; ++t) {
                const OctetF& p = partial[r][t];
                results[r][t] = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
            }
        }
    }
};

template <Dtype D>
inline void store_results(const float* results, std::size_t count, void* out, std::size_t offset) {
    auto* to = static_cast<WordOf<D>*>(out) + offset;
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store_values<D>(load<F>(results + i), to + i);
    if (i == count) return;
    WordOf<D> last[kLanes];
    float values[kLanes] = {};
    __builtin_memcpy(values, results + i, (count - i) * sizeof *values);
    store_values<D>(load<F>(values), last);
    __builtin_memcpy(to + i, last, (count - i) * sizeof *to);
}

inline void store_results(Dtype dtype, const float* results, std::size_t count, void* out,
                          std::size_t offset) {
    if (dtype == Dtype::kBF16) return store_results<Dtype::kBF16>(results, count, out, offset);
    if (dtype == Dtype::kF16) return store_results<Dtype::kF16>(results, count, out, offset);
    return store_results<Dtype::kF32>(results, count, out, offset);
}

struct Output {
    Dtype dtype;
    void* data;
};

template <int bits, int group, int tokens>
void multiply_tokens(const Width& width, const Layer& layer, Range range, std::size_t first_token,
                     char* quantised, const Output& out) {
    constexpr std::size_t kBuffer = 64;
    const std::size_t bytes = token_bytes(width, layer.groups);
    Multiplication<bits, group, tokens> product = {layer, Decoder<bits>(width.whole_level), {}};
    for (std::size_t t = 0; t < tokens; ++t)
        product.token[t] = token_in(width, layer.groups, quantised + (first_token + t) * bytes);

    float results[tokens][kBuffer];
    for (std::size_t row = range.first; row < range.last; row += kBuffer) {
        const std::size_t count = range.last - row < kBuffer ? range.last - row : kBuffer;
        std::size_t i = 0;
        const auto add_rows = [&]<int rows>() {
            for (; i + rows <= count; i += rows) {
                float result[rows][tokens];
                product.template add_rows<rows>(row + i, result);
                for (std::size_t r = 0; r < rows; ++r)
                    for (std::size_t t = 0; t < tokens; ++t) results[t][i + r] = result[r][t];
            }
        };
        if constexpr (tokens == 1)
            if (bytes > kInnermost) add_rows.template operator()<kRowsTogether>();
        add_rows.template operator()<1>();
        for (std::size_t t = 0; t < tokens; ++t)
            store_results(out.dtype, results[t], count, out.data,
                          (first_token + t) * layer.rows + row);
    }
}

template <int bits, int group>
void multiply_width(const Width& width, const Layer& layer, Range rows, std::size_t tokens,
                    char* quantised, const Output& out) {
    std::size_t t = 0;
    for (; t + kMostTogether <= tokens; t += kMostTogether)
        multiply_tokens<bits, group, kMostTogether>(width, layer, rows, t, quantised, out);
    const std::size_t left = tokens - t;
    if (kMostTogether > 4 && left & 4)
        multiply_tokens<bits, group, 4>(width, layer, rows, t, quantised, out), t += 4;
    if (left & 2) multiply_tokens<bits, group, 2>(width, layer, rows, t, quantised, out), t += 2;
    if (left & 1) multiply_tokens<bits, group, 1>(width, layer, rows, t, quantised, out);
}

// Calls work.operator()<bits, group>() for those of `width`.
template <int bits, class Work>
void with_group(int group, const Work& work) {
    switch (group) {
        case 32:
            return work.template operator()<bits, 32>();
        case 64:
            return work.template operator()<bits, 64>();
        case 128:
            return work.template operator()<bits, 128>();
        case 256:
            return work.template operator()<bits, 256>();
    }
}

template <class Work>
void with_width(const Width& width, const Work& work) {
    if (width.bits == 2) return with_group<2>(width.group, work);
    if (width.bits == 3) return with_group<3>(width.group, work);
    return with_group<4>(width.group, work);
}

void multiply(const Width& width, const Layer& layer, Range rows, std::size_t tokens,
              char* quantised, Dtype dtype, void* out) {
    const DefaultFloatEnvironment environment;
    with_width(width, [&]<int bits, int group>() {
        multiply_width<bits, group>(width, layer, rows, tokens, quantised, {dtype, out});
    });
}
