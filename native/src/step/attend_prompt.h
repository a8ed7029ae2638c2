// Attention of a prompt's many queries, written once over the lanes of an instruction set (V of
// rows.h): both products are matrix products, of blocks of keys and values that are widened once for
// hundreds of queries. Queries see keys as attend's do; the sums run in another order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attend.h"
#include "lane_functions.h"

namespace {

constexpr int kBlockKeys = 128;                // that are widened together, at most
constexpr int kBlockSize = 64 * kMostHeadDim;  // elements of theirs, at most
constexpr int kGroupQueries = 48;  // whose scores are held: a multiple of V's rows in a product

// Keys or values in panels of two vectors' columns, one behind the other, so that a panel stays in
// the nearest cache while queries go by.
template <class V>
constexpr int kPanel = 2 * V::W;

// Queries in one product: so many sums stay in registers.
template <class V>
constexpr int kProductRows = V::kRegisters >= 32 ? 8 : 6;

// to[r] = to[r] * fade[r] + the sum over i of from[r][i] * panel[i], kPanel<V> columns of R rows;
// without fade, the sum alone.
template <class V, int R>
void multiply_panel(const float *const *from, int depth, const float *panel, const float *fade,
                    float *const *to) {
    using F = typename V::F;
    F sum[R][2];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++)
            sum[r][j] = fade ? V::mul(V::load(to[r] + j * V::W), V::set(fade[r])) : V::set(0);
    for (int i = 0; i < depth; i++, panel += kPanel<V>) {
        const F first = V::load(panel), second = V::load(panel + V::W);
        for (int r = 0; r < R; r++) {
            const F x = V::set(from[r][i]);
            sum[r][0] = V::fma(x, first, sum[r][0]);
            sum[r][1] = V::fma(x, second, sum[r][1]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) V::store(to[r] + j * V::W, sum[r][j]);
}

// The same of any number of rows, whose `to` begin `column` elements later.
template <class V>
void multiply_panel_rows(const float *const *from, int rows, int depth, const float *panel,
                         const float *fade, float *const *to, int64_t column) {
    constexpr int R = kProductRows<V>;
    float *y[R];
    for (int row = 0, held; row < rows; row += held) {
        held = rows - row < R ? 1 : R;
        for (int r = 0; r < held; r++) y[r] = to[row + r] + column;
        const float *by = fade ? fade + row : nullptr;
        if (held == R)
            multiply_panel<V, R>(from + row, depth, panel, by, y);
        else
            multiply_panel<V, 1>(from + row, depth, panel, by, y);
    }
}

template <class V>
float largest_lane(typename V::F x) {
    alignas(64) float lane[V::W];
    V::store(lane, x);
    for (int n = V::W / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) lane[i] = lane[i] > lane[i + n] ? lane[i] : lane[i + n];
    return lane[0];
}

// A query's scores of a block's keys, at most `bound`, become weights. largest, sum: of the blocks
// before, then with this one; the result is what the sums before are to be multiplied by.
template <class V>
float weigh(float *score, const float *bound, int keys, float *largest, float *sum) {
    using F = typename V::F;
    F most = V::set(*largest);
    for (int n = 0; n < keys; n += V::W) {
        const F s = V::min(V::load(bound + n), V::load(score + n));
        V::store(score + n, s);
        most = V::max(s, most);
    }
    const float now = largest_lane<V>(most);
    most = V::set(now);
    F total = V::set(0);
    for (int n = 0; n < keys; n += V::W) {
        const F s = V::load(score + n);
        const F weight = exponential<V>(V::sub(s, most));
        const F seen = V::select(V::le(s, V::set(kNone)), V::set(0), weight);
        V::store(score + n, seen);
        total = V::add(total, seen);
    }
    const float by = now == *largest ? 1 : std::exp(*largest - now);
    *largest = now;
    *sum = *sum * by + V::total(total);
    return by;
}

// Up to kBlockQueries queries, `row` and the following ones.
template <class V, class X>
class PromptAttention {
 public:
    PromptAttention(const AttentionPart &part, int64_t row, int64_t end)
        : part_(part),
          rows_(int(end - row)),
          keys_(std::min(kBlockKeys, kBlockSize / part.head_dim / 64 * 64)) {
        const Queries queries{part};
        for (int r = 0; r < rows_; r++) {
            const int64_t token = (row + r) / part.heads;
            q_[r] = queries.q(row + r);
            out_[r] = part.out + token * part.out_stride + (row + r) % part.heads * part.head_dim;
            begin_[r] = first_key(part, token);
            end_[r] = end_key(part, token);
            largest_[r] = kNone;
            sum_[r] = 0;
        }
    }

    void run() {
        const int width = part_.head_dim;
        for (int r = 0; r < rows_; r++) std::fill_n(out_[r], width, 0.0f);
        const int64_t end = end_[rows_ - 1];
        for (int64_t key = begin_[0] / keys_ * keys_; key < end; key += keys_) {
            widen(key, int(std::min<int64_t>(keys_, end - key)));
            for (int r = 0; r < rows_; r += kGroupQueries)
                attend(key, r, std::min(rows_, r + kGroupQueries));
        }
        for (int r = 0; r < rows_; r++) {  // no sum where every key is hidden: nothing to weigh
            const typename V::F by = V::set(sum_[r] == 0 ? 0 : 1 / sum_[r]);
            for (int i = 0; i < width; i += V::W)
                V::store(out_[r] + i, V::mul(V::load(out_[r] + i), by));
        }
    }

 private:
    // `count` keys and values from `first` on; what the mask hides may be anything, NaN included.
    void widen(int64_t first, int count) {
        const int width = part_.head_dim;
        constexpr int P = kPanel<V>;
        alignas(64) float row[kMostHeadDim];
        for (int n = 0; n < keys_; n++) {
            const bool seen = n < count && (!part_.mask || part_.mask[first + n]);
            bound_[n] = seen ? FLT_MAX : kNone;
            const int64_t at = (first + n) * part_.stride;
            if (seen)
                load(X::from(part_.key, part_.key_scale, at), row);
            else
                std::fill_n(row, width, 0.0f);
            float *key = key_ + n / P * width * P + n % P;
            for (int i = 0; i < width; i++) key[i * P] = row[i];
            if (seen) load(X::from(part_.value, part_.value_scale, at), row);
            for (int i = 0; i < width; i += P) std::copy_n(row + i, P, value_ + i * keys_ + n * P);
        }
    }

    void load(const X &x, float *row) const {
        for (int i = 0; i < part_.head_dim; i += V::W) V::store(row + i, x.load(i));
    }

    // Queries [r, end) and the block of keys that begins at `first`.
    void attend(int64_t first, int r, int end) {
        const int seen = int(std::min<int64_t>(keys_, end_[end - 1] - first));
        if (seen <= 0 || begin_[r] >= first + keys_) return;
        constexpr int P = kPanel<V>;
        const int width = part_.head_dim, rows = end - r, whole = (seen + P - 1) / P * P;
        float *score[kGroupQueries], fade[kGroupQueries];
        for (int i = 0; i < rows; i++) score[i] = score_[i];
        for (int n = 0; n < seen; n += P)
            multiply_panel_rows<V>(q_ + r, rows, width, key_ + n * width, nullptr, score, n);
        for (int i = 0; i < rows; i++) {
            if (part_.softcap != 0)
                for (int n = 0; n < seen; n += V::W)
                    V::store(score[i] + n, capped<V>(V::load(score[i] + n), part_.softcap));
            hide(score[i], begin_[r + i] - first, end_[r + i] - first);
            fade[i] = weigh<V>(score[i], bound_, whole, &largest_[r + i], &sum_[r + i]);
        }
        for (int i = 0; i < width; i += P)
            multiply_panel_rows<V>(score, rows, seen, value_ + i * keys_, fade, out_ + r, i);
    }

    // All scores but those of keys [begin, end) of a block, numbers that may be outside of it.
    void hide(float *score, int64_t begin, int64_t end) const {
        const auto inside = [&](int64_t n) {
            return std::min<int64_t>(std::max<int64_t>(n, 0), keys_);
        };
        std::fill(score, score + inside(begin), kNone);
        std::fill(score + inside(end), score + keys_, kNone);
    }

    const AttentionPart &part_;
    const int rows_, keys_;
    const float *q_[kBlockQueries];
    float *out_[kBlockQueries];
    int64_t begin_[kBlockQueries] = {}, end_[kBlockQueries] = {};  // keys that a query sees
    alignas(64) float key_[kBlockSize];    // [panels of keys][head_dim][kPanel]
    alignas(64) float value_[kBlockSize];  // [panels of head_dim][keys][kPanel]
    alignas(64) float score_[kGroupQueries][kBlockKeys];
    alignas(64) float bound_[kBlockKeys];
    float largest_[kBlockQueries], sum_[kBlockQueries];
};

template <class V, class X>
void attend_prompt_type(const AttentionPart &part) {
    const int64_t rows = part.new_tokens * part.heads;
    for (int64_t row = 0; row < rows; row += kBlockQueries)
        PromptAttention<V, X>(part, row, std::min(row + kBlockQueries, rows)).run();
}

template <class V>
void attend_prompt(const AttentionPart &part) {
    if (part.key_scale) return attend_prompt_type<V, Scaled<V>>(part);
    switch (part.dtype) {
        case TRITLLM_FLOAT16: return attend_prompt_type<V, Plain<V, Half>>(part);
        case TRITLLM_BFLOAT16: return attend_prompt_type<V, Plain<V, Bfloat>>(part);
        default: return attend_prompt_type<V, Plain<V, float>>(part);
    }
}

}  // namespace
