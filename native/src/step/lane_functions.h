// What the functions of step_kernels.h share, over the lanes of an instruction set (V of rows.h).
#pragma once

#include <cfloat>
#include <cstdint>

#include "cpu/elements.h"
#include "step_kernels.h"

namespace {

constexpr float kNone = -FLT_MAX;  // the largest score of no keys

template <class V>
typename V::F load_any(const void *p, int dtype, int64_t i) {
    switch (dtype) {
        case TRITLLM_FLOAT16: return V::load_as(static_cast<const Half *>(p) + i);
        case TRITLLM_BFLOAT16: return V::load_as(static_cast<const Bfloat *>(p) + i);
        default: return V::load_as(static_cast<const float *>(p) + i);
    }
}

template <class V>
void store_any(void *p, int dtype, int64_t i, typename V::F x) {
    switch (dtype) {
        case TRITLLM_FLOAT16: return V::store_as(static_cast<Half *>(p) + i, x);
        case TRITLLM_BFLOAT16: return V::store_as(static_cast<Bfloat *>(p) + i, x);
        default: return V::store_as(static_cast<float *>(p) + i, x);
    }
}

// exp(x) to 2e-7 relative: 2**n * exp(r), the polynomial is that of Cephes' expf. Below -87 it is
// 0, above 88 it is exp(88); NaN stays.
template <class V>
typename V::F exponential(typename V::F x) {
    using F = typename V::F;
    const F bounded = V::max(V::min(x, V::set(88)), V::set(-87));
    const F n = V::rint(V::mul(bounded, V::set(1.44269504f)));
    F r = V::fma(n, V::set(-0.693359375f), bounded);  // log(2) in two parts
    r = V::fma(n, V::set(2.12194440e-4f), r);
    F p = V::set(1.9875691500e-4f);
    for (float c :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = V::fma(p, r, V::set(c));
    p = V::add(V::fma(V::mul(p, r), r, r), V::set(1));
    const F power = V::mul(V::add(n, V::set(127)), V::set(0x1p23f));
    F e = V::mul(p, V::from_bits(V::to_int(power)));
    e = V::select(V::lt(x, V::set(-87)), V::set(0), e);
    return V::select(V::le(x, x), e, x);
}

// c tanh(s / c) of scores: 1 - 2 / (1 + exp(2 x)) = tanh(x).
template <class V>
typename V::F capped(typename V::F s, float c) {
    const typename V::F one = V::set(1);
    const typename V::F e = exponential<V>(V::mul(s, V::set(2 / c)));
    return V::mul(V::sub(one, V::div(V::set(2), V::add(one, e))), V::set(c));
}

}  // namespace
