/* tritllm: decoder blocks on packed weights, for a few new tokens a sequence or for a part of a
 * prompt: those of the Llama family, and with some parts more those of Phi-3, Gemma 2 and 3, BitNet and mixtures of experts.
 *
 *   h = h + O(attention(rope(norm_q(Q x)), keys, values))     x = rms_norm(h, input_norm)
 *   h = h + Down(act(Gate z) * Up z)                          z = rms_norm(h, post_norm)
 *
 * for every block in turn, and rms_norm(h, final_norm) at the end. The new tokens' keys
 * rope(norm_k(K x)) and values V x are written behind those of the tokens before; a new token sees
 * those, itself and the new ones before it.
 *
 *   bytes = tritllm_llama_step_scratch(&block, batch, new_tokens, tokens)
 *   tritllm_llama_step(threads, blocks, n_blocks, &step, scratch)
 *
 * Hidden states between the blocks, queries, keys and values have the blocks' dtype; everything
 * else is float32. Products are those of tritllm_linear.h, on prepared weights. Results do not
 * depend on the number of threads, nor a token's on what else is in the step: up to
 * TRITLLM_STEP_TOKENS new tokens of a sequence get the bits that they get one by one. More are a
 * prompt, whose attention is summed in another order. hidden and intermediate are multiples of TRITLLM_WIDTH_MULTIPLE,
 * head_dim is one of TRITLLM_HEAD_MULTIPLE and at most TRITLLM_MOST_HEAD_DIM. Memory is the
 * caller's; scratch is aligned to TRITLLM_ALIGNMENT. Return values are those of tritllm.h.
 */
#ifndef TRITLLM_STEP_H
#define TRITLLM_STEP_H

#include "tritllm_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TRITLLM_WIDTH_MULTIPLE 16
#define TRITLLM_HEAD_MULTIPLE 32
#define TRITLLM_MOST_HEAD_DIM 256
#define TRITLLM_CACHE_GROUP 32
#define TRITLLM_STEP_TOKENS 16

typedef struct {
    const void *data; /* NULL: there is none */
    int32_t dtype;
} tritllm_vector;

/* act of a gated unit */
#define TRITLLM_SILU 0
#define TRITLLM_GELU_TANH 1    /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) */
#define TRITLLM_RELU_SQUARED 2 /* max(x, 0)**2 */

#define TRITLLM_MOST_CHOSEN 32 /* experts of one token */

typedef struct {
    const void *prepared;
    int64_t size; /* bytes that the caller holds at `prepared` */
    tritllm_vector bias;
    const float *steps; /* as in tritllm_product: 27 steps, or NULL */
    int32_t depth;      /* as in tritllm_product: planes to read, or 0 */
} tritllm_weight;

typedef struct {
    tritllm_weight gate, up, down;
} tritllm_expert;

/* The experts of a block, instead of its gated unit. A token's are the `chosen` of the largest
 * p = softmax(router z), and it gets the sum of p Down(act(Gate z) * Up z), the p divided by their
 * sum where `normalized` says so. Only the chosen are read, each once for all of the step's tokens
 * that chose it. A block's own gate, up and down, where there are any, are an expert of all tokens,
 * times sigmoid(shared_gate z). */
typedef struct {
    int32_t count;
    int32_t chosen; /* at most TRITLLM_MOST_CHOSEN */
    int32_t normalized;
    int64_t intermediate;
    tritllm_vector router;        /* [count][hidden] */
    tritllm_vector shared_gate;   /* [hidden], or none: then there is no expert of all tokens */
    const tritllm_expert *expert; /* [count] */
} tritllm_experts;

/* One block. In all blocks of a step hidden, heads, kv_heads, head_dim, rotary_dim, dtype and
 * arithmetic are equal. */
typedef struct {
    int64_t hidden;
    int64_t intermediate; /* of the block's own gate and up; 0 where it has experts only */
    int32_t heads;
    int32_t kv_heads; /* a divisor of heads */
    int32_t head_dim;
    int32_t rotary_dim; /* the first elements of a head, which are rotated; the others stay */
    int32_t dtype;      /* of hidden states, cos, sin, queries, keys and values */
    int32_t arithmetic; /* as in tritllm_input */
    float epsilon;      /* of the norms */
    float norm_offset;  /* that is added to the norms' weights: 0, or 1 (Gemma) */
    float scaling;      /* of the scores */
    float softcap;      /* c of c tanh(score / c), or 0: scores as they are */
    int64_t window;     /* keys that a token sees, its own included, or 0: all */
    int32_t rotary;     /* which of the step's cosines and sines */
    int32_t activation; /* act */
    tritllm_vector input_norm; /* [hidden] */
    tritllm_vector post_norm;  /* [hidden] */
    tritllm_vector q_norm;     /* [head_dim], or none */
    tritllm_vector k_norm;     /* [head_dim], or none */
    /* [hidden], or none: of what attention and the gated unit give, before it is added to h. */
    tritllm_vector attention_norm, feedforward_norm;
    /* [heads * head_dim] of what O multiplies, [intermediate] of what Down does; or none. */
    tritllm_vector attention_sub_norm, unit_sub_norm;
    /* k and v without memory: q holds all three, one above the other. up without memory: gate
     * holds both. */
    tritllm_weight q, k, v, o, gate, up, down;
    const tritllm_experts *experts; /* or NULL */
} tritllm_block;

typedef struct {
    int64_t batch;      /* sequences */
    int64_t new_tokens; /* of every sequence */
    int64_t tokens;     /* keys of a sequence; the last are those of the new tokens */
    void *hidden;       /* [batch][new_tokens][hidden]; replaced by the result */
    const void *cos[2]; /* [new_tokens][rotary_dim], sequence b's at element b * rotary_stride */
    const void *sin[2];
    int64_t rotary_stride; /* 0: the same positions in every sequence */
    void *const *key;      /* of every block: [batch][kv_heads][tokens][head_dim] */
    void *const *value;    /* likewise */
    int64_t key_stride[3]; /* of a sequence, a head, a token, in elements; values' are equal */
    const uint8_t *mask;   /* [tokens], row b at b * mask_stride: 0 hides a key; or NULL */
    int64_t mask_stride;
    tritllm_vector final_norm; /* [hidden], or none */
    float final_epsilon;
    /* Of keys and values that are int8 with a scale for each TRITLLM_CACHE_GROUP of a head's
     * elements, by strides of key_stride / TRITLLM_CACHE_GROUP; or NULL: they have the blocks'
     * dtype. A group is rounded to that first: s = max|x| / 127, q = rint(x * (127 / max|x|)). */
    float *const *key_scale;
    float *const *value_scale;
} tritllm_step;

/* Bytes of scratch memory; -1 for a block or a size that this library cannot compute. */
TRITLLM_API int64_t tritllm_llama_step_scratch(const tritllm_block *blocks, int64_t n_blocks,
                                               int64_t batch, int64_t new_tokens, int64_t tokens);

TRITLLM_API int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                                   const tritllm_step *step, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
