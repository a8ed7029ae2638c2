// The functions of step_kernels.h, written once over the lanes of an instruction set (V).
// Besides what lanes_scalar.h names, V has load_as and store_as for every element type and `total`,
// the sum of the lanes.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "step_kernels.h"

namespace {

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

constexpr int kKeys = 32;            // whose scores are held at a time
constexpr float kHidden = -FLT_MAX;  // the score of a key that nobody sees

// The queries of an attention, numbered through: `heads` of each new token.
struct Queries {
    const AttentionPart &part;

    const float *q(int64_t row) const {
        return part.q + row / part.heads * part.q_stride + row % part.heads * part.head_dim;
    }
    float *out(int64_t row) const {
        return part.out + row / part.heads * part.out_stride +
               row % part.heads * partial_size(part.head_dim);
    }
};

// c tanh(s / c) of scores, 1 - 2 / (1 + exp(2 x)) = tanh(x); what nobody sees stays.
template <class V>
void cap(float *score, float c) {
    using F = typename V::F;
    const F one = V::set(1), two = V::set(2);
    for (int t = 0; t < kKeys; t += V::W) {
        const F s = V::load(score + t);
        const F e = exponential<V>(V::mul(s, V::set(2 / c)));
        const F tanh = V::sub(one, V::div(two, V::add(one, e)));
        V::store(score + t, V::select(V::le(s, V::set(kHidden)), s, V::mul(tanh, V::set(c))));
    }
}

// R queries at a time, so that their sums stay in registers while `keys` keys and values, from
// number `first`, go by once.
template <class V, class T, int R>
void attend_rows(const AttentionPart &part, int64_t row, int64_t first, int keys) {
    using F = typename V::F;
    const int width = part.head_dim;
    const Queries queries{part};
    const float *q[R];
    float *out[R];
    for (int r = 0; r < R; r++) {
        q[r] = queries.q(row + r);
        out[r] = queries.out(row + r);
    }
    alignas(64) float score[R][kKeys];
    for (auto &one : score) std::fill(one, one + kKeys, kHidden);
    for (int t = 0; t < keys; t++) {
        if (part.mask && !part.mask[first + t]) continue;
        const T *key = static_cast<const T *>(part.key) + (first + t) * part.stride;
        F dot[R];
        for (F &x : dot) x = V::set(0);
        for (int i = 0; i < width; i += V::W) {
            const F k = V::load_as(key + i);
            for (int r = 0; r < R; r++) dot[r] = V::fma(V::load(q[r] + i), k, dot[r]);
        }
        for (int r = 0; r < R; r++) score[r][t] = V::total(dot[r]);
    }
    if (part.softcap != 0)
        for (auto &one : score) cap<V>(one, part.softcap);
    for (int r = 0; r < R; r++) {
        float *state = out[r] + width;  // the largest score and the sum of the weights
        const float before = state[0];
        const float largest = std::max(before, *std::max_element(score[r], score[r] + kKeys));
        F sum = V::set(0);
        for (int t = 0; t < kKeys; t += V::W) {
            const F s = V::load(score[r] + t);
            const F e = exponential<V>(V::sub(s, V::set(largest)));
            const F weight = V::select(V::le(s, V::set(kHidden)), V::set(0), e);
            V::store(score[r] + t, weight);
            sum = V::add(sum, weight);
        }
        const float fade = std::exp(before - largest);
        state[0] = largest;
        state[1] = state[1] * fade + V::total(sum);
        if (fade != 1)
            for (int i = 0; i < width; i += V::W)
                V::store(out[r] + i, V::mul(V::load(out[r] + i), V::set(fade)));
    }
    const T *value = static_cast<const T *>(part.value) + first * part.stride;
    for (int i = 0; i < width; i += V::W) {
        F sum[R];
        for (int r = 0; r < R; r++) sum[r] = V::load(out[r] + i);
        for (int t = 0; t < keys; t++) {
            // A value under the mask may be anything, NaN included.
            if (part.mask && !part.mask[first + t]) continue;
            const F v = V::load_as(value + t * part.stride + i);
            for (int r = 0; r < R; r++) sum[r] = V::fma(V::set(score[r][t]), v, sum[r]);
        }
        for (int r = 0; r < R; r++) V::store(out[r] + i, sum[r]);
    }
}

// Any number of queries, and keys that all of them see or the mask hides from all.
template <class V, class T>
void attend_keys(const AttentionPart &part, int64_t row, int64_t end, int64_t first, int keys) {
    constexpr int most = 8;
    for (; row + most <= end; row += most) attend_rows<V, T, most>(part, row, first, keys);
    switch (end - row) {
        case 1: return attend_rows<V, T, 1>(part, row, first, keys);
        case 2: return attend_rows<V, T, 2>(part, row, first, keys);
        case 3: return attend_rows<V, T, 3>(part, row, first, keys);
        case 4: return attend_rows<V, T, 4>(part, row, first, keys);
        case 5: return attend_rows<V, T, 5>(part, row, first, keys);
        case 6: return attend_rows<V, T, 6>(part, row, first, keys);
        case 7: return attend_rows<V, T, 7>(part, row, first, keys);
        default: return;
    }
}

template <class V, class T>
void attend_type(const AttentionPart &part) {
    const int64_t rows = part.new_tokens * part.heads;
    for (int64_t row = 0; row < rows; row++) {
        float *out = Queries{part}.out(row);
        std::fill(out, out + part.head_dim, 0.0f);
        out[part.head_dim] = kHidden;
        out[part.head_dim + 1] = 0;
    }
    for (int64_t first = 0; first < part.tokens; first += kKeys) {
        const int keys = int(std::min<int64_t>(kKeys, part.tokens - first));
        // Tokens that see all of these keys go together, the others one by one: each sees a key
        // more than the one before, and with a window one less at the beginning.
        int64_t together = 0;
        auto attend_together = [&](int64_t end) {
            attend_keys<V, T>(part, together * part.heads, end * part.heads, first, keys);
            together = end;
        };
        for (int64_t token = 0; token < part.new_tokens; token++) {
            const int64_t seen = std::min(part.seen + token, first + keys);
            const int64_t begin =
                part.window ? std::max(part.seen + token - part.window, first) : first;
            if (begin == first && seen == first + keys) continue;
            attend_together(token);
            together = token + 1;
            if (begin < seen)
                attend_keys<V, T>(part, token * part.heads, (token + 1) * part.heads, begin,
                                  int(seen - begin));
        }
        attend_together(part.new_tokens);
    }
}

template <class V>
void attend(const AttentionPart &part) {
    switch (part.dtype) {
        case TRITLLM_FLOAT16: return attend_type<V, Half>(part);
        case TRITLLM_BFLOAT16: return attend_type<V, Bfloat>(part);
        default: return attend_type<V, float>(part);
    }
}

template <class V>
void combine(float *parts, int64_t count, int64_t stride, int head_dim, float *out) {
    float largest = kHidden;
    for (int64_t n = 0; n < count; n++) largest = std::max(largest, parts[n * stride + head_dim]);
    float sum = 0;
    for (int64_t n = 0; n < count; n++) {
        float *state = parts + n * stride + head_dim;
        state[0] = std::exp(state[0] - largest);
        sum += state[1] * state[0];
    }
    for (int64_t n = 0; n < count; n++)  // not zero where every key is hidden: nothing to weigh
        parts[n * stride + head_dim] /= sum == 0 ? 1 : sum;
    for (int i = 0; i < head_dim; i += V::W) {
        typename V::F all = V::set(0);
        for (int64_t n = 0; n < count; n++) {
            const float *part = parts + n * stride;
            all = V::fma(V::set(part[head_dim]), V::load(part + i), all);
        }
        V::store(out + i, all);
    }
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
    return {rms_norm<V>, apply_rotary<V>, gate<V>,    widen<V>,    add<V>,
            narrow<V>,   attend<V>,       combine<V>, multiply<V>, dot<V>};
}

}  // namespace
