#include "codebook.h"
#include "cpu/ieee.h"
#include "cpu/trits.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// n values from low to high, each r times the one before, where r is the largest double whose
// (n - 1)-fold repeated product does not exceed high / low.
void log_spaced(float low, float high, int n, float *entries) {
    const double target = double(high) / double(low);
    double root = 1, above = target > 1 ? target : 1;
    for (;;) {
        const double middle = (root + above) / 2;
        if (middle == root || middle == above) break;
        double product = 1;
        for (int i = 1; i < n; i++) product *= middle;
        (product <= target ? root : above) = middle;
    }
    double value = low;
    for (int j = 0; j < n; j++) {
        entries[j] = float(value);
        value *= root;
    }
    entries[n - 1] = high;
}

float largest_at_zero(float step, float inverse) {
    float half = 0.5f * step;
    while (half * inverse <= 0.5f) half = std::nextafter(half, 4.0f);
    while (half * inverse > 0.5f) half = std::nextafter(half, 0.0f);
    return half;
}

// The steps that the file will hold, on the scale of the magnitudes. A step that vanishes (of a
// zero or subnormal matrix) decodes everything to 0, and so does 4 where magnitudes are below 2.
void fill_steps(const float *codebook, int exponent, int depth, StepTable *table) {
    const float level = float(kMaxLevel[depth]);
    table->ascending = true;
    for (int j = 0; j < 32; j++) {
        const int entry = std::min(j, TRITLLM_ENTRIES - 1);
        const float stored = std::ldexp(codebook[entry], exponent) / level;
        const float step = std::ldexp(stored, -exponent);
        table->step[j] = step > 0 ? step : 4.0f;
        table->inverse[j] = 1.0f / table->step[j];
        table->reach[j] = level * table->step[j];
        table->half[j] = largest_at_zero(table->step[j], table->inverse[j]);
        if (j > 0 && table->step[j] < table->step[j - 1]) table->ascending = false;
    }
}

void fill_midpoints(const float *codebook, MidpointTable *table) {
    for (int i = 0; i < 32; i++)
        table->midpoint[i] = i < TRITLLM_ENTRIES - 1
                                 ? float(std::sqrt(double(codebook[i]) * double(codebook[i + 1])))
                                 : INFINITY;
}

void summarize(const float *values, int64_t n, float *largest, int64_t *positive) {
    float top[kBlock] = {};
    *positive = 0;
    for (int64_t block = 0; block < n; block += kBlock) {
        int found = 0;
        for (int i = 0; i < kBlock; i++) {
            const float x = values[block + i];
            top[i] = x > top[i] ? x : top[i];
            found += x > 0;
        }
        *positive += found;
    }
    *largest = *std::max_element(top, top + kBlock);
}

// v2: from the 0.1th percentile of the positive scales to their maximum.
//
// Only the smallest thousandth is wanted, so the scales at or below a threshold are collected and
// ranked; the threshold comes from a sample and is raised until enough are below it.
int tritllm_v2_codebook(const float *scales, int64_t n, float *scratch, float *codebook) {
    const IeeeArithmetic ieee;
    float high = 0;
    int64_t positive = 0;
    summarize(scales, n, &high, &positive);
    if (positive == 0) {
        std::fill(codebook, codebook + TRITLLM_ENTRIES, 0.0f);
        return TRITLLM_OK;
    }
    const int64_t rank = (positive - 1) / 1000;

    constexpr int64_t kSample = 4096;
    float sample[kSample];
    int64_t sampled = 0;
    const int64_t stride = std::max<int64_t>(1, n / kSample);
    for (int64_t i = 0; i < n && sampled < kSample; i += stride)
        if (scales[i] > 0) sample[sampled++] = scales[i];
    for (int64_t tried = sampled / 200;; tried = 4 * tried + 4) {
        if (tried < sampled) std::nth_element(sample, sample + tried, sample + sampled);
        const float threshold = tried < sampled ? sample[tried] : high;
        int64_t count = 0;
        for (int64_t block = 0; block < n; block += kBlock) {
            int found = 0;  // most blocks hold none: a loop that the compiler vectorises
            for (int64_t i = block; i < block + kBlock; i++)
                found += (scales[i] > 0) & (scales[i] <= threshold);
            if (!found) continue;
            for (int64_t i = block; i < block + kBlock; i++)
                if (scales[i] > 0 && scales[i] <= threshold) scratch[count++] = scales[i];
        }
        if (count > rank) {
            std::nth_element(scratch, scratch + rank, scratch + count);
            log_spaced(scratch[rank], high, TRITLLM_ENTRIES, codebook);
            return TRITLLM_OK;
        }
    }
}
