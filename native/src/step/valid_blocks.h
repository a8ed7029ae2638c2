// Which blocks this library can compute.
#pragma once

#include <cstdint>

#include "cpu/elements.h"
#include "step_kernels.h"

namespace {

inline bool valid_vector(const tritllm_vector &v, bool optional) {
    return v.data ? valid_type(v.dtype) : optional;
}

inline bool valid_width(int64_t n) { return n > 0 && n % TRITLLM_WIDTH_MULTIPLE == 0; }

inline bool has_own_unit(const tritllm_block &b) {
    return !b.experts || b.experts->shared_gate.data;
}

inline bool valid_unit(const tritllm_block &b) {
    if (b.activation < TRITLLM_SILU || b.activation > TRITLLM_RELU_SQUARED) return false;
    if (!valid_vector(b.unit_sub_norm, true) || (b.experts && b.unit_sub_norm.data)) return false;
    if (has_own_unit(b) && !valid_width(b.intermediate)) return false;
    if (!b.experts) return true;
    const tritllm_experts &e = *b.experts;
    return e.chosen > 0 && e.chosen <= TRITLLM_MOST_CHOSEN && e.chosen <= e.count &&
           valid_width(e.intermediate) && valid_vector(e.router, false) &&
           valid_vector(e.shared_gate, true) && e.expert;
}

inline bool valid_block(const tritllm_block &b) {
    return valid_width(b.hidden) && b.kv_heads > 0 && b.heads > 0 && b.heads % b.kv_heads == 0 &&
           b.head_dim > 0 && b.head_dim % TRITLLM_HEAD_MULTIPLE == 0 &&
           b.head_dim <= kMostHeadDim && b.rotary_dim > 0 && b.rotary_dim <= b.head_dim &&
           b.rotary_dim % TRITLLM_HEAD_MULTIPLE == 0 && valid_type(b.dtype) && b.window >= 0 &&
           (b.rotary == 0 || b.rotary == 1) && valid_vector(b.input_norm, false) &&
           valid_vector(b.post_norm, false) && valid_vector(b.q_norm, true) &&
           valid_vector(b.k_norm, true) && valid_vector(b.attention_norm, true) &&
           valid_vector(b.feedforward_norm, true) && valid_vector(b.attention_sub_norm, true) &&
           !b.k.prepared == !b.v.prepared && b.arithmetic >= TRITLLM_GROUPS &&
           b.arithmetic <= TRITLLM_PER_TOKEN && valid_unit(b);
}

inline bool same_shape(const tritllm_block &a, const tritllm_block &b) {
    return a.hidden == b.hidden && a.heads == b.heads && a.kv_heads == b.kv_heads &&
           a.head_dim == b.head_dim && a.rotary_dim == b.rotary_dim && a.dtype == b.dtype &&
           a.arithmetic == b.arithmetic;
}

inline bool valid_blocks(const tritllm_block *blocks, int64_t n_blocks) {
    for (int64_t i = 0; i < n_blocks; i++)
        if (!valid_block(blocks[i]) || !same_shape(blocks[i], blocks[0])) return false;
    return n_blocks > 0;
}

}  // namespace
