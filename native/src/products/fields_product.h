// y = x W^T on the layout kFields, written once over the vectors V of an instruction set, of which
// fields_tile.h says what they unpack.
//
// V multiplies four columns at a time, as V::Sums, which D (the depth) may decide how to add up:
//   first<D>(w, x)   more<D>(sums, w, x)   total<D>(sums, offset): the dot product of the levels
// V::Lanes are the codec's.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/int8.h"
#include "decode_prepared.h"
#include "fields_tile.h"
#include "level_superblocks.h"
#include "product_kernels.h"

namespace {

// --- Elements ----------------------------------------------------------------------------------

template <class T>
void quantize_row(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, groups] = quantized_output(row, blocks);
    for (int64_t g = 0; g < groups; g++) {
        float v[16] = {};
        for (int64_t i = 0; i < std::min<int64_t>(16, columns - 16 * g); i++)
            v[i] = to_float(in[16 * g + i]);
        const RoundedInt8 rounded = round_to_int8<16>(v, q + 16 * g);
        for (int d = 0; d < 4; d++) offset[d * groups + g] = -kMaxLevel[d + 1] * rounded.sum;
        scale[g] = rounded.scale;
    }
}

template <class T>
void widen_row(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    float *out = reinterpret_cast<float *>(row);
    for (int64_t i = 0; i < blocks * kBlockColumns; i++) out[i] = i < columns ? to_float(in[i]) : 0;
}

template <class T>
void add_bias(const void *bias, int64_t row, int64_t count, const float *sum, float *y) {
    const T *of_rows = static_cast<const T *>(bias) + row;
    for (int64_t r = 0; r < count; r++) y[r] = sum[r] + to_float(of_rows[r]);
}

// Sixteen results, of which the first `count` are wanted.
template <class V, class T>
void store_rows(const Product &p, int64_t at, int64_t count, const float *y) {
    T *out = static_cast<T *>(p.y) + at;
    if (count == kTileRows) return V::store_tile(out, y);
    for (int64_t r = 0; r < count; r++) round_any(y[r], out + r);
}

// The results of one tile and batch row.
template <class V>
void finish_tile(const Product &p, int64_t b, int64_t tile, const float *sum) {
    const int64_t row = tile * kTileRows, at = b * p.stride + row;
    const int64_t count = std::min<int64_t>(kTileRows, p.rows - row);
    alignas(64) float y[kTileRows];
    if (p.bias) {
        switch (p.bias_dtype) {
            case TRITLLM_FLOAT16: add_bias<Half>(p.bias, row, count, sum, y); break;
            case TRITLLM_BFLOAT16: add_bias<Bfloat>(p.bias, row, count, sum, y); break;
            default: add_bias<float>(p.bias, row, count, sum, y);
        }
        sum = y;
    }
    switch (p.dtype) {
        case TRITLLM_FLOAT16: return store_rows<V, Half>(p, at, count, sum);
        case TRITLLM_BFLOAT16: return store_rows<V, Bfloat>(p, at, count, sum);
        default: return store_rows<V, float>(p, at, count, sum);
    }
}

// Results of sets that leave elements to the compiler.
template <class T>
void store_plain(T *out, const float *y) {
    for (int r = 0; r < kTileRows; r++) round_any(y[r], out + r);
}

// --- Few batch rows: weights go from memory to registers ------------------------------------------

template <class V, class Tile, int M>
void fields_tile(const Product &p, const typename V::Steps &steps, const Activations &a, int64_t b,
                 int64_t tile) {
    constexpr int kParts = kTileRows / V::kRows, D = Tile::kDepth;
    Tile at(p, tile);
    const int8_t *q[M];
    const int32_t *offset[M];
    const float *scale[M];
    alignas(64) float step[kBlockGroups][kTileRows], sum[M][kTileRows] = {};
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, b + m);
        offset[m] = offset_row(a, b + m, D);
        scale[m] = scale_row(a, b + m);
    }
    for (int64_t n = 0; n < p.blocks; n++, at.advance(1)) {
        V::prefetch(at.index + kFieldsPrefetch);
        if (n == 0 || !p.row_scales) unpack_steps<V>(at.index, steps, step);
        each_group<Tile>([&](int g, auto half) {
            at.prefetch(g);
            typename V::Bytes w[kParts][4];
            for (int part = 0; part < kParts; part++)
                at.template unpack<half>(g, part * 4 * V::kRows, w[part]);
            for (int m = 0; m < M; m++) {
                typename V::Sums dot[kParts];
                for (int i = 0; i < 4; i++) {
                    const auto x = V::four(q[m] + 16 * g + 4 * i);
                    for (int part = 0; part < kParts; part++)
                        dot[part] = i ? V::template more<D>(dot[part], w[part][i], x)
                                      : V::template first<D>(w[part][i], x);
                }
                const auto s = V::set(scale[m][g]);
                for (int part = 0; part < kParts; part++)
                    add_scaled<V>(sum[m] + part * V::kRows,
                                  V::template total<D>(dot[part], offset[m][g]), s,
                                  step[g] + part * V::kRows);
            }
        });
        for (int m = 0; m < M; m++) {
            q[m] += kBlockColumns;
            offset[m] += kBlockGroups;
            scale[m] += kBlockGroups;
        }
    }
    for (int m = 0; m < M; m++) finish_tile<V>(p, b + m, tile, sum[m]);
}

constexpr int kFewRows = 4;

template <class V, class Tile>
void fields_decode(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    const typename V::Steps steps(p.steps);
    for (int64_t tile = begin; tile < end; tile++) switch (a.batch) {
            case 0: return;
            case 1: fields_tile<V, Tile, 1>(p, steps, a, 0, tile); break;
            case 2: fields_tile<V, Tile, 2>(p, steps, a, 0, tile); break;
            case 3: fields_tile<V, Tile, 3>(p, steps, a, 0, tile); break;
            default: fields_tile<V, Tile, kFewRows>(p, steps, a, 0, tile);
        }
}

// --- Many batch rows: a panel of weights is unpacked once into the first-level cache ---------------

constexpr int kPanelTiles = 2;
constexpr int kPanelBlocks = 6;
constexpr int64_t kPanelBytes = 256 << 10;  // of activations, to stay in the second-level cache

struct FieldsPanel {
    alignas(64) uint8_t code[kPanelTiles][kPanelBlocks * kBlockSteps][kUnit];
    alignas(64) float step[kPanelTiles][kPanelBlocks * kBlockGroups][kTileRows];
    alignas(64) float sum[kPanelTiles][kPanelBatch][kTileRows];
};

// Batch rows b .. b + M - 1 on `count` unpacked blocks, block n on, of one tile.
template <class V, int D, int M>
void multiply_panel(const uint8_t (*code)[kUnit], const float (*step)[kTileRows],
                    const Activations &a, int64_t b, int64_t n, int64_t count,
                    float (*sums)[kTileRows]) {
    constexpr int kParts = kTileRows / V::kRows;
    const int8_t *q[M];
    const int32_t *offset[M];
    const float *scale[M];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, b + m) + n * kBlockColumns;
        offset[m] = offset_row(a, b + m, D) + n * kBlockGroups;
        scale[m] = scale_row(a, b + m) + n * kBlockGroups;
    }
    for (int64_t g = 0; g < count * kBlockGroups; g++, code += kGroupSteps) {
        typename V::Sums dot[M][kParts];
        for (int i = 0; i < kGroupSteps; i++) {
            typename V::Bytes w[kParts];
            for (int part = 0; part < kParts; part++)
                w[part] = V::load(code[i] + part * 4 * V::kRows);
            for (int m = 0; m < M; m++) {
                const auto x = V::four(q[m] + 16 * g + 4 * i);
                for (int part = 0; part < kParts; part++)
                    dot[m][part] = i ? V::template more<D>(dot[m][part], w[part], x)
                                     : V::template first<D>(w[part], x);
            }
        }
        for (int m = 0; m < M; m++) {
            const auto s = V::set(scale[m][g]);
            for (int part = 0; part < kParts; part++)
                add_scaled<V>(sums[m] + part * V::kRows,
                              V::template total<D>(dot[m][part], offset[m][g]), s,
                              step[g] + part * V::kRows);
        }
    }
}

// Up to kFewRows rows: so many, two, or one at a time.
template <class V, int D>
void multiply_rows(int64_t rows, const uint8_t (*code)[kUnit], const float (*step)[kTileRows],
                   const Activations &a, int64_t b, int64_t n, int64_t count,
                   float (*sums)[kTileRows]) {
    if (rows == kFewRows) return multiply_panel<V, D, kFewRows>(code, step, a, b, n, count, sums);
    if (rows >= 2) multiply_panel<V, D, 2>(code, step, a, b, n, count, sums);
    if (rows % 2) multiply_panel<V, D, 1>(code, step, a, b + rows - 1, n, count, sums + rows - 1);
}

template <class V, int D>
void fields_prefill(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    FieldsPanel panel;
    const typename V::Steps steps(p.steps);
    const int64_t most = panel_rows(p.blocks, kPanelBytes, kFewRows);
    for (int64_t first_row = 0; first_row < a.batch; first_row += most) {
        const int64_t rows = std::min(most, a.batch - first_row);
        for (int64_t tile = begin; tile < end; tile += kPanelTiles) {
            const int tiles = int(std::min<int64_t>(kPanelTiles, end - tile));
            for (int t = 0; t < tiles; t++)
                std::memset(panel.sum[t], 0, size_t(rows) * sizeof panel.sum[t][0]);
            for (int64_t n = 0; n < p.blocks; n += kPanelBlocks) {
                const int64_t count = std::min<int64_t>(kPanelBlocks, p.blocks - n);
                for (int t = 0; t < tiles; t++)
                    unpack_blocks<V, D>(p, steps, tile + t, n, count, panel.code[t], panel.step[t]);
                for (int64_t b = 0; b < rows; b += kFewRows)
                    for (int t = 0; t < tiles; t++)
                        multiply_rows<V, D>(std::min<int64_t>(kFewRows, rows - b), panel.code[t],
                                            panel.step[t], a, first_row + b, n, count,
                                            panel.sum[t] + b);
            }
            for (int t = 0; t < tiles; t++)
                for (int64_t b = 0; b < rows; b++)
                    finish_tile<V>(p, first_row + b, tile + t, panel.sum[t][b]);
        }
    }
}

template <class V, int D>
void fields_depth(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    if (a.batch > kFewRows) return fields_prefill<V, D>(p, a, begin, end);
    if constexpr (D > 1)
        if (p.planes_together) return fields_decode<V, TogetherTile<V, D>>(p, a, begin, end);
    fields_decode<V, ApartTile<V, D>>(p, a, begin, end);
}

template <class V>
void fields_compute(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (p.depth) {
        case 1: return fields_depth<V, 1>(p, a, begin, end);
        case 2: return fields_depth<V, 2>(p, a, begin, end);
        case 3: return fields_depth<V, 3>(p, a, begin, end);
        default: return fields_depth<V, 4>(p, a, begin, end);
    }
}

// --- Exact: float32 activations ------------------------------------------------------------------

template <class V, int D>
void fields_exact_tile(const Product &p, const typename V::Steps &steps, const Activations &a,
                       int64_t b, int64_t tile) {
    constexpr int kParts = kTileRows / V::kRows;
    alignas(64) uint8_t code[kBlockSteps][kUnit];
    alignas(64) float step[kBlockGroups][kTileRows];
    const float *x = exact_row(a, b);
    typename V::Floats sum[kParts];
    for (int part = 0; part < kParts; part++) sum[part] = V::set(0.0f);
    for (int64_t n = 0; n < p.blocks; n++, x += kBlockColumns) {
        unpack_blocks<V, D>(p, steps, tile, n, 1, code, step);
        for (int s = 0; s < kBlockSteps; s++)
            for (int part = 0; part < kParts; part++) {
                const auto w = V::load(code[s] + part * 4 * V::kRows);
                const auto of_group = V::load_floats(step[s / kGroupSteps] + part * V::kRows);
                for (int c = 0; c < 4; c++) {
                    const auto level = V::to_floats(V::byte(w, c, kMaxLevel[D]));
                    sum[part] = V::fma(V::set(x[4 * s + c]), V::mul(level, of_group), sum[part]);
                }
            }
    }
    float result[kTileRows];
    for (int part = 0; part < kParts; part++) V::store(result + part * V::kRows, sum[part]);
    finish_tile<V>(p, b, tile, result);
}

template <class V>
void fields_exact(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    const typename V::Steps steps(p.steps);
    for (int64_t tile = begin; tile < end; tile++)
        for (int64_t b = 0; b < a.batch; b++) switch (p.depth) {
                case 1: fields_exact_tile<V, 1>(p, steps, a, b, tile); break;
                case 2: fields_exact_tile<V, 2>(p, steps, a, b, tile); break;
                case 3: fields_exact_tile<V, 3>(p, steps, a, b, tile); break;
                default: fields_exact_tile<V, 4>(p, steps, a, b, tile);
            }
}

// --- Superblocks -----------------------------------------------------------------------------------

template <class V>
struct FieldsEngine : V {
    template <int D>
    using Panel = std::conditional_t<V::kLevelSuperblocks, LevelPanel<D>, SuperPanel>;

    template <int D>
    static void unpack(const Product &p, const typename V::Steps &steps, int64_t tile,
                       int64_t block, int count, uint8_t (*code)[kUnit], float (*step)[kTileRows]) {
        unpack_blocks<V, D>(p, steps, tile, block, count, code, step);
    }
    template <int D>
    static void round(uint8_t (*code)[kUnit], const float *step, const float *factor) {
        round_group<D, V::kBias>(code, step, factor);
    }
    template <class Panel>
    static void multiply(Panel &panel, int tiles, const Activations &a, int64_t first, int64_t rows,
                         int64_t s, int64_t count) {
        multiply_super_panel<V>(panel, tiles, a, first, rows, s, count);
    }
    static void finish(const Product &p, int64_t b, int64_t tile, const float *sum) {
        finish_tile<V>(p, b, tile, sum);
    }
};

// The rows of sets that leave elements to the compiler.
constexpr RowKernels plain_rows = {
    {quantize_row<Half>, quantize_row<Bfloat>, quantize_row<float>},
    {widen_row<Half>, widen_row<Bfloat>, widen_row<float>},
    {quantize_superblocks<Half>, quantize_superblocks<Bfloat>, quantize_superblocks<float>},
    {quantize_token<Half>, quantize_token<Bfloat>, quantize_token<float>}};

}  // namespace
