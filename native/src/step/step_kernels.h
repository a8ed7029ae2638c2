// The table of functions that one instruction set provides for what stands between the products of
// a block. All numbers of elements are multiples of 16.
#pragma once

#include <cstdint>

#include "tritllm_step.h"

// Of one sequence, the queries that share a head of keys and some of its keys. Rows are queries, a
// new token's `heads` together; later tokens' come later and see a key more each.
struct AttentionPart {
    const float *q;  // [new_tokens][heads][head_dim], times the scores' scaling; a token's at
    int64_t q_stride;
    const void *key, *value;
    const float *key_scale, *value_scale;  // of int8 keys and values, or null
    int64_t stride;                        // of a token's keys and values, in elements
    const uint8_t *mask;                   // [tokens], or null
    int64_t tokens;                        // keys
    int64_t seen;    // the end of the keys that the first new token sees; may be negative
    int64_t window;  // how many keys before that end it sees, or 0: all
    int64_t new_tokens;
    int32_t heads, head_dim, dtype;
    float softcap;  // c of c tanh(score / c), or 0
    float *out;  // [new_tokens][heads][partial_size(head_dim)], of a prompt head_dim; a token's at
    int64_t out_stride;
};

// A head's share of an attention: head_dim sums of weight * value, then the largest score and the
// sum of the weights, which are exp(score - largest score).
constexpr int kMostHeadDim = TRITLLM_MOST_HEAD_DIM;
constexpr int64_t partial_size(int head_dim) { return head_dim + 16; }

// attend_prompt widens keys and values once for so many queries.
constexpr int kBlockQueries = 384;

struct StepKernels {
    // out = x / sqrt(mean(x**2) + epsilon) * (weight + offset)
    void (*rms_norm)(const float *x, int64_t n, const tritllm_vector &weight, float epsilon,
                     float offset, float *out);
    // Rotary position embedding; pairs are i and i + n / 2.
    void (*apply_rotary)(const float *x, int64_t n, const void *cos, const void *sin, int dtype,
                         void *out);
    // out = act(gate) * up
    void (*gate)(const float *gate, const float *up, int64_t n, int activation, float *out);
    void (*widen)(const void *x, int dtype, int64_t n, float *out);
    void (*add)(const float *x, const tritllm_vector &y, int64_t n, float *out);
    void (*narrow)(const float *x, int64_t n, int dtype, void *out);
    void (*attend)(const AttentionPart &part);
    // Of many queries and all keys: what the heads attend to.
    void (*attend_prompt)(const AttentionPart &part);
    // One head from its parts, `stride` floats apart, which are changed.
    void (*combine)(float *parts, int64_t count, int64_t stride, int head_dim, float *out);
    // x = x * by
    void (*multiply)(float *x, int64_t n, float by);
    // Of x [n] and the row of a matrix that begins at element `at`.
    float (*dot)(const float *x, int64_t n, const tritllm_vector &matrix, int64_t at);
};
