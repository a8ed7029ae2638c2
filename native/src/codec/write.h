// Last pass: choose each group's entry, quantize, pack, and sum what the codebook rows need.
#pragma once

#include <cstdint>
#include <cstring>

#include "codebook.h"
#include "codec_kernels.h"
#include "search.h"
#include "tile.h"

namespace {

constexpr int kSpan = 5;  // groups handled together: 80 weights, 16 bytes a plane
constexpr int kColumns = kSpan * kGroup;

template <class V>
struct TargetTables {  // a target and its tables
    const tritllm_target *target;
    StepTable steps;
    StepTable published_steps;
    MidpointTable midpoints;
    RankTable<V> ranks;
};

template <class V>
struct RowSums {
    typename V::D error, limit, dot[4], norm[4];
};

// Trits of three digits j = 9 a + 3 b + c, as the byte packing needs them.
struct IndexDigits {
    alignas(64) float whole[32], first[32], second[32], third[32];  // a + 3 b + 9 c, a, b, c

    constexpr IndexDigits() : whole(), first(), second(), third() {
        for (int j = 0; j < 32; j++) {
            int a = j / 9 % 3, b = j / 3 % 3, c = j % 3;
            first[j] = float(a);
            second[j] = float(b);
            third[j] = float(c);
            whole[j] = float(a + 3 * b + 9 * c);
        }
    }
};

constexpr IndexDigits kIndexDigits;

// Levels of a span, as the planes that make up two 16-bit halves of a word: the two least
// significant trits in `low`, the two above in `high`, each as t + 256 * t'.
template <class V>
struct SpanDigits {
    typename V::F low[kColumns], high[kColumns];
};

template <class V>
struct Group {
    typename V::F x[kGroup];
    Magnitudes<V> magnitudes;

    void fill(bool searched) {
        Magnitudes<V> &m = magnitudes;
        for (int i = 0; i < kGroup; i++) m.a[i] = V::abs(x[i]);
        if constexpr (V::has_pairs) {
            if (searched) return m.fill_pairs();
        }
        m.largest = V::set(0);
        for (int i = 0; i < kGroup; i++) m.largest = V::max(m.largest, m.a[i]);
    }
};

template <class V, int kDepth>
typename V::I encode_group(const Group<V> &group, const TargetTables<V> &p, int64_t at,
                           RowSums<V> &sums, SpanDigits<V> &digits, int first) {
    using F = typename V::F;
    constexpr int L = kMaxLevel[kDepth];
    const F *const a = group.magnitudes.a;
    Choice<V> choice;
    if (p.target->search) {
        choice = search<V, L>(group.magnitudes, p.steps, p.ranks);
    } else {
        choice.index = nearest<V>(V::load(p.target->scales + at), p.midpoints);
        choice.error = group_error<V, L>(a, Steps<V>::template at<L>(p.steps, choice.index));
    }
    sums.error = V::add_wide(sums.error, V::wide(choice.error));
    if (p.target->published) {
        const typename V::I j = nearest<V>(V::load(p.target->scales + at), p.midpoints);
        const F error = group_error<V, L>(a, Steps<V>::template at<L>(p.published_steps, j));
        sums.limit = V::add_wide(sums.limit, V::wide(error));
    }

    const F step = V::lookup(p.steps.step, choice.index);
    const F inverse = V::lookup(p.steps.inverse, choice.index);
    F dot[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
    F norm[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
    const F round = V::set(0x1.8p23f);  // what is added to it is rounded to an integer
    for (int i = 0; i < kGroup; i++) {
        // top[m]: the level without its m least significant trits. k / 3**m is never half way
        // between integers, so a product with the reciprocal rounds to the same one.
        F top[4] = {level<V, L, kClips>(a[i], inverse), V::set(0), V::set(0), V::set(0)};
        for (int m = 1; m < kDepth; m++) {
            constexpr float reciprocal[] = {1, 1 / 3.0f, 1 / 9.0f, 1 / 27.0f};
            top[m] = V::sub(V::fma(top[0], V::set(reciprocal[m]), round), round);
            dot[m] = V::add(dot[m], V::mul(a[i], top[m]));
            norm[m] = V::fma(top[m], top[m], norm[m]);
        }
        F low = top[0], high = V::set(0);
        if (kDepth > 1) low = V::fma(top[1], V::set(253), low);
        if (kDepth > 2) {
            low = V::fma(top[2], V::set(-768), low);
            high = top[2];
        }
        if (kDepth > 3) high = V::fma(top[3], V::set(253), high);
        digits.low[first + i] = V::times_sign_of(low, group.x[i]);
        if (kDepth > 2) digits.high[first + i] = V::times_sign_of(high, group.x[i]);
    }
    const typename V::D wide_step = V::wide(step);
    for (int m = 1; m < kDepth; m++) {
        constexpr double power[] = {1, 3, 9, 27};
        const typename V::D base = V::mul_wide(wide_step, V::wide_set(power[m]));
        sums.dot[m] = V::add_wide(sums.dot[m], V::mul_wide(V::wide(dot[m]), base));
        sums.norm[m] =
            V::add_wide(sums.norm[m], V::mul_wide(V::mul_wide(V::wide(norm[m]), base), base));
    }
    return choice.index;
}

// Five trits a byte, all planes at once.
template <class V, int kDepth>
void write_planes(const SpanDigits<V> &digits, const tritllm_target &target, int64_t row,
                  int64_t rows, int64_t span, int64_t width) {
    using F = typename V::F;
    typename V::I word[16];
    for (int b = 0; b < 16; b++) {
        const F *low = digits.low + 5 * b, *high = digits.high + 5 * b;
        constexpr float power[] = {1, 3, 9, 27, 81};
        // 121 makes every digit t + 1.
        F sum = V::set(121 + (kDepth > 1 ? 121 * 256 : 0));
        for (int i = 0; i < 5; i++) sum = V::fma(low[i], V::set(power[i]), sum);
        word[b] = V::to_int(sum);
        if (kDepth > 2) {
            sum = V::set(121 + (kDepth > 3 ? 121 * 256 : 0));
            for (int i = 0; i < 5; i++) sum = V::fma(high[i], V::set(power[i]), sum);
            word[b] = V::or_(word[b], V::shift16(V::to_int(sum)));
        }
    }
    alignas(64) uint8_t bytes[V::W][4][16];
    V::split_planes(word, bytes);
    const int64_t n = width - 16 * span < 16 ? width - 16 * span : 16;
    for (int64_t i = 0; i < V::W && row + i < rows; i++) {
        for (int q = 0; q < kDepth; q++) {
            uint8_t *out = target.weight + ((kDepth - 1 - q) * rows + row + i) * width + 16 * span;
            if (n == 16)
                std::memcpy(out, bytes[i][q], 16);
            else
                std::memcpy(out, bytes[i][q], size_t(n));
        }
    }
}

// Three trits an index, five trits a byte: five indices in three bytes.
template <class V>
void write_indices(const typename V::I *index, const tritllm_target &target, int64_t row,
                   int64_t rows, int64_t span, int64_t width) {
    using F = typename V::F;
    const IndexDigits &d = kIndexDigits;
    const F three = V::set(3), nine = V::set(9), n27 = V::set(27), n81 = V::set(81);
    F byte[3];
    byte[0] = V::fma(V::lookup(d.first, index[1]), n27, V::lookup(d.whole, index[0]));
    byte[0] = V::fma(V::lookup(d.second, index[1]), n81, byte[0]);
    byte[1] = V::fma(V::lookup(d.whole, index[2]), three, V::lookup(d.third, index[1]));
    byte[1] = V::fma(V::lookup(d.first, index[3]), n81, byte[1]);
    byte[2] = V::fma(V::lookup(d.third, index[3]), three, V::lookup(d.second, index[3]));
    byte[2] = V::fma(V::lookup(d.whole, index[4]), nine, byte[2]);
    int32_t lane[3][V::W];
    for (int b = 0; b < 3; b++) V::store_int(lane[b], V::to_int(byte[b]));
    const int64_t n = width - 3 * span < 3 ? width - 3 * span : 3;
    for (int64_t i = 0; i < V::W && row + i < rows; i++)
        for (int64_t b = 0; b < n; b++)
            target.scale[(row + i) * width + 3 * span + b] = uint8_t(lane[b][i]);
}

template <class V, int kDepth>
void encode_span(const Group<V> *group, int n_groups, const TargetTables<V> &p,
                 const tritllm_matrix &m, int64_t row, int64_t span, int64_t groups,
                 RowSums<V> &sums) {
    SpanDigits<V> digits;
    typename V::I index[kSpan];
    for (int g = 0; g < n_groups; g++)
        index[g] = encode_group<V, kDepth>(group[g], p, tiled(row, span * kSpan + g, groups), sums,
                                           digits, g * kGroup);
    for (int g = n_groups; g < kSpan; g++) {  // trits that are missing are 0
        index[g] = V::set_int(13);
        for (int i = 0; i < kGroup; i++)
            digits.low[g * kGroup + i] = digits.high[g * kGroup + i] = V::set(0);
    }
    write_planes<V, kDepth>(digits, *p.target, row, m.rows, span, (m.columns + 4) / 5);
    write_indices<V>(index, *p.target, row, m.rows, span, (3 * groups + 4) / 5);
}

template <class V, class T>
void trit_write(const tritllm_matrix &m, int64_t begin, int64_t end, int n_targets,
                const tritllm_target *targets) {
    TargetTables<V> tables[4];
    bool searched = false;  // at a depth whose search takes pairs
    for (int t = 0; t < n_targets; t++) {
        TargetTables<V> &p = tables[t];
        searched |= targets[t].search && targets[t].depth > 1;
        p.target = targets + t;
        fill_steps(targets[t].codebook, m.exponent, targets[t].depth, &p.steps);
        const float *published = targets[t].published ? targets[t].published : targets[t].codebook;
        fill_steps(published, m.exponent, targets[t].depth, &p.published_steps);
        fill_midpoints(published, &p.midpoints);
        switch (targets[t].depth) {
            case 1: fill_ranks<V, kMaxLevel[1]>(p.steps, &p.ranks); break;
            case 2: fill_ranks<V, kMaxLevel[2]>(p.steps, &p.ranks); break;
            case 3: fill_ranks<V, kMaxLevel[3]>(p.steps, &p.ranks); break;
            default: fill_ranks<V, kMaxLevel[4]>(p.steps, &p.ranks);
        }
    }
    const int64_t groups = (m.columns + kGroup - 1) / kGroup;
    const Loader<V, T> load(m);
    for (int64_t row = begin; row < end; row += V::W) {
        RowSums<V> sums[4];
        for (RowSums<V> &s : sums) {
            s.error = s.limit = V::wide_set(0);
            for (int i = 0; i < 4; i++) s.dot[i] = s.norm[i] = V::wide_set(0);
        }
        for (int64_t span = 0; span * kSpan < groups; span++) {
            Group<V> group[kSpan];
            const int64_t left = groups - span * kSpan;
            const int n_groups = left < kSpan ? int(left) : kSpan;
            for (int g = 0; g < n_groups; g++) {
                load(row, span * kSpan + g, group[g].x);
                group[g].fill(searched);
            }
            for (int t = 0; t < n_targets; t++) {
                const TargetTables<V> &p = tables[t];
                switch (p.target->depth) {
                    case 1:
                        encode_span<V, 1>(group, n_groups, p, m, row, span, groups, sums[t]);
                        break;
                    case 2:
                        encode_span<V, 2>(group, n_groups, p, m, row, span, groups, sums[t]);
                        break;
                    case 3:
                        encode_span<V, 3>(group, n_groups, p, m, row, span, groups, sums[t]);
                        break;
                    default: encode_span<V, 4>(group, n_groups, p, m, row, span, groups, sums[t]);
                }
            }
        }
        for (int t = 0; t < n_targets; t++) {
            const tritllm_target &out = targets[t];
            store_rows<V>(sums[t].error, row, m.rows, out.row_error);
            if (out.published) store_rows<V>(sums[t].limit, row, m.rows, out.row_limit);
            for (int r = 1; r < out.depth; r++) {
                store_rows<V>(sums[t].dot[out.depth - r], row, m.rows, out.row_dot + r * m.rows);
                store_rows<V>(sums[t].norm[out.depth - r], row, m.rows, out.row_norm + r * m.rows);
            }
        }
    }
}

}  // namespace
