// AMX tiles in plain C++, for processors that have AVX512-BF16 and no tiles: put before products.cpp and
// row_attention.cpp by -include. Results are those of tiles up to rounding (denormals are kept here).
// With `emulated_no_memory` set, nothing can be allocated.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {
inline int emulated_no_memory = 0;
}

namespace emulated {

inline thread_local char tile[8][16][64];

inline void load(int t, const void *from, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy(tile[t][row], (const char *)from + row * stride, 64);
}

inline void store(int t, void *to, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy((char *)to + row * stride, tile[t][row], 64);
}

inline float wide(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

// sums (16, 16) += a (16 rows of 32 values) times b (16 pairs of rows by 16 columns)
inline void multiply(int sums, int a, int b) {
    for (int row = 0; row < 16; row++) {
        float out[16];
        uint16_t left[32], right[32];
        memcpy(out, tile[sums][row], 64);
        memcpy(left, tile[a][row], 64);
        for (int pair = 0; pair < 16; pair++) {
            memcpy(right, tile[b][pair], 64);
            for (int column = 0; column < 16; column++)
                for (int i = 0; i < 2; i++) out[column] += wide(left[2 * pair + i]) * wide(right[2 * column + i]);
        }
        memcpy(tile[sums][row], out, 64);
    }
}

inline void *allocate(size_t alignment, size_t size) {
    return emulated_no_memory ? nullptr : aligned_alloc(alignment, size);
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated::store(t, to, stride)
#define _tile_zero(t) memset(emulated::tile[t], 0, sizeof(emulated::tile[t]))
#define _tile_dpbf16ps(sums, a, b) emulated::multiply(sums, a, b)
#define _tile_loadconfig(configuration) (void)(configuration)
#define _tile_release() (void)0
#define syscall(...) 0
#define aligned_alloc(alignment, size) emulated::allocate(alignment, size)
