// y = x W^T of many batch rows with one scale for each superblock of 192 columns.
//
// Where an instruction adds up whole vectors of int8 products (VNNI, AMX), the scale that the codec
// has for every 16 columns costs as much as the products. So a panel of weights, once unpacked for
// many rows, is rounded to int8 with one scale for each row and superblock, and so are activations:
//
//   top = the largest |step| of the superblock's groups     weight ~ w * (L * top / 127)
//   m = rint(step * (32512 / (L * top))), of a group        w = (level * m + 128) >> 8, |w| <= 127
//   s = max|x| / 127                                        q = rint(x * (127 / max|x|))
//   y = sum over superblocks, ascending, of float(dot(w, q)) * s times (L * top / 127), then + bias
//
// The largest level at the largest step is 127; nothing else is lost of weights than what that grid
// rounds, at most L * top / 254 and a 16-bit m. products/reference.py is the same in NumPy.
//
// An engine V holds V::kRows rows of weights a vector and takes V::kSuperTiles tiles and
// V::kSuperRows batch rows at a time; its weights are w + V::kBias.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/int8.h"
#include "product_kernels.h"

namespace {

constexpr int kPanelSupers = 2;
// Batch rows, at most, for which a panel is unpacked and rounded; and tiles that take turns, so that
// what a panel multiplies of activations, 98 KB, is in the second-level cache for all but the first.
constexpr int kSuperBatch = 256, kSuperTogether = 8;
constexpr int kSuperSteps = kSuperBlocks * kBlockSteps;
constexpr int kFetched = kSuperSteps / 4;  // rows, of each of which a superblock is in four lines
constexpr int kSuperGroups = kSuperBlocks * kBlockGroups;

template <class T>
void quantize_superblocks(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, supers] = superblock_output(row, blocks);
    for (int64_t s = 0; s < supers; s++) {
        float v[kSuperColumns] = {};
        const int64_t held = std::min<int64_t>(kSuperColumns, columns - kSuperColumns * s);
        for (int64_t i = 0; i < held; i++) v[i] = to_float(in[kSuperColumns * s + i]);
        const RoundedInt8 rounded = round_to_int8<kSuperColumns>(v, q + kSuperColumns * s);
        offset[s] = -128 * rounded.sum;
        scale[s] = rounded.scale;
    }
}

// Adds an integer dot product times the scale of its activations, times that of each row of weights.
template <class V>
inline void add_scaled(float *sum, typename V::Ints dot, typename V::Floats activation,
                       const float *weight) {
    V::store(sum, V::fma(V::mul(V::to_floats(dot), activation), V::load_floats(weight),
                         V::load_floats(sum)));
}

// The largest magnitude of a superblock's steps, of each row.
inline void largest_steps(const float (*step)[kTileRows], float *top) {
    std::fill_n(top, kTileRows, 0.0f);
    for (int g = 0; g < kSuperGroups; g++)
        for (int r = 0; r < kTileRows; r++) {
            const float magnitude = std::fabs(step[g][r]);
            top[r] = magnitude > top[r] ? magnitude : top[r];
        }
}

struct SuperPanel {
    alignas(64) uint8_t weight[2][kPanelSupers * kSuperSteps][kUnit];
    alignas(64) float scale[2][kPanelSupers][kTileRows];
    float (*sum)[kSuperBatch][kTileRows];
};

// The multipliers m of a group's steps, and with them its codes -> w + bias, in place.
template <int D, int Bias>
inline void round_group(uint8_t (*code)[kUnit], const float *step, const float *factor) {
    int16_t multiplier[kUnit];
    for (int r = 0; r < kTileRows; r++) {
        const auto m = int16_t(round_to_int(step[r] * factor[r]));
        for (int c = 0; c < 4; c++) multiplier[4 * r + c] = m;
    }
    for (int i = 0; i < kGroupSteps; i++)
        for (int j = 0; j < kUnit; j++) {
            const auto level = int16_t(code[i][j] - kMaxLevel[D]);
            const auto rounded = int16_t(level * multiplier[j] + 128);
            code[i][j] = uint8_t((rounded >> 8) + Bias);
        }
}

// Codes (level + L) of superblock n of tile t and its steps -> w + bias in place, and their scales.
template <class Engine, int D>
void round_superblock(SuperPanel &panel, int t, int64_t n, const float (*step)[kTileRows]) {
    auto code = panel.weight[t] + n * kSuperSteps;
    float *const scale = panel.scale[t][n];
    alignas(64) float top[kTileRows], factor[kTileRows];
    largest_steps(step, top);
    for (int r = 0; r < kTileRows; r++) {
        const float span = float(kMaxLevel[D]) * top[r];
        factor[r] = span > 0 ? 32512.0f / span : 0.0f;
        scale[r] = span / 127.0f;
    }
    for (int g = 0; g < kSuperGroups; g++, code += kGroupSteps)
        Engine::template round<D>(code, step[g], factor);
}

// Rows row .. row + M - 1 of the panel's sums, which are batch rows `first` later, by superblocks s ..
// s + count - 1 and tiles t .. t + T - 1.
template <class V, int T, int M>
void multiply_superblocks(SuperPanel &panel, int t, const Activations &a, int64_t first,
                          int64_t row, int64_t s, int64_t count) {
    constexpr int kVectors = T * kTileRows / V::kRows;
    const auto tile = [&](int i) { return t + i * V::kRows / kTileRows; };
    const auto lane = [&](int i) { return i * V::kRows % kTileRows; };
    // Of every third row: an address can add the two rows after it, and all stay in registers.
    const int8_t *third[(M + 2) / 3];
    for (int m = 0; m < M; m += 3)
        third[m / 3] = superblock_row(a, first + row + m) + s * kSuperColumns;
    for (int64_t n = 0; n < count; n++) {
        typename V::Ints dot[M][kVectors];
        for (int m = 0; m < M; m++)
            for (int i = 0; i < kVectors; i++)
                dot[m][i] = V::set(V::kBias ? superblock_offset(a, first + row + m)[s + n] : 0);
        // The rows that come next are fetched meanwhile, a line of one of them a step.
        const int8_t *next = superblock_row(a, first + row + M) + (s + n) * kSuperColumns;
        const uint8_t *weight[kVectors];
        for (int i = 0; i < kVectors; i++)
            weight[i] = panel.weight[tile(i)][n * kSuperSteps] + 4 * lane(i);
        for (int line = 0; line < kSuperSteps / kFetched; line++) {
            const int8_t *ahead = next + 64 * line;
            for (int step = 0; step < kFetched; step++, ahead += a.row_bytes) {
                V::prefetch(reinterpret_cast<const uint8_t *>(ahead));
                typename V::Bytes w[kVectors];
                for (int i = 0; i < kVectors; i++) {
                    w[i] = V::load(weight[i]);
                    weight[i] += kUnit;
                }
                for (int m = 0; m < M; m++) {
                    const auto x = V::four(third[m / 3] + m % 3 * a.row_bytes);
                    for (int i = 0; i < kVectors; i++) dot[m][i] = V::dot(dot[m][i], w[i], x);
                }
                for (auto &q : third) q += 4;
            }
        }
        for (int m = 0; m < M; m++) {
            const auto activation = V::set(superblock_scale(a, first + row + m)[s + n]);
            for (int i = 0; i < kVectors; i++)
                add_scaled<V>(panel.sum[tile(i)][row + m] + lane(i), dot[m][i], activation,
                              panel.scale[tile(i)][n] + lane(i));
        }
    }
}

// As many rows as there are registers for, a third as many and single ones at the end.
template <class V, int T, int M = V::kSuperRows>
void multiply_super_rows(int64_t rows, SuperPanel &panel, int t, const Activations &a,
                         int64_t first, int64_t row, int64_t s, int64_t count) {
    for (; rows >= M; rows -= M, row += M)
        multiply_superblocks<V, T, M>(panel, t, a, first, row, s, count);
    if constexpr (M > 1)
        if (rows) multiply_super_rows<V, T, (M + 2) / 3>(rows, panel, t, a, first, row, s, count);
}

// A panel by all rows: V::kSuperRows of them by V::kSuperTiles tiles at a time.
template <class V>
void multiply_super_panel(SuperPanel &panel, int tiles, const Activations &a, int64_t first,
                          int64_t rows, int64_t s, int64_t count) {
    for (int64_t row = 0; row < rows; row += V::kSuperRows) {
        const int64_t held = std::min<int64_t>(V::kSuperRows, rows - row);
        for (int t = 0; t < tiles;) {
            if (tiles - t >= V::kSuperTiles) {
                multiply_super_rows<V, V::kSuperTiles>(held, panel, t, a, first, row, s, count);
                t += V::kSuperTiles;
            } else {
                multiply_super_rows<V, 1>(held, panel, t, a, first, row, s, count);
                t++;
            }
        }
    }
}

// Superblock `super` of a tile to superblock n of tile t of the panel.
template <class Engine, int D, class Panel>
void unpack_superblock(const Product &p, const typename Engine::Steps &steps, int64_t tile,
                       int64_t super, Panel &panel, int t, int64_t n, float (*step)[kTileRows]) {
    auto code = panel.weight[t] + n * kSuperSteps;
    const int64_t block = super * kSuperBlocks;
    const int held = int(std::min<int64_t>(kSuperBlocks, p.blocks - block));
    Engine::template unpack<D>(p, steps, tile, block, held, code, step);
    if (held < kSuperBlocks) {  // level 0 at step 0
        std::memset(code[held * kBlockSteps], kMaxLevel[D],
                    size_t(kSuperBlocks - held) * kBlockSteps * kUnit);
        std::memset(step[held * kBlockGroups], 0,
                    size_t(kSuperBlocks - held) * kBlockGroups * sizeof step[0]);
    }
    round_superblock<Engine, D>(panel, t, n, step);
}

// Engine: a V whose multiply takes any number of batch rows of its Panel<D>, unpack<D> the codes and
// steps of up to a superblock's blocks, round<D> does what round_group does, and finish sixteen
// results.
template <class Engine, int D>
void superblocks_depth(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    alignas(64) float sum[kSuperTogether][kSuperBatch][kTileRows];
    typename Engine::template Panel<D> panel;
    alignas(64) float step[kSuperGroups][kTileRows];
    const typename Engine::Steps steps(p.steps);
    const int64_t supers = supers_of(p.blocks);
    for (int64_t first_row = 0; first_row < a.batch; first_row += kSuperBatch) {
        const int64_t rows = std::min<int64_t>(kSuperBatch, a.batch - first_row);
        for (int64_t from = begin; from < end; from += kSuperTogether) {
            const int64_t to = std::min(from + kSuperTogether, end);
            for (int64_t tile = from; tile < to; tile++)
                std::memset(sum[tile - from], 0, size_t(rows) * sizeof sum[0][0]);
            for (int64_t s = 0; s < supers; s += kPanelSupers) {
                const int64_t count = std::min<int64_t>(kPanelSupers, supers - s);
                for (int64_t tile = from; tile < to; tile += 2) {
                    const int tiles = int(std::min<int64_t>(2, to - tile));
                    panel.sum = sum + (tile - from);
                    if (tiles == 1) std::memset(panel.weight[1], 0, sizeof panel.weight[1]);
                    for (int t = 0; t < tiles; t++)
                        for (int64_t n = 0; n < count; n++)
                            unpack_superblock<Engine, D>(p, steps, tile + t, s + n, panel, t, n,
                                                         step);
                    Engine::multiply(panel, tiles, a, first_row, rows, s, count);
                }
            }
            // Row by row: what is written one after the other then lies together.
            for (int64_t b = 0; b < rows; b++)
                for (int64_t tile = from; tile < to; tile++)
                    Engine::finish(p, first_row + b, tile, sum[tile - from][b]);
        }
    }
}

template <class Engine>
void superblocks_compute(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (p.depth) {
        case 1: return superblocks_depth<Engine, 1>(p, a, begin, end);
        case 2: return superblocks_depth<Engine, 2>(p, a, begin, end);
        case 3: return superblocks_depth<Engine, 3>(p, a, begin, end);
        default: return superblocks_depth<Engine, 4>(p, a, begin, end);
    }
}

}  // namespace
