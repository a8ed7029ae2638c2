// What a matrix's 27 scales become before groups are measured against them.
#pragma once

#include "tritllm.h"

// Filled by fill_steps; 32 entries so that a lookup is two vector registers. The last five repeat
// the 27th.
struct StepTable {
    alignas(64) float step[32];
    float inverse[32];  // 1 / step, one rounding
    float reach[32];    // float32(L * step), the largest magnitude that is not clipped
    float half[32];     // the largest magnitude whose product with `inverse` rounds to at most 1/2
    bool ascending;     // false where a step of a subnormal matrix vanished
};

struct MidpointTable {
    // midpoint[i]: between entries i and i + 1; infinity from 26 on.
    alignas(64) float midpoint[32];
};

// Tiled arrays are passed over in blocks, in loops that a compiler vectorises.
constexpr int kBlock = TRITLLM_TILE;

void summarize(const float *values, int64_t n, float *largest, int64_t *positive);
void log_spaced(float low, float high, int n, float *entries);
float largest_at_zero(float step, float inverse);  // StepTable's `half`
void fill_steps(const float *codebook, int exponent, int depth, StepTable *table);
void fill_midpoints(const float *codebook, MidpointTable *table);
