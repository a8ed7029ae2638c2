// Superblocks of 192 columns (superblocks.h) for instruction sets that widen products step by step
// anyway: weights keep their levels, and only the steps of a superblock's groups are rounded, to
// integers that the widening multiplies by.
//
//   top = the largest |step| of the superblock's groups     m = rint(step * (2047 / top)), of a group
//   dot = sum over groups of m times the dot product of levels and q, an exact integer of 32 bits
//   y = sum over superblocks, ascending, of float(dot) * s times (top / 2047), then + bias
//
// Activations are those of superblocks.h. products/reference.py is the same in NumPy.
//
// Of a vector V this takes, D being the depth:
//   kSuperBias              what is added to activations before first_levels and more_levels take them
//   kSuperRun<D>            steps of a group that these may add up before `scaled` takes the sum
//   levels(codes, L)        codes - L          to_ints(floats)   rounded, ties to even
//   multiplier(m)           m, as `scaled` takes it            times(ints, a number)
#pragma once

#include <algorithm>
#include <cstdint>

#include "superblocks.h"

namespace {

constexpr float kLargestMultiplier = 2047.0f;  // 40 * 127 * 192 times as much are 31 bits
constexpr int8_t kOnes[4] = {1, 1, 1, 1};

template <int D>
struct LevelPanel {
    alignas(64) uint8_t weight[2][kPanelSupers * kSuperSteps][kUnit];  // levels
    alignas(64) int32_t multiplier[2][kPanelSupers * kSuperGroups][kTileRows];
    alignas(64) int32_t start[2][kPanelSupers][kTileRows];
    alignas(64) float scale[2][kPanelSupers][kTileRows];
    float (*sum)[kSuperBatch][kTileRows];
};

// Codes (level + L) of superblock n of tile t and its steps -> levels in place, multipliers, scales.
template <class V, int D>
void round_superblock(LevelPanel<D> &panel, int t, int64_t n, const float (*step)[kTileRows]) {
    auto code = panel.weight[t] + n * kSuperSteps;
    alignas(64) float top[kTileRows], factor[kTileRows];
    largest_steps(step, top);
    for (int r = 0; r < kTileRows; r++) {
        factor[r] = top[r] > 0 ? kLargestMultiplier / top[r] : 0.0f;
        panel.scale[t][n][r] = top[r] / kLargestMultiplier;
    }
    for (int lane = 0; lane < kTileRows; lane += V::kRows) {
        typename V::Ints sum = V::set(0);
        for (int g = 0; g < kSuperGroups; g++) {
            const auto m = V::multiplier(
                V::to_ints(V::mul(V::load_floats(step[g] + lane), V::load_floats(factor + lane))));
            V::store(panel.multiplier[t][n * kSuperGroups + g] + lane, m);
            for (int i = 0; i < kGroupSteps; i++) {
                uint8_t *at = code[g * kGroupSteps + i] + 4 * lane;
                const auto w = V::levels(V::load(at), kMaxLevel[D]);
                V::store(at, w);
                sum = V::scaled(sum, V::first_levels(w, V::four(kOnes)), m);
            }
        }
        V::store(panel.start[t][n] + lane, V::times(sum, -V::kSuperBias));
    }
}

// Batch rows of activations plus V::kSuperBias, of as many superblocks as a panel has.
template <int M>
using SuperRows = int8_t[M][kPanelSupers * kSuperColumns];

// Rows row .. row + M - 1 of the panel's sums, which are batch rows b on, by superblocks s .. s + count
// - 1 and tile t.
template <class V, int M, int D>
void multiply_levels(LevelPanel<D> &panel, int t, const Activations &a, const SuperRows<M> &q,
                     int64_t b, int64_t row, int64_t s, int64_t count) {
    constexpr int kParts = kTileRows / V::kRows, kRun = V::template kSuperRun<D>;
    for (int64_t n = 0; n < count; n++) {
        typename V::Ints dot[M][kParts];
        for (int m = 0; m < M; m++)
            for (int part = 0; part < kParts; part++)
                dot[m][part] = V::load(panel.start[t][n] + part * V::kRows);
        for (int64_t g = n * kSuperGroups; g < (n + 1) * kSuperGroups; g++) {
            typename V::Sums run[M][kParts];
            for (int64_t i = 0; i < kGroupSteps; i++)
                for (int m = 0; m < M; m++) {
                    const int64_t step = g * kGroupSteps + i;
                    const auto x = V::four(q[m] + 4 * step);
                    for (int part = 0; part < kParts; part++) {
                        const auto w = V::load(panel.weight[t][step] + part * 4 * V::kRows);
                        auto &sum = run[m][part];
                        sum = i % kRun ? V::more_levels(sum, w, x) : V::first_levels(w, x);
                        if (i % kRun == kRun - 1)
                            dot[m][part] =
                                V::scaled(dot[m][part], sum,
                                          V::load(panel.multiplier[t][g] + part * V::kRows));
                    }
                }
        }
        for (int m = 0; m < M; m++) {
            const auto activation = V::set(superblock_scale(a, b + m)[s + n]);
            for (int part = 0; part < kParts; part++)
                add_scaled<V>(panel.sum[t][row + m] + part * V::kRows, dot[m][part], activation,
                              panel.scale[t][n] + part * V::kRows);
        }
    }
}

template <class V, int M, int D>
void multiply_level_rows(LevelPanel<D> &panel, int tiles, const Activations &a, int64_t b,
                         int64_t row, int64_t s, int64_t count) {
    alignas(64) SuperRows<M> q;
    for (int m = 0; m < M; m++) {
        const int8_t *from = superblock_row(a, b + m) + s * kSuperColumns;
        for (int64_t i = 0; i < count * kSuperColumns; i++)
            q[m][i] = int8_t(from[i] + V::kSuperBias);
    }
    for (int t = 0; t < tiles; t++) multiply_levels<V, M, D>(panel, t, a, q, b, row, s, count);
}

// A panel by all rows, which are batch rows `first` on.
template <class V, int D>
void multiply_super_panel(LevelPanel<D> &panel, int tiles, const Activations &a, int64_t first,
                          int64_t rows, int64_t s, int64_t count) {
    constexpr int M = V::kSuperRows;
    int64_t row = 0;
    for (; rows - row >= M; row += M)
        multiply_level_rows<V, M>(panel, tiles, a, first + row, row, s, count);
    for (; row < rows; row++)
        multiply_level_rows<V, 1>(panel, tiles, a, first + row, row, s, count);
}

}  // namespace
