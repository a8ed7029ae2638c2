/* tritllm: y = x W^T (+ bias) on packed weights. Plain C interface, beside tritllm.h.
 *
 * Three calls: size, prepare, compute; the caller owns the memory. prepare turns the portable
 * arrays of a checkpoint into the layout that an instruction set likes best, behind a 64-byte
 * header that says what it is. Activations are prepared as well, once for all products that share
 * them:
 *
 *   bytes = tritllm_linear_size(isa, N, K, depth)
 *   tritllm_linear_prepare(isa, &portable, 0, N, prepared)
 *   bytes = tritllm_linear_activations_size(batch, K, exact)
 *   tritllm_linear_begin(&input, activations)
 *   tritllm_linear_quantize(&input, 0, batch, activations)
 *   tritllm_linear_compute(&product, activations, 0, N)
 *
 * Functions with a row range may run at the same time on disjoint ranges. tritllm_linear_run does
 * the last three at once with threads of its own.
 *
 * Arithmetic. By default activations are int8 with one float32 scale for each 16 along K (the
 * groups of the weights): s = max|x| / 127, q = rint(x * (127 / max|x|)). A group's dot product is
 * an exact integer, and y = sum over the groups, ascending, of fma(float(dot) * s, step, y), then +
 * bias. With `exact`, y = the sum over k, ascending, of fma(x, float32(level * step), y), then +
 * bias. The result is rounded once to y's type. A group that holds a NaN makes the row's results
 * NaN.
 *
 * Memory is aligned to 64 bytes; row ranges of N begin at multiples of TRITLLM_TILE. Nothing past
 * the caller's arrays is read or written. Return values are those of tritllm.h.
 */
#ifndef TRITLLM_LINEAR_H
#define TRITLLM_LINEAR_H

#include "tritllm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction sets are numbered as in tritllm.h; AVX-512 here also needs VNNI. */
enum { TRITLLM_AMX = 4 };

/* Bit i set: instruction set i can run here. */
TRITLLM_API int tritllm_linear_isas(void);

typedef struct {
    const uint8_t *weight; /* plane p of row n at weight + p * plane_stride + n * ceil(K / 5) */
    int64_t plane_stride;
    const uint8_t *scale; /* row n at scale + n * ceil(3 G / 5) */
    const float *steps;   /* 27 finite steps that apply at `depth` planes */
    int64_t rows;         /* N */
    int64_t columns;      /* K */
    int32_t depth;        /* planes to read, 1..4 */
} tritllm_portable;

/* Bytes of prepared memory, a multiple of 64; -1 for a depth or shape that is not one. */
TRITLLM_API int64_t tritllm_linear_size(int isa, int64_t rows, int64_t columns, int depth);

/* Writes rows [begin, end); the range that begins at 0 writes the header. */
TRITLLM_API int tritllm_linear_prepare(int isa, const tritllm_portable *portable, int64_t begin,
                                       int64_t end, void *prepared);

/* TRITLLM_OK where `prepared` (of `size` bytes) was made by this version and can run here. */
TRITLLM_API int tritllm_linear_check(const void *prepared, int64_t size);

typedef struct {
    const void *x; /* row b at element b * stride */
    int64_t stride;
    int64_t batch;
    int64_t columns; /* K */
    int32_t dtype;
    int32_t exact; /* 1: keep float32 */
} tritllm_input;

/* Bytes of prepared activations, a multiple of 64. */
TRITLLM_API int64_t tritllm_linear_activations_size(int64_t batch, int64_t columns, int exact);

/* Writes the header of the activations. */
TRITLLM_API int tritllm_linear_begin(const tritllm_input *input, void *activations);

/* Writes batch rows [begin, end) of the activations. */
TRITLLM_API int tritllm_linear_quantize(const tritllm_input *input, int64_t begin, int64_t end,
                                        void *activations);

typedef struct {
    const void *prepared;
    const void *bias; /* N, or NULL */
    void *y;          /* [batch][N]: row b at element b * stride */
    int64_t stride;
    int32_t bias_dtype;
    int32_t dtype; /* of y */
} tritllm_product;

/* Writes columns [begin, end) of every row of y: those of weight rows [begin, end). */
TRITLLM_API int tritllm_linear_compute(const tritllm_product *product, const void *activations,
                                       int64_t begin, int64_t end);

/* begin, quantize and compute of products that share one input, on `threads` threads: the caller's
 * and those of a pool that sleeps in between. `activations` is scratch memory of the size above. */
TRITLLM_API int tritllm_linear_run(int threads, const tritllm_input *input, void *activations,
                                   const tritllm_product *products, int n_products);

/* Lets tritllm_linear_run use an OpenMP runtime that the process has anyway, whose threads would
 * else compete with the pool's: the address of its GOMP_parallel, or NULL. */
TRITLLM_API void tritllm_linear_use_openmp(void *gomp_parallel);

#ifdef __cplusplus
}
#endif

#endif
