// Matrix products on AMX tiles (x86 processors with amx_bf16): bfloat16 in, float32 sums.
//
// A tile register holds 16 rows of 64 bytes: of a left factor 16 rows × 32 values, of a right factor 16 pairs of rows ×
// 16 columns, of sums 16 × 16 float32 (Intel, Architecture Instruction Set Extensions, chapter 3). A right factor is
// packed by panels of 32 columns: for every 32 rows of it two tiles of 1 KiB, first the columns 0 to 15, then 16 to 31.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "lanes.h"

typedef uint16_t bf16;
typedef int64_t i64;

namespace tiles {

const i64 DEPTH = 32;           // rows of a right factor in a tile
const i64 PANEL = 32;           // columns of a packed panel
const i64 TILE = 512;           // bf16 values of a tile
const i64 STEP = 2 * TILE;      // values of a panel for DEPTH rows

// Linux lets a process use tiles only after it has asked to (Documentation/arch/x86/xstate.rst).
static inline bool permitted() {
    const int request = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

struct Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of one thread, from construction to destruction.
struct Scope {
    Scope() {
        alignas(64) Configuration wanted;
        _tile_loadconfig(&wanted);
    }
    ~Scope() { _tile_release(); }
};

// Memory of one thread that is kept for the next call; null where there is none.
struct Scratch {
    void *data = nullptr;
    size_t size = 0;
    template <typename T> T *get(size_t count) {
        size_t wanted = (count * sizeof(T) + 64) / 64 * 64;  // at least a line: null means no memory
        if (wanted > size) {
            free(data);
            data = aligned_alloc(64, wanted);
            size = data ? wanted : 0;
        }
        return (T *)data;
    }
    ~Scratch() { free(data); }
};

// The number of units of work that found no memory; vectors that find none count as one, as C knows no exceptions.
template <typename Work> static int without_memory(Work work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

static inline __mmask32 first(i64 count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1;
}

using lanes::narrow;
using lanes::wide;

// 16 × 16 values of 32 bits, rows to columns.
static inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// The panel of a right factor Wᵀ from W (columns, depth): one row of W is one column of the factor. Zero where W ends.
static inline void pack_transposed(const bf16 *w, i64 stride, i64 columns, i64 depth, bf16 *out) {
    for (i64 k = 0; k < depth; k += DEPTH, out += STEP) {
        __mmask32 mask = first(depth - k);
        for (i64 half = 0; half < 2; half++) {
            __m512i r[16];
            for (i64 i = 0; i < 16; i++) {
                i64 column = 16 * half + i;
                r[i] = column < columns ? _mm512_maskz_loadu_epi16(mask, w + column * stride + k) : _mm512_setzero_si512();
            }
            transpose(r);
            for (i64 i = 0; i < 16; i++) _mm512_store_si512(out + half * TILE + 32 * i, r[i]);
        }
    }
}

// The panel of a right factor W (depth, columns) as it lies in memory: pairs of rows are woven. Zero where W ends and
// where bits of `dropped` are set, a word of it for a row, `words` apart.
static inline void pack_woven(const bf16 *w, i64 stride, i64 columns, i64 depth, bf16 *out,
                              const uint32_t *dropped = nullptr, i64 words = 0) {
    alignas(64) static const uint16_t order[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62,
         31, 63}};
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    __mmask32 mask = first(columns);
    for (i64 k = 0; k < depth; k += DEPTH, out += STEP)
        for (i64 pair = 0; pair < 16; pair++) {
            i64 row = k + 2 * pair;
            const bf16 *at = w + row * stride;
            __mmask32 of_a = row < depth ? mask : 0, of_b = row + 1 < depth ? mask : 0;
            if (dropped) {
                if (of_a) of_a &= ~dropped[row * words];
                if (of_b) of_b &= ~dropped[(row + 1) * words];
            }
            __m512i a = _mm512_maskz_loadu_epi16(of_a, at), b = _mm512_maskz_loadu_epi16(of_b, at + stride);
            _mm512_store_si512(out + 32 * pair, _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(out + TILE + 32 * pair, _mm512_permutex2var_epi16(a, high, b));
        }
}

// Sums of 32 × 32 in the tiles 0 to 3.
static inline void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Adds a (32 rows, depth) times a packed panel; depth is a multiple of 32.
static inline void accumulate(const bf16 *a, i64 stride, const bf16 *panel, i64 depth) {
    const bf16 *below = a + 16 * stride;
    for (i64 k = 0; k < depth; k += DEPTH, panel += STEP) {
        _tile_loadd(4, a + k, stride * 2);
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + TILE, 64);
        _tile_loadd(5, below + k, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Sums (32, 32) to float32 memory with rows of 32.
static inline void sums(float *out) {
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    _tile_stored(2, out + 16 * 32, 128);
    _tile_stored(3, out + 16 * 32 + 16, 128);
}

// Sums as `sums` left them, to go on.
static inline void restore(const float *in) {
    _tile_loadd(0, in, 128);
    _tile_loadd(1, in + 16, 128);
    _tile_loadd(2, in + 16 * 32, 128);
    _tile_loadd(3, in + 16 * 32 + 16, 128);
}

}  // namespace tiles
