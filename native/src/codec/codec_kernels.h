// The table of functions that one instruction set provides.
#pragma once

#include <cstdint>

#include "tritllm.h"

constexpr int kTileFloats = (TRITLLM_GROUP + 1) * TRITLLM_TILE;  // of tritllm_gather
constexpr int kSampleTiles = TRITLLM_SAMPLE / TRITLLM_TILE;
constexpr int kBooks = 4;  // codebooks that the fit compares at a time

// The errors of the sampled groups on the grid of scales, as far as they have been needed.
struct FitTable {
    const float *magnitudes;  // as tritllm_gather has them
    int64_t tiles;            // of them in use
    int depth;
    float step[TRITLLM_GRID], inverse[TRITLLM_GRID], reach[TRITLLM_GRID];  // see StepTable
    float half[TRITLLM_GRID];                                              // at depth 1
    int32_t first[kSampleTiles];  // of a tile, the first row that clips nothing, or TRITLLM_GRID
    uint8_t used[TRITLLM_GRID];   // whether some codebook had the row
    int32_t low[kSampleTiles];    // of a tile, the row from which its errors at those are known
    float *error;                 // [kSampleTiles][TRITLLM_GRID][TRITLLM_TILE]
};

struct CodecKernels {
    // Indexed by the element type of the matrix.
    uint32_t (*peak[3])(const tritllm_matrix &, int64_t begin, int64_t end);
    void (*measure[3])(const tritllm_matrix &, int64_t begin, int64_t end, int n_depths,
                       const int32_t *depths, float *largest, float *const *scales,
                       double *row_energy);
    void (*write[3])(const tritllm_matrix &, int64_t begin, int64_t end, int n_targets,
                     const tritllm_target *targets);
    // Indexed by the element type of the matrix.
    void (*gather[3])(const tritllm_matrix &, const tritllm_sample_set &, float *magnitudes);
    void (*least_errors)(FitTable &, const int32_t (*rows)[TRITLLM_ENTRIES], int n,
                         float (*least)[TRITLLM_SAMPLE]);
    // Indexed by the element type of the output.
    int (*decode[3])(const tritllm_packed &, int64_t begin, int64_t end);
    // Of the calibrated encoder.
    void (*feed_back)(const tritllm_columns &, int64_t begin, int64_t end);
    void (*descend)(const tritllm_columns &, int64_t begin, int64_t end);
    void (*step_products)(const float *level, const int32_t *index, const float *hessian,
                          int64_t rows, int64_t groups, int64_t group, double *products);
};
