/* tritllm: y = x W^T (+ bias) on packed weights. Plain C interface, beside tritllm.h.
 *
 * The caller owns the memory. prepare turns the portable arrays of a checkpoint into the layout
 * that an instruction set likes best, behind a header that says what it is. Activations are
 * prepared as well, once for all products that share them:
 *
 *   portable.row_scales = tritllm_linear_row_scales(&portable)
 *   portable.planes_together = tritllm_linear_planes_together(isa, depth)
 *   bytes = tritllm_linear_size(isa, N, K, depth, portable.row_scales, portable.planes_together)
 *   tritllm_linear_prepare(isa, &portable, 0, N, prepared)
 *   bytes = tritllm_linear_activations_size(batch, K, arithmetic)
 *   tritllm_linear_begin(isa, &input, activations)
 *   tritllm_linear_quantize(&input, 0, batch, activations)
 *   tritllm_linear_compute(&product, activations, 0, N)
 *
 * Functions with a row range may run at the same time on disjoint ranges. tritllm_linear_run does
 * the last three at once with threads of its own. A matrix put together along its rows from parts
 * that keep a codebook each is as many products of one call, each with its own prepared memory and
 * its own columns of y; so parts may begin at any row, and kernels know nothing of them.
 *
 * Arithmetic. TRITLLM_GROUPS: activations are int8 with one float32 scale for each 16 along K (the
 * groups of the weights): s = max|x| / 127, q = rint(x * (127 / max|x|)). A group's dot product is
 * an exact integer, and y = sum over the groups, ascending, of float(dot) * s times step, then +
 * bias. TRITLLM_EXACT: y = the sum over k, ascending, of x times float32(level * step), then + bias.
 * TRITLLM_SUPERBLOCKS, for many batch rows: activations are int8 with one scale for each 192 along K,
 * and so are weights where instructions add up whole vectors of products (AVX-VNNI, AVX-512, AMX:
 * src/products/superblocks.h); elsewhere weights keep their levels, and their steps are integers
 * times one scale for each 192 (src/products/level_superblocks.h). The sums are those of
 * TRITLLM_GROUPS with superblocks for groups. TRITLLM_PER_TOKEN: int8 with one scale for each batch
 * row, as BitNet's models are trained: q = rint(x * t) with t = 127 / max(|x|, 1e-5), and the sums are
 * those of TRITLLM_GROUPS with s = 1 / t; but where every row of W has one scale, y = float(dot) * s *
 * step of the whole row, then + bias. Each of these sums adds by fma, which rounds once, but
 * for the scalar set, which rounds the product and then the sum; so all other sets give equal
 * bits, of superblocks those that round alike.
 * The result is rounded once to y's type. A group, superblock or batch row that holds a NaN makes the row's
 * results NaN.
 *
 * Memory is aligned to TRITLLM_ALIGNMENT bytes; row ranges of N begin at multiples of TRITLLM_TILE.
 * Nothing past the caller's arrays is read or written. Return values are those of tritllm.h.
 */
#ifndef TRITLLM_LINEAR_H
#define TRITLLM_LINEAR_H

#include "tritllm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TRITLLM_ALIGNMENT 64        /* of prepared memory, activations and scratch memory */
#define TRITLLM_PRODUCTS_AT_ONCE 64 /* of one call */

typedef struct {
    const uint8_t *weight; /* plane p of row n at weight + p * plane_stride + n * ceil(K / 5) */
    int64_t plane_stride;
    const uint8_t *scale;    /* row n at scale + n * ceil(3 G / 5) */
    const float *steps;      /* 27 finite steps that apply at `depth` planes */
    int64_t rows;            /* N */
    int64_t columns;         /* K */
    int32_t depth;           /* planes to read, 1..4 */
    int32_t row_scales;      /* what tritllm_linear_row_scales says of the fields above; or 0 */
    int32_t planes_together; /* what tritllm_linear_planes_together says; or 0 */
    int32_t reserved;
} tritllm_portable;

/* Whether every row has one scale: 1 where depth is 1 and all scale indices of a row are equal, as in
 * matrices that were trained ternary; else 0. Prepared memory is then smaller: it has a unit of scale
 * indices for each tile of rows in place of one for each of its blocks. */
TRITLLM_API int tritllm_linear_row_scales(const tritllm_portable *portable);

/* Whether memory of so many planes is smaller and faster to read with the planes of each weight
 * together: 1 or 0. All of them are then read, never fewer. */
TRITLLM_API int tritllm_linear_planes_together(int isa, int depth);

/* Bytes of prepared memory, a multiple of 64; -1 for an invalid shape or depth, for planes together
 * where the function above says 0, or where the instruction set cannot run here. */
TRITLLM_API int64_t tritllm_linear_size(int isa, int64_t rows, int64_t columns, int depth,
                                        int row_scales, int planes_together);

/* What codes are in the memory that tritllm_linear_prepare makes, as a number above 0: it depends
 * on the instruction set alone; -1 where that cannot run here. */
TRITLLM_API int tritllm_linear_layout(int isa);

/* Writes rows [begin, end); the range that begins at 0 writes the header. */
TRITLLM_API int tritllm_linear_prepare(int isa, const tritllm_portable *portable, int64_t begin,
                                       int64_t end, void *prepared);

typedef struct {
    int64_t rows;    /* N */
    int64_t columns; /* K */
    int64_t size;    /* bytes of prepared memory */
    int32_t isa;
    int32_t layout;
    int32_t depth;
    int32_t row_scales;
    int32_t planes_together;
    int32_t reserved;
} tritllm_prepared;

/* Says what `prepared` (of `size` bytes, which may be more than it needs) is. TRITLLM_OK where it
 * was made by this version and can run here; else nothing is written. */
TRITLLM_API int tritllm_linear_describe(const void *prepared, int64_t size, tritllm_prepared *out);

/* Of activations: see above. */
enum { TRITLLM_GROUPS = 0, TRITLLM_EXACT = 1, TRITLLM_SUPERBLOCKS = 2, TRITLLM_PER_TOKEN = 3 };

/* From how many batch rows on TRITLLM_SUPERBLOCKS is the faster of the two that round to int8; 0:
 * never; -1 where the instruction set cannot run here. */
TRITLLM_API int64_t tritllm_linear_superblock_rows(int isa);

typedef struct {
    const void *x; /* row b at element b * stride */
    int64_t stride;
    int64_t batch;
    int64_t columns; /* K */
    int32_t dtype;
    int32_t arithmetic;
} tritllm_input;

/* Bytes of prepared activations, a multiple of 64. */
TRITLLM_API int64_t tritllm_linear_activations_size(int64_t batch, int64_t columns, int arithmetic);

/* Writes the header of the activations, which the functions of `isa` will then fill. All
 * instruction sets write the same bytes, so that products of any of them can read them. */
TRITLLM_API int tritllm_linear_begin(int isa, const tritllm_input *input, void *activations);

/* Writes batch rows [begin, end) of the activations. */
TRITLLM_API int tritllm_linear_quantize(const tritllm_input *input, int64_t begin, int64_t end,
                                        void *activations);

/* What the caller believes `prepared` to be is compared with its header before anything else of it
 * is read: TRITLLM_BAD_ARGUMENT where they differ. */
typedef struct {
    const void *prepared;
    int64_t size;       /* bytes that the caller holds at `prepared` */
    int64_t rows;       /* N */
    int32_t layout;     /* as tritllm_linear_layout; 0: any */
    int32_t depth;      /* planes to read, of those that were prepared; 0: all. Fewer need planes
                         * that are not together */
    const float *steps; /* 27 steps that apply at that depth; NULL: those of all planes */
    const void *bias;   /* N, or NULL */
    void *y;            /* [batch][N]: row b at element b * stride */
    int64_t stride;
    int32_t bias_dtype;
    int32_t dtype; /* of y */
} tritllm_product;

/* Writes columns [begin, end) of every row of y: those of weight rows [begin, end). */
TRITLLM_API int tritllm_linear_compute(const tritllm_product *product, const void *activations,
                                       int64_t begin, int64_t end);

/* begin, quantize and compute of 1 to TRITLLM_PRODUCTS_AT_ONCE products that share one input, on up
 * to `threads` threads: the caller's and those of a pool that sleeps in between. Where the system
 * gives no more threads, fewer do the work. The activations are those of the first product's
 * instruction set. `activations` is scratch memory of the size above. */
TRITLLM_API int tritllm_linear_run(int threads, const tritllm_input *input, void *activations,
                                   const tritllm_product *products, int n_products);

/* Writes rows [begin, end) of the weights, row n at element (n - begin) * stride of y: the numbers of
 * tritllm_dequantize for the planes and steps that product names, to the bit. Any range of rows will
 * do. Of product, bias is not read; columns is K, and stride at least as much. */
TRITLLM_API int tritllm_linear_decode(int threads, const tritllm_product *product, int64_t columns,
                                      int64_t begin, int64_t end);

/* Lets tritllm_linear_run use an OpenMP runtime that the process has anyway, whose threads would
 * else compete with the pool's: the address of its GOMP_parallel, or NULL. */
TRITLLM_API void tritllm_linear_use_openmp(void *gomp_parallel);

#ifdef __cplusplus
}
#endif

#endif
