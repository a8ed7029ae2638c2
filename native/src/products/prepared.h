// What prepared memory looks like: a header, the steps, then streams of units of 64 bytes: the scale
// indices of the matrix, its first plane, its second, ...; or, where the planes of a weight lie
// together, three streams of them all: of the first, the second and the third two groups of every
// block (processors fetch three streams ahead of their readers half as fast again as one).
//
// A stream holds the matrix by tiles of 16 rows, and a tile by blocks of 96 columns (6 groups): so a
// thread reads each stream from front to back, and a product of fewer planes than were prepared does
// not touch the others. Of a block, the stream of the scale indices has one unit, that of a plane
// five or six, which hold codes of trits (0, 1, 2) of 16 rows x 96 columns. Columns past K and rows
// past N have trits of level 0 and index 0. What a code is depends on the layout:
//
//   kFives   three trits in five bits: 5/3 bits a trit, for AVX-512. See fives.h. Without VBMI depths 3
//            and 4 also with planes together, as those of kFields.
//   kFields  two bits a trit: unpacked by shifts, masks and tables of 16 entries, for everything
//            else. See fields.h. Of depth 2 and more also with planes together: one number a weight,
//            in 4, 5 or 7 bits, which take fewer bytes and less unpacking, but are read all or none.
//
// Where every row has one scale (tritllm_linear_row_scales), the stream of the scale indices has one
// unit for each tile, which serves all of its blocks.
#pragma once

#include <cstdint>

#include "cpu/lanes_scalar.h"
#include "cpu/trits.h"
#include "tritllm_linear.h"

// Structures that the table of kernels mentions are plain data without functions of their own, for
// the reason that elements.h gives.

struct PreparedHeader {
    char magic[8];
    uint32_t version;
    uint32_t isa;
    uint16_t layout;
    uint8_t row_scales;       // 0 or 1
    uint8_t planes_together;  // 0 or 1
    int32_t depth;
    int64_t rows;
    int64_t columns;
    int64_t size;    // of everything, header included
    uint64_t check;  // of the fields above
    uint64_t reserved;
    float steps[32];  // 27, then zeros
};
static_assert(sizeof(PreparedHeader) == 64 + 32 * 4, "a header of 64 bytes, then the steps");

struct ActivationsHeader {
    char magic[8];
    int64_t batch;
    int64_t columns;
    int64_t row_bytes;
    int32_t arithmetic;
    int32_t isa;  // whose functions fill the rows
    int32_t reserved[6];
};
static_assert(sizeof(ActivationsHeader) == 64, "one cache line");

// Batch rows of activations. Exact: float32 [96 * blocks]. By groups: int8 [96 * blocks], then for
// each of the depths 1..4 int32 [6 * blocks], then float32 [6 * blocks]; the int32 are -L * (sum of
// the group), which makes dot products of codes (>= 0, as vpdpbusd wants its left operand) those of
// levels. By tokens: the same, all groups having one scale, then the int32 sum of the row. By
// superblocks of two blocks: int8 [192 * supers], int32 [supers], float32 [supers]; the int32 are
// -128 * (sum of the superblock), for weights that have 128 added.
struct Activations {
    const uint8_t *rows;
    int64_t row_bytes;
    int64_t batch;
    int64_t blocks;
};

namespace {

constexpr int kTileRows = TRITLLM_TILE;
constexpr int kBlockGroups = 6;
constexpr int kBlockColumns = kBlockGroups * TRITLLM_GROUP;
constexpr int kUnit = 64;                                // bytes: 16 rows x 4 columns
constexpr int kBlockSteps = kBlockColumns / 4;           // units of unpacked weights in a block
constexpr int kGroupSteps = kBlockSteps / kBlockGroups;  // and in a group

enum Layout : uint32_t { kFives = 1, kFields = 2 };

constexpr char kPreparedMagic[8] = {'t', 'r', 'i', 't', 'l', 'i', 'n', '1'};
constexpr uint32_t kPreparedVersion = 4;

inline int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t blocks_of(int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns; }

// Units of a block in the stream of a plane.
constexpr int plane_units(uint32_t layout) { return layout == kFives ? 5 : 6; }

// Bytes of a stream's share of so many tiles.
inline int64_t index_bytes(bool row_scales, int64_t tiles, int64_t blocks) {
    return tiles * (row_scales ? 1 : blocks) * kUnit;
}
inline int64_t plane_bytes(uint32_t layout, int64_t tiles, int64_t blocks) {
    return tiles * blocks * plane_units(layout) * kUnit;
}

// Where planes lie together: units that eight steps share, and bytes of a stream's share.
constexpr int kTogetherSteps = 8;
constexpr int kTogetherStreams = kBlockSteps / kTogetherSteps;
constexpr int together_units(int depth) { return depth == 2 ? 4 : depth == 3 ? 5 : 7; }
inline int64_t together_bytes(int depth, int64_t tiles, int64_t blocks) {
    return tiles * blocks * together_units(depth) * kUnit;
}

constexpr char kActivationsMagic[8] = {'t', 'r', 'i', 't', 'a', 'c', 't', '1'};

inline const float *exact_row(const Activations &a, int64_t b) {
    return reinterpret_cast<const float *>(a.rows + b * a.row_bytes);
}
inline const int8_t *quantized_row(const Activations &a, int64_t b) {
    return reinterpret_cast<const int8_t *>(a.rows + b * a.row_bytes);
}
inline const int32_t *offset_row(const Activations &a, int64_t b, int depth) {
    return reinterpret_cast<const int32_t *>(quantized_row(a, b) + kBlockColumns * a.blocks) +
           (depth - 1) * kBlockGroups * a.blocks;
}
inline const float *scale_row(const Activations &a, int64_t b) {
    return reinterpret_cast<const float *>(offset_row(a, b, 5));
}

// Of a row by tokens: the sum of q.
inline int32_t token_sum(const Activations &a, int64_t b) {
    return *reinterpret_cast<const int32_t *>(scale_row(a, b) + kBlockGroups * a.blocks);
}

// The same of a row that is being filled; `offset` of depth 1, those of the others lie behind it.
struct QuantizedOutput {
    int8_t *q;
    float *scale;
    int32_t *offset;
    int64_t groups;  // or superblocks
};
inline QuantizedOutput quantized_output(uint8_t *row, int64_t blocks) {
    const Activations a{row, 0, 1, blocks};
    return {const_cast<int8_t *>(quantized_row(a, 0)), const_cast<float *>(scale_row(a, 0)),
            const_cast<int32_t *>(offset_row(a, 0, 1)), blocks * kBlockGroups};
}

constexpr int kSuperBlocks = 2;
constexpr int kSuperColumns = kSuperBlocks * kBlockColumns;
inline int64_t supers_of(int64_t blocks) { return (blocks + kSuperBlocks - 1) / kSuperBlocks; }

inline const int8_t *superblock_row(const Activations &a, int64_t b) {
    return reinterpret_cast<const int8_t *>(a.rows + b * a.row_bytes);
}
inline const int32_t *superblock_offset(const Activations &a, int64_t b) {
    return reinterpret_cast<const int32_t *>(superblock_row(a, b) +
                                             kSuperColumns * supers_of(a.blocks));
}
inline const float *superblock_scale(const Activations &a, int64_t b) {
    return reinterpret_cast<const float *>(superblock_offset(a, b) + supers_of(a.blocks));
}
inline QuantizedOutput superblock_output(uint8_t *row, int64_t blocks) {
    const Activations a{row, 0, 1, blocks};
    return {const_cast<int8_t *>(superblock_row(a, 0)), const_cast<float *>(superblock_scale(a, 0)),
            const_cast<int32_t *>(superblock_offset(a, 0)), supers_of(blocks)};
}

inline int64_t activation_row_bytes(int64_t blocks, int arithmetic) {
    int64_t bytes = 0;
    switch (arithmetic) {
        case TRITLLM_EXACT: bytes = blocks * kBlockColumns * 4; break;
        case TRITLLM_SUPERBLOCKS: bytes = supers_of(blocks) * (kSuperColumns + 4 + 4); break;
        case TRITLLM_PER_TOKEN: bytes = blocks * (kBlockColumns + 5 * 4 * kBlockGroups) + 4; break;
        default: bytes = blocks * (kBlockColumns + 5 * 4 * kBlockGroups);
    }
    return (bytes + 63) / 64 * 64;
}

}  // namespace
