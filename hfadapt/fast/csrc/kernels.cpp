// Element-wise passes of a transformer's training step, one pass each, for CPUs. Matrix products stay with torch.
//
// T is float or bf16 (as its 16 bits); everything is computed in float. Rows are split over OpenMP threads.
// Sizes: N tokens, D features, H heads, E features of a head, B documents of at most T tokens, V vocabulary.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

typedef uint16_t bf16;
typedef int64_t i64;

static inline float get(const bf16 *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline float get(const float *p) { return *p; }

static inline void put(bf16 *p, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    *p = (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
static inline void put(float *p, float value) { *p = value; }

// exp by 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes expf); relative error below 1e-5.
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r += n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

static const int LANES = 16;

template <typename T> static inline float largest(const T *x, i64 count) {
    float best[LANES];
    for (int j = 0; j < LANES; j++) best[j] = -INFINITY;
    i64 i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float value = get(x + i + j);
            best[j] = value > best[j] ? value : best[j];
        }
    float found = -INFINITY;
    for (int j = 0; j < LANES; j++) found = best[j] > found ? best[j] : found;
    for (; i < count; i++) found = get(x + i) > found ? get(x + i) : found;
    return found;
}

// --- root mean square normalisation: y = w x / sqrt(mean x^2 + eps) --------------------------------------------------

template <typename T>
static void rms_norm(const T *x, const T *w, T *y, float *inverse, i64 N, i64 D, float eps, float offset, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < N; n++) {
        const T *row = x + n * D;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 d = 0; d < D; d++) sum += get(row + d) * get(row + d);
        float r = 1.0f / sqrtf(sum / D + eps);
        inverse[n] = r;
#pragma omp simd
        for (i64 d = 0; d < D; d++) put(y + n * D + d, get(row + d) * r * (get(w + d) + offset));
    }
}

template <typename T>
static void rms_norm_backward(const T *dy, const T *x, const T *w, const float *inverse, T *dx, i64 N, i64 D,
                              float offset, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < N; n++) {
        const T *g = dy + n * D, *row = x + n * D;
        float r = inverse[n], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 d = 0; d < D; d++) sum += get(g + d) * (get(w + d) + offset) * get(row + d);
        float c = sum * r * r * r / D;
#pragma omp simd
        for (i64 d = 0; d < D; d++) put(dx + n * D + d, get(g + d) * (get(w + d) + offset) * r - get(row + d) * c);
    }
}

// --- gated activation: h = act(g) u, act = x sigmoid(x) or the tanh form of GELU -------------------------------------

template <bool GELU> static inline void activation(float g, float *value, float *slope) {
    if (GELU) {
        float inner = 0.79788456f * (g + 0.044715f * g * g * g);
        float t = 1.0f - 2.0f / (exponential(2.0f * inner) + 1.0f);
        *value = 0.5f * g * (1.0f + t);
        *slope = 0.5f * (1.0f + t) + 0.5f * g * (1.0f - t * t) * 0.79788456f * (1.0f + 0.134145f * g * g);
    } else {
        float s = 1.0f / (1.0f + exponential(-g));
        *value = g * s;
        *slope = s * (1.0f + g * (1.0f - s));
    }
}

template <typename T, bool GELU> static inline void gated_part(const T *g, const T *u, T *h, i64 count) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) {
        float value, slope;
        activation<GELU>(get(g + i), &value, &slope);
        put(h + i, value * get(u + i));
    }
}

// Also h again, which is not kept. dg may be dh.
template <typename T, bool GELU>
static inline void gated_backward_part(const T *dh, const T *g, const T *u, T *h, T *dg, T *du, i64 count) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) {
        float value, slope, d = get(dh + i), up = get(u + i);
        activation<GELU>(get(g + i), &value, &slope);
        put(h + i, value * up);
        put(dg + i, d * up * slope);
        put(du + i, d * value);
    }
}

#ifdef __AVX512BF16__
// The same by 16, with an exp that is exact to the 8 bits of a bfloat16 and a reciprocal by one Newton step, twice as
// fast as what compilers make of the loops above.

static inline __m512 load16(const bf16 *p) { return lanes::wide(_mm256_loadu_si256((const __m256i *)p)); }
static inline void store16(bf16 *p, __m512 x) { _mm256_storeu_si256((__m256i *)p, lanes::narrow(x)); }
static inline __m512 exponential16(__m512 x) { return lanes::exp2(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f))); }

static inline __m512 reciprocal16(__m512 x) {
    __m512 y = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));
}

// The bounds come first: of two numbers one of which is none, min and max return the second.
template <bool GELU> static inline void activation16(__m512 g, __m512 *value, __m512 *slope) {
    const __m512 one = _mm512_set1_ps(1.0f), half = _mm512_set1_ps(0.5f);
    if (GELU) {
        __m512 square = _mm512_mul_ps(g, g), c = _mm512_set1_ps(0.79788456f);
        __m512 inner = _mm512_mul_ps(_mm512_mul_ps(c, g), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), square, one));
        inner = _mm512_max_ps(_mm512_set1_ps(-40.0f), _mm512_min_ps(_mm512_set1_ps(40.0f), inner));
        __m512 e = exponential16(_mm512_add_ps(inner, inner));
        __m512 t = _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), reciprocal16(_mm512_add_ps(e, one)), one);
        __m512 share = _mm512_mul_ps(half, _mm512_add_ps(one, t));
        *value = _mm512_mul_ps(g, share);
        __m512 bend = _mm512_mul_ps(c, _mm512_fmadd_ps(_mm512_set1_ps(0.134145f), square, one));
        __m512 rest = _mm512_mul_ps(_mm512_mul_ps(half, g), _mm512_fnmadd_ps(t, t, one));
        *slope = _mm512_fmadd_ps(rest, bend, share);
    } else {
        __m512 negative = _mm512_min_ps(_mm512_set1_ps(80.0f), _mm512_sub_ps(_mm512_setzero_ps(), g));
        __m512 s = reciprocal16(_mm512_add_ps(one, exponential16(negative)));
        *value = _mm512_mul_ps(g, s);
        *slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
    }
}

template <bool GELU> static inline void gated_wide(const bf16 *g, const bf16 *u, bf16 *h, i64 count) {
    i64 i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512 value, slope;
        activation16<GELU>(load16(g + i), &value, &slope);
        store16(h + i, _mm512_mul_ps(value, load16(u + i)));
    }
    gated_part<bf16, GELU>(g + i, u + i, h + i, count - i);
}

template <bool GELU>
static inline void gated_backward_wide(const bf16 *dh, const bf16 *g, const bf16 *u, bf16 *h, bf16 *dg, bf16 *du, i64 count) {
    i64 i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512 value, slope, d = load16(dh + i), up = load16(u + i);
        activation16<GELU>(load16(g + i), &value, &slope);
        store16(h + i, _mm512_mul_ps(value, up));
        store16(dg + i, _mm512_mul_ps(_mm512_mul_ps(d, up), slope));
        store16(du + i, _mm512_mul_ps(d, value));
    }
    gated_backward_part<bf16, GELU>(dh + i, g + i, u + i, h + i, dg + i, du + i, count - i);
}
#endif

template <bool GELU, typename T> static inline void gated_chosen(const T *g, const T *u, T *h, i64 count) {
#ifdef __AVX512BF16__
    if constexpr (sizeof(T) == 2) return gated_wide<GELU>(g, u, h, count);
#endif
    gated_part<T, GELU>(g, u, h, count);
}

template <bool GELU, typename T>
static inline void gated_backward_chosen(const T *dh, const T *g, const T *u, T *h, T *dg, T *du, i64 count) {
#ifdef __AVX512BF16__
    if constexpr (sizeof(T) == 2) return gated_backward_wide<GELU>(dh, g, u, h, dg, du, count);
#endif
    gated_backward_part<T, GELU>(dh, g, u, h, dg, du, count);
}

static const i64 PART = 4096;

template <typename T, bool GELU> static void gated(const T *g, const T *u, T *h, i64 count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 i = 0; i < count; i += PART)
        gated_chosen<GELU>(g + i, u + i, h + i, i + PART < count ? PART : count - i);
}

template <typename T, bool GELU>
static void gated_backward(const T *dh, const T *g, const T *u, T *h, T *dg, T *du, i64 count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 i = 0; i < count; i += PART)
        gated_backward_chosen<GELU>(dh + i, g + i, u + i, h + i, dg + i, du + i, i + PART < count ? PART : count - i);
}

// --- rotary positions: pairs (j, j + E/2) turned by the angle of the token; `inverse` turns back ----------------------

template <typename T>
static void rotary(const T *x, i64 token_stride, i64 head_stride, const T *cos, const T *sin, T *y, i64 N, i64 H, i64 E,
                   int inverse, int threads) {
    i64 half = E / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < N; n++)
        for (i64 h = 0; h < H; h++) {
            const T *in = x + n * token_stride + h * head_stride;
            const T *c = cos + n * E, *s = sin + n * E;
            T *out = y + (n * H + h) * E;
            if (inverse)
#pragma omp simd
                for (i64 j = 0; j < half; j++) {
                    float a = get(in + j), b = get(in + j + half);
                    put(out + j, a * get(c + j) + b * get(s + j + half));
                    put(out + j + half, b * get(c + j + half) - a * get(s + j));
                }
            else
#pragma omp simd
                for (i64 j = 0; j < half; j++) {
                    float a = get(in + j), b = get(in + j + half);
                    put(out + j, a * get(c + j) - b * get(s + j));
                    put(out + j + half, b * get(c + j + half) + a * get(s + j + half));
                }
        }
}

// --- attention: heads of documents to (B, H, T, E) and back; softmax over the keys that a query may see ----------------

template <typename S, typename T>
static void pack(const S *x, i64 token_stride, i64 head_stride, const i64 *starts, const i64 *lengths, T *y, i64 B,
                 i64 H, i64 T_, i64 E, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (i64 b = 0; b < B; b++)
        for (i64 h = 0; h < H; h++) {
            T *out = y + (b * H + h) * T_ * E;
            for (i64 t = 0; t < lengths[b]; t++) {
                const S *in = x + (starts[b] + t) * token_stride + h * head_stride;
#pragma omp simd
                for (i64 e = 0; e < E; e++) put(out + t * E + e, get(in + e));
            }
            memset((void *)(out + lengths[b] * E), 0, sizeof(T) * (T_ - lengths[b]) * E);
        }
}

template <typename S, typename T>
static void unpack(const S *x, T *y, i64 token_stride, i64 head_stride, const i64 *starts, const i64 *lengths, i64 B,
                   i64 H, i64 T_, i64 E, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (i64 b = 0; b < B; b++)
        for (i64 h = 0; h < H; h++)
            for (i64 t = 0; t < lengths[b]; t++) {
                const S *in = x + ((b * H + h) * T_ + t) * E;
                T *out = y + (starts[b] + t) * token_stride + h * head_stride;
#pragma omp simd
                for (i64 e = 0; e < E; e++) put(out + e, get(in + e));
            }
}

static inline void visible(i64 t, i64 length, i64 keys, int causal, i64 window, i64 *first, i64 *end) {
    *end = causal ? t + 1 : (length < keys ? length : keys);
    *first = window > 0 && t + 1 > window ? t + 1 - window : 0;
    if (!causal && window > 0) *end = t + window < *end ? t + window : *end;
}

// Scores (B, H, Q, K) become probabilities in place; query q of the block stands at position `offset` + q.
template <typename T>
static void softmax(T *scores, float *lse, const i64 *lengths, i64 B, i64 H, i64 Q, i64 K, i64 offset, float scale,
                    int causal, i64 window, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (i64 bh = 0; bh < B * H; bh++)
        for (i64 q = 0; q < Q; q++) {
            T *row = scores + (bh * Q + q) * K;
            i64 length = lengths[bh / H], t = offset + q, first = 0, end = 0;
            if (t < length) visible(t, length, K, causal, window, &first, &end);
            float best = largest(row + first, end - first), sum = 0;
#pragma omp simd reduction(+ : sum)
            for (i64 k = first; k < end; k++) sum += exponential(scale * (get(row + k) - best));
            float log_sum = end > first ? scale * best + logf(sum) : 0.0f;
            for (i64 k = 0; k < first; k++) put(row + k, 0.0f);
#pragma omp simd
            for (i64 k = first; k < end; k++) put(row + k, exponential(scale * get(row + k) - log_sum));
            for (i64 k = end; k < K; k++) put(row + k, 0.0f);
            lse[bh * Q + q] = log_sum;
        }
}

// Scores become probabilities p, and gradients d of probabilities those of scores: scale p (d - sum p d).
template <typename T>
static void softmax_backward(T *scores, T *gradients, const float *lse, const i64 *lengths, i64 B, i64 H, i64 Q, i64 K,
                             i64 offset, float scale, int causal, i64 window, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (i64 bh = 0; bh < B * H; bh++)
        for (i64 q = 0; q < Q; q++) {
            T *row = scores + (bh * Q + q) * K, *d = gradients + (bh * Q + q) * K;
            i64 length = lengths[bh / H], t = offset + q, first = 0, end = 0;
            if (t < length) visible(t, length, K, causal, window, &first, &end);
            float log_sum = lse[bh * Q + q], sum = 0;
#pragma omp simd reduction(+ : sum)
            for (i64 k = first; k < end; k++) {
                float p = exponential(scale * get(row + k) - log_sum);
                put(row + k, p);
                sum += p * get(d + k);
            }
#pragma omp simd
            for (i64 k = first; k < end; k++) put(d + k, scale * get(row + k) * (get(d + k) - sum));
            for (i64 k = 0; k < first; k++) put(row + k, 0.0f), put(d + k, 0.0f);
            for (i64 k = end; k < K; k++) put(row + k, 0.0f), put(d + k, 0.0f);
        }
}

// --- cross-entropy of logits (N, V): the loss of each row, and the gradient in place of the logits --------------------

template <typename T>
static void cross_entropy(T *logits, const i64 *targets, float *loss, i64 N, i64 V, int gradient, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (i64 n = 0; n < N; n++) {
        T *row = logits + n * V;
        float best = largest(row, V), sum = 0, own = get(row + targets[n]);
#pragma omp simd reduction(+ : sum)
        for (i64 v = 0; v < V; v++) sum += exponential(get(row + v) - best);
        float log_sum = best + logf(sum);
        loss[n] = log_sum - own;
        if (!gradient) continue;
#pragma omp simd
        for (i64 v = 0; v < V; v++) put(row + v, exponential(get(row + v) - log_sum));
        put(row + targets[n], exponential(own - log_sum) - 1.0f);
    }
}

// --- the names that Python calls ---------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define BOTH(NAME, ARGUMENTS, CALL_BF16, CALL_F32)                                                                     \
    EXPORT NAME##_bf16 ARGUMENTS { CALL_BF16; }                                                                        \
    EXPORT NAME##_f32 ARGUMENTS { CALL_F32; }
#define P(T) (const T *)
#define M(T) (T *)

BOTH(rms_norm, (void *x, void *w, void *y, void *r, i64 N, i64 D, float eps, float offset, int threads),
     rms_norm(P(bf16) x, P(bf16) w, M(bf16) y, M(float) r, N, D, eps, offset, threads),
     rms_norm(P(float) x, P(float) w, M(float) y, M(float) r, N, D, eps, offset, threads))
BOTH(rms_norm_backward,
     (void *dy, void *x, void *w, void *r, void *dx, i64 N, i64 D, float offset, int threads),
     rms_norm_backward(P(bf16) dy, P(bf16) x, P(bf16) w, P(float) r, M(bf16) dx, N, D, offset, threads),
     rms_norm_backward(P(float) dy, P(float) x, P(float) w, P(float) r, M(float) dx, N, D, offset, threads))
BOTH(gated, (void *g, void *u, void *h, i64 count, int gelu, int threads),
     (gelu ? gated<bf16, true> : gated<bf16, false>)(P(bf16) g, P(bf16) u, M(bf16) h, count, threads),
     (gelu ? gated<float, true> : gated<float, false>)(P(float) g, P(float) u, M(float) h, count, threads))
BOTH(gated_backward, (void *dh, void *g, void *u, void *h, void *dg, void *du, i64 count, int gelu, int threads),
     (gelu ? gated_backward<bf16, true> : gated_backward<bf16, false>)(P(bf16) dh, P(bf16) g, P(bf16) u, M(bf16) h,
                                                                      M(bf16) dg, M(bf16) du, count, threads),
     (gelu ? gated_backward<float, true> : gated_backward<float, false>)(P(float) dh, P(float) g, P(float) u,
                                                                        M(float) h, M(float) dg, M(float) du, count,
                                                                        threads))
BOTH(rotary,
     (void *x, i64 token_stride, i64 head_stride, void *c, void *s, void *y, i64 N, i64 H, i64 E, int inverse,
      int threads),
     rotary(P(bf16) x, token_stride, head_stride, P(bf16) c, P(bf16) s, M(bf16) y, N, H, E, inverse, threads),
     rotary(P(float) x, token_stride, head_stride, P(float) c, P(float) s, M(float) y, N, H, E, inverse, threads))
BOTH(softmax,
     (void *s, void *lse, void *lengths, i64 B, i64 H, i64 Q, i64 K, i64 offset, float scale, int causal, i64 window,
      int threads),
     softmax(M(bf16) s, M(float) lse, P(i64) lengths, B, H, Q, K, offset, scale, causal, window, threads),
     softmax(M(float) s, M(float) lse, P(i64) lengths, B, H, Q, K, offset, scale, causal, window, threads))
BOTH(softmax_backward,
     (void *s, void *d, void *lse, void *lengths, i64 B, i64 H, i64 Q, i64 K, i64 offset, float scale, int causal,
      i64 window, int threads),
     softmax_backward(M(bf16) s, M(bf16) d, P(float) lse, P(i64) lengths, B, H, Q, K, offset, scale, causal, window,
                      threads),
     softmax_backward(M(float) s, M(float) d, P(float) lse, P(i64) lengths, B, H, Q, K, offset, scale, causal, window,
                      threads))
BOTH(cross_entropy, (void *logits, void *targets, void *loss, i64 N, i64 V, int gradient, int threads),
     cross_entropy(M(bf16) logits, P(i64) targets, M(float) loss, N, V, gradient, threads),
     cross_entropy(M(float) logits, P(i64) targets, M(float) loss, N, V, gradient, threads))

#define PACKS(NAME, S, T)                                                                                              \
    EXPORT pack_##NAME(void *x, i64 token_stride, i64 head_stride, void *starts, void *lengths, void *y, i64 B, i64 H, \
                       i64 T_, i64 E, int threads) {                                                                   \
        pack(P(S) x, token_stride, head_stride, P(i64) starts, P(i64) lengths, M(T) y, B, H, T_, E, threads);          \
    }                                                                                                                  \
    EXPORT unpack_##NAME(void *x, void *y, i64 token_stride, i64 head_stride, void *starts, void *lengths, i64 B,      \
                         i64 H, i64 T_, i64 E, int threads) {                                                          \
        unpack(P(S) x, M(T) y, token_stride, head_stride, P(i64) starts, P(i64) lengths, B, H, T_, E, threads);        \
    }
PACKS(bf16_bf16, bf16, bf16)
PACKS(f32_bf16, float, bf16)
PACKS(bf16_f32, bf16, float)
PACKS(f32_f32, float, float)
