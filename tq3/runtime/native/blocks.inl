// Many tokens: rows are decoded to 16-bit levels once for up to kMostTokens of them, and a lane of
// a sum is a token, so that sums become terms without adding up lanes.
//
// The including file gives kFewestForBlocks, kTokenLanes, kFewerLanes, the types Tokens<lanes>,
// order_pairs, store_pairs, multiply_pairs and kSumRows. Sums are exact and terms are added in the
// reference's order, so that results are those of `Multiplication`.
//
//     levels of a row: pairs of 16 bits, one a step, to all lanes    | w0 w1 | w0 w1 | w0 w1 | ...
//     activations of the same step: a pair for each token            | x0 x1 | y0 y1 | z0 z1 | ...

constexpr std::size_t kMostTokens = 64, kBlockRows = 32;
constexpr std::size_t kPairs = kChunk / 2;  // of a chunk

// As many tokens as there are lanes, in memory: for each pair of neighbours in a lane of decoded
// weights that pair of each token; then of each group what a step is worth and the surplus, of each
// token. As large as that many of Token.
struct TokenVector {
    char *pairs, *worths, *surpluses;
    std::size_t lanes, token;  // `token` is the one that is put

    void put_chunk(std::size_t chunk, const std::int16_t* values) const {
        std::int32_t ordered[kPairs];
        order_pairs(values, ordered);
        char* to = pairs + (chunk * kPairs * lanes + token) * sizeof *ordered;
        for (std::size_t i = 0; i < kPairs; ++i)
            store(to + i * lanes * sizeof *ordered, ordered[i]);
    }
    void put_group(std::size_t g, float worth, std::int32_t surplus) const {
        store(worths + (g * lanes + token) * sizeof worth, worth);
        store(surpluses + (g * lanes + token) * sizeof surplus, surplus);
    }
};

// Lanes of the block that token `first` begins: the last one may be narrower.
inline std::size_t lanes_of_block(std::size_t first, std::size_t tokens) {
    return tokens - first <= kFewerLanes ? kFewerLanes : kTokenLanes;
}

inline TokenVector vector_in(const Width& width, std::size_t groups, std::size_t first,
                             std::size_t tokens, char* quantised) {
    const std::size_t lanes = lanes_of_block(first, tokens);
    char* pairs = quantised + first * token_bytes(width, groups);
    char* worths = pairs + chunks(width, groups) * kPairs * lanes * sizeof(std::int32_t);
    return {pairs, worths, worths + octets(groups) * sizeof(Octet) * lanes, lanes, 0};
}

std::size_t quantised_bytes_for_blocks(const Width& width, std::size_t groups, std::size_t tokens) {
    if (tokens < kFewestForBlocks) return quantised_bytes(width, groups, tokens);
    const std::size_t last = (tokens - 1) / kTokenLanes * kTokenLanes;
    return quantised_bytes(width, groups, last + lanes_of_block(last, tokens));
}

void quantise_for_blocks(const Width& width, std::size_t groups, std::size_t columns, Dtype dtype,
                         const void* x, std::size_t tokens, std::size_t token, char* quantised) {
    if (tokens < kFewestForBlocks)
        return quantise(width, groups, columns, dtype, x, tokens, token, quantised);
    const std::size_t place = token % kTokenLanes;
    TokenVector block = vector_in(width, groups, token - place, tokens, quantised);
    block.token = place;
    quantise_into(block, width, groups, columns, dtype, x);
}

inline std::size_t least(std::size_t a, std::size_t b) {
    return a < b ? a : b;
}

// Where the pairs of a group lie among those of its chunk: `parts` stretches of `pairs`, each
// `distance` behind the one before.
struct Stretches {
    std::size_t parts, pairs, distance;
};

inline Stretches stretches_of(std::size_t group) {
    if (group >= kChunk) return {1, group / 2, 0};
    return {4, group / 8, kPairs / 4};
}

// One group of some rows, decoded, and where their terms go.
struct Rows {
    const std::int32_t* levels;
    std::size_t distance;  // from the pairs of one row to the next one's
    Stretches stretches;
    const float* norms;
    float* partial;  // of all tokens for each row
    std::size_t n_tokens;
};

// The same group of as many tokens as there are lanes.
struct Activations {
    const char *pairs, *worths, *surpluses;
};

// The terms of all `n_rows` rows and one vector of tokens, the first of which is `token`.
template <int lanes>
void add_terms(const Rows& of, std::size_t n_rows, const Activations& tokens, std::size_t token) {
    using I = typename Tokens<lanes>::I;
    using F = typename Tokens<lanes>::F;
    const F worth = load<F>(tokens.worths);
    const I surplus = load<I>(tokens.surpluses);
    for (std::size_t r = 0; r < n_rows; r += kSumRows) {
        I sums[kSumRows] = {};
        for (std::size_t part = 0; part < of.stretches.parts; ++part) {
            const std::size_t first = part * of.stretches.distance;
            const std::int32_t* levels = of.levels + r * of.distance + first;
            const char* pairs = tokens.pairs + first * sizeof(I);
#pragma GCC unroll 4
            for (std::size_t i = 0; i < of.stretches.pairs; ++i) {
                const I pair = load<I>(pairs + i * sizeof(I));
#pragma GCC unroll 16
                for (std::size_t row = 0; row < kSumRows; ++row)
                    sums[row] =
                        multiply_pairs(sums[row], I{} + levels[row * of.distance + i], pair);
            }
        }
        float* to = of.partial + r * of.n_tokens + token;
#pragma GCC unroll 16
        for (std::size_t row = 0; row < kSumRows; ++row, to += of.n_tokens) {
            const F sum = __builtin_convertvector(sums[row] - surplus, F);
            store(to, load<F>(to) + sum * worth * of.norms[r + row]);
        }
    }
}

// Some rows of a layer, for up to kMostTokens tokens.
template <int bits>
struct BlockProduct {
    static constexpr std::size_t kBytes = Decoder<bits>::kBytes;
    static constexpr std::size_t kVectors = kMostTokens / kTokenLanes;

    const Layer& layer;
    const Decoder<bits> decoder;
    const std::size_t group, group_bytes, groups_a_chunk, distance;
    const Stretches stretches;
    TokenVector vector[kVectors];
    std::size_t n_vectors = 0, n_tokens = 0;  // with those that fill lanes only

    const std::uint8_t* codes[kBlockRows];
    const float* norms[kBlockRows];
    // Of one group, or of all groups of a chunk.
    alignas(64) std::int32_t levels[kBlockRows * kMaxGroup / 2];
    // Of each of eight terms, each row and each token.
    alignas(64) float partial[kOctet * kBlockRows * kMostTokens];

    BlockProduct(const Width& width, const Layer& layer)
        : layer(layer),
          decoder(width.whole_level),
          group(static_cast<std::size_t>(width.group)),
          group_bytes(group * bits / 8),
          groups_a_chunk(group < kChunk ? kChunk / group : 1),
          distance(group < kChunk ? kPairs : group / 2),
          stretches(stretches_of(group)) {}

    void choose_tokens(const Width& width, std::size_t first, std::size_t last, std::size_t tokens,
                       char* quantised) {
        n_vectors = n_tokens = 0;
        for (std::size_t t = first; t < last; t += kTokenLanes) {
            vector[n_vectors] = vector_in(width, layer.groups, t, tokens, quantised);
            n_tokens += vector[n_vectors++].lanes;
        }
    }

    // Rows that are not there are the last one again.
    void choose_rows(Range rows) {
        for (std::size_t r = 0; r < kBlockRows; ++r) {
            const std::size_t row = least(rows.first + r, rows.last - 1);
            codes[r] = layer.packed + row * layer.groups * group_bytes;
            norms[r] = layer.norms + row * layer.groups;
        }
    }

    // Group g of all rows, or the chunk that begins with it.
    void decode_from(std::size_t g) {
        const std::size_t left = (layer.groups - g) * group_bytes;
        const std::size_t next_rows = kBlockRows * layer.groups * group_bytes;
        for (std::size_t r = 0; r < kBlockRows; ++r) {
            std::int32_t* to = levels + r * distance;
            for (std::size_t at = 0; at == 0 || at < group_bytes; at += kBytes, to += kPairs) {
                const std::uint8_t* from = codes[r] + g * group_bytes + at;
                ask_for(from, next_rows, kBytes);
                std::uint8_t last[kBytes];
                if (left < at + kBytes) {  // nothing is read behind the row
                    __builtin_memset(last, 0, kBytes);
                    __builtin_memcpy(last, from, left - at);
                    from = last;
                }
                store_pairs(decoder(from), to);
            }
        }
    }

    void add_group(std::size_t g, std::size_t n_rows) {
        const std::size_t chunk = g / groups_a_chunk * groups_a_chunk * group / kChunk,
                          part = g % groups_a_chunk * stretches.pairs;
        float norm[kBlockRows];
        for (std::size_t r = 0; r < kBlockRows; ++r) norm[r] = norms[r][g];
        const Rows rows = {
            levels + part, distance, stretches, norm, partial + g % kOctet * kBlockRows * n_tokens,
            n_tokens};
        for (std::size_t v = 0; v < n_vectors; ++v) {
            const TokenVector& from = vector[v];
            const std::size_t step = from.lanes * sizeof(float);
            const Activations tokens = {from.pairs + (chunk * kPairs + part) * step,
                                        from.worths + g * step, from.surpluses + g * step};
            if (from.lanes == kTokenLanes)
                add_terms<kTokenLanes>(rows, n_rows, tokens, v * kTokenLanes);
            else
                add_terms<kFewerLanes>(rows, n_rows, tokens, v * kTokenLanes);
        }
    }

    void add_rows(Range rows) {
        const std::size_t n_rows = rows.last - rows.first;
        choose_rows(rows);
        __builtin_memset(partial, 0, kOctet * kBlockRows * n_tokens * sizeof *partial);
        for (std::size_t g = 0; g < layer.groups; ++g) {
            if (g % groups_a_chunk == 0) decode_from(g);
            add_group(g, n_rows);
        }
    }

    // Outputs of some rows for tokens from `first` to `last`.
    void store_rows(Range rows, std::size_t first, std::size_t last, const Output& out) const {
        const std::size_t n_rows = rows.last - rows.first;
        float results[kMostTokens][kBlockRows];
        for (std::size_t r = 0; r < n_rows; ++r)
            for (std::size_t t = 0; t < last - first; ++t) {
                const auto p = [&](std::size_t i) {
                    return partial[(i * kBlockRows + r) * n_tokens + t];
                };
                results[t][r] = ((p(0) + p(4)) + (p(2) + p(6))) + ((p(1) + p(5)) + (p(3) + p(7)));
            }
        for (std::size_t t = first; t < last; ++t)
            store_results(out.dtype, results[t - first], n_rows, out.data,
                          t * layer.rows + rows.first);
    }
};

template <int bits>
void multiply_rows(const Width& width, const Layer& layer, Range range, std::size_t tokens,
                   char* quantised, const Output& out) {
    BlockProduct<bits> product(width, layer);
    for (std::size_t row = range.first; row < range.last; row += kBlockRows) {
        const Range rows = {row, least(row + kBlockRows, range.last)};
        for (std::size_t first = 0; first < tokens; first += kMostTokens) {
            const std::size_t last = least(first + kMostTokens, tokens);
            product.choose_tokens(width, first, last, tokens, quantised);
            product.add_rows(rows);
            product.store_rows(rows, first, last, out);
        }
    }
}

void multiply_for_blocks(const Width& width, const Layer& layer, Range rows, std::size_t tokens,
                         char* quantised, Dtype dtype, void* out) {
    if (tokens < kFewestForBlocks)
        return multiply(width, layer, rows, tokens, quantised, dtype, out);
    const DefaultFloatEnvironment environment;
    if (width.bits == 2)
        return multiply_rows<2>(width, layer, rows, tokens, quantised, {dtype, out});
    if (width.bits == 3)
        return multiply_rows<3>(width, layer, rows, tokens, quantised, {dtype, out});
    multiply_rows<4>(width, layer, rows, tokens, quantised, {dtype, out});
}
