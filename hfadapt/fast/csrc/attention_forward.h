// The forward pass of row_attention.cpp.

#pragma once

#include "attention_common.h"

namespace {

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

}  // namespace
