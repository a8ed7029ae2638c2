// A block's mixture of experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "expert_groups.h"
#include "product_list.h"
#include "step_thread.h"
#include "tile_parts.h"

namespace {

// Tokens that choose the same expert share its reading: it multiplies the rows of all of them at
// once. Where a part's work lies depends on what the tokens chose, which other threads may have
// replaced by the next block's choices; the number of parts does not, some of them are empty.
class Experts : StepThread {
 public:
    explicit Experts(const StepThread &thread) : StepThread(thread) {}

    // How much a token wants each expert, and the one of all tokens.
    void route(const tritllm_block &block) {
        const tritllm_experts &e = *block.experts;
        const int64_t chunks = (e.count + kLogitsAPart) / kLogitsAPart;  // with the shared gate
        phases.run(call.rows * chunks, [&](int64_t part) {
            const int64_t row = part / chunks, first = part % chunks * kLogitsAPart;
            for (int64_t i = first; i < std::min<int64_t>(first + kLogitsAPart, e.count + 1); i++) {
                float *logit = logits_of(row) + i;
                if (i < e.count)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.router, i * shape.hidden);
                else if (e.shared_gate.data)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.shared_gate, 0);
            }
        });
    }

    // The block's result, from the activations of all rows and what their unit gave.
    void run(const tritllm_block &block) {
        const tritllm_experts &e = *block.experts;
        const int64_t places = call.rows * e.chosen, most = std::min<int64_t>(places, e.count);
        phases.run(1, [&](int64_t) {
            for (int64_t row = 0; row < call.rows; row++)
                call.groups.choose(row, logits_of(row), e.count, e.chosen, e.normalized != 0);
            call.groups.sort(call.rows, e.chosen, e.count);
        });
        if (call.rows > 1) phases.run(places, [&](int64_t place) { gather(place); });
        const EvenParts gates(tiles_of(e.intermediate), most, call.threads);
        phases.run(gates.count(), [&](int64_t part) {
            const int64_t number = gates.matrix(part);
            if (number < call.groups.count)
                multiply_gates(block, number, gates.begin(part), gates.end(part));
        });
        phases.run(places, [&](int64_t place) {
            const int64_t number = call.groups.group[place], before = call.groups.first[number];
            tritllm_input input = call.input(e.intermediate);
            input.x = gate_row(e, before);
            tritllm_linear_quantize(&input, place - before, place - before + 1,
                                    inner_activations(number));
        });
        const EvenParts downs(tiles_of(shape.hidden), most, call.threads);
        phases.run(downs.count(), [&](int64_t part) {
            const int64_t number = downs.matrix(part);
            if (number < call.groups.count)
                multiply_down(e, number, downs.begin(part), downs.end(part));
        });
        const int64_t chunks = (shape.hidden + kColumnsAPart - 1) / kColumnsAPart;
        phases.run(call.rows * chunks, [&](int64_t part) {
            const int64_t first = part % chunks * kColumnsAPart;
            mix(e, part / chunks, first, std::min(kColumnsAPart, shape.hidden - first));
        });
    }

 private:
    static constexpr int64_t kLogitsAPart = 16, kColumnsAPart = 512;

    float *logits_of(int64_t row) const { return scratch.logits + row * (shape.experts + 1); }

    // Of a place, what the gate gave, and then act(gate) * up.
    float *gate_row(const tritllm_experts &e, int64_t place) const {
        return scratch.expert_gates + place * e.intermediate;
    }

    // Activations of a group's rows; those of a single row are the step's.
    uint8_t *hidden_activations(int64_t number) const {
        return call.rows == 1 ? scratch.of_hidden
                              : scratch.of_places + call.groups.first[number] * scratch.place_bytes;
    }
    uint8_t *inner_activations(int64_t number) const {
        return scratch.of_expert + call.groups.first[number] * scratch.expert_bytes;
    }

    void gather(int64_t place) {
        const int64_t number = call.groups.group[place], before = call.groups.first[number];
        uint8_t *activations = hidden_activations(number);
        if (place == before) begin(number, shape.hidden, activations);
        copy_activations(scratch.of_hidden, call.groups.row[place], activations, place - before);
    }

    void begin(int64_t number, int64_t columns, void *activations) {
        tritllm_input input = call.input(columns);
        input.batch = call.groups.size(number);
        const int status = call.begin_activations(input, activations);
        if (status != TRITLLM_OK) call.status.store(status);
    }

    // Tiles [first, end) of a group's expert: act(gate) * up.
    void multiply_gates(const tritllm_block &block, int64_t number, int64_t first, int64_t end) {
        const tritllm_experts &e = *block.experts;
        const tritllm_expert &expert = e.expert[call.groups.expert[number]];
        const int64_t wide = e.intermediate, tiles = tiles_of(wide);
        const int64_t before = call.groups.first[number];
        float *gates = gate_row(e, before), *ups = scratch.expert_ups + before * wide;
        if (first == 0) begin(number, wide, inner_activations(number));
        ProductList list;
        list.add(expert.gate, wide, gates, wide);
        list.add(expert.up, wide, ups, wide);
        ProductSet products;
        if (!open(list, shape.hidden, &products)) return;
        multiply_tiles(products, hidden_activations(number), first, end);
        multiply_tiles(products, hidden_activations(number), tiles + first, tiles + end);
        const int64_t at = first * kTileRows, n = std::min(end * kTileRows, wide) - at;
        for (int64_t i = 0; i < call.groups.size(number); i++) {
            float *gate = gates + i * wide + at;
            kernel.gate(gate, ups + i * wide + at, n, block.activation, gate);
        }
    }

    void multiply_down(const tritllm_experts &e, int64_t number, int64_t first, int64_t end) {
        ProductList list;
        list.add(e.expert[call.groups.expert[number]].down, shape.hidden,
                 scratch.expert_results + call.groups.first[number] * shape.hidden, shape.hidden);
        ProductSet products;
        if (open(list, e.intermediate, &products))
            multiply_tiles(products, inner_activations(number), first, end);
    }

    bool open(const ProductList &list, int64_t columns, ProductSet *products) {
        const int status = list.open(columns, products);
        if (status != TRITLLM_OK) call.status.store(status);
        return status == TRITLLM_OK;
    }

    // Of a row of the block's result, n elements: what the token's experts, in the order in which it
    // wants them, and that of all tokens give.
    void mix(const tritllm_experts &e, int64_t row, int64_t first, int64_t n) {
        float *sum = scratch.result + row * shape.hidden + first;
        if (e.shared_gate.data)
            kernel.multiply(sum, n, 1 / (1 + std::exp(-logits_of(row)[e.count])));
        else
            std::fill(sum, sum + n, 0.0f);
        for (int64_t i = row * e.chosen; i < (row + 1) * e.chosen; i++) {
            float *result = scratch.expert_results + call.groups.place[i] * shape.hidden + first;
            kernel.multiply(result, n, call.groups.weight[i]);
            kernel.add(sum, {result, TRITLLM_FLOAT32}, n, sum);
        }
    }
};

}  // namespace
