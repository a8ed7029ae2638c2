// y = x W^T on the layout kFields where every row of W has one scale, and every row of x: a result is
// one dot product of integers, times both. Of the vectors V of fields_product.h this takes also
// none(), sums of nothing, plus(Ints, Ints), and load and store of Ints.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fields_product.h"

namespace {

// Groups of 16 columns that V::Sums take before they are added up in 32 bits: in 16 bits, 48 times two
// products of at most 2 * 127 fit.
constexpr int kRunGroups = 12;

template <class V>
void finish_rows(const Product &p, const typename V::Steps &steps, const Activations &a, int64_t b,
                 int64_t tile, const typename V::Ints *dot) {
    constexpr int kParts = kTileRows / V::kRows;
    alignas(64) float result[kTileRows];
    typename V::Floats step[2][kParts];
    steps.of_groups(ApartTile<V, 1>(p, tile).index, 0, step);
    const auto scale = V::set(*scale_row(a, b));
    for (int part = 0; part < kParts; part++)
        V::store(result + part * V::kRows,
                 V::mul(V::mul(V::to_floats(dot[part]), scale), step[0][part]));
    finish_tile<V>(p, b, tile, result);
}

// --- Few batch rows: weights go from memory to registers ------------------------------------------

template <class V, int M>
void rows_tile(const Product &p, const typename V::Steps &steps, const Activations &a, int64_t b,
               int64_t tile) {
    constexpr int kParts = kTileRows / V::kRows;
    const uint8_t *unit = ApartTile<V, 1>(p, tile).plane[0];
    const int8_t *q[M];
    typename V::Ints dot[M][kParts];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, b + m);
        for (int part = 0; part < kParts; part++) dot[m][part] = V::set(-token_sum(a, b + m));
    }
    for (int64_t left = p.blocks * kBlockGroups; left > 0; left -= kRunGroups) {
        const int groups = int(std::min<int64_t>(kRunGroups, left));
        typename V::Sums run[M][kParts];
        for (int m = 0; m < M; m++)
            for (int part = 0; part < kParts; part++) run[m][part] = V::none();
        for (int g = 0; g < groups; g++, unit += kUnit) {
            V::prefetch(unit + kFieldsPrefetch);
            typename V::Bytes w[kParts][4];
            for (int part = 0; part < kParts; part++)
                V::template trits<0>(V::load(unit + part * 4 * V::kRows), w[part]);
            for (int m = 0; m < M; m++)
                for (int i = 0; i < 4; i++) {
                    const auto x = V::four(q[m] + 16 * g + 4 * i);
                    for (int part = 0; part < kParts; part++)
                        run[m][part] = V::template more<1>(run[m][part], w[part][i], x);
                }
        }
        for (int m = 0; m < M; m++) {
            q[m] += TRITLLM_GROUP * groups;
            for (int part = 0; part < kParts; part++)
                dot[m][part] = V::plus(dot[m][part], V::template total<1>(run[m][part], 0));
        }
    }
    for (int m = 0; m < M; m++) finish_rows<V>(p, steps, a, b + m, tile, dot[m]);
}

template <class V>
void rows_decode(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    const typename V::Steps steps(p.steps);
    for (int64_t tile = begin; tile < end; tile++) switch (a.batch) {
            case 0: return;
            case 1: rows_tile<V, 1>(p, steps, a, 0, tile); break;
            case 2: rows_tile<V, 2>(p, steps, a, 0, tile); break;
            case 3: rows_tile<V, 3>(p, steps, a, 0, tile); break;
            default: rows_tile<V, kFewRows>(p, steps, a, 0, tile);
        }
}

// --- Many batch rows: a panel of weights is unpacked once into the first-level cache ---------------

struct RowsPanel {
    alignas(64) uint8_t code[kPanelTiles][kPanelBlocks * kBlockSteps][kUnit];
    alignas(64) int32_t dot[kPanelTiles][kPanelBatch][kTileRows];
};

// Batch rows b .. b + M - 1 on so many groups of one tile, those from `column` on.
template <class V, int M>
void multiply_rows_panel(const uint8_t (*code)[kUnit], const Activations &a, int64_t b,
                         int64_t column, int64_t groups, int32_t (*dots)[kTileRows]) {
    constexpr int kParts = kTileRows / V::kRows;
    const int8_t *q[M];
    for (int m = 0; m < M; m++) q[m] = quantized_row(a, b + m) + column;
    for (int64_t left = groups; left > 0; left -= kRunGroups) {
        const int64_t steps = std::min<int64_t>(kRunGroups, left) * kGroupSteps;
        typename V::Sums run[M][kParts];
        for (int m = 0; m < M; m++)
            for (int part = 0; part < kParts; part++) run[m][part] = V::none();
        for (int64_t s = 0; s < steps; s++, code++) {
            typename V::Bytes w[kParts];
            for (int part = 0; part < kParts; part++)
                w[part] = V::load(*code + part * 4 * V::kRows);
            for (int m = 0; m < M; m++) {
                const auto x = V::four(q[m] + 4 * s);
                for (int part = 0; part < kParts; part++)
                    run[m][part] = V::template more<1>(run[m][part], w[part], x);
            }
        }
        for (int m = 0; m < M; m++) {
            q[m] += 4 * steps;
            for (int part = 0; part < kParts; part++) {
                int32_t *dot = dots[m] + part * V::kRows;
                V::store(dot, V::plus(V::load(dot), V::template total<1>(run[m][part], 0)));
            }
        }
    }
}

template <class V>
void rows_prefill(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    constexpr int kParts = kTileRows / V::kRows;
    RowsPanel panel;
    const typename V::Steps steps(p.steps);
    const int64_t most = panel_rows(p.blocks, kPanelBytes, kFewRows);
    for (int64_t first = 0; first < a.batch; first += most) {
        const int64_t rows = std::min(most, a.batch - first);
        for (int64_t tile = begin; tile < end; tile += kPanelTiles) {
            const int tiles = int(std::min<int64_t>(kPanelTiles, end - tile));
            for (int t = 0; t < tiles; t++)
                for (int64_t b = 0; b < rows; b++)
                    std::fill_n(panel.dot[t][b], kTileRows, -token_sum(a, first + b));
            for (int64_t n = 0; n < p.blocks; n += kPanelBlocks) {
                const int64_t groups = std::min<int64_t>(kPanelBlocks, p.blocks - n) * kBlockGroups;
                for (int t = 0; t < tiles; t++) {
                    ApartTile<V, 1> at(p, tile + t);
                    at.advance(n);
                    for (int64_t g = 0; g < groups; g++)
                        for (int part = 0; part < kParts; part++) {
                            typename V::Bytes w[4];
                            const int64_t bytes = part * 4 * V::kRows;
                            V::template trits<0>(V::load(at.plane[0] + g * kUnit + bytes), w);
                            for (int i = 0; i < 4; i++)
                                V::store(panel.code[t][g * kGroupSteps + i] + bytes, w[i]);
                        }
                }
                for (int64_t b = 0; b < rows; b += kFewRows)
                    for (int t = 0; t < tiles; t++) {
                        const auto take = rows - b >= kFewRows ? multiply_rows_panel<V, kFewRows>
                                          : rows - b == 3      ? multiply_rows_panel<V, 3>
                                          : rows - b == 2      ? multiply_rows_panel<V, 2>
                                                               : multiply_rows_panel<V, 1>;
                        take(panel.code[t], a, first + b, n * kBlockColumns, groups,
                             panel.dot[t] + b);
                    }
            }
            for (int t = 0; t < tiles; t++)
                for (int64_t b = 0; b < rows; b++) {
                    typename V::Ints dot[kParts];
                    for (int part = 0; part < kParts; part++)
                        dot[part] = V::load(panel.dot[t][b] + part * V::kRows);
                    finish_rows<V>(p, steps, a, first + b, tile + t, dot);
                }
        }
    }
}

template <class V>
void fields_rows(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    (a.batch <= kFewRows ? rows_decode<V> : rows_prefill<V>)(p, a, begin, end);
}

}  // namespace
