// The table of functions that one instruction set provides for y = x W^T.
#pragma once

#include <cstdint>

#include "prepared.h"
#include "tritllm_linear.h"

// Weights and results as a kernel sees them; row ranges are in tiles.
struct Product {
    const PreparedHeader *header;
    const uint8_t *tiles;
    int64_t blocks;
    int64_t tile_bytes;
    const void *bias;
    int32_t bias_dtype;
    int32_t dtype;
    void *y;
    int64_t stride;
};

struct ProductKernels {
    uint32_t layout;
    // Codes of the tiles [begin, end); a status of tritllm.h.
    int (*prepare)(const tritllm_portable &, int64_t begin, int64_t end, uint8_t *tiles);
    // One batch row of `columns` elements; indexed by their type.
    void (*quantize[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
    void (*widen[3])(const void *x, int64_t columns, int64_t blocks, uint8_t *row);
    // Tiles [begin, end) for all batch rows.
    void (*compute)(const Product &, const Activations &, int64_t begin, int64_t end);
    void (*compute_exact)(const Product &, const Activations &, int64_t begin, int64_t end);
};

extern const ProductKernels products_scalar;
extern const ProductKernels products_avx2;
extern const ProductKernels products_avx512;
extern const ProductKernels products_amx;
extern const ProductKernels products_neon;
