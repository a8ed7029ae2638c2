// A block's attention: queries and keys rotated, keys and values stored, heads attended.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/int8.h"
#include "step_thread.h"

namespace {

class Attention : StepThread {
 public:
    explicit Attention(const StepThread &thread) : StepThread(thread) {}

    // From projected rows, scratch.result, to rows of what all heads attend to, scratch.rows. Long
    // sequences are cut into parts at the same tokens whatever their length, so that results do not
    // depend on what comes later.
    void run(const tritllm_block &block, int64_t number) {
        phases.run(call.rows * block.kv_heads, [&](int64_t part) {
            rotate(block, number, part / block.kv_heads, int(part % block.kv_heads));
        });
        if (is_prompt(step.new_tokens)) return run_prompt(block, number);
        const int64_t before = splits_before(block), splits = splits_of(step.tokens) - before;
        phases.run(step.batch * block.kv_heads * splits, [&](int64_t part) {
            const int64_t sequence = part / splits / block.kv_heads;
            const int head = int(part / splits % block.kv_heads);
            attend_part(block, number, sequence, head, before + part % splits);
            if (splits == 1)
                for (int64_t t = 0; t < step.new_tokens; t++)
                    combine(block, sequence * step.new_tokens + t, head);
        });
        if (splits > 1)
            phases.run(call.rows * block.kv_heads, [&](int64_t part) {
                combine(block, part / block.kv_heads, int(part % block.kv_heads));
            });
    }

 private:
    // Of a row, the queries that share a head of keys, and that head's key and value.
    void rotate(const tritllm_block &block, int64_t number, int64_t row, int head) {
        const int width = block.head_dim, share = block.heads / block.kv_heads;
        const int64_t b = row / step.new_tokens, *stride = step.key_stride;
        const int64_t token = step.tokens - step.new_tokens + row % step.new_tokens;
        const int64_t slot = b * stride[0] + head * stride[1] + token * stride[2];
        float *projected = scratch.result + row * shape.projected;
        float *q = projected + head * share * width;
        float *k = projected + shape.queries + head * width;
        float *to = scratch.q + row * shape.queries + head * share * width;
        alignas(64) float rounded[kMostHeadDim];
        for (int h = 0; h < share; h++, q += width, to += width) {
            rotate_head(block, row, q, block.q_norm, rounded);
            kernel.widen(rounded, block.dtype, width, to);
            kernel.multiply(to, width, block.scaling);
        }
        if (!step.key_scale) {
            rotate_head(block, row, k, block.k_norm,
                        element_at(step.key[number], block.dtype, slot));
            kernel.narrow(k + shape.keys, width, block.dtype,
                          element_at(step.value[number], block.dtype, slot));
            return;
        }
        rotate_head(block, row, k, block.k_norm, rounded);
        store_int8(block, rounded, step.key[number], step.key_scale[number], slot);
        kernel.narrow(k + shape.keys, width, block.dtype, rounded);
        store_int8(block, rounded, step.value[number], step.value_scale[number], slot);
    }

    // x: a head's elements, of the block's dtype.
    void store_int8(const tritllm_block &block, const void *x, void *to, float *scale,
                    int64_t at) const {
        alignas(64) float wide[kMostHeadDim];
        kernel.widen(x, block.dtype, block.head_dim, wide);
        for (int i = 0; i < block.head_dim; i += TRITLLM_CACHE_GROUP)
            scale[(at + i) / TRITLLM_CACHE_GROUP] =
                round_to_int8<TRITLLM_CACHE_GROUP>(wide + i, static_cast<int8_t *>(to) + at + i)
                    .scale;
    }

    void rotate_head(const tritllm_block &block, int64_t row, float *x,
                     const tritllm_vector &head_norm, void *out) {
        const int64_t at =
            row / step.new_tokens * step.rotary_stride + row % step.new_tokens * block.rotary_dim;
        if (head_norm.data) norm(block, x, block.head_dim, head_norm, x);
        kernel.apply_rotary(x, block.rotary_dim,
                            element_at(step.cos[block.rotary], block.dtype, at),
                            element_at(step.sin[block.rotary], block.dtype, at), block.dtype, out);
        kernel.narrow(x + block.rotary_dim, block.head_dim - block.rotary_dim, block.dtype,
                      element_at(out, block.dtype, block.rotary_dim));
    }

    // Parts of the keys that are before every window.
    int64_t splits_before(const tritllm_block &block) const {
        const int64_t seen = step.tokens - step.new_tokens + 1;  // by the first new token
        return block.window ? std::max<int64_t>(seen - block.window, 0) / kKeysAPart : 0;
    }

    // Parts are as many queries as share a widening of keys; the last of a sequence, which see the
    // most keys, come first.
    void run_prompt(const tritllm_block &block, int64_t number) {
        const int share = block.heads / block.kv_heads;
        const int64_t together = std::max<int64_t>(kBlockQueries / share, 1);
        const int64_t runs = (step.new_tokens + together - 1) / together;
        const int64_t heads = step.batch * block.kv_heads;
        phases.run(runs * heads, [&](int64_t part) {
            const int64_t first = (runs - 1 - part / heads) * together;
            const int64_t sequence = part % heads / block.kv_heads;
            const int head = int(part % block.kv_heads);
            const int64_t row = sequence * step.new_tokens + first;
            AttentionPart work = part_of(block, number, sequence, head, 0, step.tokens);
            work.q += first * shape.queries;
            work.seen += first;
            work.new_tokens = std::min(together, step.new_tokens - first);
            work.out = scratch.rows + row * shape.queries + head * share * block.head_dim;
            work.out_stride = shape.queries;
            kernel.attend_prompt(work);
        });
    }

    void attend_part(const tritllm_block &block, int64_t number, int64_t sequence, int head,
                     int64_t split) {
        const int share = block.heads / block.kv_heads;
        const int64_t row = sequence * step.new_tokens, size = partial_size(block.head_dim);
        const int64_t first = split * kKeysAPart;
        AttentionPart work = part_of(block, number, sequence, head, first,
                                     std::min(kKeysAPart, step.tokens - first));
        work.out = scratch.parts + ((split * call.rows + row) * block.heads + head * share) * size;
        work.out_stride = block.heads * size;
        kernel.attend(work);
    }

    // Of all new tokens of a sequence and `tokens` keys from `first` on; `out` is not set.
    AttentionPart part_of(const tritllm_block &block, int64_t number, int64_t sequence, int head,
                          int64_t first, int64_t tokens) const {
        const int share = block.heads / block.kv_heads;
        const int64_t row = sequence * step.new_tokens, *stride = step.key_stride;
        const int64_t at = sequence * stride[0] + head * stride[1] + first * stride[2];
        AttentionPart work;
        work.q = scratch.q + row * shape.queries + head * share * block.head_dim;
        work.q_stride = shape.queries;
        if (step.key_scale) {
            work.key = static_cast<const int8_t *>(step.key[number]) + at;
            work.value = static_cast<const int8_t *>(step.value[number]) + at;
            work.key_scale = step.key_scale[number] + at / TRITLLM_CACHE_GROUP;
            work.value_scale = step.value_scale[number] + at / TRITLLM_CACHE_GROUP;
        } else {
            work.key = element_at(step.key[number], block.dtype, at);
            work.value = element_at(step.value[number], block.dtype, at);
            work.key_scale = work.value_scale = nullptr;
        }
        work.stride = stride[2];
        work.mask = step.mask ? step.mask + sequence * step.mask_stride + first : nullptr;
        work.tokens = tokens;
        work.seen = step.tokens - step.new_tokens + 1 - first;
        work.window = block.window;
        work.softcap = block.softcap;
        work.new_tokens = step.new_tokens;
        work.heads = share;
        work.head_dim = block.head_dim;
        work.dtype = block.dtype;
        return work;
    }

    // Of a row, the heads that share keys.
    void combine(const tritllm_block &block, int64_t row, int head) {
        const int share = block.heads / block.kv_heads, width = block.head_dim;
        const int64_t size = partial_size(width), stride = call.rows * block.heads * size;
        const int64_t before = splits_before(block), splits = splits_of(step.tokens) - before;
        for (int64_t h = head * share; h < (head + 1) * share; h++)
            kernel.combine(scratch.parts + before * stride + (row * block.heads + h) * size, splits,
                           stride, width, scratch.rows + row * shape.queries + h * width);
    }
};

}  // namespace
