// What lies in the scratch memory of a step, and where.
#pragma once

#include <algorithm>
#include <cstdint>

#include "expert_groups.h"
#include "step_kernels.h"
#include "valid_blocks.h"

namespace {

constexpr int64_t kKeysAPart = 256;  // of one sequence and head of keys, that one thread takes

// Elements of a row. wide: of the widest block's unit. expert, experts, chosen: an expert's width,
// how many there are and how many a token has, the most of any block.
struct Shape {
    int64_t hidden, queries, keys, projected, wide = 0, expert = 0, experts = 0, chosen = 0;

    Shape(const tritllm_block *blocks, int64_t n_blocks)
        : hidden(blocks[0].hidden),
          queries(int64_t(blocks[0].heads) * blocks[0].head_dim),
          keys(int64_t(blocks[0].kv_heads) * blocks[0].head_dim),
          projected(queries + 2 * keys) {
        for (int64_t i = 0; i < n_blocks; i++) {
            if (has_own_unit(blocks[i])) wide = std::max(wide, blocks[i].intermediate);
            const tritllm_experts *e = blocks[i].experts;
            if (!e) continue;
            expert = std::max(expert, e->intermediate);
            experts = std::max<int64_t>(experts, e->count);
            chosen = std::max<int64_t>(chosen, e->chosen);
        }
    }
};

inline bool is_prompt(int64_t new_tokens) { return new_tokens > TRITLLM_STEP_TOKENS; }

inline int64_t splits_of(int64_t tokens) { return (tokens + kKeysAPart - 1) / kKeysAPart; }

// Where in scratch memory everything lies; without memory, how much it takes.
struct Scratch {
    float *rows;             // [rows][the widest]: what activations are made of
    float *result;           // [rows][as many]: products, one after the other
    float *residual;         // [rows][hidden]
    float *q;                // [rows][heads][head_dim], times the scores' scaling
    float *parts = nullptr;  // [splits][rows][heads][partial_size], not of a prompt
    uint8_t *of_hidden, *of_queries, *of_wide;  // activations of so many columns
    float *logits;          // [rows][experts + 1]: the router's, and the shared gate's
    float *expert_gates;    // [places][expert]
    float *expert_ups;      // [places][expert]
    float *expert_results;  // [places][hidden]
    uint8_t *of_places;     // [places]: activations of hidden columns, a group's together
    uint8_t *of_expert;     // [places]: the same of an expert's columns
    int64_t place_bytes, expert_bytes;
    ExpertGroups groups = {};
    int64_t bytes = 0;

    Scratch(const tritllm_block &b, const Shape &s, int64_t batch, int64_t new_tokens,
            int64_t tokens, void *memory) {
        const int64_t n = batch * new_tokens;
        auto take = [&](int64_t size) {
            uint8_t *at = memory ? static_cast<uint8_t *>(memory) + bytes : nullptr;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        auto floats = [&](int64_t count) { return reinterpret_cast<float *>(take(4 * count)); };
        auto activations = [&](int64_t columns) {
            return take(tritllm_linear_activations_size(n, columns, b.arithmetic));
        };
        // So much for each row is enough for any number of them, and for what stands above them.
        auto one = [&](int64_t columns) {
            return (tritllm_linear_activations_size(1, columns, b.arithmetic) + 63) / 64 * 64;
        };
        rows = floats(n * std::max({s.hidden, s.queries, s.wide}));
        result = floats(n * std::max({s.projected, s.hidden, 2 * s.wide}));
        residual = floats(n * s.hidden);
        q = floats(n * s.queries);
        if (!is_prompt(new_tokens))
            parts = floats(splits_of(tokens) * n * b.heads * partial_size(b.head_dim));
        of_hidden = activations(s.hidden);
        of_queries = activations(s.queries);
        of_wide = s.wide ? activations(s.wide) : nullptr;
        if (!s.experts) return;
        logits = floats(n * (s.experts + 1));
        const int64_t places = n * s.chosen;
        expert_gates = floats(places * s.expert);
        expert_ups = floats(places * s.expert);
        expert_results = floats(places * s.hidden);
        place_bytes = one(s.hidden);
        of_places = n > 1 ? take(places * place_bytes) : nullptr;
        expert_bytes = one(s.expert);
        of_expert = take(places * expert_bytes);
        auto numbers = [&](int64_t count) { return reinterpret_cast<int64_t *>(take(8 * count)); };
        groups.weight = floats(places);
        groups.place = numbers(places);
        groups.row = numbers(places);
        groups.group = numbers(places);
        groups.expert = numbers(places);
        groups.first = numbers(places + 1);
        groups.of_expert = numbers(s.experts);
    }
};

}  // namespace
