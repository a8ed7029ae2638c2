// Products that share one input, opened once and shared between threads by tiles of rows.
#pragma once

#include <cstdint>

#include "product_kernels.h"

constexpr int kMostProducts = TRITLLM_PRODUCTS_AT_ONCE;

struct ProductSet {
    int count;
    int isa;  // of the first product
    Product product[kMostProducts];
    const ProductKernels *kernel[kMostProducts];
    int64_t tiles_before[kMostProducts + 1];

    int64_t tiles() const { return tiles_before[count]; }
};

// Fills `set` from products of inputs of so many columns; the status of tritllm.h that says why it
// cannot.
int open_products(const tritllm_product *products, int count, int64_t columns, ProductSet *set);

// How many tiles a thread takes at a time.
int64_t tiles_at_a_time(const ProductSet &set, int threads);

// Row `from` of activations to row `to` of others of as many columns.
void copy_activations(const void *activations, int64_t from, void *others, int64_t to);

// Tiles [begin, end) of all of them, numbered one product after the other, for all batch rows.
void multiply_tiles(const ProductSet &set, const void *activations, int64_t begin, int64_t end);
