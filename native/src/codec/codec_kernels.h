// The table of functions that one instruction set provides.
#pragma once

#include <cstdint>

#include "tritllm.h"

struct CodecKernels {
    // Indexed by the element type of the matrix.
    uint32_t (*peak[3])(const tritllm_matrix &, int64_t begin, int64_t end);
    void (*measure[3])(const tritllm_matrix &, int64_t begin, int64_t end, int n_depths,
                       const int32_t *depths, float *largest, float *const *scales,
                       double *row_energy);
    void (*write[3])(const tritllm_matrix &, int64_t begin, int64_t end, int n_targets,
                     const tritllm_target *targets);
    // Error of `count` groups (a multiple of 16) at one step.
    void (*tabulate)(const float *magnitudes, int64_t stride, int64_t count, float step, int depth,
                     float *error);
    // Indexed by the element type of the output.
    int (*decode[3])(const tritllm_packed &, int64_t begin, int64_t end);
    // Of the calibrated encoder.
    void (*feed_back)(const tritllm_columns &, int64_t begin, int64_t end);
    void (*descend)(const tritllm_columns &, int64_t begin, int64_t end);
    void (*step_products)(const float *level, const int32_t *index, const float *hessian,
                          int64_t rows, int64_t groups, int64_t group, double *products);
};
