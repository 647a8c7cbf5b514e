// Attention inside rows on AMX tiles, forward and backward, a block of scores at a time (Dao et al. 2022, arXiv
// 2205.14135): scores never leave the caches, and the backward pass computes them again.
//
// N tokens, H query heads, J key heads, G = H / J, E features. The queries of one key head are stacked, token by token:
// stacked row r is query head r % G of token r / G. A unit of work is a document (or a slice of its queries) and a key
// head. Everything that tiles read is copied first, with zeros where the document ends: in a product zero times what
// lies beyond would still be NaN if that is NaN.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

namespace {

using namespace tiles;
using lanes::exp2;

const i64 BLOCK = 32;               // rows and columns of a block of scores
const i64 SCORES = BLOCK * BLOCK;
const i64 CHUNK = 8;                // blocks of keys whose scores the forward pass holds at once
const i64 BUDGET = 96 * 1024;       // scores that the backward pass holds at once, unless one row block has more
const i64 MOST_SLICES = 64;         // of a document
const float LOG2E = 1.44269504f, LN2 = 0.69314718f;
const float LOWEST = -1e30f;        // finite, so that differences are never NaN

// Array and Problem are mirrored by abi.py, field by field. (N, heads, E) in float32 or bf16; strides are in values, features are contiguous.
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

}  // namespace
