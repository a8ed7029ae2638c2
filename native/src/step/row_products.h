// The products of a step: input rows, then their activations, then the products of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "product_list.h"
#include "step_thread.h"
#include "tile_parts.h"

namespace {

// A product of a piece, and how many rows its matrix has.
struct Factor {
    const tritllm_weight &weight;
    int64_t rows;
};

class RowProducts : StepThread {
 public:
    explicit RowProducts(const StepThread &thread) : StepThread(thread) {}

    // make_row(row) fills a float32 row of the input. One part opens the products meanwhile, whose
    // results lie one after the other, [rows][N] each.
    template <class MakeRow>
    void make_rows(int64_t columns, void *activations, std::initializer_list<Factor> factors,
                   MakeRow make_row) {
        phases.run(call.rows + 1, [&](int64_t part) {
            if (part == 0) return open(columns, factors);
            make_row(part - 1);
            quantize(part - 1, columns, activations);
        });
    }

    // A row of the input.
    void quantize(int64_t row, int64_t columns, void *activations) {
        const tritllm_input input = call.input(columns);
        tritllm_linear_quantize(&input, row, row + 1, activations);
    }

    // The products that are open, whose matrices have so many rows.
    template <class... Rows>
    void multiply(const void *activations, Rows... rows) {
        const TileParts parts((tiles_of(rows) + ...), call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            multiply_tiles(call.products, activations, parts.begin(part), parts.begin(part + 1));
        });
    }

    // Of both, the same rows, and then act(gate) * up of these; of a prompt, whose rows are in no
    // near cache any more then, gate_row makes them one by one.
    void multiply_gates(const tritllm_block &block) {
        if (is_prompt(step.new_tokens)) return multiply_both(block.intermediate);
        static_assert(TRITLLM_WIDTH_MULTIPLE % kTileRows == 0, "up begins with a tile");
        const int64_t wide = block.intermediate, tiles = tiles_of(wide);
        const TileParts parts(tiles, call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            const int64_t begin = parts.begin(part), end = parts.begin(part + 1);
            if (part == 0) begin_wide(wide);
            multiply_tiles(call.products, scratch.of_hidden, begin, end);
            multiply_tiles(call.products, scratch.of_hidden, tiles + begin, tiles + end);
            const int64_t first = begin * kTileRows, n = std::min(end * kTileRows, wide) - first;
            for (int64_t row = 0; row < call.rows; row++) {
                const float *gate = scratch.result + 2 * row * wide + first;
                kernel.gate(gate, gate + wide, n, block.activation,
                            scratch.rows + row * wide + first);
            }
        });
    }

    // What multiply_gates has left to do of a row.
    void gate_row(const tritllm_block &block, int64_t row) const {
        if (!is_prompt(step.new_tokens)) return;
        const int64_t wide = block.intermediate;
        const float *gate = scratch.result + 2 * row * wide;
        kernel.gate(gate, gate + wide, wide, block.activation, scratch.rows + row * wide);
    }

 private:
    void multiply_both(int64_t wide) {
        const TileParts parts(2 * tiles_of(wide), call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            if (part == 0) begin_wide(wide);
            multiply_tiles(call.products, scratch.of_hidden, parts.begin(part),
                           parts.begin(part + 1));
        });
    }

    // Of blocks whose units differ in width; call.begin makes the others.
    void begin_wide(int64_t wide) {
        const int status = call.begin_activations(call.input(wide), scratch.of_wide);
        if (status != TRITLLM_OK) call.status.store(status);
    }

    // Results lie one after the other in a row.
    void open(int64_t columns, std::initializer_list<Factor> factors) {
        ProductList list;
        int64_t width = 0, at = 0;
        for (const Factor &f : factors) width += f.rows;
        for (const Factor &f : factors) {
            list.add(f.weight, f.rows, scratch.result + at, width);
            at += f.rows;
        }
        const int status = list.open(columns, &call.products);
        if (status == TRITLLM_OK) return;
        call.status.store(status);
        call.products.count = 0;  // the others go on with nothing to multiply
    }
};

}  // namespace
