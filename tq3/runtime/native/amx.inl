// Many tokens by the matrix tiles of AMX: 32 rows of a layer times 16 tokens at a time.
//
// A tile has 16 rows of 64 bytes: of weights 64 levels of a row of the layer, counted from the
// lowest one; of activations four neighbouring bytes of each of 16 tokens; of sums 32 bits for
// each token. Their numbers:
//
//     0 1   sums of high and low bytes, first 16 rows of the layer     4   weights of those rows
//     2 3   the same of the other 16 rows                              5   weights of the others
//                                                                      6 7 high and low bytes
//
// Sums are exact and terms are added in the reference's order, so that results are the same.

constexpr std::size_t kTileBytes = 1024, kTileTokens = 16;
constexpr int kTileRows = 16, kRows = 2 * kTileRows, kMostBlocks = 2;

// Tokens from which on tiles are faster, though most of a tile may be empty.
constexpr std::size_t kFewestForTiles = 5;

struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_a_row[16] = {};
    std::uint8_t rows[16] = {};
};

// The processor's tiles, for a thread and a while. `lanes` of 32 bits are a group's in a chunk.
class Tiles {
  public:
    explicit Tiles(int lanes) {
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            const bool weights = tile == 4 || tile == 5, activations = tile > 5;
            shapes.bytes_a_row[tile] = static_cast<std::uint16_t>(weights ? 4 * lanes : 64);
            shapes.rows[tile] = static_cast<std::uint8_t>(activations ? lanes : kTileRows);
        }
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Sixteen tokens in memory: for each chunk the four tiles of a Piece, then for each group what a
// step is worth and the surplus, of each token. As large as sixteen of Token.
struct TokenBlock {
    char *tiles, *worths, *surpluses;

    // The token of the sixteen that is put.
    std::size_t token = 0;

    void put_chunk(std::size_t chunk, const std::int16_t* values) const {
        Piece piece;
        arrange(values, piece);
        const __m512i rows = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(64));
        char* to = tiles + chunk * sizeof(Piece) * kTileTokens + token * 4;
        for (const __m512i& part :
             {piece.high_first, piece.high_second, piece.low_first, piece.low_second}) {
            _mm512_i32scatter_epi32(to, rows, part, 1);
            to += kTileBytes;
        }
    }
    void put_group(std::size_t g, float worth, std::int32_t surplus) const {
        store(worths + (g * kTileTokens + token) * sizeof worth, worth);
        store(surpluses + (g * kTileTokens + token) * sizeof surplus, surplus);
    }
};

inline TokenBlock block_in(const Width& width, std::size_t groups, std::size_t first_token,
                           char* quantised) {
    char* tiles = quantised + first_token * token_bytes(width, groups);
    char* worths = tiles + chunks(width, groups) * sizeof(Piece) * kTileTokens;
    return {tiles, worths, worths + octets(groups) * sizeof(Octet) * kTileTokens};
}

std::size_t quantised_bytes_for_tiles(const Width& width, std::size_t groups, std::size_t tokens) {
    const std::size_t blocks = (tokens + kTileTokens - 1) / kTileTokens;
    return quantised_bytes(width, groups, tokens < kFewestForTiles ? tokens : blocks * kTileTokens);
}

void quantise_for_tiles(const Width& width, std::size_t groups, std::size_t columns, Dtype dtype,
                        const void* x, std::size_t tokens, std::size_t token, char* quantised) {
    if (tokens < kFewestForTiles)
        return quantise(width, groups, columns, dtype, x, tokens, token, quantised);
    const std::size_t place = token % kTileTokens;
    TokenBlock block = block_in(width, groups, token - place, quantised);
    block.token = place;
    quantise_into(block, width, groups, columns, dtype, x);
}

// Up to 32 rows of the layer, each decoded once for up to 32 tokens.
template <int bits, int group>
struct TileProduct {
    static constexpr int kChunksAGroup = group > kChunk ? group / kChunk : 1;
    static constexpr int kGroupsAChunk = group < kChunk ? kChunk / group : 1;
    static constexpr int kLanesAGroup = kLanes / kGroupsAChunk;
    static constexpr std::size_t kGroupBytes = group * bits / 8;

    const Layer& layer;
    const Decoder<bits> decoder;
    const TokenBlock (&block)[kMostBlocks];
    const std::size_t n_blocks;
    const std::uint8_t* codes[kRows];
    const float* norms[kRows];

    // Of one group, or of all groups of a chunk; and of the next, decoded while tiles are
    // multiplied.
    __m512i weights[2][kChunksAGroup][2][kRows];
    I sums[kMostBlocks][4][kTileRows];
    F partial[kMostBlocks][kOctet][kRows];

    TileProduct(const Layer& layer, const Decoder<bits>& decoder,
                const TokenBlock (&block)[kMostBlocks], std::size_t n_blocks)
        : layer(layer), decoder(decoder), block(block), n_blocks(n_blocks) {}

    // Rows that are not there are the last one again.
    void choose_rows(Range rows) {
        for (std::size_t r = 0; r < kRows; ++r) {
            const std::size_t row = least(rows.first + r, rows.last - 1);
            codes[r] = layer.packed + row * layer.groups * kGroupBytes;
            norms[r] = layer.norms + row * layer.groups;
        }
    }

    auto& weights_of(std::size_t g) { return weights[g / kGroupsAChunk % 2]; }

    void decode_from(std::size_t g) {
        auto& to = weights_of(g);
        constexpr int kBytes = Decoder<bits>::kBytes;
        const std::size_t left = (layer.groups - g) * kGroupBytes;
        for (int r = 0; r < kRows; ++r)
            for (int chunk = 0; chunk < kChunksAGroup; ++chunk) {
                const std::uint8_t* from = codes[r] + g * kGroupBytes + chunk * kBytes;
                ask_for(from, kAhead * kBytes, 64);
                const Weights decoded =
                    left < kBytes ? decoder(from, static_cast<int>(left)) : decoder(from, kBytes);
                to[chunk][0][r] = decoded.first;
                to[chunk][1][r] = decoded.second;
            }
    }

    // Sums of group g over the levels of each row and the bytes of each token.
    void multiply_tiles(std::size_t g, const TokenBlock& tokens, I (&to)[4][kTileRows]) {
        const std::size_t chunk = g * group / kChunk, part = g % kGroupsAChunk * kLanesAGroup;
        // Some compilers do not know that a tile is loaded from memory.
        asm volatile("" ::: "memory");
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::size_t c = 0; c < kChunksAGroup; ++c)
            for (std::size_t half = 0; half < 2; ++half) {
                const auto* rows = reinterpret_cast<const char*>(weights_of(g)[c][half]) + part * 4;
                const char* piece =
                    tokens.tiles + ((chunk + c) * 4 + half) * kTileBytes + part * 64;
                _tile_loadd(4, rows, 64);
                _tile_loadd(5, rows + kTileBytes, 64);
                _tile_loadd(6, piece, 64);
                _tile_loadd(7, piece + 2 * kTileBytes, 64);
                _tile_dpbusd(0, 4, 6);
                _tile_dpbusd(1, 4, 7);
                _tile_dpbusd(2, 5, 6);
                _tile_dpbusd(3, 5, 7);
            }
        _tile_stored(0, to[0], 64);
        _tile_stored(1, to[1], 64);
        _tile_stored(2, to[2], 64);
        _tile_stored(3, to[3], 64);
        asm volatile("" ::: "memory");
    }

    void add_terms(std::size_t g, const TokenBlock& tokens, const I (&sums)[4][kTileRows],
                   F (&to)[kRows]) {
        const F worth = load<F>(tokens.worths + g * sizeof(F));
        const I surplus = load<I>(tokens.surpluses + g * sizeof(I));
        for (int r = 0; r < kRows; ++r) {
            const int tile = r / kTileRows * 2, row = r % kTileRows;
            const I sum = (sums[tile][row] << 8) + sums[tile + 1][row] - surplus;
            to[r] += __builtin_convertvector(sum, F) * worth * norms[r][g];
        }
    }

    void add_rows(Range rows) {
        choose_rows(rows);
        __builtin_memset(partial, 0, sizeof partial);
        decode_from(0);
        for (std::size_t g = 0; g < layer.groups; ++g) {
            for (std::size_t b = 0; b < n_blocks; ++b) multiply_tiles(g, block[b], sums[b]);
            const std::size_t next = g + 1;
            if (next % kGroupsAChunk == 0 && next < layer.groups) decode_from(next);
            for (std::size_t b = 0; b < n_blocks; ++b)
                add_terms(g, block[b], sums[b], partial[b][g % kOctet]);
        }
    }
};

// Outputs of row r for the sixteen tokens of a block.
inline F add_partial_sums(const F (&p)[kOctet][kRows], std::size_t r) {
    return ((p[0][r] + p[4][r]) + (p[2][r] + p[6][r])) +
           ((p[1][r] + p[5][r]) + (p[3][r] + p[7][r]));
}

// Outputs of some rows for `tokens` of a block; `first` is where they begin in the output of
// out_rows.
inline void store_block(const F (&partial)[kOctet][kRows], Range rows, std::size_t tokens,
                        std::size_t first, std::size_t out_rows, const Output& out) {
    const std::size_t count = rows.last - rows.first;
    float results[kTileTokens][kRows];
    for (std::size_t r = 0; r < count; ++r) {
        const F result = add_partial_sums(partial, r);
        for (std::size_t t = 0; t < kTileTokens; ++t) results[t][r] = result[t];
    }
    for (std::size_t t = 0; t < tokens; ++t)
        store_results(out.dtype, results[t], count, out.data, first + t * out_rows);
}

// `tokens` from first_token on: those of kMostBlocks, or what is left.
template <int bits, int group>
void multiply_blocks(const Width& width, const Layer& layer, Range range, std::size_t first_token,
                     std::size_t tokens, char* quantised, const Output& out) {
    TokenBlock block[kMostBlocks];
    const std::size_t n_blocks = (tokens + kTileTokens - 1) / kTileTokens;
    for (std::size_t b = 0; b < n_blocks; ++b)
        block[b] = block_in(width, layer.groups, first_token + b * kTileTokens, quantised);
    TileProduct<bits, group> product(layer, Decoder<bits>(width.whole_level), block, n_blocks);
    const Tiles tiles(product.kLanesAGroup);
    for (std::size_t row = range.first; row < range.last; row += kRows) {
        const Range rows = {row, least(row + kRows, range.last)};
        product.add_rows(rows);
        for (std::size_t b = 0; b < n_blocks; ++b) {
            const std::size_t t = b * kTileTokens;
            store_block(product.partial[b], rows, least(tokens - t, kTileTokens),
                        (first_token + t) * layer.rows + row, layer.rows, out);
        }
    }
}

void multiply_by_tiles(const Width& width, const Layer& layer, Range rows, std::size_t tokens,
                       char* quantised, Dtype dtype, void* out) {
    if (tokens < kFewestForTiles)
        return multiply(width, layer, rows, tokens, quantised, dtype, out);
    const DefaultFloatEnvironment environment;
    constexpr std::size_t kMost = kMostBlocks * kTileTokens;
    with_width(width, [&]<int bits, int group>() {
        for (std::size_t t = 0; t < tokens; t += kMost)
            multiply_blocks<bits, group>(width, layer, rows, t, least(tokens - t, kMost), quantised,
                                         {dtype, out});
    });
}
