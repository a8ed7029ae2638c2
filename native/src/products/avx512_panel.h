// AVX-512: products of many batch rows. A panel of weights, two tiles by some blocks, is unpacked
// once into the first-level cache and multiplied with up to 96 batch rows.
#pragma once

#include <algorithm>
#include <cstring>

#include "avx512_elements.h"
#include "avx512_units.h"

namespace {

inline __m512i broadcast(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

// vpdpbusd of sums that a loop carries. In one register: of many sums gcc 12 makes two copies, and
// stores one of them in every turn.
inline __m512i add_products(__m512i sum, __m512i w, __m512i x) {
    sum = _mm512_dpbusd_epi32(sum, w, x);
#if defined(__GNUC__)
    __asm__("" : "+v"(sum));
#endif
    return sum;
}

// Blocks ahead in each stream, into the second-level cache: a line at a time, for in one burst they
// would take all of the first level's miss buffers.
constexpr int kPrefetch = 16;

constexpr int kPanelTiles = 2;
constexpr int kPanelBlocks = 6;
constexpr int64_t kPanelBytes = 512 << 10;  // of activations, to stay in the second-level cache

struct Panel {
    alignas(64) uint8_t unit[kPanelTiles][kPanelBlocks * kBlockSteps][kUnit];
    alignas(64) float step[kPanelTiles][kPanelBlocks * kBlockGroups][16];
    alignas(64) float sum[kPanelBatch][kPanelTiles][16];
};

template <class Tile>
void unpack_block(const StepRegisters &table, const Tile &at, uint8_t (*__restrict unit)[kUnit],
                  float (*__restrict step)[16]) {
    // What the next panel will read comes while this one is multiplied.
    for (int i = 0; i < Tile::kLines; i++)
        _mm_prefetch((const char *)at.line(i, kPanelBlocks), _MM_HINT_T1);
    repeat<kBlockSteps>(
        [&](auto s) { _mm512_store_si512(unit[s.value], at.template unit<s.value>()); });
    const __m512i index = load_unit(at.index);
    repeat<kBlockGroups>(
        [&](auto g) { _mm512_store_ps(step[g.value], table.of_group<g.value>(index)); });
}

// `count` blocks from block n on of a tile.
template <int D>
void unpack_blocks(const StepRegisters &table, const Product &p, int64_t tile, int64_t n,
                   int64_t count, uint8_t (*unit)[kUnit], float (*step)[16]) {
    with_tile<D>(p, [&](auto kind) {
        typename decltype(kind)::Tile at(p, tile);
        at.advance(n);
        for (int64_t i = 0; i < count; i++, at.advance(1))
            unpack_block(table, at, unit + i * kBlockSteps, step + i * kBlockGroups);
    });
}

// Batch rows b .. b + M - 1 on T tiles of the panel from t0 on, and `count` blocks from block n on.
template <int T, int M>
void multiply_panel(const Panel &panel, int t0, const Activations &a, int depth, int64_t b,
                    int64_t n, int64_t count, float (*sums)[kPanelTiles][16]) {
    const int8_t *q[M];
    const int32_t *offset[M];
    const float *scale[M];
    __m512 sum[M][T];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, b + m) + n * kBlockColumns;
        offset[m] = offset_row(a, b + m, depth) + n * kBlockGroups;
        scale[m] = scale_row(a, b + m) + n * kBlockGroups;
        for (int t = 0; t < T; t++) sum[m][t] = _mm512_load_ps(sums[m][t0 + t]);
    }
    for (int64_t g = 0; g < count * kBlockGroups; g++) {
        __m512i dot[M][T];
        for (int m = 0; m < M; m++)
            for (int t = 0; t < T; t++) dot[m][t] = _mm512_set1_epi32(offset[m][g]);
        for (int i = 0; i < kGroupSteps; i++) {
            __m512i w[T];
            for (int t = 0; t < T; t++)
                w[t] = _mm512_load_si512(panel.unit[t0 + t][g * kGroupSteps + i]);
            for (int m = 0; m < M; m++) {
                const __m512i x = broadcast(q[m] + 16 * g + 4 * i);
                for (int t = 0; t < T; t++) dot[m][t] = _mm512_dpbusd_epi32(dot[m][t], w[t], x);
            }
        }
        for (int m = 0; m < M; m++) {
            const __m512 s = _mm512_set1_ps(scale[m][g]);
            for (int t = 0; t < T; t++)
                sum[m][t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot[m][t]), s),
                                            _mm512_load_ps(panel.step[t0 + t][g]), sum[m][t]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int t = 0; t < T; t++) _mm512_store_ps(sums[m][t0 + t], sum[m][t]);
}

// Up to six batch rows by vpdpbusd: with two tiles that is as many sums as there are registers for.
struct Vnni {
    static constexpr int kRows = 6;

    // A tile's sums of a batch row become its results.
    static __m512 result(const Product &, const Activations &, int64_t, int64_t, const float *sum) {
        return _mm512_load_ps(sum);
    }

    template <int T>
    static void multiply(int rows, const Panel &panel, int t0, const Activations &a, int depth,
                         int64_t b, int64_t n, int64_t count, float (*sums)[kPanelTiles][16]) {
        switch (rows) {
            case 1: multiply_panel<T, 1>(panel, t0, a, depth, b, n, count, sums); break;
            case 2: multiply_panel<T, 2>(panel, t0, a, depth, b, n, count, sums); break;
            case 3: multiply_panel<T, 3>(panel, t0, a, depth, b, n, count, sums); break;
            case 4: multiply_panel<T, 4>(panel, t0, a, depth, b, n, count, sums); break;
            case 5: multiply_panel<T, 5>(panel, t0, a, depth, b, n, count, sums); break;
            default: multiply_panel<T, 6>(panel, t0, a, depth, b, n, count, sums);
        }
    }
};

template <int D, class Engine>
void prefill(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    Panel panel;
    const StepRegisters table(p.steps);
    const int64_t most = panel_rows(p.blocks, kPanelBytes, Engine::kRows);
    for (int64_t first_row = 0; first_row < a.batch; first_row += most) {
        const int64_t rows = std::min(most, a.batch - first_row);
        for (int64_t tile = begin; tile < end; tile += kPanelTiles) {
            const int tiles = int(std::min<int64_t>(kPanelTiles, end - tile));
            std::memset(panel.sum, 0, size_t(rows) * sizeof panel.sum[0]);
            for (int64_t n = 0; n < p.blocks; n += kPanelBlocks) {
                const int64_t count = std::min<int64_t>(kPanelBlocks, p.blocks - n);
                for (int t = 0; t < tiles; t++)
                    unpack_blocks<D>(table, p, tile + t, n, count, panel.unit[t], panel.step[t]);
                for (int64_t b = 0; b < rows; b += Engine::kRows) {
                    const int m = int(std::min<int64_t>(Engine::kRows, rows - b));
                    int t = 0;
                    for (; t + 2 <= tiles; t += 2)
                        Engine::template multiply<2>(m, panel, t, a, D, first_row + b, n, count,
                                                     panel.sum + b);
                    if (t < tiles)
                        Engine::template multiply<1>(m, panel, t, a, D, first_row + b, n, count,
                                                     panel.sum + b);
                }
            }
            for (int64_t b = 0; b < rows; b++)
                for (int t = 0; t < tiles; t++)
                    finish16(p, first_row + b, (tile + t) * kTileRows,
                             Engine::result(p, a, first_row + b, tile + t, panel.sum[b][t]));
        }
    }
}

}  // namespace
