// Decoding of packed rows, written once over the lanes of an instruction set (lanes_*.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "codec_kernels.h"
#include "cpu/elements.h"
#include "cpu/trits.h"

namespace {

inline bool read_indices(const uint8_t *bytes, uint8_t *index) {
    uint64_t seen = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t sum = kIndices.part[0][bytes[3 * i]] + kIndices.part[1][bytes[3 * i + 1]] +
                       kIndices.part[2][bytes[3 * i + 2]];
        seen |= sum;
        for (int g = 0; g < 5; g++) index[5 * i + g] = uint8_t(sum >> 8 * g & 31);
    }
    return seen < kInvalid;
}

// The weight of every level (by its digits; at four planes of every magnitude) at every step, for
// instruction sets that look up 16-bit outputs instead of computing them.
template <class T>
struct LevelTable {
    alignas(64) T weight[TRITLLM_ENTRIES][kLevelSlots];
};

template <class V, class T>
void fill_levels(const tritllm_packed &packed, float middle, LevelTable<T> *table) {
    const bool signless = packed.planes == 4;
    const int n = int(signless ? middle : 2 * middle) + 1;
    uint8_t digits[kLevelSlots];
    for (int i = 0; i < kLevelSlots; i++) digits[i] = uint8_t(i);
    for (int j = 0; j < TRITLLM_ENTRIES; j++)
        for (int i = 0; i < n; i += 16)
            V::store_group(digits + i, signless ? 0 : middle, packed.steps[j],
                           table->weight[j] + i);
}

template <class V, int kPlanes, class T>
int decode_row(const tritllm_packed &packed, int64_t row, const LevelTable<T> &table, T *out) {
    const int64_t columns = packed.columns, width = (columns + 4) / 5;
    const int64_t groups = (columns + 15) / 16, scale_width = (3 * groups + 4) / 5;
    const uint8_t *scale = packed.scale + row * packed.scale_stride;
    const uint8_t *plane[4];
    for (int p = 0; p < kPlanes; p++) {
        plane[p] = packed.weight + p * packed.plane_stride + row * packed.row_stride;
        if (!padding_is_zero(plane[p][width - 1], columns)) return TRITLLM_BAD_PADDING;
    }
    if (!padding_is_zero(scale[scale_width - 1], 3 * groups)) return TRITLLM_BAD_PADDING;

    for (int64_t unit = 0; unit * kDecodeColumns < columns; unit++) {
        const uint8_t *bytes[4];
        uint8_t edge[4][kPlaneBytes], scale_edge[6], index[10];
        alignas(64) uint8_t digits[kDecodeColumns + 8];
        const int64_t at = unit * kPlaneBytes;
        for (int p = 0; p < kPlanes; p++)
            bytes[p] = at_least(plane[p] + at, width - at, kPlaneBytes, edge[p]);
        const uint8_t *indices = at_least(scale + unit * 6, scale_width - unit * 6, 6, scale_edge);
        if (!read_indices(indices, index)) return TRITLLM_BAD_BYTE;
        const int64_t first = unit * kDecodeColumns, left = columns - first;
        if constexpr (V::template looks_up<T>) {
            if (left >= kDecodeColumns) {
                if (!V::template decode_unit<kPlanes>(bytes, index, table.weight, out + first))
                    return TRITLLM_BAD_BYTE;
                continue;
            }
        }
        if (!V::add_planes(bytes, kPlanes, digits)) return TRITLLM_BAD_BYTE;
        for (int g = 0; g < 10 && 16 * g < left; g++) {
            const float step = packed.steps[index[g]];
            if (left >= 16 * (g + 1)) {
                V::store_group(digits + 16 * g, float(kMaxLevel[kPlanes]), step,
                               out + first + 16 * g);
            } else {
                T group[16];
                V::store_group(digits + 16 * g, float(kMaxLevel[kPlanes]), step, group);
                std::memcpy(static_cast<void *>(out + first + 16 * g), group,
                            size_t(left - 16 * g) * sizeof(T));
            }
        }
    }
    return TRITLLM_OK;
}

template <class V, int kPlanes, class T>
int decode_rows(const tritllm_packed &packed, int64_t begin, int64_t end) {
    LevelTable<T> table;
    if constexpr (V::template looks_up<T>)
        fill_levels<V>(packed, float(kMaxLevel[kPlanes]), &table);
    T *out = static_cast<T *>(packed.out);
    for (int64_t row = begin; row < end; row++) {
        const int status =
            decode_row<V, kPlanes>(packed, row, table, out + row * packed.out_stride);
        if (status != TRITLLM_OK) return status;
    }
    return TRITLLM_OK;
}

template <class V, class T>
int trit_dequantize(const tritllm_packed &packed, int64_t begin, int64_t end) {
    switch (packed.planes) {
        case 1: return decode_rows<V, 1, T>(packed, begin, end);
        case 2: return decode_rows<V, 2, T>(packed, begin, end);
        case 3: return decode_rows<V, 3, T>(packed, begin, end);
        default: return decode_rows<V, 4, T>(packed, begin, end);
    }
}

}  // namespace
