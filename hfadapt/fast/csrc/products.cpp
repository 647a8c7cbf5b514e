// Low-rank layers that share an input, on AMX tiles: y = x Wᵀ + bias + scaling (drop(x) Aᵀ) Bᵀ, and its gradients.
//
// Sizes: N tokens, I inputs, O outputs, R rank, P = R rounded up to 32, L layers, S segments (tokens of one adapter).
// I and O are multiples of 32. `low` is x Aᵀ and `d_low` its gradient, both (N + 32, L P); `*_turned` is the same as
// (L P, T) with T tokens of room. Rows of 32 tokens are worked on at once and never belong to two segments, so that a
// value that is not finite stays with its adapter. Dropout is in dropout.py: `dropped` are bits, (N, I / 32).

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

namespace {

using tiles::PANEL;
using tiles::STEP;
using tiles::TILE;

const i64 AROUND = 1 << 20;    // bytes of a result that is written past the cache
const i64 CHUNK = 3072;        // values of a row that are multiplied at once
const i64 CACHE = 768 * 1024;  // bytes of packed factors that a thread works on at once: of 2 MiB a core

// Items, Layer, Part, Segment and Products are mirrored by abi.py, field by field.
template <typename T> struct Items {
    const T *data;
    i64 count;
    const T *begin() const { return data; }
    const T *end() const { return data + count; }
    i64 size() const { return count; }
    const T &operator[](i64 i) const { return data[i]; }
};

struct Layer {
    const bf16 *weight;  // (O, I)
    i64 outputs;
    const float *bias;
    void *data;  // y or its gradient (N, O)
    i64 stride;
};

struct Part {  // of one adapter in one layer
    const bf16 *a;     // (R, I)
    const bf16 *b;     // scaling · Bᵀ (R, O)
    i64 rank;
    float *da, *db;    // gradients (R, I) and (R, O)
    float scaling;
};

struct Segment {
    i64 first, end;
    int32_t threshold;  // products of keys below it are dropped
    float factor;       // of what is kept
    Items<Part> parts;  // of each layer
};

struct Products {
    i64 tokens, inputs, padded, room;
    const bf16 *x;
    i64 x_stride;
    bf16 *low, *low_turned;
    bf16 *d_low, *d_low_turned;
    void *dx;
    uint32_t *dropped;                         // null without dropout
    const int32_t *token_keys, *column_keys;   // given where `dropped` is to be filled
    Items<Layer> layers;
    Items<Segment> segments;
    int wide;  // results in float32
};

struct Block {
    i64 segment, row, rows;
};

struct Group : Products {
    std::vector<Block> blocks;
    explicit Group(const Products &given) : Products(given) {
        for (i64 s = 0; s < segments.size(); s++)
            for (i64 row = segments[s].first; row < segments[s].end; row += 32)
                blocks.push_back({s, row, std::min<i64>(32, segments[s].end - row)});
    }
    i64 low_stride() const { return layers.size() * padded; }
    i64 words() const { return inputs / 32; }
};

// A left factor: rows of tokens.
struct Left {
    const bf16 *data;
    i64 stride, depth;
    i64 room;  // rows that can be read
};

// 32 rows from `row`, values from `first`; where memory ends before, a copy with zeros.
const bf16 *rows_at(const Left &left, i64 row, i64 first, i64 depth, bf16 *copy, i64 *stride) {
    *stride = left.stride;
    if (row + 32 <= left.room) return left.data + row * left.stride + first;
    *stride = depth;
    for (i64 r = 0; r < 32; r++) {
        if (row + r < left.room)
            memcpy(copy + r * depth, left.data + (row + r) * left.stride + first, depth * 2);
        else
            memset(copy + r * depth, 0, depth * 2);
    }
    return copy;
}

// Which values of a row are dropped, and 32 rows without them.
const bf16 *drop(const Group &g, const Block &block, bf16 *copy) {
    __m512i limit = _mm512_set1_epi32(g.segments[block.segment].threshold);
    for (i64 r = 0; r < 32; r++, copy += g.inputs) {
        if (r >= block.rows) {
            memset(copy, 0, g.inputs * 2);
            continue;
        }
        const bf16 *from = g.x + (block.row + r) * g.x_stride;
        uint32_t *to = g.dropped + (block.row + r) * g.words();
        __m512i key = _mm512_set1_epi32(g.token_keys[block.row + r]);
        for (i64 k = 0; k < g.inputs; k += 32) {
            __m512i low = _mm512_mullo_epi32(key, _mm512_loadu_si512(g.column_keys + k));
            __m512i high = _mm512_mullo_epi32(key, _mm512_loadu_si512(g.column_keys + k + 16));
            uint32_t bits = _mm512_cmplt_epi32_mask(low, limit) | (uint32_t)_mm512_cmplt_epi32_mask(high, limit) << 16;
            to[k / 32] = bits;
            _mm512_storeu_si512(copy + k, _mm512_maskz_loadu_epi16(~bits, from + k));
        }
    }
    return copy - 32 * g.inputs;
}

// sums += factor · others where values were not dropped, for 32 columns of rows that are (…, words) apart.
void add_kept(float *sums, const float *others, const uint32_t *dropped, i64 words, i64 rows, float factor) {
    __m512 scale = _mm512_set1_ps(factor);
    for (i64 r = 0; r < rows; r++)
        for (i64 half = 0; half < 32; half += 16) {
            __mmask16 kept = (__mmask16)~(dropped[r * words] >> half);
            float *at = sums + 32 * r + half;
            _mm512_store_ps(at, _mm512_mask3_fmadd_ps(_mm512_load_ps(others + 32 * r + half), scale, _mm512_load_ps(at), kept));
        }
}

void multiply(float *sums, float factor) {
    __m512 scale = _mm512_set1_ps(factor);
    for (i64 i = 0; i < 1024; i += 16) _mm512_store_ps(sums + i, _mm512_mul_ps(scale, _mm512_load_ps(sums + i)));
}

// Where results of a product lie.
struct Output {
    void *data;
    i64 stride;
    bool wide;    // float32
    bool around;  // past the cache: large results are cold, and fetching lines only to overwrite them costs more
};

Output output(void *data, i64 stride, bool wide, i64 rows) {
    i64 bytes = stride * (wide ? 4 : 2);
    return {data, stride, wide, rows * bytes >= AROUND && (i64)data % 64 == 0 && bytes % 64 == 0};
}

template <bool around> inline void store(void *at, __m512i x) {
    if (around)
        _mm512_stream_si512((__m512i *)at, x);
    else
        _mm512_storeu_si512(at, x);
}

template <bool wide, bool around>
void write(const float *sums, const Output &out, i64 row, i64 rows, i64 column, const float *bias) {
    __m512 low_bias = bias ? _mm512_loadu_ps(bias + column) : _mm512_setzero_ps();
    __m512 high_bias = bias ? _mm512_loadu_ps(bias + column + 16) : _mm512_setzero_ps();
    for (i64 r = 0; r < rows; r++) {
        __m512 low = _mm512_add_ps(_mm512_load_ps(sums + 32 * r), low_bias);
        __m512 high = _mm512_add_ps(_mm512_load_ps(sums + 32 * r + 16), high_bias);
        i64 at = (row + r) * out.stride + column;
        if (wide) {
            store<around>((float *)out.data + at, _mm512_castps_si512(low));
            store<around>((float *)out.data + at + 16, _mm512_castps_si512(high));
        } else {
            store<around>((bf16 *)out.data + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

void write(const float *sums, const Output &out, i64 row, i64 rows, i64 column, const float *bias) {
    auto chosen = out.wide ? (out.around ? write<true, true> : write<true, false>)
                           : (out.around ? write<false, true> : write<false, false>);
    chosen(sums, out, row, rows, column, bias);
}

// Sums to columns of `out` (…, stride): 32 columns of 32 rows each become rows.
void write_turned(const float *sums, bf16 *out, i64 stride, i64 rows) {
    for (i64 top = 0; top < rows; top += 16)
        for (i64 left = 0; left < 32; left += 16) {
            __m512i r[16];
            for (i64 i = 0; i < 16; i++) r[i] = _mm512_load_si512(sums + 32 * (top + i) + left);
            tiles::transpose(r);
            __mmask16 mask = (__mmask16)tiles::first(std::min<i64>(16, rows - top));
            for (i64 i = 0; i < 16; i++)
                _mm256_mask_storeu_epi16(out + (left + i) * stride + top, mask, tiles::narrow(_mm512_castsi512_ps(r[i])));
        }
}

thread_local tiles::Scratch packed_scratch, rows_scratch, sums_scratch;

// low = left · factorᵀ for every layer, `factor` giving (rows of it, row length) of a segment's layer. In a region. With
// keys the left factor is x, of which values are dropped. Returns how many blocks found no memory.
template <typename Factor>
int narrow_products(const Group &g, const std::vector<Left> &lefts, bf16 *low, bf16 *turned, Factor factor) {
    int failed = 0;
    i64 layers = g.layers.size(), panels = g.padded / PANEL, depth = 0, longest = 0;
    for (const Left &left : lefts) depth += left.depth, longest = std::max(longest, left.depth);
    bf16 *packed = packed_scratch.get<bf16>(panels * depth * PANEL);
    bf16 *copy = rows_scratch.get<bf16>(32 * longest);
    alignas(64) float sums[32 * 32];
    i64 before = -1;
#pragma omp for schedule(static)
    for (i64 b = 0; b < (i64)g.blocks.size(); b++) {
        if (!packed || !copy) {  // every thread of the region has to come by here
            failed++;
            continue;
        }
        const Block &block = g.blocks[b];
        if (block.segment != before) {
            bf16 *at = packed;
            for (i64 l = 0; l < layers; l++)
                for (i64 p = 0; p < panels; p++, at += lefts[l].depth * PANEL) {
                    const Part &part = g.segments[block.segment].parts[l];
                    i64 depth_l = lefts[l].depth, left_over = std::max<i64>(0, part.rank - p * PANEL);
                    tiles::pack_transposed(factor(part) + p * PANEL * depth_l, depth_l, left_over, depth_l, at);
                }
            before = block.segment;
        }
        const bf16 *at = packed, *rows = nullptr;
        i64 stride = 0;
        for (i64 l = 0; l < layers; l++) {
            if (g.token_keys) {
                if (l == 0) rows = drop(g, block, copy), stride = g.inputs;
            } else if (l == 0 || lefts[l].data != lefts[l - 1].data)
                rows = rows_at(lefts[l], block.row, 0, lefts[l].depth, copy, &stride);
            for (i64 p = 0; p < panels; p++, at += lefts[l].depth * PANEL) {
                i64 column = l * g.padded + p * PANEL;
                tiles::clear();
                tiles::accumulate(rows, stride, at, lefts[l].depth);
                tiles::sums(sums);
                if (g.token_keys) multiply(sums, g.segments[block.segment].factor);
                write(sums, {low, g.low_stride(), false, false}, block.row, block.rows, column, nullptr);
                write_turned(sums, turned + column * g.room + block.row, g.room, block.rows);
            }
        }
    }
    return failed;
}

// A result: columns `first` to `end` of `out`, the sum of products of `lefts` with panels that `pack` makes.
struct Unit {
    i64 layer, first, end;
};

std::vector<Unit> units(const std::vector<i64> &columns, i64 panel_bytes, int threads) {
    i64 total = 0;
    for (i64 c : columns) total += c / PANEL;
    i64 most = std::max<i64>(1, std::min(CACHE / panel_bytes, (total + 2 * threads - 1) / (2 * threads)));
    std::vector<Unit> found;
    for (i64 l = 0; l < (i64)columns.size(); l++) {
        i64 panels = columns[l] / PANEL, parts = (panels + most - 1) / most;
        for (i64 p = 0; p < parts; p++)
            found.push_back({l, panels * p / parts * PANEL, panels * (p + 1) / parts * PANEL});
    }
    return found;
}

// Rows of a left factor that are multiplied without leaving the tiles: values `first` to `first + depth` of factor
// `left`, whose packed counterpart starts at row `offset` of a panel.
struct Piece {
    i64 left, first, depth, offset;
};

// Pieces that fit into the cache together; sums are put aside between two of these.
std::vector<std::vector<Piece>> chunks(const std::vector<Left> &lefts) {
    std::vector<std::vector<Piece>> found;
    i64 filled = CHUNK, offset = 0;
    for (i64 l = 0; l < (i64)lefts.size(); l++)
        for (i64 first = 0; first < lefts[l].depth;) {
            i64 depth = std::min(CHUNK, lefts[l].depth - first);
            if (filled + depth > CHUNK) {
                found.push_back({});
                filled = 0;
            }
            found.back().push_back({l, first, depth, offset});
            first += depth, offset += depth, filled += depth;
        }
    return found;
}

// Left factors, in pieces. Made outside of a parallel region, which no exception may leave.
struct Factors {
    std::vector<Left> lefts;
    std::vector<std::vector<Piece>> parts;
    explicit Factors(std::vector<Left> given) : lefts(std::move(given)), parts(chunks(lefts)) {}
};

// One unit: the wide factor is packed by `pack(column, out)`, every segment's narrow factor, of `narrow.depth` rows, by
// `pack_narrow(segment, column, out)`. Of the narrow product nothing goes into columns of a row that were `dropped`.
// False where there is no memory.
template <typename Pack, typename PackNarrow>
bool wide_product(const Group &g, const Unit &unit, const Factors &factors, Pack pack, const Left &narrow,
                  PackNarrow pack_narrow, const Output &out, const float *bias, const uint32_t *dropped) {
    const std::vector<Left> &lefts = factors.lefts;
    const std::vector<std::vector<Piece>> &parts = factors.parts;
    i64 depth = 0, longest = 0, panels = (unit.end - unit.first) / PANEL, segments = g.segments.size();
    for (const Left &left : lefts) depth += left.depth;
    for (const auto &part : parts) longest = std::max(longest, part.back().offset + part.back().depth - part[0].offset);
    i64 each = (depth + segments * narrow.depth) * PANEL, blocks = (i64)g.blocks.size();
    i64 many = std::max<i64>(1, std::min<i64>(8, CACHE / (64 * longest)));
    bf16 *packed = packed_scratch.get<bf16>(panels * each);
    bf16 *copy = rows_scratch.get<bf16>(32 * longest);
    float *aside = parts.size() > 1 ? sums_scratch.get<float>(panels * many * 1024) : nullptr;
    if (!packed || !copy || (parts.size() > 1 && !aside)) return false;
    for (i64 p = 0; p < panels; p++) {
        bf16 *at = packed + p * each;
        pack(unit.first + p * PANEL, at);
        at += depth * PANEL;
        for (i64 s = 0; s < segments; s++, at += narrow.depth * PANEL) pack_narrow(s, unit.first + p * PANEL, at);
    }
    // The sums of a block are rounded and written while the tiles work on the next one.
    alignas(64) float sums[2][32 * 32], narrow_sums[32 * 32];
    const Block *finished = nullptr;
    i64 finished_column = 0, turn = 0;
    auto write_finished = [&] {
        if (finished)
            write(sums[1 - turn], out, finished->row, finished->rows, finished_column, bias);
    };
    for (i64 start = 0; start < blocks; start += many)
        for (const auto &part : parts)
            for (i64 p = 0; p < panels; p++)
                for (i64 b = start; b < std::min(blocks, start + many); b++) {
                    const Block &block = g.blocks[b];
                    const bf16 *panel = packed + p * each;
                    float *own = aside + ((b - start) * panels + p) * 1024;
                    bf16 *own_copy = copy;
                    if (&part == &parts.front())
                        tiles::clear();
                    else
                        tiles::restore(own);
                    for (const Piece &piece : part) {
                        i64 stride;
                        const bf16 *rows =
                            rows_at(lefts[piece.left], block.row, piece.first, piece.depth, own_copy, &stride);
                        tiles::accumulate(rows, stride, panel + piece.offset * PANEL, piece.depth);
                        own_copy += 32 * piece.depth;
                    }
                    if (&part != &parts.back()) {
                        tiles::sums(own);
                        continue;
                    }
                    if (dropped) {
                        write_finished();
                        tiles::sums(sums[turn]);
                        tiles::clear();
                    }
                    tiles::accumulate(narrow.data + block.row * narrow.stride, narrow.stride,
                                      panel + (depth + block.segment * narrow.depth) * PANEL, narrow.depth);
                    if (dropped) {
                        tiles::sums(narrow_sums);
                        add_kept(sums[turn], narrow_sums, dropped + block.row * g.words() + unit.first / 32 + p, g.words(),
                                 block.rows, g.segments[block.segment].factor);
                    } else {
                        write_finished();
                        tiles::sums(sums[turn]);
                    }
                    turn = 1 - turn;
                    finished = &block, finished_column = unit.first + p * PANEL;
                }
    write_finished();
    _mm_sfence();  // stores past the cache are not ordered otherwise
    return true;
}

// The panel of a narrow factor (R, columns), with zeros up to `padded` rows.
void pack_rank(const bf16 *factor, i64 columns, i64 rank, i64 padded, i64 column, bf16 *out) {
    i64 whole = (rank + 31) / 32 * 32;
    tiles::pack_woven(factor + column, columns, PANEL, rank, out);
    memset(out + whole * PANEL, 0, (padded - whole) * PANEL * 2);
}

// out (R, columns) = factor · left (rank, tokens) · right (tokens, columns), for one panel of columns.
void gradient(const bf16 *left, i64 room, i64 tokens, i64 rank, const bf16 *panel, float *out, i64 columns, i64 column,
              float factor) {
    alignas(64) float sums[16 * 32];
    alignas(64) bf16 last[16 * 32];
    i64 whole = tokens / 32 * 32;
    for (i64 top = 0; top < rank; top += 16) {
        const bf16 *rows = left + top * room, *at = panel;
        _tile_zero(0);
        _tile_zero(1);
        for (i64 k = 0; k < tokens; k += 32, at += STEP) {
            if (k < whole) {
                _tile_loadd(4, rows + k, room * 2);
            } else {
                for (i64 r = 0; r < 16; r++)
                    _mm512_store_si512(last + 32 * r, _mm512_maskz_loadu_epi16(tiles::first(tokens - k), rows + r * room + k));
                _tile_loadd(4, last, 64);
            }
            _tile_loadd(6, at, 64);
            _tile_loadd(7, at + TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, sums, 128);
        _tile_stored(1, sums + 16, 128);
        __m512 scale = _mm512_set1_ps(factor);
        for (i64 r = 0; r < std::min<i64>(16, rank - top); r++)
            for (i64 half = 0; half < 32; half += 16)
                _mm512_storeu_ps(out + (top + r) * columns + column + half,
                                 _mm512_mul_ps(scale, _mm512_load_ps(sums + 32 * r + half)));
    }
}

// Each returns the number of units of work that found no memory.

// Fills y of every layer, low, low_turned and, given keys, dropped.
int forward(const Group &g, int threads) {
    int failed = 0;
    const Left x{g.x, g.x_stride, g.inputs, g.tokens};
    const Factors factors({x});
    const std::vector<Left> same(g.layers.size(), x);
    std::vector<i64> columns;
    for (const Layer &layer : g.layers) columns.push_back(layer.outputs);
    std::vector<Unit> all = units(columns, (g.inputs + g.segments.size() * g.padded) * PANEL * 2, threads);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        tiles::Scope scope;
        failed += narrow_products(g, same, g.low, g.low_turned, [](const Part &p) { return p.a; });
#pragma omp for schedule(dynamic)
        for (i64 u = 0; u < (i64)all.size(); u++) {
            const Layer &layer = g.layers[all[u].layer];
            Left narrow{g.low + all[u].layer * g.padded, g.low_stride(), g.padded, g.tokens + 32};
            auto pack = [&](i64 column, bf16 *out) {
                tiles::pack_transposed(layer.weight + column * g.inputs, g.inputs, PANEL, g.inputs, out);
            };
            auto pack_narrow = [&](i64 s, i64 column, bf16 *out) {
                const Part &part = g.segments[s].parts[all[u].layer];
                pack_rank(part.b, layer.outputs, part.rank, g.padded, column, out);
            };
            Output y = output(layer.data, layer.stride, g.wide, g.tokens);
            failed += !wide_product(g, all[u], factors, pack, narrow, pack_narrow, y, layer.bias, nullptr);
        }
    }
    return failed;
}

// Fills d_low and d_low_turned, and dx unless it is null, from the gradients of the results.
int backward_input(const Group &g, int threads) {
    int failed = 0;
    std::vector<Left> dys;
    i64 depth = 0;
    for (const Layer &layer : g.layers) {
        dys.push_back({(const bf16 *)layer.data, layer.stride, layer.outputs, g.tokens});
        depth += layer.outputs;
    }
    const Factors factors(dys);
    i64 panel_bytes = (depth + g.segments.size() * g.low_stride()) * PANEL * 2;
    std::vector<Unit> all;
    if (g.dx) all = units({g.inputs}, panel_bytes, threads);
    Left narrow{g.d_low, g.low_stride(), g.low_stride(), g.tokens + 32};
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        tiles::Scope scope;
        failed += narrow_products(g, dys, g.d_low, g.d_low_turned, [](const Part &p) { return p.b; });
#pragma omp for schedule(dynamic)
        for (i64 u = 0; u < (i64)all.size(); u++) {
            auto pack = [&](i64 column, bf16 *out) {
                for (const Layer &layer : g.layers) {
                    tiles::pack_woven(layer.weight + column, g.inputs, PANEL, layer.outputs, out);
                    out += layer.outputs * PANEL;
                }
            };
            auto pack_narrow = [&](i64 s, i64 column, bf16 *out) {
                for (const Part &part : g.segments[s].parts) {
                    pack_rank(part.a, g.inputs, part.rank, g.padded, column, out);
                    out += g.padded * PANEL;
                }
            };
            Output dx = output(g.dx, g.inputs, g.wide, g.tokens);
            failed += !wide_product(g, all[u], factors, pack, narrow, pack_narrow, dx, nullptr, g.dropped);
        }
    }
    return failed;
}

// Fills the gradients of A, (L R, I), and of B as (R, O), of every segment.
int backward_weights(const Group &g, int threads) {
    int failed = 0;
    struct Work {
        i64 segment, layer, column;  // layer -1: of A, of all layers
    };
    std::vector<Work> all;
    for (i64 s = 0; s < g.segments.size(); s++) {
        for (i64 c = 0; c < g.inputs; c += PANEL) all.push_back({s, -1, c});
        for (i64 l = 0; l < g.layers.size(); l++)
            for (i64 c = 0; c < g.layers[l].outputs; c += PANEL) all.push_back({s, l, c});
    }
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        tiles::Scope scope;
#pragma omp for schedule(dynamic, 4)
        for (i64 w = 0; w < (i64)all.size(); w++) {
            const Work &work = all[w];
            const Segment &segment = g.segments[work.segment];
            i64 tokens = segment.end - segment.first;
            bf16 *packed = packed_scratch.get<bf16>((tokens + 31) / 32 * STEP);
            if (!packed) {
                failed++;
                continue;
            }
            if (work.layer < 0) {
                const uint32_t *dropped = g.dropped ? g.dropped + segment.first * g.words() + work.column / 32 : nullptr;
                const bf16 *x = g.x + segment.first * g.x_stride + work.column;
                tiles::pack_woven(x, g.x_stride, PANEL, tokens, packed, dropped, g.words());
                for (i64 l = 0; l < g.layers.size(); l++)
                    gradient(g.d_low_turned + l * g.padded * g.room + segment.first, g.room, tokens,
                             segment.parts[l].rank, packed, segment.parts[l].da, g.inputs, work.column, segment.factor);
            } else {
                const Layer &layer = g.layers[work.layer];
                const Part &part = segment.parts[work.layer];
                tiles::pack_woven((const bf16 *)layer.data + segment.first * layer.stride + work.column, layer.stride, PANEL,
                                  tokens, packed);
                gradient(g.low_turned + work.layer * g.padded * g.room + segment.first, g.room, tokens, part.rank, packed,
                         part.db, layer.outputs, work.column, part.scaling);
            }
        }
    }
    return failed;
}

}  // namespace

// --- the names that Python calls ---------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
extern const i64 products_sizes[] = {sizeof(Products), sizeof(Segment), sizeof(Part), sizeof(Layer)};
}

EXPORT int tiles_permitted() { return tiles::permitted(); }

EXPORT int lowrank_forward(const Products *given, int threads) {
    return tiles::without_memory([&] { return forward(Group(*given), threads); });
}

EXPORT int lowrank_backward_input(const Products *given, int threads) {
    return tiles::without_memory([&] { return backward_input(Group(*given), threads); });
}

EXPORT int lowrank_backward_weights(const Products *given, int threads) {
    return tiles::without_memory([&] { return backward_weights(Group(*given), threads); });
}
