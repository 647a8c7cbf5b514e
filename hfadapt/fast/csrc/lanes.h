// Sixteen float32 at a time, on processors with AVX512-BF16.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>

namespace lanes {

static inline __m512 wide(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

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

}  // namespace lanes
#endif
