// A block's mixture of experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "row_products.h"

namespace {

class Experts : StepThread {
 public:
    explicit Experts(const StepThread &thread) : StepThread(thread), products_(thread) {}

    // How much a token wants each expert, and the one of all tokens.
    void route(const tritllm_block &block) {
        const tritllm_experts &e = *block.experts;
        const int64_t chunks = (e.count + kLogitsAPart) / kLogitsAPart;  // with the shared gate
        phases.run(call.rows * chunks, [&](int64_t part) {
            const int64_t row = part / chunks, first = part % chunks * kLogitsAPart;
            for (int64_t i = first; i < std::min<int64_t>(first + kLogitsAPart, e.count + 1); i++) {
                float *logit = scratch.logits + row * (shape.experts + 1) + i;
                if (i < e.count)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.router, i * shape.hidden);
                else if (e.shared_gate.data)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.shared_gate, 0);
            }
        });
    }

    // Adds to the block's result, one token after the other, for each has experts of its own.
    void run(const tritllm_block &block) {
        for (int64_t row = 0; row < call.rows; row++) run_token(block, row);
    }

 private:
    static constexpr int64_t kLogitsAPart = 16;

    void run_token(const tritllm_block &block, int64_t row) {
        const tritllm_experts &e = *block.experts;
        const int64_t hidden = shape.hidden, inner = e.intermediate;
        float *logits = scratch.logits + row * (shape.experts + 1);
        phases.run(1, [&](int64_t) {
            call.choice.choose(logits, e.count, e.chosen, e.normalized != 0);
            ProductList list;
            for (int i = 0; i < e.chosen; i++) {
                const tritllm_expert &expert = e.expert[call.choice.expert[i]];
                float *gates = scratch.expert_gates + 2 * i * inner;
                list.add(expert.gate, inner, gates, inner);
                list.add(expert.up, inner, gates + inner, inner);
            }
            products_.open(list, hidden);
        });
        const TileParts gates(2 * e.chosen * tiles_of(inner), call.threads);
        phases.run(gates.count(), [&](int64_t part) {
            multiply_tiles(call.products, scratch.of_token + row * scratch.token_bytes,
                           gates.begin(part), gates.begin(part + 1));
        });
        phases.run(e.chosen + 1, [&](int64_t part) {
            if (part == e.chosen) return open_downs(e);
            float *out = scratch.expert_rows + part * inner;
            const float *gate = scratch.expert_gates + 2 * part * inner;
            kernel.gate(gate, gate + inner, inner, block.activation, out);
            uint8_t *activations = scratch.of_expert + part * scratch.expert_bytes;
            const tritllm_input in = call.one(out, inner);
            products_.begin_activations(in, activations);
            tritllm_linear_quantize(&in, 0, 1, activations);
        });
        const TileParts down(tiles_of(hidden), call.threads);
        phases.run(e.chosen * down.count(), [&](int64_t part) {
            const int64_t number = part / down.count(), before = number * tiles_of(hidden);
            part %= down.count();
            multiply_tiles(call.products, scratch.of_expert + number * scratch.expert_bytes,
                           before + down.begin(part), before + down.begin(part + 1));
        });
        phases.run(1, [&](int64_t) { mix(e, row, logits[e.count]); });
    }

    void open_downs(const tritllm_experts &e) {
        ProductList list;
        for (int i = 0; i < e.chosen; i++)
            list.add(e.expert[call.choice.expert[i]].down, shape.hidden,
                     scratch.expert_results + i * shape.hidden, shape.hidden);
        products_.open(list, e.intermediate);
    }

    // The row of the block's result: what the token's experts and that of all tokens give.
    void mix(const tritllm_experts &e, int64_t row, float shared_logit) {
        float *sum = scratch.result + row * shape.hidden;
        if (e.shared_gate.data)
            kernel.multiply(sum, shape.hidden, 1 / (1 + std::exp(-shared_logit)));
        else
            std::fill(sum, sum + shape.hidden, 0.0f);
        for (int i = 0; i < e.chosen; i++) {
            float *result = scratch.expert_results + i * shape.hidden;
            kernel.multiply(result, shape.hidden, call.choice.weight[i]);
            kernel.add(sum, {result, TRITLLM_FLOAT32}, shape.hidden, sum);
        }
    }

    RowProducts products_;
};

}  // namespace
