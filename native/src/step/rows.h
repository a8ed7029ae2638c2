// The functions of step_kernels.h, written once over the lanes of an instruction set (V).
// Besides what lanes_scalar.h names, V has load_as and store_as for every element type, load_as for int8, `total`, the
// sum of the lanes, store_totals, those of four vectors, prefetch, and kRegisters, how many vectors
// there are.
#pragma once

#include <cmath>
#include <cstdint>

#include "attend.h"
#include "attend_prompt.h"
#include "lane_functions.h"

namespace {

template <class V>
void rms_norm(const float *x, int64_t n, const tritllm_vector &weight, float epsilon, float offset,
              float *out) {
    typename V::F sum = V::set(0);
    for (int64_t i = 0; i < n; i += V::W) sum = V::fma(V::load(x + i), V::load(x + i), sum);
    const typename V::F by = V::set(1 / std::sqrt(V::total(sum) / float(n) + epsilon));
    for (int64_t i = 0; i < n; i += V::W) {
        const typename V::F w = V::add(load_any<V>(weight.data, weight.dtype, i), V::set(offset));
        V::store(out + i, V::mul(V::mul(V::load(x + i), by), w));
    }
}

template <class V>
void apply_rotary(const float *x, int64_t n, const void *cos, const void *sin, int dtype,
                  void *out) {
    for (int64_t i = 0; i < n / 2; i += V::W) {
        const int64_t j = i + n / 2;
        const typename V::F low = V::load(x + i), high = V::load(x + j);
        const typename V::F first = V::mul(high, load_any<V>(sin, dtype, i));
        store_any<V>(out, dtype, i, V::sub(V::mul(low, load_any<V>(cos, dtype, i)), first));
        const typename V::F second = V::mul(low, load_any<V>(sin, dtype, j));
        store_any<V>(out, dtype, j, V::add(V::mul(high, load_any<V>(cos, dtype, j)), second));
    }
}

template <class V>
void gate(const float *gate, const float *up, int64_t n, int activation, float *out) {
    if (activation == TRITLLM_RELU_SQUARED) {
        for (int64_t i = 0; i < n; i += V::W) {
            const typename V::F g = V::max(V::load(gate + i), V::set(0));
            V::store(out + i, V::mul(V::mul(g, g), V::load(up + i)));
        }
        return;
    }
    // silu(x) = x / (1 + exp(-x)); gelu is x / (1 + exp(-2 u)), for 1 + tanh u = 2 / (1 + exp(-2 u))
    const bool gelu = activation == TRITLLM_GELU_TANH;
    const typename V::F cubic = V::set(-1.5957691216f * 0.044715f);
    const typename V::F linear = V::set(-1.5957691216f);  // 2 sqrt(2 / pi)
    for (int64_t i = 0; i < n; i += V::W) {
        const typename V::F g = V::load(gate + i);
        const typename V::F x =
            gelu ? V::mul(g, V::fma(V::mul(g, g), cubic, linear)) : V::sub(V::set(0), g);
        const typename V::F e = exponential<V>(x);
        V::store(out + i, V::mul(V::div(g, V::add(V::set(1), e)), V::load(up + i)));
    }
}

template <class V>
void widen(const void *x, int dtype, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += V::W) V::store(out + i, load_any<V>(x, dtype, i));
}

template <class V>
void add(const float *x, const tritllm_vector &y, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += V::W)
        V::store(out + i, V::add(V::load(x + i), load_any<V>(y.data, y.dtype, i)));
}

template <class V>
void narrow(const float *x, int64_t n, int dtype, void *out) {
    for (int64_t i = 0; i < n; i += V::W) store_any<V>(out, dtype, i, V::load(x + i));
}

template <class V>
void multiply(float *x, int64_t n, float by) {
    for (int64_t i = 0; i < n; i += V::W) V::store(x + i, V::mul(V::load(x + i), V::set(by)));
}

template <class V>
float dot(const float *x, int64_t n, const tritllm_vector &matrix, int64_t at) {
    typename V::F sum = V::set(0);
    for (int64_t i = 0; i < n; i += V::W)
        sum = V::fma(V::load(x + i), load_any<V>(matrix.data, matrix.dtype, at + i), sum);
    return V::total(sum);
}

template <class V>
constexpr StepKernels step_kernels() {
    return {rms_norm<V>, apply_rotary<V>,  gate<V>,    widen<V>,    add<V>, narrow<V>,
            attend<V>,   attend_prompt<V>, combine<V>, multiply<V>, dot<V>};
}

}  // namespace
