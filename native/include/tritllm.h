/* tritllm: balanced-ternary codec for weight matrices. Plain C interface.
 *
 * Every function works on memory the caller owns and starts no thread. Functions that take a row
 * range may run at the same time on disjoint ranges; ranges begin at a multiple of TRITLLM_TILE
 * rows and results do not depend on how the rows are cut. Functions with an `isa` argument return
 * TRITLLM_UNSUPPORTED where this machine or build lacks it; all instruction sets give equal bits.
 * The definition of every value is src/tritllm/codec/reference.py.
 */
#ifndef TRITLLM_H
#define TRITLLM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define TRITLLM_API __declspec(dllexport)
#else
#define TRITLLM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TRITLLM_GROUP 16    /* weights that share one scale */
#define TRITLLM_ENTRIES 27  /* scales in a codebook */
#define TRITLLM_TILE 16     /* rows in a tile of the per-group scratch arrays */
#define TRITLLM_GRID 256    /* scales among which the fit chooses */
#define TRITLLM_SAMPLE 3072 /* most groups that the fit looks at */
#define TRITLLM_BLOCK 128   /* columns that a pass of the calibrated encoder handles in one call */

enum { TRITLLM_SCALAR = 0 }; /* the instruction set that runs everywhere */
enum { TRITLLM_CODEC = 0, TRITLLM_PRODUCTS = 1, TRITLLM_STEP = 2 }; /* families of functions */
enum { TRITLLM_FLOAT16 = 0, TRITLLM_BFLOAT16 = 1, TRITLLM_FLOAT32 = 2 };
enum {
    TRITLLM_OK = 0,
    TRITLLM_UNSUPPORTED = 1, /* instruction set */
    TRITLLM_BAD_BYTE = 2,    /* a byte above 242 */
    TRITLLM_BAD_PADDING = 3, /* a missing trit at a row's end is not zero */
    TRITLLM_BAD_ARGUMENT = 4
};

/* The instruction sets that this library knows, from number 0 on; NULL past the last. Of those that
 * one machine can run, the later is the faster. */
TRITLLM_API const char *tritllm_isa_name(int isa);

/* The instruction set whose functions of a family run where `isa` is asked for: `isa` itself, or
 * another one where it has none of its own (AMX leaves the codec and the step to AVX-512); -1 where
 * this machine or this build cannot run it. */
TRITLLM_API int tritllm_isa_serving(int isa, int family);

/* What a caller in another language repeats and can compare before its first call: by name, the
 * size of a structure ("tritllm_matrix") or the value of a constant ("TRITLLM_TILE"); -1 for a
 * name that the library does not know. */
TRITLLM_API int64_t tritllm_interface(const char *name);

/* A hash of these headers without their comments: that of the library's build. */
TRITLLM_API const char *tritllm_interface_hash(void);

/* --- Encoding ------------------------------------------------------------------------------------
 *
 * The order of calls for one matrix (weights may be encoded at several depths at once):
 *   tritllm_peak, all rows           -> the largest magnitude, hence the exponent
 *   tritllm_measure, all rows        -> per group: largest magnitude, v2 scale at each depth;
 *                                       per row: energy
 *   tritllm_v2_codebook              -> the published codebook of a depth
 *   v3: tritllm_sample, tritllm_gather, and tritllm_fit at each depth
 *                                    -> the fitted codebook
 *   tritllm_write, all rows          -> packed planes, scale indices, sums per row
 */

typedef struct {
    const void *weight; /* row-major */
    int32_t dtype;
    int32_t exponent; /* magnitudes are |w| * 2**-exponent, the largest in [1, 2) */
    int64_t rows;
    int64_t columns;
    int64_t row_stride; /* in elements */
} tritllm_matrix;

/* One float per group, in tiles of 16 rows: [ceil(rows / 16)][groups a row][16]. The number of
 * floats of such an array is tritllm_tiled(rows, columns); rows past the last are zero. */
TRITLLM_API int64_t tritllm_tiled(int64_t rows, int64_t columns);

/* Bits of the largest magnitude of rows [begin, end) as a float32: above 0x7f7fffff where a weight
 * is not finite (tritllm_first_nonfinite then finds it, and no other function may be called with
 * such weights). `exponent` is not read. */
TRITLLM_API int tritllm_peak(int isa, const tritllm_matrix *matrix, int64_t begin, int64_t end,
                             uint32_t *bits);

/* Row-major number of the first NaN or infinity, or -1. */
TRITLLM_API int64_t tritllm_first_nonfinite(const tritllm_matrix *matrix);

/* largest, scales[0..n_depths): tiled arrays; row_energy: [rows]. */
TRITLLM_API int tritllm_measure(int isa, const tritllm_matrix *matrix, int64_t begin, int64_t end,
                                int n_depths, const int32_t *depths, float *largest,
                                float *const *scales, double *row_energy);

/* codebook: 27 floats, all zero where no scale is positive. scratch: as many floats as scales. */
TRITLLM_API int tritllm_v2_codebook(const float *scales, int64_t n, float *scratch,
                                    float *codebook);

typedef struct {
    int64_t count; /* groups in the sample */
    float largest; /* of all groups */
    double body_weight;
    int64_t group[TRITLLM_SAMPLE];   /* ascending */
    uint16_t order[TRITLLM_SAMPLE];  /* their numbers in the sample, by largest magnitude, nearly */
    uint8_t in_tail[TRITLLM_SAMPLE]; /* of each group of the sample */
} tritllm_sample_set;

TRITLLM_API int tritllm_sample(const float *largest, int64_t rows, int64_t columns,
                               tritllm_sample_set *sample);

/* magnitudes: [TRITLLM_SAMPLE / TRITLLM_TILE][17][TRITLLM_TILE] floats, of a tile of groups in the
 * sample's order the 16 magnitudes and their largest. */
TRITLLM_API int tritllm_gather(int isa, const tritllm_matrix *matrix,
                               const tritllm_sample_set *sample, float *magnitudes);

/* scratch: TRITLLM_GRID * TRITLLM_SAMPLE floats; like magnitudes best at a multiple of 64 bytes. */
TRITLLM_API int tritllm_fit(int isa, const float *magnitudes, const tritllm_sample_set *sample,
                            const float *published, int depth, float *scratch, float *codebook);

typedef struct {
    int32_t depth;
    int32_t search; /* 1: the entry with the least error; 0: the one nearest in log distance */
    const float *codebook;  /* 27, on the scale of the magnitudes */
    const float *published; /* v2's codebook: its error is summed into row_limit; or NULL */
    const float *scales;    /* tiled v2 scales; read where search is 0 or published is given */
    uint8_t *weight;        /* [depth][rows][ceil(columns / 5)] */
    uint8_t *scale;         /* [rows][ceil(3 * groups / 5)] */
    double *row_error;      /* [rows] */
    double *row_limit;      /* [rows], with published */
    double *row_dot;        /* [depth][rows]; row 0 is not written */
    double *row_norm;       /* [depth][rows]; row 0 is not written */
} tritllm_target;

TRITLLM_API int tritllm_write(int isa, const tritllm_matrix *matrix, int64_t begin, int64_t end,
                              int n_targets, const tritllm_target *targets);

/* --- Calibrated encoding -------------------------------------------------------------------------
 *
 * docs/calibration.md; the definition of every value is src/tritllm/codec/calibrated/search.py and
 * steps.py. Arrays of a matrix are held by columns, `rows` floats each; `rows` is a multiple of
 * TRITLLM_TILE. Ranges of rows begin and end at multiples of TRITLLM_TILE.
 */

typedef struct {
    int64_t rows;
    int32_t columns;      /* of the block: a multiple of 16, at most TRITLLM_BLOCK */
    int32_t reach;        /* levels lie at most so far from their centre */
    const float *steps;   /* 27 */
    const float *inverse; /* 27: 1 / step, or 0 */
    const float *centre;  /* [columns][rows], or NULL where it is 0 */
    const float *target;  /* [columns][rows]; read by tritllm_feed_back */
    const float *given;   /* [columns][rows]: tritllm_feed_back's aim, tritllm_descend's gradient */
    const float *coupling;   /* [columns][columns]: its feedback, or the Hessian */
    const float *feedback;   /* [columns / 16][16][16], of each group by itself */
    const float *solve;      /* the same shape; read by tritllm_descend */
    const float *importance; /* [columns] */
    float *level;            /* [columns][rows] */
    float *value;            /* [columns][rows] */
    int32_t *index;          /* [columns / 16][rows] */
    int32_t fixed;           /* 1: index is read and stays; 0: it is chosen */
    int32_t reserved;
} tritllm_columns;

/* Chooses levels and entries of rows [begin, end) of a block, each group making up for the errors
 * of those before it. */
TRITLLM_API int tritllm_feed_back(int isa, const tritllm_columns *block, int64_t begin,
                                  int64_t end);

/* Chooses each group anew against all others as they are, where that costs less. */
TRITLLM_API int tritllm_descend(int isa, const tritllm_columns *block, int64_t begin, int64_t end);

/* For groups [begin, end) the sums from which the steps' equations are made: products of group g
 * with the groups up to its own, by their entries. level: [16 * groups][rows]; index:
 * [groups][rows]; hessian: [16 * groups][16 * groups]; products: [groups][2][27][27], of the
 * groups before g and of g itself. */
TRITLLM_API int tritllm_step_products(int isa, const float *level, const int32_t *index,
                                      const float *hessian, int64_t rows, int64_t groups,
                                      int64_t begin, int64_t end, double *products);

/* --- Dequantizing ----------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *weight; /* plane p of row i at weight + p * plane_stride + i * row_stride */
    int64_t plane_stride;
    int64_t row_stride;
    const uint8_t *scale; /* row i at scale + i * scale_stride */
    int64_t scale_stride;
    const float *steps; /* 27 finite steps that apply at this number of planes */
    int64_t columns;
    int32_t planes;
    int32_t dtype; /* of out */
    void *out;     /* row i at element i * out_stride */
    int64_t out_stride;
} tritllm_packed;

/* Writes rows [begin, end) of out. Where a row is refused, what it holds is unspecified. */
TRITLLM_API int tritllm_dequantize(int isa, const tritllm_packed *packed, int64_t begin,
                                   int64_t end);

#ifdef __cplusplus
}
#endif

#endif
