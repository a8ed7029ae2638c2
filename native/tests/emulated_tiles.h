// The tiles of AMX as arrays: enough of the intrinsics to run linear_amx.cpp on any AVX-512
// machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulated {

struct Tiles {
    uint16_t row_bytes[8];
    uint8_t rows[8];
    uint8_t data[8][16][64];
};

inline Tiles &tiles() {
    static thread_local Tiles t;
    return t;
}

inline void configure(const void *config) {
    const auto *c = static_cast<const uint8_t *>(config);
    Tiles &t = tiles();
    std::memset(&t, 0, sizeof t);
    std::memcpy(t.row_bytes, c + 16, 16);
    std::memcpy(t.rows, c + 48, 8);
}

inline void zero(int i) { std::memset(tiles().data[i], 0, sizeof tiles().data[i]); }

inline void load(int i, const void *p, size_t stride) {
    Tiles &t = tiles();
    zero(i);
    for (int r = 0; r < t.rows[i]; r++)
        std::memcpy(t.data[i][r], static_cast<const uint8_t *>(p) + r * stride, t.row_bytes[i]);
}

inline void store(int i, void *p, size_t stride) {
    Tiles &t = tiles();
    for (int r = 0; r < t.rows[i]; r++)
        std::memcpy(static_cast<uint8_t *>(p) + r * stride, t.data[i][r], t.row_bytes[i]);
}

// Signed bytes of `left` by unsigned ones of `right`.
inline void dot(int out, int left, int right) {
    Tiles &t = tiles();
    for (int m = 0; m < t.rows[out]; m++)
        for (int k = 0; k < t.row_bytes[left] / 4; k++)
            for (int n = 0; n < t.row_bytes[out] / 4; n++) {
                int32_t sum;
                std::memcpy(&sum, &t.data[out][m][4 * n], 4);
                for (int c = 0; c < 4; c++)
                    sum += int8_t(t.data[left][m][4 * k + c]) * t.data[right][k][4 * n + c];
                std::memcpy(&t.data[out][m][4 * n], &sum, 4);
            }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(config) emulated::configure(config)
#define _tile_release() (void)0
#define _tile_zero(i) emulated::zero(i)
#define _tile_loadd(i, p, stride) emulated::load(i, p, stride)
#define _tile_stored(i, p, stride) emulated::store(i, p, stride)
#define _tile_dpbsud(out, left, right) emulated::dot(out, left, right)
