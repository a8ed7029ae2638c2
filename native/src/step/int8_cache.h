// Keys and values as int8 with a scale for each TRITLLM_CACHE_GROUP of a head's elements.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/lanes_scalar.h"
#include "tritllm_step.h"

namespace {

// Writes a group and returns its scale; NaN where an element is not finite.
inline float quantize_group(const float *x, int8_t *q) {
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < TRITLLM_CACHE_GROUP; i++) {
        const float magnitude = std::fabs(x[i]);
        finite &= magnitude < INFINITY;
        largest = magnitude > largest ? magnitude : largest;
    }
    const bool zero = !finite || largest < 0x1p-100f;  // 127 / largest stays finite
    const float inverse = zero ? 0.0f : 127.0f / largest;
    for (int i = 0; i < TRITLLM_CACHE_GROUP; i++) {
        // Adding 1.5 * 2**23 leaves the integer, rounded half to even, in the low bits.
        const float shifted = x[i] * inverse + 12582912.0f;
        q[i] = zero ? int8_t(0) : int8_t(bits_of(shifted) - bits_of(12582912.0f));
    }
    return !finite ? NAN : zero ? 0.0f : largest / 127.0f;
}

}  // namespace
