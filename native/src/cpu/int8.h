// Floats as int8 with one scale, which is how activations and the cache are rounded:
//
//   s = max|x| / 127    q = rint(x * (127 / max|x|)), half to even
//
// s is NaN where an element is not finite, and 0 where all are too small for it; q is then 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lanes_scalar.h"

namespace {

// Magnitudes below count as zero where all are: 127 / magnitude stays finite.
constexpr float kSmallestMagnitude = 0x1p-100f;

// The nearest integer, half to even, of |x| < 2**22: adding 1.5 * 2**23 leaves it in the low bits.
inline int32_t round_to_int(float x) {
    constexpr float shift = 12582912.0f;
    return int32_t(bits_of(x + shift) - bits_of(shift));
}

struct RoundedInt8 {
    float scale;
    int32_t sum;  // of q
};

template <int N>
inline RoundedInt8 round_to_int8(const float *x, int8_t *q) {
    uint32_t bits = 0;  // of the largest magnitude: those of finite numbers are in order
    for (int i = 0; i < N; i++) bits = std::max(bits, bits_of(x[i]) & 0x7fffffffu);
    const float largest = float_of(bits);
    const bool finite = largest < INFINITY;
    const bool zero = !finite || largest < kSmallestMagnitude;
    const float inverse = zero ? 0.0f : 127.0f / largest;
    int32_t sum = 0;
    for (int i = 0; i < N; i++) {
        const int32_t n = round_to_int((zero ? 0.0f : x[i]) * inverse);
        q[i] = int8_t(n);
        sum += n;
    }
    return {!finite ? NAN : zero ? 0.0f : largest / 127.0f, sum};
}

// A token's scale where one serves all of its activations, as BitNet's models are trained to have it:
// s = 127 / max(|x|, 1e-5), q = rint(x * s), and x is q / s. NaN where an element is not finite.
template <class T>
inline float token_scale(const T *x, int64_t n) {
    uint32_t bits = bits_of(1e-5f);
    for (int64_t i = 0; i < n; i++) bits = std::max(bits, bits_of(to_float(x[i])) & 0x7fffffffu);
    return bits < bits_of(INFINITY) ? 127.0f / float_of(bits) : NAN;
}

}  // namespace
