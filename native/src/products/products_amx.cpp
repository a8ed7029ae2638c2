// y = x W^T of many batch rows with AMX int8; few of them, and the exact products, are AVX-512's.
//
// By groups, four units of a group are a right operand as tdpbsud wants it: row k of the tile holds bytes 4k
// .. 4k+3 of the sixteen weight rows. The left operand is sixteen batch rows of sixteen
// activations. As scales change every 16 columns a tile is but a quarter full. By superblocks,
// tiles are full.
//
// Written without a machine that has AMX: tests/linear_amx_test.cpp runs it on tiles made of
// arrays.
#include <immintrin.h>

#include "avx512_panel.h"
#include "avx512_superblocks.h"

#ifdef TRITLLM_EMULATE_TILES
#include "emulated_tiles.h"
#endif

extern const ProductKernels products_avx512;

namespace {

// Tile 0 is the left operand, 1 the right one, 2 and 3 are results. The intrinsics paste the
// numbers into the names of registers, so they stand here as digits.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {TRITLLM_GROUP, 64, 64, 64};
    uint8_t rows[16] = {16, kGroupSteps, 16, 16};
};

struct Amx {
    static constexpr int kRows = 16;

    static __m512 result(const Product &, const Activations &, int64_t, int64_t, const float *sum) {
        return _mm512_load_ps(sum);
    }

    template <int T>
    static void multiply(int rows, const Panel &panel, int t0, const Activations &a, int depth,
                         int64_t b, int64_t n, int64_t count, float (*sums)[kPanelTiles][16]) {
        if (rows < kRows) {
            for (int m = 0; m < rows; m += Vnni::kRows)
                Vnni::multiply<T>(std::min(Vnni::kRows, rows - m), panel, t0, a, depth, b + m, n,
                                  count, sums + m);
            return;
        }
        for (int t = 0; t < T; t++) multiply_tile(panel, t0 + t, a, depth, b, n, count, sums);
    }

 private:
    // Two groups at a time, so that the tiles of one are multiplied while the other's are added up.
    static void multiply_tile(const Panel &panel, int t, const Activations &a, int depth, int64_t b,
                              int64_t n, int64_t count, float (*sums)[kPanelTiles][16]) {
        alignas(64) int32_t dot[2][kRows][16];
        const int8_t *q = quantized_row(a, b) + n * kBlockColumns;
        const int64_t words = a.row_bytes / 4;
        const int32_t *offset = offset_row(a, b, depth) + n * kBlockGroups;
        const float *scale = scale_row(a, b) + n * kBlockGroups;
        __m512 sum[kRows];
        for (int m = 0; m < kRows; m++) sum[m] = _mm512_load_ps(sums[m][t]);
        __asm__ volatile("" ::: "memory");  // gcc's tile loads do not say that they read memory
        for (int64_t g = 0; g < count * kBlockGroups; g += 2) {
            const uint8_t *units = panel.unit[t][g * kGroupSteps];
            _tile_loadd(0, q + 16 * g, size_t(a.row_bytes));
            _tile_loadd(1, units, kUnit);
            _tile_zero(2);
            _tile_dpbsud(2, 0, 1);
            _tile_stored(2, dot[0], 64);
            _tile_loadd(0, q + 16 * g + 16, size_t(a.row_bytes));
            _tile_loadd(1, units + kGroupSteps * kUnit, kUnit);
            _tile_zero(3);
            _tile_dpbsud(3, 0, 1);
            _tile_stored(3, dot[1], 64);
            __asm__ volatile("" ::: "memory");
            for (int i = 0; i < 2; i++) {
                const __m512 step = _mm512_load_ps(panel.step[t][g + i]);
                for (int m = 0; m < kRows; m++) {
                    const __m512i level_dot = _mm512_add_epi32(
                        _mm512_load_si512(dot[i][m]), _mm512_set1_epi32(offset[m * words + g + i]));
                    const __m512 s = _mm512_set1_ps(scale[m * words + g + i]);
                    sum[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(level_dot), s), step,
                                             sum[m]);
                }
            }
        }
        for (int m = 0; m < kRows; m++) _mm512_store_ps(sums[m][t], sum[m]);
    }
};
static_assert(kBlockGroups % 2 == 0, "groups are taken in pairs");

template <int D>
void with_tiles(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    const TileConfig config;
    // gcc 12 believes that the instruction reads eight bytes, and drops what fills the others.
    __asm__ volatile("" : : "m"(config) : "memory");
    _tile_loadconfig(&config);
    prefill<D, Amx>(p, a, begin, end);
    _tile_release();
}

void compute(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    if (a.batch < Amx::kRows) return products_avx512.compute(p, a, begin, end);
    switch (p.depth) {
        case 1: return with_tiles<1>(p, a, begin, end);
        case 2: return with_tiles<2>(p, a, begin, end);
        case 3: return with_tiles<3>(p, a, begin, end);
        default: return with_tiles<4>(p, a, begin, end);
    }
}

// --- Superblocks: full tiles of 16 batch rows x 64 columns -------------------------------------

struct alignas(64) FullTiles {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16};
};

struct AmxSuperblocks : Avx512Engine {
    static constexpr int kRows = 16;

    static void multiply(SuperPanel &panel, int tiles, const Activations &a, int64_t first,
                         int64_t rows, int64_t s, int64_t count) {
        const int64_t whole = rows / kRows * kRows;
        const FullTiles config;
        __asm__ volatile("" : : "m"(config) : "memory");  // see with_tiles
        _tile_loadconfig(&config);
        for (int64_t row = 0; row < whole; row += kRows)
            multiply_tiles(panel, tiles, a, first, row, s, count);
        _tile_release();
        for (int t = 0; t < tiles; t++)
            multiply_super_rows<Avx512Vnni, 1>(rows - whole, panel, t, a, first, whole, s, count);
    }

 private:
    static constexpr int kColumns = 64;

    // Two tiles of weights (the second may hold those of an earlier panel, whose results are not
    // taken). Tiles 0 and 1 are results, 2 is the left operand, 3 and 4 are right ones.
    static void multiply_tiles(SuperPanel &panel, int tiles, const Activations &a, int64_t first,
                               int64_t row, int64_t s, int64_t count) {
        alignas(64) int32_t dot[2][kRows][16];
        const int8_t *q = superblock_row(a, first + row) + s * kSuperColumns;
        const auto stride = size_t(a.row_bytes);
        for (int64_t n = 0; n < count; n++, q += kSuperColumns) {
            const uint8_t *left = panel.weight[0][n * kSuperSteps];
            const uint8_t *right = panel.weight[1][n * kSuperSteps];
            constexpr int bytes = kColumns / 4 * kUnit;  // of 64 columns
            __asm__ volatile("" ::: "memory");  // gcc's tile loads do not say that they read memory
            _tile_zero(0);
            _tile_zero(1);
            for (int k = 0; k < kSuperColumns / kColumns; k++) {
                _tile_loadd(2, q + k * kColumns, stride);
                _tile_loadd(3, left + k * bytes, kUnit);
                _tile_loadd(4, right + k * bytes, kUnit);
                _tile_dpbsud(0, 2, 3);
                _tile_dpbsud(1, 2, 4);
            }
            _tile_stored(0, dot[0], 64);
            _tile_stored(1, dot[1], 64);
            __asm__ volatile("" ::: "memory");
            for (int m = 0; m < kRows; m++) {
                const int64_t b = first + row + m;
                const __m512i offset = _mm512_set1_epi32(superblock_offset(a, b)[s + n]);
                const __m512 activation = _mm512_set1_ps(superblock_scale(a, b)[s + n]);
                for (int t = 0; t < tiles; t++) {
                    const __m512i sums = _mm512_load_si512(dot[t][m]);
                    const __m512 levels = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, offset));
                    float *sum = panel.sum[t][row + m];
                    _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_mul_ps(levels, activation),
                                                         _mm512_load_ps(panel.scale[t][n]),
                                                         _mm512_load_ps(sum)));
                }
            }
        }
    }
};
static_assert(kSuperColumns % 64 == 0, "superblocks are whole tiles");

void compute_exact(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    products_avx512.compute_exact(p, a, begin, end);
}

void compute_rows(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    products_avx512.compute_rows(p, a, begin, end);
}

int prepare(const tritllm_portable &portable, int64_t begin, int64_t end, uint8_t *memory) {
    return products_avx512.prepare(portable, begin, end, memory);
}

void decode(const Product &p, int64_t columns, int64_t begin, int64_t end, void *out) {
    products_avx512.decode(p, columns, begin, end, out);
}

}  // namespace

extern const ProductKernels products_amx = {
    kFives,          prepare,
    avx512_rows,     compute,
    compute_exact,   superblocks_compute<AmxSuperblocks>,
    compute_rows,    decode,
    kSuperblockRows, 0,
};
