// Attention of few queries over many keys, whose reading is what it waits for (V is that of rows.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lane_functions.h"

namespace {

constexpr int kKeys = 32;     // whose scores are held at a time
constexpr int kMostRows = 7;  // queries at a time: so many sums stay in registers

// The keys that a new token sees: from the first to before the end.
inline int64_t key_of(const AttentionPart &part, int64_t key) {
    return std::min(std::max<int64_t>(key, 0), part.tokens);
}
inline int64_t first_key(const AttentionPart &part, int64_t token) {
    return part.window ? key_of(part, part.seen + token - part.window) : 0;
}
inline int64_t end_key(const AttentionPart &part, int64_t token) {
    return key_of(part, part.seen + token);
}

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

// Rows as lanes: scores, weights and all that is made of them, for R rows.
template <class V, int R>
struct Lanes {
    static constexpr int kCount =
        (R + (V::W > 4 ? V::W : 4) - 1) / (V::W > 4 ? V::W : 4) * (V::W > 4 ? V::W : 4);
    static constexpr int kVectors = kCount / V::W;
};

// A token's keys or values, of type T. kLine: elements of a cache line.
template <class V, class T>
struct Plain {
    static constexpr int kLine = 64 / sizeof(T);
    const T *x;

    static Plain from(const void *data, const float *, int64_t at) {
        return {static_cast<const T *>(data) + at};
    }
    typename V::F load(int i) const { return V::load_as(x + i); }
};

// The same, int8 with scales.
template <class V>
struct Scaled {
    static constexpr int kLine = 64;
    const int8_t *x;
    const float *scale;

    static Scaled from(const void *data, const float *scale, int64_t at) {
        return {static_cast<const int8_t *>(data) + at, scale + at / TRITLLM_CACHE_GROUP};
    }
    typename V::F load(int i) const {
        return V::mul(V::load_as(x + i), V::set(scale[i / TRITLLM_CACHE_GROUP]));
    }
};

// score[n][r] = q[r] * key[n] of K keys. q: [width / W][R][W], for loads at equal offsets in their
// cache lines would have to wait for each other. What lies `ahead` elements further is fetched among
// the products, line by line in the order of memory: many lines at once would wait for each other,
// and processors read ahead only in order. Not by a function of its own, which gcc takes for one
// that does nothing.
template <class V, class X, int R, int K>
void multiply_keys(const float *q, const X *key, int width, int64_t ahead, float *score) {
    using F = typename V::F;
    constexpr int kLanes = Lanes<V, R>::kCount, kFours = (R + 3) / 4;
    F dot[K][4 * kFours];
    for (int n = 0; n < K; n++)
        for (int r = 0; r < 4 * kFours; r++) dot[n][r] = V::set(0);
    for (int i = 0; i < width; i += V::W, q += R * V::W) {
        F k[K];
        for (int n = 0; n < K; n++) k[n] = key[n].load(i);
        if (i * K % X::kLine == 0)
            for (int j = 0; j < K * V::W; j += X::kLine) V::prefetch(key->x + ahead + i * K + j);
        for (int r = 0; r < R; r++) {
            const F x = V::load(q + r * V::W);
            for (int n = 0; n < K; n++) dot[n][r] = V::fma(x, k[n], dot[n][r]);
        }
    }
    for (int n = 0; n < K; n++)
        for (int r = 0; r < kFours; r++)
            V::store_totals(score + n * kLanes + 4 * r, dot[n] + 4 * r);
}

// out[r] = out[r] * fade[r] + the sum over n of weight[n][r] * value[n], of I vectors from i on.
template <class V, class X, int R, int I>
void add_values(float *const *out, const float *fade, const float *weight, const X *value, int keys,
                int64_t ahead, int i) {
    using F = typename V::F;
    constexpr int kLanes = Lanes<V, R>::kCount;
    F sum[R][I];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < I; j++)
            sum[r][j] = V::mul(V::load(out[r] + i + j * V::W), V::set(fade[r]));
    for (int n = 0; n < keys; n++) {
        F v[I];
        for (int j = 0; j < I; j++) v[j] = value[n].load(i + j * V::W);
        const int at = i * keys + n * I * V::W;
        if (at % X::kLine == 0)
            for (int j = 0; j < I * V::W; j += X::kLine) V::prefetch(value->x + ahead + at + j);
        for (int r = 0; r < R; r++) {
            const F w = V::set(weight[n * kLanes + r]);
            for (int j = 0; j < I; j++) sum[r][j] = V::fma(w, v[j], sum[r][j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < I; j++) V::store(out[r] + i + j * V::W, sum[r][j]);
}

// R queries at a time, so that their sums stay in registers while keys and values [first, end) go
// by once.
template <class V, class X, int R>
void attend_rows(const AttentionPart &part, int64_t row, int64_t first, int64_t end) {
    using F = typename V::F;
    constexpr int kLanes = Lanes<V, R>::kCount, kVectors = Lanes<V, R>::kVectors;
    constexpr int kTogether = R < 4 ? 4 : 2;                   // keys
    constexpr int kWide = R * 2 + 3 <= V::kRegisters ? 2 : 1;  // vectors of a value
    const int width = part.head_dim;
    // What comes kKeys later; past the part's end that is another thread's, or nothing.
    const int64_t ahead = kKeys * part.stride;
    const Queries queries{part};
    alignas(64) float q[R * kMostHeadDim];
    float *out[R];
    alignas(64) float largest[kLanes] = {}, sum[kLanes] = {}, fade[kLanes];
    alignas(64) float score[kKeys * kLanes] = {};  // lanes without a query stay 0
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < width; i += V::W)
            V::store(q + i * R + r * V::W, V::load(queries.q(row + r) + i));
        out[r] = queries.out(row + r);
        largest[r] = out[r][width];
        sum[r] = out[r][width + 1];
    }
    for (int64_t next; first < end; first = next) {
        next = std::min(end, (first / kKeys + 1) * kKeys);
        const int all = int(next - first);
        X key[kKeys], value[kKeys];
        int keys = 0;
        for (int t = 0; t < all; t++) {
            // A value under the mask may be anything, NaN included.
            if (part.mask && !part.mask[first + t]) continue;
            const int64_t at = (first + t) * part.stride;
            key[keys] = X::from(part.key, part.key_scale, at);
            value[keys++] = X::from(part.value, part.value_scale, at);
        }
        if (!keys) continue;
        int n = 0;
        for (; n + kTogether <= keys; n += kTogether)
            multiply_keys<V, X, R, kTogether>(q, key + n, width, ahead, score + n * kLanes);
        for (; n < keys; n++)
            multiply_keys<V, X, R, 1>(q, key + n, width, ahead, score + n * kLanes);
        for (int l = 0; l < kVectors; l++) {
            float *at = score + l * V::W;
            if (part.softcap != 0)
                for (int t = 0; t < keys; t++)
                    V::store(at + t * kLanes, capped<V>(V::load(at + t * kLanes), part.softcap));
            const F before = V::load(largest + l * V::W);
            F most = before;
            for (int t = 0; t < keys; t++) most = V::max(V::load(at + t * kLanes), most);
            const F by = exponential<V>(V::sub(before, most));
            F total = V::mul(V::load(sum + l * V::W), by);
            for (int t = 0; t < keys; t++) {
                const F weight = exponential<V>(V::sub(V::load(at + t * kLanes), most));
                V::store(at + t * kLanes, weight);
                total = V::add(total, weight);
            }
            V::store(largest + l * V::W, most);
            V::store(sum + l * V::W, total);
            V::store(fade + l * V::W, by);
        }
        for (int i = 0; i < width; i += kWide * V::W)
            add_values<V, X, R, kWide>(out, fade, score, value, keys, ahead, i);
    }
    for (int r = 0; r < R; r++) {
        out[r][width] = largest[r];
        out[r][width + 1] = sum[r];
    }
}

// Any number of queries, all of which see keys [first, end) but for those that the mask hides.
template <class V, class X>
void attend_keys(const AttentionPart &part, int64_t row, int64_t end_row, int64_t first,
                 int64_t end) {
    for (int64_t rows; first < end && (rows = end_row - row) > 0;) {
        const int64_t groups = (rows + kMostRows - 1) / kMostRows;
        switch ((rows + groups - 1) / groups) {  // as many in each group
            case 1: attend_rows<V, X, 1>(part, row, first, end); break;
            case 2: attend_rows<V, X, 2>(part, row, first, end); break;
            case 3: attend_rows<V, X, 3>(part, row, first, end); break;
            case 4: attend_rows<V, X, 4>(part, row, first, end); break;
            case 5: attend_rows<V, X, 5>(part, row, first, end); break;
            case 6: attend_rows<V, X, 6>(part, row, first, end); break;
            default: attend_rows<V, X, kMostRows>(part, row, first, end);
        }
        row += (rows + groups - 1) / groups;
    }
}

template <class V, class X>
void attend_type(const AttentionPart &part) {
    const int64_t rows = part.new_tokens * part.heads;
    for (int64_t row = 0; row < rows; row++) {
        float *out = Queries{part}.out(row);
        std::fill(out, out + part.head_dim, 0.0f);
        out[part.head_dim] = kNone;
        out[part.head_dim + 1] = 0;
    }
    const auto begin_of = [&](int64_t token) { return first_key(part, token); };
    const auto end_of = [&](int64_t token) { return end_key(part, token); };
    // Whole pieces of kKeys that all tokens see go by once for all. What is before and after them
    // each token takes for itself, so that its pieces are those that it has alone.
    const int64_t begin = (begin_of(part.new_tokens - 1) + kKeys - 1) / kKeys * kKeys;
    const int64_t seen = end_of(0), end = seen == part.tokens ? seen : seen / kKeys * kKeys;
    const bool common = begin < end;
    for (int64_t token = 0; token < part.new_tokens; token++)
        attend_keys<V, X>(part, token * part.heads, (token + 1) * part.heads, begin_of(token),
                          common ? begin : end_of(token));
    if (!common) return;
    attend_keys<V, X>(part, 0, rows, begin, end);
    for (int64_t token = 0; token < part.new_tokens; token++)
        attend_keys<V, X>(part, token * part.heads, (token + 1) * part.heads, end, end_of(token));
}

template <class V>
void attend(const AttentionPart &part) {
    if (part.key_scale) return attend_type<V, Scaled<V>>(part);
    switch (part.dtype) {
        case TRITLLM_FLOAT16: return attend_type<V, Plain<V, Half>>(part);
        case TRITLLM_BFLOAT16: return attend_type<V, Plain<V, Bfloat>>(part);
        default: return attend_type<V, Plain<V, float>>(part);
    }
}

template <class V>
void combine(float *parts, int64_t count, int64_t stride, int head_dim, float *out) {
    float largest = kNone;
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

}  // namespace
