// Attention inside rows on AMX tiles, forward and backward, a block of scores at a time (Dao et al. 2022, arXiv
// 2205.14135): scores never leave the caches, and the backward pass computes them again.
//
// N tokens, H query heads, J key heads, G = H / J, E features. The queries of one key head are stacked, token by token:
// stacked row r is query head r % G of token r / G. A unit of work is a document (or a slice of its queries) and a key
// head. Everything that tiles read is copied first, with zeros where the document ends: in a product zero times what
// lies beyond would still be NaN if that is NaN.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

namespace {

using namespace tiles;

const i64 BLOCK = 32;               // rows and columns of a block of scores
const i64 SCORES = BLOCK * BLOCK;
const i64 CHUNK = 8;                // blocks of keys whose scores the forward pass holds at once
const i64 BUDGET = 96 * 1024;       // scores that the backward pass holds at once, unless one row block has more
const i64 MOST_SLICES = 64;         // of a document
const float LOG2E = 1.44269504f, LN2 = 0.69314718f;
const float LOWEST = -1e30f;        // finite, so that differences are never NaN

// (N, heads, E) in float32 or bf16; strides are in values, features are contiguous.
struct Array {
    void *data;
    i64 token, head;
    int single;
};

struct Problem {
    Array q, k, v, out;             // out: or its gradient
    Array dq, dk, dv;
    float *lse;                     // (N, H), natural logarithm
    const i64 *starts, *lengths;
    i64 N, B, H, J, E;
    float scale;
    int causal;
    i64 window;

    i64 group() const { return H / J; }
    i64 padded() const { return (E + BLOCK - 1) / BLOCK * BLOCK; }

    // Keys that a query sees, relative to its document.
    void visible(i64 t, i64 length, i64 *first, i64 *end) const {
        *end = causal ? t + 1 : length;
        *first = window > 0 && t + 1 > window ? t + 1 - window : 0;
        if (!causal && window > 0 && t + window < length) *end = t + window;
    }
};

struct Unit {
    i64 document, head;             // key head
    i64 first, end;                 // queries
    i64 cost;
    float *partial;                 // where a slice leaves its gradients of keys and values
};

static inline i64 blocks(i64 count) { return (count + BLOCK - 1) / BLOCK; }

static inline __mmask16 lanes(i64 first, i64 end) {
    uint32_t above = end >= 16 ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1;
    uint32_t below = first >= 16 ? 0xffffu : first <= 0 ? 0u : (1u << first) - 1;
    return (__mmask16)(above & ~below);
}

// --- arithmetic --------------------------------------------------------------------------------------------------------

// 2^x by a minimax polynomial of the fraction; relative error below 3e-6.
static inline __m512 exp2(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, 0x09);
    __m512 p = _mm512_set1_ps(1.353416797e-2f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.201146230e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.414427544e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.930038354e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.000002593f));
    return _mm512_scalef_ps(p, x);
}

// log2(x) by the series of the inverse hyperbolic tangent.
static inline __m512 log2(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    __m512 e = _mm512_getexp_ps(x);
    e = _mm512_mask_add_ps(e, _mm512_cmp_ps_mask(m, one, _CMP_LT_OQ), e, one);
    __m512 s = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one));
    __m512 s2 = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(2.0f * LOG2E / 7);
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f * LOG2E / 5));
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f * LOG2E / 3));
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f * LOG2E));
    return _mm512_fmadd_ps(p, s, e);
}

struct Add {
    static __m512 of(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};
struct Largest {
    static __m512 of(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
};

// Where row i belongs among the arguments of `across`, whose halving leaves the rows in another order.
static inline int place(int i) {
    static const int outer[4] = {0, 8, 4, 12}, inner[4] = {0, 2, 1, 3};
    return outer[i / 4] + inner[i % 4];
}

// Sixteen vectors to the vector of their sums (or largest values).
template <typename Op> static inline __m512 across(const __m512 *r) {
    __m512 x[8], y[4], z[2];
    for (int i = 0; i < 8; i++)
        x[i] = Op::of(_mm512_shuffle_f32x4(r[i], r[i + 8], 0x44), _mm512_shuffle_f32x4(r[i], r[i + 8], 0xee));
    for (int i = 0; i < 4; i++)
        y[i] = Op::of(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd));
    for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(y[i]), b = _mm512_castps_pd(y[i + 2]);
        z[i] = Op::of(_mm512_castpd_ps(_mm512_shuffle_pd(a, b, 0x00)), _mm512_castpd_ps(_mm512_shuffle_pd(a, b, 0xff)));
    }
    return Op::of(_mm512_shuffle_ps(z[0], z[1], 0x88), _mm512_shuffle_ps(z[0], z[1], 0xdd));
}

// --- rows in and out of memory -----------------------------------------------------------------------------------------

static inline i64 place(const Array &x, i64 token, i64 head) { return token * x.token + head * x.head; }

// Rows of E values (a multiple of 16) to bf16, zero up to a multiple of 32 values and of 32 rows: from row `row` of the
// stacked rows that begin at `token`, or the rows of one head with a group of 1.
template <typename T>
static void copy(const Array &x, i64 token, i64 head, i64 group, i64 row, i64 count, i64 E, bf16 *out) {
    const i64 width = blocks(E) * BLOCK, within = x.head, onward = x.token - group * x.head;
    const T *in = (const T *)x.data + place(x, token + row / group, head + row % group);
    i64 g = row % group;
    for (i64 i = 0; i < count; i++) {
        i64 e = 0;
        for (; e + 32 <= E; e += 32, out += 32)
            if (sizeof(T) == 4) {
                __m512 low = _mm512_loadu_ps((const float *)in + e), high = _mm512_loadu_ps((const float *)in + e + 16);
                _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            } else {
                _mm512_store_si512(out, _mm512_loadu_si512(in + e));
            }
        if (e < E) {
            __m256i last = sizeof(T) == 4 ? narrow(_mm512_loadu_ps((const float *)in + e))
                                          : _mm256_loadu_si256((const __m256i *)(in + e));
            _mm512_store_si512(out, _mm512_zextsi256_si512(last));
            out += 32;
        }
        in += within;
        if (++g == group) g = 0, in += onward;
    }
    memset((void *)out, 0, sizeof(bf16) * (blocks(count) * BLOCK - count) * width);
}

static void copy(const Array &x, i64 token, i64 head, i64 group, i64 row, i64 count, i64 E, bf16 *out) {
    (x.single ? copy<float> : copy<bf16>)(x, token, head, group, row, count, E, out);
}

// A row of E values times `by` out of blocks of sums, `next` values apart.
static inline void store(const Array &x, i64 at, const float *in, i64 next, i64 E, __m512 by) {
    for (i64 e = 0; e < E; e += 32, in += next) {
        __m512 low = _mm512_mul_ps(by, _mm512_load_ps(in)), high = _mm512_mul_ps(by, _mm512_load_ps(in + 16));
        const bool both = e + 16 < E;
        if (x.single) {
            _mm512_storeu_ps((float *)x.data + at + e, low);
            if (both) _mm512_storeu_ps((float *)x.data + at + e + 16, high);
        } else {
            _mm512_mask_storeu_epi16((bf16 *)x.data + at + e, both ? 0xffffffffu : 0xffffu,
                                     (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

// Copied rows (a multiple of 32) as the right factor of products over rows: a panel for each 32 features.
static void weave(const bf16 *x, i64 rows, i64 width, bf16 *out) {
    for (i64 e = 0; e < width; e += BLOCK) pack_woven(x + e, width, BLOCK, rows, out + e * rows);
}

// Woven pairs of rows, 1 KiB tile by tile, as left factor: features by rows.
static void transpose_tiles(bf16 *x, i64 count) {
    for (i64 i = 0; i < count; i++, x += TILE) {
        __m512i r[16];
        for (int j = 0; j < 16; j++) r[j] = _mm512_load_si512(x + 32 * j);
        transpose(r);
        for (int j = 0; j < 16; j++) _mm512_store_si512(x + 32 * j, r[j]);
    }
}

// --- products of a block of 32 × 32, or of its upper or left half ------------------------------------------------------

// `count` steps of 32 values; the left factor moves on by `step` values, its lower 16 rows lie `below` values further.
template <bool LOWER, bool RIGHT>
static inline void steps(const bf16 *a, i64 bytes, i64 step, i64 below, const bf16 *panel, i64 count) {
    for (i64 i = 0; i < count; i++, a += step, panel += STEP) {
        _tile_loadd(4, a, bytes);
        _tile_loadd(6, panel, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (RIGHT) {
            _tile_loadd(7, panel + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (LOWER) {
            _tile_loadd(5, a + below, bytes);
            _tile_dpbf16ps(2, 5, 6);
            if (RIGHT) _tile_dpbf16ps(3, 5, 7);
        }
    }
}

template <bool LOWER, bool RIGHT>
static inline void block(const bf16 *a, i64 bytes, i64 step, i64 below, const bf16 *panel, i64 count, float *out,
                         bool add) {
    if (add) {
        _tile_loadd(0, out, 128);
        if (RIGHT) _tile_loadd(1, out + 16, 128);
        if (LOWER) _tile_loadd(2, out + 16 * 32, 128);
        if (LOWER && RIGHT) _tile_loadd(3, out + 16 * 32 + 16, 128);
    } else {
        _tile_zero(0);
        if (RIGHT) _tile_zero(1);
        if (LOWER) _tile_zero(2);
        if (LOWER && RIGHT) _tile_zero(3);
    }
    steps<LOWER, RIGHT>(a, bytes, step, below, panel, count);
    _tile_stored(0, out, 128);
    if (RIGHT) _tile_stored(1, out + 16, 128);
    if (LOWER) _tile_stored(2, out + 16 * 32, 128);
    if (LOWER && RIGHT) _tile_stored(3, out + 16 * 32 + 16, 128);
}

static inline void product(bool lower, bool right, const bf16 *a, i64 bytes, i64 step, i64 below, const bf16 *panel,
                           i64 count, float *out, bool add) {
    if (lower && right)
        block<true, true>(a, bytes, step, below, panel, count, out, add);
    else if (lower)
        block<true, false>(a, bytes, step, below, panel, count, out, add);
    else if (right)
        block<false, true>(a, bytes, step, below, panel, count, out, add);
    else
        block<false, false>(a, bytes, step, below, panel, count, out, add);
}

// --- memory ------------------------------------------------------------------------------------------------------------

// Parts of one piece of memory, each on a cache line of its own.
struct Parts {
    char *data = nullptr;
    size_t used = 0;
    template <typename T> T *take(i64 count) {
        T *found = (T *)(data + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return found;
    }
};

static thread_local Scratch scratch;

// --- forward -----------------------------------------------------------------------------------------------------------

struct Softmax {
    alignas(64) float best[BLOCK], sum[BLOCK], correction[BLOCK];
    i64 first[BLOCK], end[BLOCK];   // visible keys of each row
};

// Sixteen rows of scores in blocks (count, 32, 32) to probabilities (rows of `stride`), relative to the largest so far.
template <bool WINDOW>
static inline void probabilities(const float *scores, bf16 *p, i64 stride, i64 row, i64 rows, i64 key, i64 width, float c,
                                 Softmax &s) {
    __m512 found[16];
    i64 n = std::min<i64>(16, rows - row);
    for (i64 i = 0; i < 16; i++) {
        __m512 best = _mm512_set1_ps(LOWEST);
        if (i < n) {
            i64 first = std::max<i64>(0, s.first[row + i] - key), end = std::min(width, s.end[row + i] - key);
            const float *at = scores + (row + i) * BLOCK;
            i64 v = WINDOW ? first / 16 : 0;
            if (WINDOW && v * 16 < end) {
                const float *x = at + (v >> 1) * SCORES + (v & 1) * 16;
                best = _mm512_mask_max_ps(best, lanes(first - v * 16, end - v * 16), best, _mm512_load_ps(x));
                v++;
            }
            for (; v * 16 + 16 <= end; v++)
                best = _mm512_max_ps(best, _mm512_load_ps(at + (v >> 1) * SCORES + (v & 1) * 16));
            if (v * 16 < end) {
                const float *x = at + (v >> 1) * SCORES + (v & 1) * 16;
                best = _mm512_mask_max_ps(best, lanes(0, end - v * 16), best, _mm512_load_ps(x));
            }
        }
        found[place(i)] = best;
    }
    __m512 scale = _mm512_set1_ps(c);
    __m512 before = _mm512_load_ps(s.best + row);
    __m512 best = _mm512_max_ps(before, _mm512_mul_ps(scale, across<Largest>(found)));
    __m512 correction = exp2(_mm512_sub_ps(before, best));
    _mm512_store_ps(s.best + row, best);
    _mm512_store_ps(s.correction + row, correction);
    for (i64 i = 0; i < 16; i++) {
        __m512 sum = _mm512_setzero_ps();
        i64 v = 0;
        bf16 *out = p + (row + i) * stride;
        if (i < n) {
            i64 first = std::max<i64>(0, s.first[row + i] - key), end = std::min(width, s.end[row + i] - key);
            const float *at = scores + (row + i) * BLOCK;
            __m512 top = _mm512_set1_ps(s.best[row + i]);
            if (WINDOW) {
                for (; v < first / 16 && v * 16 < width; v++)
                    _mm256_store_si256((__m256i *)(out + v * 16), _mm256_setzero_si256());
                if (v * 16 < end) {
                    const float *x = at + (v >> 1) * SCORES + (v & 1) * 16;
                    __m512 e = exp2(_mm512_fmsub_ps(_mm512_load_ps(x), scale, top));
                    e = _mm512_maskz_mov_ps(lanes(first - v * 16, end - v * 16), e);
                    sum = _mm512_add_ps(sum, e);
                    _mm256_store_si256((__m256i *)(out + v * 16), narrow(e));
                    v++;
                }
            }
            for (; v * 16 + 16 <= end; v++) {
                __m512 e = exp2(_mm512_fmsub_ps(_mm512_load_ps(at + (v >> 1) * SCORES + (v & 1) * 16), scale, top));
                sum = _mm512_add_ps(sum, e);
                _mm256_store_si256((__m256i *)(out + v * 16), narrow(e));
            }
            if (v * 16 < end) {
                const float *x = at + (v >> 1) * SCORES + (v & 1) * 16;
                __m512 e = exp2(_mm512_fmsub_ps(_mm512_load_ps(x), scale, top));
                e = _mm512_maskz_mov_ps(lanes(0, end - v * 16), e);
                sum = _mm512_add_ps(sum, e);
                _mm256_store_si256((__m256i *)(out + v * 16), narrow(e));
                v++;
            }
        }
        for (; v * 16 < width; v++) _mm256_store_si256((__m256i *)(out + v * 16), _mm256_setzero_si256());
        found[place(i)] = sum;
    }
    __m512 sum = _mm512_fmadd_ps(_mm512_load_ps(s.sum + row), correction, across<Add>(found));
    _mm512_store_ps(s.sum + row, sum);
}

// The same for few keys, in `VECTORS` vectors, without a window: no branch depends on the row.
template <int VECTORS>
static inline void few_probabilities(const float *scores, bf16 *p, i64 stride, i64 row, i64 rows, i64 key, i64 width,
                                     float c, Softmax &s) {
    const __m512i counting = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 scale = _mm512_set1_ps(c), lowest = _mm512_set1_ps(LOWEST);
    __m512 found[16];
    for (i64 i = 0; i < 16; i++) {
        const __m512i end = _mm512_set1_epi32(row + i < rows ? (int32_t)(s.end[row + i] - key) : 0);
        const float *at = scores + (row + i) * BLOCK;
        __m512 best = lowest;
        for (int v = 0; v < VECTORS; v++) {
            __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_add_epi32(counting, _mm512_set1_epi32(16 * v)), end);
            best = _mm512_mask_max_ps(best, seen, best, _mm512_load_ps(at + (v >> 1) * SCORES + (v & 1) * 16));
        }
        found[place(i)] = best;
    }
    const __m512 before = _mm512_load_ps(s.best + row);
    const __m512 best = _mm512_max_ps(before, _mm512_mul_ps(scale, across<Largest>(found)));
    const __m512 correction = exp2(_mm512_sub_ps(before, best));
    _mm512_store_ps(s.best + row, best);
    _mm512_store_ps(s.correction + row, correction);
    for (i64 i = 0; i < 16; i++) {
        const __m512i end = _mm512_set1_epi32(row + i < rows ? (int32_t)(s.end[row + i] - key) : 0);
        const float *at = scores + (row + i) * BLOCK;
        bf16 *out = p + (row + i) * stride;
        const __m512 top = _mm512_set1_ps(s.best[row + i]);
        __m512 sum = _mm512_setzero_ps(), e[VECTORS + 1];
        for (int v = 0; v < VECTORS; v++) {
            __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_add_epi32(counting, _mm512_set1_epi32(16 * v)), end);
            __m512 x = _mm512_load_ps(at + (v >> 1) * SCORES + (v & 1) * 16);
            e[v] = _mm512_maskz_mov_ps(seen, exp2(_mm512_fmsub_ps(x, scale, top)));
            sum = _mm512_add_ps(sum, e[v]);
        }
        if (VECTORS % 2) e[VECTORS] = _mm512_setzero_ps();
        for (int v = 0; v < VECTORS; v += 2)
            _mm512_store_si512(out + v * 16, (__m512i)_mm512_cvtne2ps_pbh(e[v + 1], e[v]));
        found[place(i)] = sum;
    }
    const __m512 sum = _mm512_fmadd_ps(_mm512_load_ps(s.sum + row), correction, across<Add>(found));
    _mm512_store_ps(s.sum + row, sum);
}

static inline void softmax(const float *scores, bf16 *p, i64 stride, i64 row, i64 rows, i64 key, i64 width, i64 last,
                           i64 window, float c, Softmax &s) {
    auto chosen = probabilities<false>;
    if (window > 0)
        chosen = probabilities<true>;
    else if (last <= 16)
        chosen = few_probabilities<1>;
    else if (last <= 32)
        chosen = few_probabilities<2>;
    else if (last <= 48)
        chosen = few_probabilities<3>;
    else if (last <= 64)
        chosen = few_probabilities<4>;
    chosen(scores, p, stride, row, rows, key, width, c, s);
}

// Sums of the keys before are brought to the new largest score.
static inline void rescale(float *sums, i64 panels, i64 rows, const float *correction) {
    for (i64 row = 0; row < rows; row++) {
        __m512 c = _mm512_set1_ps(correction[row]);
        for (i64 e = 0; e < panels; e++) {
            float *at = sums + e * SCORES + row * BLOCK;
            _mm512_store_ps(at, _mm512_mul_ps(c, _mm512_load_ps(at)));
            _mm512_store_ps(at + 16, _mm512_mul_ps(c, _mm512_load_ps(at + 16)));
        }
    }
}

static bool forward(const Problem &p, const Unit &u) {
    const i64 E = p.E, W = p.padded(), panels = W / BLOCK, G = p.group();
    const i64 start = p.starts[u.document], length = p.lengths[u.document];
    i64 from, to, unused;
    p.visible(u.first, length, &from, &unused);
    p.visible(u.end - 1, length, &unused, &to);
    const i64 keys = to - from, count = blocks(keys), stride = std::min(CHUNK, count) * BLOCK;

    Parts parts, wanted;
    bf16 *copied, *kt, *vw, *q, *probability;
    float *scores, *sums;
    for (Parts *m : {&wanted, &parts}) {
        if (m == &parts) parts.data = scratch.get<char>(wanted.used);
        if (m == &parts && !parts.data) return false;
        copied = m->take<bf16>(BLOCK * W);
        kt = m->take<bf16>(count * BLOCK * W);
        vw = m->take<bf16>(count * BLOCK * W);
        q = m->take<bf16>(BLOCK * W);
        probability = m->take<bf16>(BLOCK * stride);
        scores = m->take<float>(BLOCK * stride);
        sums = m->take<float>(BLOCK * W);
    }
    for (i64 b = 0; b < count; b++) {
        const i64 n = std::min(BLOCK, keys - b * BLOCK), token = start + from + b * BLOCK;
        copy(p.k, token, u.head, 1, 0, n, E, copied);
        pack_transposed(copied, W, BLOCK, W, kt + b * BLOCK * W);
        copy(p.v, token, u.head, 1, 0, n, E, copied);
        for (i64 e = 0; e < panels; e++) pack_woven(copied + e * BLOCK, W, BLOCK, BLOCK, vw + (e * count + b) * STEP);
    }

    const i64 R = (u.end - u.first) * G;
    const float c = p.scale * LOG2E;
    Softmax s;
    for (i64 r = 0; r < R; r += BLOCK) {
        const i64 rows = std::min(BLOCK, R - r);
        const bool lower = rows > 16;
        copy(p.q, start + u.first, u.head * G, G, r, rows, E, q);
        i64 low = keys, high = 0, t = u.first + r / G, g = r % G;
        for (i64 i = 0; i < rows; i++) {
            p.visible(t, length, &s.first[i], &s.end[i]);
            s.first[i] -= from, s.end[i] -= from;
            low = std::min(low, s.first[i]), high = std::max(high, s.end[i]);
            if (++g == G) g = 0, t++;
        }
        for (i64 i = 0; i < BLOCK; i += 16) {
            _mm512_store_ps(s.best + i, _mm512_set1_ps(LOWEST));
            _mm512_store_ps(s.sum + i, _mm512_setzero_ps());
        }
        const i64 begin = low / BLOCK, end = blocks(high);
        for (i64 b = begin; b < end; b += CHUNK) {
            const i64 n = std::min(CHUNK, end - b), width = n * BLOCK;
            for (i64 i = 0; i < n; i++)
                product(lower, high - (b + i) * BLOCK > 16, q, W * 2, 32, 16 * W, kt + (b + i) * BLOCK * W, panels,
                        scores + i * SCORES, false);
            for (i64 row = 0; row < rows; row += 16)
                softmax(scores, probability, stride, row, rows, b * BLOCK, width, high - b * BLOCK, p.window, c, s);
            if (b > begin) rescale(sums, panels, rows, s.correction);
            for (i64 e = 0; e < panels; e++)
                product(lower, E - e * BLOCK > 16, probability, stride * 2, 32, 16 * stride,
                        vw + (e * count + b) * STEP, n, sums + e * SCORES, b > begin);
        }
        t = start + u.first + r / G, g = r % G;
        alignas(64) float inverse[BLOCK], lse[BLOCK];
        for (i64 i = 0; i < BLOCK; i += 16) {
            __m512 sum = _mm512_load_ps(s.sum + i);
            __mmask16 seen = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_NEQ_UQ);
            _mm512_store_ps(inverse + i, _mm512_maskz_div_ps(seen, _mm512_set1_ps(1.0f), sum));
            __m512 value = _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(s.best + i), log2(sum)), _mm512_set1_ps(LN2));
            _mm512_store_ps(lse + i, _mm512_maskz_mov_ps(seen, value));
        }
        for (i64 i = 0; i < rows; i++) {
            const i64 h = u.head * G + g;
            store(p.out, place(p.out, t, h), sums + i * BLOCK, SCORES, E, _mm512_set1_ps(inverse[i]));
            p.lse[t * p.H + h] = lse[i];
            if (++g == G) g = 0, t++;
        }
    }
    return true;
}

// --- backward ----------------------------------------------------------------------------------------------------------
//
// Blocks of scores are transposed here (keys by stacked rows): probabilities and gradients of scores then are left
// factors of the gradients of values and keys as they lie, and what belongs to a query is the same in every key's
// vector. The gradient of queries comes out as features by rows.

struct Queries {
    float *lse, *delta;             // of each row; lse to the base of two, delta the sum of p dp
    int32_t *first, *end;           // visible keys
};

// Probabilities of 32 stacked rows (the left 16 without RIGHT) for `keys` keys, and the sums of p dp.
template <bool EDGE, bool RIGHT>
static inline void recompute(const float *scores, const float *dp, i64 keys, i64 key, float c, const Queries &w, bf16 *p,
                             i64 stride) {
    __m512 scale = _mm512_set1_ps(c), lse[2], delta[2];
    __m512i first[2], end[2];
    for (int h = 0; h < 2; h++) {
        lse[h] = _mm512_load_ps(w.lse + 16 * h);
        delta[h] = _mm512_load_ps(w.delta + 16 * h);
        first[h] = _mm512_load_si512(w.first + 16 * h);
        end[h] = _mm512_load_si512(w.end + 16 * h);
    }
    for (i64 i = 0; i < keys; i++, scores += BLOCK, dp += BLOCK, p += stride) {
        __m512 value[2];
        for (int h = 0; h < 2; h++) {
            if (h && !RIGHT) {
                value[h] = _mm512_setzero_ps();
                continue;
            }
            __m512 e = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + 16 * h), scale, lse[h]));
            if (EDGE) {
                __m512i k = _mm512_set1_epi32((int32_t)(key + i));
                __mmask16 seen = _mm512_cmple_epi32_mask(first[h], k);
                e = _mm512_maskz_mov_ps(_mm512_mask_cmpgt_epi32_mask(seen, end[h], k), e);
            }
            delta[h] = _mm512_fmadd_ps(e, _mm512_load_ps(dp + 16 * h), delta[h]);
            value[h] = e;
        }
        _mm512_store_si512(p, (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]));
    }
    _mm512_store_ps(w.delta, delta[0]);
    if (RIGHT) _mm512_store_ps(w.delta + 16, delta[1]);
}

// Gradients of scores p (dp - delta), as left factor and, pairs of keys woven, as right factor. Weaving stays inside
// 128 bits: the columns of the right factor are in the order of `column`.
template <bool RIGHT>
static inline void score_gradients(const bf16 *p, const float *dp, i64 keys, const float *delta, i64 stride, bf16 *ds,
                                   bf16 *woven) {
    __m512 sum[2] = {_mm512_load_ps(delta), _mm512_load_ps(delta + 16)};
    for (i64 i = 0; i < keys; i += 2, woven += 32) {
        __m512i row[2];
        for (int j = 0; j < 2; j++, p += stride, ds += stride, dp += BLOCK) {
            __m512 low = wide(_mm256_load_si256((const __m256i *)p)), high = _mm512_setzero_ps();
            low = _mm512_mul_ps(low, _mm512_sub_ps(_mm512_load_ps(dp), sum[0]));
            if (RIGHT) {
                high = wide(_mm256_load_si256((const __m256i *)(p + 16)));
                high = _mm512_mul_ps(high, _mm512_sub_ps(_mm512_load_ps(dp + 16), sum[1]));
            }
            row[j] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_store_si512(ds, row[j]);
        }
        _mm512_store_si512(woven, _mm512_unpacklo_epi16(row[0], row[1]));
        _mm512_store_si512(woven + TILE, _mm512_unpackhi_epi16(row[0], row[1]));
    }
    for (i64 i = keys; i < BLOCK; i += 2, woven += 32) {
        _mm512_store_si512(woven, _mm512_setzero_si512());
        _mm512_store_si512(woven + TILE, _mm512_setzero_si512());
    }
}

// Which stacked row is in column x of a block whose columns were woven inside 128 bits.
static inline i64 column(i64 x) { return 8 * (x % 16 / 4) + x % 4 + 4 * (x / 16); }

// A block of 32 features by 32 rows to the rows of the gradient of queries, which begin at `places`.
static inline void store_queries(const float *in, const Array &dq, const i64 *places, i64 rows, i64 e, i64 features,
                                 float scale) {
    __m512 by = _mm512_set1_ps(scale);
    __m512i r[2][16];
    if (dq.single) {
        for (i64 part = 0; part < std::min<i64>(features, 32); part += 16)
            for (i64 side = 0; side < 2; side++) {
                for (int i = 0; i < 16; i++)
                    r[0][i] = _mm512_castps_si512(_mm512_mul_ps(by, _mm512_load_ps(in + (part + i) * BLOCK + 16 * side)));
                transpose(r[0]);
                for (int i = 0; i < 16; i++) {
                    const i64 row = column(16 * side + i);
                    if (row < rows) _mm512_storeu_si512((float *)dq.data + places[row] + e + part, r[0][i]);
                }
            }
        return;
    }
    for (int i = 0; i < 16; i++, in += 2 * BLOCK) {  // pairs of features are woven as pairs of keys were
        __m512i x = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(by, _mm512_load_ps(in + 16)),
                                                 _mm512_mul_ps(by, _mm512_load_ps(in)));
        __m512i y = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(by, _mm512_load_ps(in + 48)),
                                                 _mm512_mul_ps(by, _mm512_load_ps(in + 32)));
        r[0][i] = _mm512_unpacklo_epi16(x, y);
        r[1][i] = _mm512_unpackhi_epi16(x, y);
    }
    for (int half = 0; half < 2; half++) {
        transpose(r[half]);
        for (int i = 0; i < 16; i++) {
            const i64 row = column(column(16 * half + i));
            if (row < rows) _mm512_mask_storeu_epi16((bf16 *)dq.data + places[row] + e, first(features), r[half][i]);
        }
    }
}

// Sums in blocks (keys / 32, features / 32, 32, 32) to the rows of the gradient of keys or values.
static void store_keys(const float *in, i64 panels, const Array &x, i64 token, i64 head, i64 keys, i64 E, float scale) {
    for (i64 k = 0; k < keys; k++)
        store(x, place(x, token + k, head), in + k / BLOCK * panels * SCORES + k % BLOCK * BLOCK, SCORES, E,
              _mm512_set1_ps(scale));
}

static void key_range(const Problem &p, const Unit &u, i64 *from, i64 *to) {
    i64 unused;
    p.visible(u.first, p.lengths[u.document], from, &unused);
    p.visible(u.end - 1, p.lengths[u.document], &unused, to);
    // The blocks of all slices are the same.
    *from = *from / BLOCK * BLOCK;
    *to = std::min(p.lengths[u.document], blocks(*to) * BLOCK);
}

// Float32 values of the gradients of keys and values of a unit.
static i64 partial_size(const Problem &p, const Unit &u) {
    i64 from, to;
    key_range(p, u, &from, &to);
    return 2 * blocks(to - from) * BLOCK * p.padded();
}

static bool backward(const Problem &p, const Unit &u) {
    const i64 E = p.E, W = p.padded(), panels = W / BLOCK, G = p.group();
    const i64 start = p.starts[u.document], length = p.lengths[u.document];
    i64 from, to;
    key_range(p, u, &from, &to);
    const i64 keys = to - from, count = blocks(keys), K = count * BLOCK;
    const i64 R = (u.end - u.first) * G;
    const i64 most = std::min(blocks(R) * BLOCK, std::max<i64>(2 * BLOCK, BUDGET / K / BLOCK * BLOCK));
    const i64 most_blocks = most / BLOCK;

    Parts parts, wanted;
    bf16 *k, *v, *kt, *q, *qt, *qw, *g, *gt, *gw, *probability, *ds, *woven;
    float *scores, *dp, *dk, *dv;
    Queries rows_of;
    i64 *places, *first_key, *end_key;
    for (Parts *m : {&wanted, &parts}) {
        if (m == &parts) parts.data = scratch.get<char>(wanted.used);
        if (m == &parts && !parts.data) return false;
        k = m->take<bf16>(K * W), v = m->take<bf16>(K * W), kt = m->take<bf16>(K * W);
        q = m->take<bf16>(most * W), qt = m->take<bf16>(most * W), qw = m->take<bf16>(most * W);
        g = m->take<bf16>(most * W), gt = m->take<bf16>(most * W), gw = m->take<bf16>(most * W);
        probability = m->take<bf16>(most * K), ds = m->take<bf16>(most * K), woven = m->take<bf16>(BLOCK * K);
        scores = m->take<float>(SCORES), dp = m->take<float>(BLOCK * K);
        dk = m->take<float>(K * W), dv = m->take<float>(K * W);
        rows_of.lse = m->take<float>(most), rows_of.delta = m->take<float>(most);
        rows_of.first = m->take<int32_t>(most), rows_of.end = m->take<int32_t>(most);
        places = m->take<i64>(most);
        first_key = m->take<i64>(most_blocks), end_key = m->take<i64>(most_blocks);
    }
    if (u.partial) dk = u.partial, dv = u.partial + K * W;
    copy(p.k, start + from, u.head, 1, 0, keys, E, k);
    copy(p.v, start + from, u.head, 1, 0, keys, E, v);
    weave(k, K, W, kt);
    transpose_tiles(kt, K * W / TILE);

    const float c = p.scale * LOG2E;
    for (i64 r = 0; r < R; r += most) {
        const i64 rows = std::min(most, R - r), row_blocks = blocks(rows), stride = row_blocks * BLOCK;
        copy(p.q, start + u.first, u.head * G, G, r, rows, E, q);
        copy(p.out, start + u.first, u.head * G, G, r, rows, E, g);
        for (i64 b = 0; b < row_blocks; b++) {
            pack_transposed(q + b * BLOCK * W, W, BLOCK, W, qt + b * BLOCK * W);
            pack_transposed(g + b * BLOCK * W, W, BLOCK, W, gt + b * BLOCK * W);
        }
        weave(q, stride, W, qw);
        weave(g, stride, W, gw);
        i64 t = u.first + r / G, h = u.head * G + r % G;
        for (i64 i = 0; i < stride; i++) {
            i64 first = 0, end = 0;
            float lse = 0;
            if (i < rows) {
                p.visible(t, length, &first, &end);
                first = std::max<i64>(0, first - from), end -= from;
                lse = p.lse[(start + t) * p.H + h];
            }
            rows_of.first[i] = (int32_t)first, rows_of.end[i] = (int32_t)end;
            rows_of.lse[i] = lse * LOG2E, rows_of.delta[i] = 0;
            places[i] = place(p.dq, start + t, h);
            if (++h == (u.head + 1) * G) h = u.head * G, t++;
        }
        for (i64 b = 0; b < row_blocks; b++) {
            const i64 n = std::min(BLOCK, rows - b * BLOCK);
            const bool right = n > 16;
            const int32_t *first = rows_of.first + b * BLOCK, *end = rows_of.end + b * BLOCK;
            i64 low = first[0], high = end[0], inner_first = first[0], inner_end = end[0];
            for (i64 i = 1; i < n; i++) {
                low = std::min<i64>(low, first[i]), high = std::max<i64>(high, end[i]);
                inner_first = std::max<i64>(inner_first, first[i]), inner_end = std::min<i64>(inner_end, end[i]);
            }
            if (n < BLOCK) inner_end = 0;  // rows of zeros see nothing
            first_key[b] = low / BLOCK, end_key[b] = blocks(high);
            const Queries w = {rows_of.lse + b * BLOCK, rows_of.delta + b * BLOCK, rows_of.first + b * BLOCK,
                               rows_of.end + b * BLOCK};
            for (i64 a = first_key[b]; a < end_key[b]; a++) {
                const bool lower = keys - a * BLOCK > 16;
                float *d = dp + a * SCORES;
                product(lower, right, k + a * BLOCK * W, W * 2, 32, 16 * W, qt + b * BLOCK * W, panels, scores, false);
                product(lower, right, v + a * BLOCK * W, W * 2, 32, 16 * W, gt + b * BLOCK * W, panels, d, false);
                const bool edge = a * BLOCK < inner_first || a * BLOCK + BLOCK > inner_end;
                (edge ? right ? recompute<true, true> : recompute<true, false>
                      : right ? recompute<false, true> : recompute<false, false>)(
                    scores, d, lower ? 32 : 16, a * BLOCK, c, w, probability + a * BLOCK * stride + b * BLOCK, stride);
            }
            for (i64 a = first_key[b]; a < end_key[b]; a++) {
                const i64 at = a * BLOCK * stride + b * BLOCK;
                (right ? score_gradients<true> : score_gradients<false>)(
                    probability + at, dp + a * SCORES, keys - a * BLOCK > 16 ? 32 : 16, w.delta, stride, ds + at,
                    woven + a * STEP);
            }
            for (i64 e = 0; e < panels; e++) {
                product(E - e * BLOCK > 16, true, kt + e * K * BLOCK + first_key[b] * STEP, 64, STEP, TILE,
                        woven + first_key[b] * STEP, end_key[b] - first_key[b], scores, false);
                store_queries(scores, p.dq, places + b * BLOCK, n, e * BLOCK, E - e * BLOCK, p.scale);
            }
        }
        i64 begin = 0, end = 0;
        for (i64 a = 0; a < count; a++) {
            while (begin < row_blocks && end_key[begin] <= a) begin++;
            end = std::max(begin, end);
            while (end < row_blocks && first_key[end] <= a) end++;
            if (begin == end && r) continue;
            const bool lower = keys - a * BLOCK > 16;
            const i64 at = a * BLOCK * stride + begin * BLOCK;
            for (i64 e = 0; e < panels; e++) {
                const i64 from_row = e * stride * BLOCK + begin * STEP, to_sum = (a * panels + e) * SCORES;
                const bool right = E - e * BLOCK > 16;
                product(lower, right, probability + at, stride * 2, 32, 16 * stride, gw + from_row, end - begin,
                        dv + to_sum, r > 0);
                product(lower, right, ds + at, stride * 2, 32, 16 * stride, qw + from_row, end - begin, dk + to_sum,
                        r > 0);
            }
        }
    }
    if (u.partial) return true;
    store_keys(dk, panels, p.dk, start + from, u.head, keys, E, p.scale);
    store_keys(dv, panels, p.dv, start + from, u.head, keys, E, 1.0f);
    return true;
}

// --- units of work -----------------------------------------------------------------------------------------------------

// Documents by key heads, the longest first; long ones in slices where there would be too few to share among threads.
static std::vector<Unit> units(const Problem &p, int threads) {
    std::vector<Unit> found;
    double total = 0;
    for (i64 b = 0; b < p.B; b++) total += (double)p.lengths[b] * p.lengths[b] * p.J;
    for (i64 b = 0; b < p.B; b++) {
        const i64 length = p.lengths[b];
        if (length <= 0) continue;
        i64 slices = 1;
        if (threads > 1 && length > 256) {
            const i64 fair = (i64)ceil((double)length * length * 4 * threads / total);
            slices = std::min({fair, length / 128, MOST_SLICES});
        }
        const i64 size = (length + slices - 1) / slices;
        for (i64 first = 0; first < length; first += size) {
            const i64 end = std::min(length, first + size);
            const i64 cost = (end - first) * (p.causal ? end + first : 2 * length);
            for (i64 j = 0; j < p.J; j++) found.push_back({b, j, first, end, cost, nullptr});
        }
    }
    std::stable_sort(found.begin(), found.end(), [](const Unit &a, const Unit &b) { return a.cost > b.cost; });
    return found;
}

struct Span {
    i64 first, end;
};

// Tokens between and after the documents.
static std::vector<Span> gaps(const Problem &p) {
    std::vector<Span> documents, found;
    for (i64 b = 0; b < p.B; b++) documents.push_back({p.starts[b], p.starts[b] + p.lengths[b]});
    std::sort(documents.begin(), documents.end(), [](const Span &a, const Span &b) { return a.first < b.first; });
    documents.push_back({p.N, p.N});
    i64 reached = 0;
    for (const Span &x : documents) {
        if (x.first > reached) found.push_back({reached, x.first});
        reached = std::max(reached, x.end);
    }
    return found;
}

struct Result {
    Array array;
    i64 heads;
};

static int run(const Problem &p, std::vector<Unit> &work, bool (*part)(const Problem &, const Unit &),
               const std::vector<Result> &results, int threads) {
    int failed = 0;
    const i64 count = (i64)work.size();
    const std::vector<Span> outside = gaps(p);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        Scope scope;
#pragma omp for schedule(dynamic, 1) nowait
        for (i64 i = 0; i < count; i++) failed += !part(p, work[i]);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < (i64)outside.size(); i++)
            for (const Result &x : results)
                for (i64 n = outside[i].first; n < outside[i].end; n++) {
                    const i64 size = x.array.single ? 4 : 2;
                    memset((char *)x.array.data + n * x.array.token * size, 0, x.heads * p.E * size);
                }
    }
    return failed;
}

// Gradients of keys and values of sliced documents: the slices are added in order.
static void add_slices(const Problem &p, const std::vector<Unit> &work, int threads) {
    std::vector<std::vector<Unit>> groups(p.B * p.J);
    for (const Unit &u : work)
        if (u.partial) groups[u.document * p.J + u.head].push_back(u);
    std::vector<std::vector<Unit>> sliced;
    for (auto &group : groups) {
        if (group.empty()) continue;
        std::sort(group.begin(), group.end(), [](const Unit &a, const Unit &b) { return a.first < b.first; });
        sliced.push_back(group);
    }
    const i64 panels = p.padded() / BLOCK, most = blocks(*std::max_element(p.lengths, p.lengths + p.B));
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 4)
    for (i64 s = 0; s < (i64)sliced.size(); s++)
        for (i64 a = 0; a < most; a++) {
            const Unit &any = sliced[s][0];
            const i64 length = p.lengths[any.document], token = a * BLOCK;
            if (token >= length) continue;
            for (int which = 0; which < 2; which++) {
                float *parts[MOST_SLICES];
                i64 n = 0;
                for (const Unit &u : sliced[s]) {
                    i64 from, to;
                    key_range(p, u, &from, &to);
                    if (token < from || token >= to) continue;
                    const i64 size = blocks(to - from) * SCORES * panels;
                    parts[n++] = u.partial + which * size + (token - from) * panels * BLOCK;
                }
                for (i64 i = 1; i < n; i++)
                    for (i64 at = 0; at < panels * SCORES; at += 16)
                        _mm512_store_ps(parts[0] + at,
                                        _mm512_add_ps(_mm512_load_ps(parts[0] + at), _mm512_load_ps(parts[i] + at)));
                store_keys(parts[0], panels, which ? p.dv : p.dk, p.starts[any.document] + token, any.head,
                           std::min(BLOCK, length - token), p.E, which ? 1.0f : p.scale);
            }
        }
}

}  // namespace

// --- the names that Python calls ---------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))
#define ARRAY(NAME) void *NAME, i64 NAME##_token, i64 NAME##_head, int NAME##_single
#define GIVEN(NAME) {NAME, NAME##_token, NAME##_head, NAME##_single}

// Results are contiguous, and become zero where no document is; `failed` becomes the number of units that found no
// memory.
EXPORT void row_attention(ARRAY(q), ARRAY(k), ARRAY(v), ARRAY(out), void *lse, void *starts, void *lengths, i64 N, i64 B,
                          i64 H, i64 J, i64 E, float scale, int causal, i64 window, int threads, int *failed) {
    Problem p = {GIVEN(q), GIVEN(k), GIVEN(v), GIVEN(out), {}, {}, {}, (float *)lse, (const i64 *)starts,
                 (const i64 *)lengths, N, B, H, J, E, scale, causal, window};
    std::vector<Unit> work = units(p, threads);
    *failed = run(p, work, forward, {{p.out, H}}, threads);
}

EXPORT void row_attention_backward(ARRAY(q), ARRAY(k), ARRAY(v), ARRAY(dout), ARRAY(dq), ARRAY(dk), ARRAY(dv),
                                   void *lse, void *starts, void *lengths, i64 N, i64 B, i64 H, i64 J, i64 E,
                                   float scale, int causal, i64 window, int threads, int *failed) {
    Problem p = {GIVEN(q), GIVEN(k), GIVEN(v), GIVEN(dout), GIVEN(dq), GIVEN(dk), GIVEN(dv), (float *)lse,
                 (const i64 *)starts, (const i64 *)lengths, N, B, H, J, E, scale, causal, window};
    std::vector<Unit> work = units(p, threads);
    i64 size = 0;
    for (const Unit &u : work)
        if (u.end - u.first < p.lengths[u.document]) size += partial_size(p, u);
    static thread_local Scratch sliced;
    float *partial = size ? sliced.get<float>(size) : nullptr;
    *failed = size && !partial;
    if (*failed) return;
    for (Unit &u : work)
        if (u.end - u.first < p.lengths[u.document]) u.partial = partial, partial += partial_size(p, u);
    *failed = run(p, work, backward, {{p.dq, H}, {p.dk, J}, {p.dv, J}}, threads);
    if (size && !*failed) add_slices(p, work, threads);
}
