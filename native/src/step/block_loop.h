// The blocks of a step in turn.
#pragma once

#include <cstdint>

#include "attention.h"
#include "experts.h"
#include "row_products.h"

namespace {

// What one thread does.
class BlockLoop : StepThread {
 public:
    explicit BlockLoop(const StepThread &thread)
        : StepThread(thread), attention_(thread), products_(thread), experts_(thread) {}

    void run() {
        for (int64_t number = 0; number < call.n_blocks; number++) run_block(number);
        const tritllm_block &last = call.blocks[call.n_blocks - 1];
        phases.run(call.rows, [&](int64_t row) {
            end_row(last, row);
            final_norm(last, row);
        });
    }

 private:
    void run_block(int64_t number) {
        const tritllm_block &block = call.blocks[number];
        auto make_first = [&](int64_t row) {
            float *x = scratch.rows + row * shape.hidden;
            if (number) end_row(call.blocks[number - 1], row);
            kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
            norm(block, x, shape.hidden, block.input_norm, x);
        };
        if (block.k.prepared) {
            products_.make_rows(
                shape.hidden, scratch.of_hidden,
                {{block.q, shape.queries}, {block.k, shape.keys}, {block.v, shape.keys}},
                make_first);
            products_.multiply(scratch.of_hidden, shape.queries, shape.keys, shape.keys);
        } else {
            products_.make_rows(shape.hidden, scratch.of_hidden, {{block.q, shape.projected}},
                                make_first);
            products_.multiply(scratch.of_hidden, shape.projected);
        }
        attention_.run(block, number);
        products_.make_rows(
            shape.queries, scratch.of_queries, {{block.o, shape.hidden}},
            [&](int64_t row) { sub_norm(block, row, shape.queries, block.attention_sub_norm); });
        products_.multiply(scratch.of_queries, shape.hidden);
        auto make_second = [&](int64_t row) {
            float *sum = scratch.residual + row * shape.hidden, *z = z_row(row);
            float *attended = scratch.result + row * shape.hidden;
            if (block.attention_norm.data)
                norm(block, attended, shape.hidden, block.attention_norm, attended);
            kernel.add(attended, {hidden_row(block, row), block.dtype}, shape.hidden, sum);
            norm(block, sum, shape.hidden, block.post_norm, z);
        };
        const int64_t wide = block.intermediate;
        if (!has_own_unit(block))
            phases.run(call.rows, [&](int64_t row) {
                make_second(row);
                products_.quantize(row, shape.hidden, scratch.of_hidden);
            });
        else if (block.up.prepared)
            products_.make_rows(shape.hidden, scratch.of_hidden,
                                {{block.gate, wide}, {block.up, wide}}, make_second);
        else
            products_.make_rows(shape.hidden, scratch.of_hidden, {{block.gate, 2 * wide}},
                                make_second);
        if (block.experts) experts_.route(block);
        if (has_own_unit(block)) {
            products_.multiply_gates(block);
            products_.make_rows(wide, scratch.of_wide, {{block.down, shape.hidden}},
                                [&](int64_t row) {
                                    products_.gate_row(block, row);
                                    sub_norm(block, row, wide, block.unit_sub_norm);
                                });
            products_.multiply(scratch.of_wide, shape.hidden);
        }
        if (block.experts) experts_.run(block);
    }

    // Of a row of n elements that a product is to take, where it stands.
    void sub_norm(const tritllm_block &block, int64_t row, int64_t n,
                  const tritllm_vector &weight) const {
        float *x = scratch.rows + row * n;
        if (weight.data) norm(block, x, n, weight, x);
    }

    void end_row(const tritllm_block &block, int64_t row) {
        float *sum = scratch.residual + row * shape.hidden;
        float *result = scratch.result + row * shape.hidden;
        if (block.feedforward_norm.data)
            norm(block, result, shape.hidden, block.feedforward_norm, result);
        kernel.add(sum, {result, TRITLLM_FLOAT32}, shape.hidden, sum);
        kernel.narrow(sum, shape.hidden, block.dtype, hidden_row(block, row));
    }

    void final_norm(const tritllm_block &block, int64_t row) {
        if (!step.final_norm.data) return;
        float *x = scratch.rows + row * shape.hidden;
        kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
        kernel.rms_norm(x, shape.hidden, step.final_norm, step.final_epsilon, block.norm_offset, x);
        kernel.narrow(x, shape.hidden, block.dtype, hidden_row(block, row));
    }

    Attention attention_;
    RowProducts products_;
    Experts experts_;
};

}  // namespace
