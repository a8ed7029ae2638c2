/* tritllm: the decoder blocks of the Llama family on packed weights, for a few new tokens a sequence.
 *
 *   h = h + O(attention(rope(norm_q(Q x)), keys, values))     x = rms_norm(h, input_norm)
 *   h = h + Down(silu(Gate z) * Up z)                         z = rms_norm(h, post_norm)
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
 * depend on the number of threads, nor a token's on what else is in the step: several new tokens
 * get the bits that they get one by one. hidden and intermediate are multiples of TRITLLM_WIDTH_MULTIPLE,
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

typedef struct {
    const void *data; /* NULL: there is none */
    int32_t dtype;
} tritllm_vector;

typedef struct {
    const void *prepared;
    int64_t size; /* bytes that the caller holds at `prepared` */
    tritllm_vector bias;
    const float *steps; /* as in tritllm_product: 27 steps, or NULL */
    int32_t depth;      /* as in tritllm_product: planes to read, or 0 */
} tritllm_weight;

/* One block. In all blocks of a step the first seven fields are equal. */
typedef struct {
    int64_t hidden;
    int64_t intermediate;
    int32_t heads;
    int32_t kv_heads; /* a divisor of heads */
    int32_t head_dim;
    int32_t dtype;             /* of hidden states, cos, sin, queries, keys and values */
    int32_t exact;             /* as in tritllm_input */
    float epsilon;             /* of the norms */
    float scaling;             /* of the scores */
    tritllm_vector input_norm; /* [hidden] */
    tritllm_vector post_norm;  /* [hidden] */
    tritllm_vector q_norm;     /* [head_dim], or none */
    tritllm_vector k_norm;     /* [head_dim], or none */
    tritllm_weight q, k, v, o, gate, up, down;
} tritllm_block;

typedef struct {
    int64_t batch;      /* sequences */
    int64_t new_tokens; /* of every sequence */
    int64_t tokens;     /* keys of a sequence; the last are those of the new tokens */
    void *hidden;       /* [batch][new_tokens][hidden]; replaced by the result */
    const void *cos;    /* [new_tokens][head_dim], sequence b's at element b * rotary_stride */
    const void *sin;
    int64_t rotary_stride; /* 0: the same positions in every sequence */
    void *const *key;      /* of every block: [batch][kv_heads][tokens][head_dim] */
    void *const *value;    /* likewise */
    int64_t key_stride[3]; /* of a sequence, a head, a token, in elements; values' are equal */
    const uint8_t *mask;   /* [tokens], row b at b * mask_stride: 0 hides a key; or NULL */
    int64_t mask_stride;
    tritllm_vector final_norm; /* [hidden], or none */
    float final_epsilon;
} tritllm_step;

/* Bytes of scratch memory; -1 for a block or a size that this library cannot compute. */
TRITLLM_API int64_t tritllm_llama_step_scratch(const tritllm_block *block, int64_t batch,
                                               int64_t new_tokens, int64_t tokens);

TRITLLM_API int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                                   const tritllm_step *step, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
