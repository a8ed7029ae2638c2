// Products that are opened together.
#pragma once

#include <cstdint>

#include "products/product_set.h"
#include "valid_blocks.h"

namespace {

struct ProductList {
    tritllm_product product[kMostProducts];
    int count = 0;
    int status = TRITLLM_OK;

    // y: of the first row; the others' follow `stride` elements apart.
    void add(const tritllm_weight &weight, int64_t rows, float *y, int64_t stride) {
        if (!weight.prepared || !valid_vector(weight.bias, true)) status = TRITLLM_BAD_ARGUMENT;
        tritllm_product &p = product[count++];
        p.prepared = weight.prepared;
        p.size = weight.size;
        p.rows = rows;
        p.layout = 0;
        p.depth = weight.depth;
        p.steps = weight.steps;
        p.bias = weight.bias.data;
        p.bias_dtype = weight.bias.dtype;
        p.y = y;
        p.stride = stride;
        p.dtype = TRITLLM_FLOAT32;
    }

    // A status of tritllm.h.
    int open(int64_t columns, ProductSet *set) const {
        return status == TRITLLM_OK ? open_products(product, count, columns, set) : status;
    }
};

}  // namespace
