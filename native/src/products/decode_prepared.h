// Prepared memory -> rows of weights, written once over the engines of superblocks.h, which unpack
// codes and steps of any layout, and the codec's lanes, which make weights of them: those of
// tritllm_dequantize, to the bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/trits.h"
#include "product_kernels.h"

namespace {

// Rows [begin, end) of one tile; row `begin` at `out`, `stride` elements a row.
template <class Engine, class Lanes, int D, class T>
void decode_tile(const Product &p, const typename Engine::Steps &steps, int64_t columns,
                 int64_t tile, int begin, int end, T *out, int64_t stride) {
    alignas(64) uint8_t code[kBlockSteps][kUnit];
    alignas(64) float step[kBlockGroups][kTileRows];
    alignas(64) uint8_t digits[kTileRows][kBlockColumns];
    for (int64_t n = 0; n < p.blocks; n++, out += kBlockColumns) {
        Engine::template unpack<D>(p, steps, tile, n, 1, code, step);
        // Of the whole block before any of it is read: a vector that is read soon after it was
        // stored in pieces has to wait for them.
        for (int r = 0; r < kTileRows; r++)
            for (int s = 0; s < kBlockSteps; s++)
                std::memcpy(digits[r] + 4 * s, code[s] + 4 * r, 4);
        const int64_t left = columns - n * kBlockColumns;
        for (int r = begin; r < end; r++) {
            T *row = out + (r - begin) * stride;
            for (int g = 0; g < kBlockGroups && TRITLLM_GROUP * g < left; g++) {
                const int64_t held = std::min<int64_t>(TRITLLM_GROUP, left - TRITLLM_GROUP * g);
                T edge[TRITLLM_GROUP];
                T *group = held < TRITLLM_GROUP ? edge : row + TRITLLM_GROUP * g;
                Lanes::store_group(digits[r] + TRITLLM_GROUP * g, float(kMaxLevel[D]), step[g][r],
                                   group);
                if (group == edge)
                    std::memcpy(static_cast<void *>(row + TRITLLM_GROUP * g), edge,
                                size_t(held) * sizeof(T));
            }
        }
    }
}

template <class Engine, class Lanes, int D, class T>
void decode_rows(const Product &p, int64_t columns, int64_t begin, int64_t end, void *out) {
    const typename Engine::Steps steps(p.steps);
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / kTileRows, first = tile * kTileRows;
        const int64_t last = std::min(end, first + kTileRows);
        decode_tile<Engine, Lanes, D>(p, steps, columns, tile, int(row - first), int(last - first),
                                      static_cast<T *>(out) + (row - begin) * p.stride, p.stride);
        row = last;
    }
}

template <class Engine, class Lanes, int D>
void decode_depth(const Product &p, int64_t columns, int64_t begin, int64_t end, void *out) {
    switch (p.dtype) {
        case TRITLLM_FLOAT16:
            return decode_rows<Engine, Lanes, D, Half>(p, columns, begin, end, out);
        case TRITLLM_BFLOAT16:
            return decode_rows<Engine, Lanes, D, Bfloat>(p, columns, begin, end, out);
        default: return decode_rows<Engine, Lanes, D, float>(p, columns, begin, end, out);
    }
}

template <class Engine, class Lanes>
void decode_prepared(const Product &p, int64_t columns, int64_t begin, int64_t end, void *out) {
    switch (p.depth) {
        case 1: return decode_depth<Engine, Lanes, 1>(p, columns, begin, end, out);
        case 2: return decode_depth<Engine, Lanes, 2>(p, columns, begin, end, out);
        case 3: return decode_depth<Engine, Lanes, 3>(p, columns, begin, end, out);
        default: return decode_depth<Engine, Lanes, 4>(p, columns, begin, end, out);
    }
}

}  // namespace
