// Sixteen rows of the portable planes -> trits and scale indices, a span of 480 columns at a time: 96
// bytes of a plane, 18 bytes of scale indices, 30 groups, 5 blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/trits.h"
#include "prepared.h"
#include "tritllm_linear.h"

namespace {

constexpr int kSpanColumns = 480;
constexpr int kSpanBlocks = kSpanColumns / kBlockColumns;
constexpr int kSpanUnits = kSpanBlocks * kBlockSteps;
constexpr int kSpanGroups = kSpanColumns / TRITLLM_GROUP;
constexpr int kSpanBytes = kSpanColumns / kTritsPerByte;
static_assert(kSpanColumns % kDecodeColumns == 0, "add_planes takes so many at a time");
constexpr int kSpanScaleBytes = 3 * kSpanGroups / kTritsPerByte;

// A span as units: byte 4 * r + c of unit s belongs to row r, column 4 * s + c.
struct Span {
    alignas(64) uint8_t unit[4][kSpanUnits + 8][kUnit];  // of each plane: trits (0, 1, 2)
    uint8_t index[kSpanGroups][kTileRows];               // of scales
};

// Rows of a span's planes before they are transposed; the pitch holds whole vectors.
struct SpanRows {
    alignas(64) uint8_t trit[4][kTileRows][512 + 64];
};

// What an instruction set may do in its own way.
struct PlainReader {
    static void prefetch(const uint8_t *) {}
    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }
    static void units(const SpanRows &rows, int plane, Span *span) {
        for (int r = 0; r < kTileRows; r++)
            for (int s = 0; s < kSpanUnits; s++)
                std::memcpy(&span->unit[plane][s][4 * r], &rows.trit[plane][r][4 * s], 4);
    }
};

template <class Reader>
int read_span(const tritllm_portable &source, int64_t row, int64_t column, SpanRows *rows,
              Span *span) {
    const int64_t width = (source.columns + 4) / 5;
    const int64_t groups = (source.columns + 15) / 16, scale_width = (3 * groups + 4) / 5;
    const int64_t count = std::min<int64_t>(kTileRows, source.rows - row);
    bool valid = true;
    uint64_t seen = 0;
    std::memset(span->index, 0, sizeof span->index);
    for (int64_t r = 0; r < count; r++) {
        uint8_t edge[kSpanScaleBytes];
        const int64_t first = column / kTritsPerByte;
        for (int p = 0; p < source.depth; p++)
            for (int64_t i = 0; i < kSpanBytes; i += kPlaneBytes) {
                uint8_t edges[kPlaneBytes];
                const uint8_t *bytes =
                    source.weight + p * source.plane_stride + (row + r) * width + first + i;
                // Sixteen rows side by side are more than the hardware follows; the next sixteen
                // come behind them.
                Reader::prefetch(bytes + kTileRows * width);
                const uint8_t *plane = at_least(bytes, width - first - i, kPlaneBytes, edges);
                valid &= Reader::add_planes(&plane, 1, rows->trit[p][r] + kTritsPerByte * i);
            }
        const int64_t at = column / TRITLLM_GROUP * 3 / kTritsPerByte;
        const uint8_t *bytes = at_least(source.scale + (row + r) * scale_width + at,
                                        scale_width - at, kSpanScaleBytes, edge);
        uint8_t index[kSpanGroups + 8];
        for (int i = 0; i < kSpanScaleBytes / 3; i++, bytes += 3) {
            const uint64_t sum = kIndices.part[0][bytes[0]] + kIndices.part[1][bytes[1]] +
                                 kIndices.part[2][bytes[2]];
            seen |= sum;
            std::memcpy(index + 5 * i, &sum, 8);
        }
        // Past the last group the padding decodes to the middle index, and bytes above 242, which
        // are refused, to anything.
        const int64_t held = std::min<int64_t>(kSpanGroups, groups - column / TRITLLM_GROUP);
        for (int64_t g = 0; g < held; g++) span->index[g][r] = index[g] & 31;
    }
    for (int p = 0; p < source.depth; p++) {
        for (int64_t r = count; r < kTileRows; r++) std::memset(rows->trit[p][r], 1, kSpanColumns);
        Reader::units(*rows, p, span);
    }
    return valid && seen < kInvalid ? TRITLLM_OK : TRITLLM_BAD_BYTE;
}

inline bool padding_is_zero_in(const tritllm_portable &source, int64_t row) {
    const int64_t width = (source.columns + 4) / 5;
    const int64_t groups = (source.columns + 15) / 16, scale_width = (3 * groups + 4) / 5;
    for (int p = 0; p < source.depth; p++) {
        const uint8_t *bytes = source.weight + p * source.plane_stride + row * width;
        if (!padding_is_zero(bytes[width - 1], source.columns)) return false;
    }
    return padding_is_zero(source.scale[row * scale_width + scale_width - 1], 3 * groups);
}

// The scale index of all groups of a row; -1 where there are several.
inline int row_index(const tritllm_portable &source, int64_t row) {
    constexpr uint64_t five = 0x0101010101;  // bytes of 1
    const int64_t groups = (source.columns + 15) / 16, scale_width = (3 * groups + 4) / 5;
    uint64_t first = 0;
    for (int64_t g = 0; g < groups; g += 5) {
        uint8_t edge[3];
        const int64_t at = g / 5 * 3;
        const uint8_t *bytes =
            at_least(source.scale + row * scale_width + at, scale_width - at, 3, edge);
        const uint64_t sum =
            kIndices.part[0][bytes[0]] + kIndices.part[1][bytes[1]] + kIndices.part[2][bytes[2]];
        if (g == 0) first = (sum & 31) * five;
        const int64_t past = std::max<int64_t>(0, g + 5 - groups);  // of the row's end
        if ((sum ^ first) & (~uint64_t(0) >> (24 + 8 * past))) return -1;
    }
    return int(first & 31);
}

// The unit of scale indices of a tile whose rows have one each.
template <class Layout>
int prepare_row_indices(const tritllm_portable &source, int64_t row, uint8_t *out) {
    uint8_t index[kBlockGroups][kTileRows] = {};
    for (int64_t r = 0; r < std::min<int64_t>(kTileRows, source.rows - row); r++) {
        const int found = row_index(source, row + r);
        if (found < 0) return TRITLLM_BAD_ARGUMENT;
        for (auto &group : index) group[r] = uint8_t(found);
    }
    Layout::pack_index(index, out);
    return TRITLLM_OK;
}

// Block b of a span to the streams of planes, which are at `planes`, as block `at` of the matrix.
template <class Layout>
void pack_block(const tritllm_portable &source, const Span &span, int64_t b, int64_t at,
                uint8_t *planes) {
    const uint8_t (*plane[4])[kUnit];
    for (int p = 0; p < source.depth; p++) plane[p] = span.unit[p] + b * kBlockSteps;
    const int64_t tiles = tiles_of(source.rows), blocks = blocks_of(source.columns);
    if constexpr (Layout::kPlanesTogether)
        if (source.planes_together) {
            for (int i = 0; i < kTogetherStreams; i++)
                Layout::pack_together(plane, i * kTogetherSteps, source.depth,
                                      planes + together_bytes(source.depth, tiles, blocks) * i +
                                          together_bytes(source.depth, 1, at));
            return;
        }
    for (int p = 0; p < source.depth; p++)
        Layout::pack_plane(plane[p], planes + plane_bytes(Layout::kLayout, tiles, blocks) * p +
                                         plane_bytes(Layout::kLayout, 1, at));
}

// Prepares tiles [begin, end) of the streams that begin at `memory`.
template <class Layout, class Reader>
int prepare_tiles(const tritllm_portable &source, int64_t begin, int64_t end, uint8_t *memory) {
    SpanRows rows;
    Span span;
    const int64_t blocks = blocks_of(source.columns), tiles = tiles_of(source.rows);
    const bool row_scales = source.row_scales != 0;
    uint8_t *const planes = memory + index_bytes(row_scales, tiles, blocks);
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t row = tile * kTileRows;
        for (int64_t r = row; r < std::min(row + kTileRows, source.rows); r++)
            if (!padding_is_zero_in(source, r)) return TRITLLM_BAD_PADDING;
        if (row_scales) {
            const int status = prepare_row_indices<Layout>(
                source, row, memory + index_bytes(row_scales, tile, blocks));
            if (status != TRITLLM_OK) return status;
        }
        for (int64_t first = 0; first < blocks; first += kSpanBlocks) {
            const int status = read_span<Reader>(source, row, first * kBlockColumns, &rows, &span);
            if (status != TRITLLM_OK) return status;
            const int64_t held = std::min<int64_t>(kSpanBlocks, blocks - first);
            for (int64_t b = 0; b < held; b++) {
                const int64_t at = tile * blocks + first + b;
                if (!row_scales)
                    Layout::pack_index(span.index + b * kBlockGroups,
                                       memory + index_bytes(row_scales, 1, at));
                pack_block<Layout>(source, span, b, at, planes);
            }
        }
    }
    return TRITLLM_OK;
}

}  // namespace
