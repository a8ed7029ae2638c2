// What an instruction set provides for y = x W^T, as a table of functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/int8.h"
#include "prepared.h"
#include "tritllm_linear.h"

// Weights and results as a kernel sees them; row ranges are in tiles.
struct Product {
    const uint8_t *index;     // the streams of prepared.h: of the scale indices
    const uint8_t *plane[4];  // and of the planes that are read; the first of all, if together
    int64_t rows;
    int64_t blocks;
    const void *bias;
    int32_t bias_dtype;
    int32_t dtype;
    void *y;
    int64_t stride;
    int32_t depth;                // planes that are read
    bool row_scales;              // every row has one scale, and depth is 1
    bool planes_together;         // and depth is that of the memory
    alignas(64) float steps[32];  // 27, then zeros
};

// One batch row of `columns` elements to a row of activations; indexed by the elements' type.
struct RowKernels {
    void (*quantize[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
    void (*widen[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
    void (*superblocks[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
    void (*token[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
};

// The functions that one instruction set provides for y = x W^T.
struct ProductKernels {
    uint32_t layout;
    // The tiles [begin, end) of every stream; a status of tritllm.h.
    int (*prepare)(const tritllm_portable &, int64_t begin, int64_t end, uint8_t *memory);
    RowKernels rows;
    // Tiles [begin, end) for all batch rows.
    void (*compute)(const Product &, const Activations &, int64_t begin, int64_t end);
    void (*compute_exact)(const Product &, const Activations &, int64_t begin, int64_t end);
    void (*compute_superblocks)(const Product &, const Activations &, int64_t begin, int64_t end);
    // Of rows with one scale each, and activations by tokens.
    void (*compute_rows)(const Product &, const Activations &, int64_t begin, int64_t end);
    // Rows [begin, end) of the weights in p.dtype, the first at `out`, p.stride elements a row.
    void (*decode)(const Product &p, int64_t columns, int64_t begin, int64_t end, void *out);
    int64_t superblock_rows;  // from so many batch rows on superblocks are the faster; 0: never
    int planes_together;      // depth from which memory may have them together; 0: never
};

namespace {

constexpr int kPanelBatch = 96;       // batch rows, at most, for which a panel of weights is used
constexpr int kLeastPanelBatch = 48;  // and at least, where there are more

// Batch rows for which a panel is used: those whose activations fit in so many bytes, in multiples
// of `at_a_time` where that is neither the least nor the most.
inline int64_t panel_rows(int64_t blocks, int64_t bytes, int at_a_time) {
    const int64_t fit = bytes / (blocks * kBlockColumns) / at_a_time * at_a_time;
    return std::min<int64_t>(kPanelBatch, std::max<int64_t>(kLeastPanelBatch, fit));
}

// One scale a row, as groups that share it.
template <class T>
void quantize_token(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, groups] = quantized_output(row, blocks);
    const float s = token_scale(in, columns);
    const bool finite = !std::isnan(s);
    int32_t all = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t held = std::min<int64_t>(TRITLLM_GROUP, columns - TRITLLM_GROUP * g);
        int32_t n[TRITLLM_GROUP] = {}, sum = 0;
        for (int64_t i = 0; i < held && finite; i++)
            n[i] = round_to_int(to_float(in[TRITLLM_GROUP * g + i]) * s);
        for (int i = 0; i < TRITLLM_GROUP; i++) {
            q[TRITLLM_GROUP * g + i] = int8_t(n[i]);
            sum += n[i];
        }
        for (int d = 0; d < 4; d++) offset[d * groups + g] = -kMaxLevel[d + 1] * sum;
        scale[g] = held > 0 ? 1.0f / s : 0.0f;
        all += sum;
    }
    std::memcpy(scale + groups, &all, sizeof all);
}

// Where the streams of a tile are: of the scale indices and of the first D planes.
template <uint32_t Layout, int D>
struct TileStreams {
    const uint8_t *index, *plane[D];
    const int64_t a_block;  // bytes of the scale indices

    TileStreams(const Product &p, int64_t tile)
        : index(p.index + index_bytes(p.row_scales, tile, p.blocks)),
          a_block(p.row_scales ? 0 : kUnit) {
        for (int i = 0; i < D; i++) plane[i] = p.plane[i] + plane_bytes(Layout, tile, p.blocks);
    }
    void advance(int64_t blocks) {
        index += blocks * a_block;
        for (auto &bytes : plane) bytes += plane_bytes(Layout, blocks, 1);
    }
};

// Where the streams of a tile are whose D planes lie together.
template <int D>
struct TogetherStreams {
    static constexpr int kUnits = together_units(D);
    const uint8_t *index, *units[kTogetherStreams];

    TogetherStreams(const Product &p, int64_t tile)
        : index(p.index + index_bytes(false, tile, p.blocks)) {
        for (int i = 0; i < kTogetherStreams; i++)
            units[i] = p.plane[0] + together_bytes(D, tiles_of(p.rows), p.blocks) * i +
                       together_bytes(D, tile, p.blocks);
    }
    void advance(int64_t blocks) {
        index += blocks * kUnit;
        for (auto &bytes : units) bytes += together_bytes(D, blocks, 1);
    }
};

}  // namespace
