// The backward pass of row_attention.cpp.
//
// Blocks of scores are transposed here (keys by stacked rows): probabilities and gradients of scores then are left
// factors of the gradients of values and keys as they lie, and what belongs to a query is the same in every key's
// vector. The gradient of queries comes out as features by rows.

#pragma once

#include "attention_common.h"

namespace {

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

}  // namespace
