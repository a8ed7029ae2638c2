// What the threads of a step share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/phase.h"
#include "products/product_set.h"
#include "scratch.h"

namespace {

struct StepCall {
    const tritllm_block *blocks;
    const int64_t n_blocks;
    const tritllm_step &step;
    const int threads;
    const int64_t rows;
    const Shape shape;
    const Scratch scratch;
    const StepKernels *kernel;
    int isa;
    PhaseCounters counters;
    ProductSet products;  // those that run now
    ExpertGroups groups;  // of the block that runs now
    std::atomic<int> status{TRITLLM_OK};

    StepCall(int n, const tritllm_block *b, int64_t count, const tritllm_step &s, void *memory)
        : blocks(b),
          n_blocks(count),
          step(s),
          threads(std::max(n, 1)),
          rows(s.batch * s.new_tokens),
          shape(b, count),
          scratch(b[0], shape, s.batch, s.new_tokens, s.tokens, memory),
          groups(scratch.groups) {}

    // Which instruction set's functions run between the products: that of the first one.
    int begin() {
        const tritllm_weight &w = blocks[0].q;
        tritllm_product first = {};
        first.prepared = w.prepared;
        first.size = w.size;
        first.rows = blocks[0].k.prepared ? shape.queries : shape.projected;
        first.depth = w.depth;
        first.steps = w.steps;
        int result = open_products(&first, 1, shape.hidden, &products);
        if (result != TRITLLM_OK) return result;
        kernel = step_kernels(products.isa);
        if (!kernel) return TRITLLM_UNSUPPORTED;
        isa = products.isa;
        result = begin_activations(input(shape.hidden), scratch.of_hidden);
        if (result == TRITLLM_OK)
            result = begin_activations(input(shape.queries), scratch.of_queries);
        return result;
    }

    int begin_activations(const tritllm_input &in, void *activations) const {
        return tritllm_linear_begin(isa, &in, activations);
    }

    tritllm_input input(int64_t columns) const {
        return {scratch.rows, columns, rows, columns, TRITLLM_FLOAT32, blocks[0].arithmetic};
    }
};

}  // namespace
