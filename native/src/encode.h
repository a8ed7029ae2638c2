// Encoding, written once over the lanes of an instruction set (lanes_*.h).
//
// One lane is one row: a tile is V::W rows by one group of 16 columns, loaded as 16 vectors. Sums
// over a group and over the groups of a row then run in index order inside a lane, as the reference
// defines them, and no result depends on the number of lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "codebook.h"
#include "elements.h"
#include "kernels.h"

namespace {

constexpr int kGroup = TRITLLM_GROUP;
constexpr int kSpan = 5;                     // groups handled together: 80 weights, 16 bytes a plane
constexpr int kColumns = kSpan * kGroup;
constexpr float kNegligible = 0x1p-64f;
constexpr int kMaxLevel[] = {0, 1, 4, 13, 40};

// --- Loading ---------------------------------------------------------------------------------------

template <class V, class T>
struct Loader {
    const T *weight;
    int64_t stride, columns, rows;
    typename V::F up, up_more;  // their product is 2**-exponent, which alone may not be a float32

    explicit Loader(const tritllm_matrix &m)
        : weight(static_cast<const T *>(m.weight)), stride(m.row_stride), columns(m.columns),
          rows(m.rows) {
        int first = -m.exponent / 2;
        up = V::set(power_of_two(first));
        up_more = V::set(power_of_two(-m.exponent - first));
    }

    // Scaled weights of rows row.. and columns 16 * group..; zero outside the matrix.
    void operator()(int64_t row, int64_t group, typename V::F *x) const {
        const int64_t first = group * kGroup;
        const T *p = weight + row * stride + first;
        if (row + V::W <= rows && first + kGroup <= columns) {
            V::load_columns(p, stride, x);
        } else {
            T edge[V::W * kGroup] = {};
            const int64_t n = columns - first < kGroup ? columns - first : kGroup;
            for (int64_t i = 0; i < V::W && row + i < rows; i++)
                std::memcpy(static_cast<void *>(edge + i * kGroup), p + i * stride, n * sizeof(T));
            V::load_columns(edge, kGroup, x);
        }
        for (int i = 0; i < kGroup; i++) {
            x[i] = V::mul(V::mul(x[i], up), up_more);
            if (sizeof(T) != 2 || !is_half(p))  // float16 spans 40 powers of two only
                x[i] = V::select(V::lt(V::abs(x[i]), V::set(kNegligible)), V::set(0), x[i]);
        }
    }

   private:
    static float power_of_two(int e) {  // -126 <= e <= 127
        uint32_t u = uint32_t(e + 127) << 23;
        float x;
        std::memcpy(&x, &u, 4);
        return x;
    }
    static constexpr bool is_half(const Half *) { return true; }
    static constexpr bool is_half(const void *) { return false; }
};

// --- The error of a group at a step ------------------------------------------------------------------

template <class V, int L, bool kClip>
typename V::F level(typename V::F a, typename V::F inverse) {
    typename V::F k = V::rint(V::mul(a, inverse));
    return kClip ? V::min(k, V::set(L)) : k;
}

// The sum after weights [begin, end) were added to `total`. kClip false promises that no magnitude
// exceeds L steps by half a step.
template <class V, int L, bool kClip>
typename V::F add_error(const typename V::F *a, typename V::F step, typename V::F inverse, int begin,
                        int end, typename V::F total) {
    for (int i = begin; i < end; i++) {
        typename V::F e;
        if (L == 1) {
            typename V::M is_zero = V::le(V::mul(a[i], inverse), V::set(0.5f));
            e = V::select(is_zero, a[i], V::sub(a[i], step));
        } else {
            e = V::sub(a[i], V::mul(level<V, L, kClip>(a[i], inverse), step));
        }
        total = V::add(total, V::mul(e, e));
    }
    return total;
}

template <class V, int L, bool kClip = true>
typename V::F group_error(const typename V::F *a, typename V::F step, typename V::F inverse) {
    return add_error<V, L, kClip>(a, step, inverse, 0, kGroup, V::set(0));
}

// A lower bound on the error at a step and at every smaller one, exact on computed values: the
// largest magnitude is clipped there, its error alone is the square below, rounding is monotone, and
// a rounded sum of squares is never less than one of them. Zero where nothing is clipped.
template <class V>
typename V::F clipped(typename V::F largest, typename V::F reach) {
    typename V::F e = V::max(V::sub(largest, reach), V::set(0));
    return V::mul(e, e);
}

// --- First pass: order statistics and v2's scales --------------------------------------------------

template <class V>
void exchange(typename V::I &x, typename V::I &y) {
    typename V::I low = V::min(x, y);
    y = V::max(x, y);
    x = low;
}

template <class V>
void sort8(typename V::I *x) {  // Batcher's odd-even merge sort
    for (int i = 0; i < 8; i += 2) exchange<V>(x[i], x[i + 1]);
    for (int i = 0; i < 8; i += 4) {
        exchange<V>(x[i], x[i + 2]);
        exchange<V>(x[i + 1], x[i + 3]);
        exchange<V>(x[i + 1], x[i + 2]);
    }
    for (int i = 0; i < 4; i++) exchange<V>(x[i], x[i + 4]);
    exchange<V>(x[2], x[4]);
    exchange<V>(x[3], x[5]);
    for (int i = 1; i < 7; i += 2) exchange<V>(x[i], x[i + 1]);
}

// The order statistics 10, 12, 14, 15 of 16 magnitudes. Positive floats order as their bits.
template <class V>
void rank(const typename V::F *a, typename V::F *ranked) {
    typename V::I x[16];
    for (int i = 0; i < 16; i++) x[i] = V::bits(a[i]);
    sort8<V>(x);
    sort8<V>(x + 8);
    for (int i = 0; i < 8; i++) x[i] = V::max(x[i], x[15 - i]);  // the upper eight, bitonic
    for (int i = 0; i < 4; i++) exchange<V>(x[i], x[i + 4]);
    exchange<V>(x[4], x[6]);
    exchange<V>(x[5], x[7]);
    ranked[0] = V::from_bits(V::min(V::max(x[0], x[2]), V::max(x[1], x[3])));
    ranked[1] = V::from_bits(V::min(x[4], x[5]));
    ranked[2] = V::from_bits(V::min(x[6], x[7]));
    ranked[3] = V::from_bits(V::max(x[6], x[7]));
}

// The candidate with the least error; of equals the first in order, hence `le` from the last on.
template <class V, int L>
typename V::F v2_scale(const typename V::F *a, const typename V::F *ranked) {
    using F = typename V::F;
    const F largest = ranked[3];
    F scale = V::set(0), best = V::set(__builtin_inff());
    for (int c = 3; c >= 0; c--) {
        const F candidate = ranked[c];
        const F step = V::div(candidate, V::set(L)), inverse = V::div(V::set(1), step);
        typename V::M usable = V::lt(V::set(0), candidate);
        if (c < 3) {
            usable = V::both(usable, V::le(clipped<V>(largest, V::mul(V::set(L), step)), best));
            if (!V::any(usable)) continue;
        }
        const F error =
            c == 3 ? group_error<V, L, false>(a, step, inverse) : group_error<V, L>(a, step, inverse);
        const typename V::M better = V::both(usable, V::le(error, best));
        scale = V::select(better, candidate, scale);
        best = V::select(better, error, best);
    }
    return scale;
}

template <class V>
typename V::F v2_scale(const typename V::F *a, const typename V::F *ranked, int depth) {
    switch (depth) {
        case 1: return v2_scale<V, 1>(a, ranked);
        case 2: return v2_scale<V, 4>(a, ranked);
        case 3: return v2_scale<V, 13>(a, ranked);
        default: return v2_scale<V, 40>(a, ranked);
    }
}

inline int64_t tiled(int64_t row, int64_t group, int64_t groups) {
    return (row / TRITLLM_TILE * groups + group) * TRITLLM_TILE + row % TRITLLM_TILE;
}

template <class V>
void store_rows(const typename V::D &sum, int64_t row, int64_t rows, double *out) {
    double lane[V::W];
    V::store_wide(lane, sum);
    for (int64_t i = 0; i < V::W && row + i < rows; i++) out[row + i] = lane[i];
}

template <class V, class T>
void trit_measure(const tritllm_matrix &m, int64_t begin, int64_t end, int n_depths,
                  const int32_t *depths, float *largest, float *const *scales, double *row_energy) {
    const int64_t groups = (m.columns + kGroup - 1) / kGroup;
    const int64_t tile_end = (end + TRITLLM_TILE - 1) / TRITLLM_TILE * TRITLLM_TILE;
    const Loader<V, T> load(m);
    for (int64_t row = begin; row < tile_end; row += V::W) {
        typename V::D energy = V::wide_set(0);
        for (int64_t group = 0; group < groups; group++) {
            typename V::F a[kGroup], ranked[4];
            load(row, group, a);
            for (int i = 0; i < kGroup; i++) a[i] = V::abs(a[i]);
            rank<V>(a, ranked);
            typename V::F total = V::mul(a[0], a[0]);
            for (int i = 1; i < kGroup; i++) total = V::add(total, V::mul(a[i], a[i]));
            energy = V::add_wide(energy, V::wide(total));
            const int64_t at = tiled(row, group, groups);
            V::store(largest + at, ranked[3]);
            for (int i = 0; i < n_depths; i++)
                V::store(scales[i] + at, v2_scale<V>(a, ranked, depths[i]));
        }
        store_rows<V>(energy, row, m.rows, row_energy);
    }
}

// --- The entry with the least error --------------------------------------------------------------

template <class V>
struct Choice {
    typename V::I index;
    typename V::F error;
};

// Where the search of each lane begins: about the first entry that clips nothing. Any start gives
// the same result.
template <class V>
typename V::I first_guess(typename V::F largest, const StepTable &table, int depth) {
    const float low = table.reach[0], high = table.reach[TRITLLM_ENTRIES - 1];
    int32_t low_bits, high_bits;
    std::memcpy(&low_bits, &low, 4);
    std::memcpy(&high_bits, &high, 4);
    const float per_bit = high_bits > low_bits ? 26.0f / float(high_bits - low_bits) : 0.0f;
    // At depth 1 the best entry is well below the largest magnitude: begin at 3/4 of it.
    const int32_t shift = depth == 1 ? 1 << 22 : 0;
    typename V::I offset = V::sub(V::bits(largest), V::set_int(low_bits + shift));
    typename V::F guess = V::mul(V::to_float(offset), V::set(per_bit));
    guess = V::min(V::max(guess, V::set(0)), V::set(26));
    return V::to_int(guess);
}

template <class V, int L>
Choice<V> search_all(const typename V::F *a, const StepTable &table) {
    Choice<V> best{V::set_int(0), V::set(__builtin_inff())};
    for (int j = 0; j < TRITLLM_ENTRIES; j++) {
        typename V::F error =
            group_error<V, L>(a, V::set(table.step[j]), V::set(table.inverse[j]));
        typename V::M better = V::lt(error, best.error);
        best.index = V::select(better, V::set_int(j), best.index);
        best.error = V::select(better, error, best.error);
    }
    return best;
}

// Each lane walks from its own first guess, down until clipping alone costs more than the best, then
// up. Of equal errors the smallest index wins: `le` on the way down, `lt` on the way up.
template <class V, int L, int kDepth>
Choice<V> search(const typename V::F *a, typename V::F largest, const StepTable &table) {
    using F = typename V::F;
    using I = typename V::I;
    using M = typename V::M;
    if (!table.ascending) return search_all<V, L>(a, table);

    const I zero = V::set_int(0), one = V::set_int(1), last = V::set_int(TRITLLM_ENTRIES - 1);
    const I start = first_guess<V>(largest, table, kDepth);
    Choice<V> best{start, V::set(__builtin_inff())};
    for (I j = start;;) {
        const I entry = V::max(j, zero);
        const F step = V::lookup(table.step, entry), inverse = V::lookup(table.inverse, entry);
        const F error = group_error<V, L>(a, step, inverse);
        const M better = V::le(error, best.error);
        best.index = V::select(better, entry, best.index);
        best.error = V::select(better, error, best.error);
        j = V::sub(j, one);
        const F reach = V::lookup(table.reach, V::max(j, zero));
        const M open = V::both(V::lt(V::set_int(-1), j),
                               V::le(clipped<V>(largest, reach), best.error));
        if (!V::any(open)) break;
    }

    I j = V::add(start, one);
    M open = V::lt(j, V::set_int(TRITLLM_ENTRIES));
    while (V::any(open)) {
        const I entry = V::min(j, last);
        const F step = V::lookup(table.step, entry), inverse = V::lookup(table.inverse, entry);
        F error = add_error<V, L, true>(a, step, inverse, 0, 8, V::set(0));
        j = V::add(j, one);
        open = V::both(open, V::lt(j, V::set_int(TRITLLM_ENTRIES)));
        if (!V::any(V::lt(error, best.error))) continue;  // the sum only grows
        error = add_error<V, L, true>(a, step, inverse, 8, kGroup, error);
        const M better = V::lt(error, best.error);
        best.index = V::select(better, entry, best.index);
        best.error = V::select(better, error, best.error);
        if (L == 1) {
            // From the largest magnitude on, the error of level 0 or 1 never falls as the step
            // grows, up to the rounding that the margin covers (0x1p-100: above underflow).
            const F least = V::mul(error, V::set(1 - 0x1p-12f));
            const M rising = V::both(V::le(largest, step), V::lt(V::set(0x1p-100f), error));
            const M done = V::both(rising, V::lt(best.error, least));
            open = V::but_not(open, done);
        }
    }
    return best;
}

// The number of midpoints below the scale.
template <class V>
typename V::I nearest(typename V::F scale, const MidpointTable &table) {
    typename V::I index = V::set_int(0);
    for (int stride = 16; stride; stride /= 2) {
        typename V::F below =
            V::lookup(table.midpoint, V::add(index, V::set_int(stride - 1)));
        index = V::select(V::lt(below, scale), V::add(index, V::set_int(stride)), index);
    }
    return index;
}

// --- Last pass: quantize and pack ------------------------------------------------------------------

struct Prepared {  // a target and its tables
    const tritllm_target *target;
    StepTable steps;
    StepTable published_steps;
    MidpointTable midpoints;
};

template <class V>
struct RowSums {
    typename V::D error, limit, dot[4], norm[4];
};

// Trits of three digits j = 9 a + 3 b + c, as the byte packing needs them.
struct IndexDigits {
    float whole[32], first[32], second[32], third[32];  // a + 3 b + 9 c, a, b, c

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

template <class V, int kDepth>
typename V::I encode_group(const typename V::F *x, const Prepared &p, int64_t at, RowSums<V> &sums,
                           SpanDigits<V> &digits, int first) {
    using F = typename V::F;
    constexpr int L = kMaxLevel[kDepth];
    F a[kGroup];
    F largest = V::set(0);
    for (int i = 0; i < kGroup; i++) {
        a[i] = V::abs(x[i]);
        largest = V::max(largest, a[i]);
    }
    Choice<V> choice;
    if (p.target->search) {
        choice = search<V, L, kDepth>(a, largest, p.steps);
    } else {
        choice.index = nearest<V>(V::load(p.target->scales + at), p.midpoints);
        choice.error = group_error<V, L>(a, V::lookup(p.steps.step, choice.index),
                                         V::lookup(p.steps.inverse, choice.index));
    }
    sums.error = V::add_wide(sums.error, V::wide(choice.error));
    if (p.target->published) {
        const typename V::I j = nearest<V>(V::load(p.target->scales + at), p.midpoints);
        const F error = group_error<V, L>(a, V::lookup(p.published_steps.step, j),
                                          V::lookup(p.published_steps.inverse, j));
        sums.limit = V::add_wide(sums.limit, V::wide(error));
    }

    const F step = V::lookup(p.steps.step, choice.index);
    const F inverse = V::lookup(p.steps.inverse, choice.index);
    F dot[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
    F norm[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
    for (int i = 0; i < kGroup; i++) {
        // top[m]: the level without its m least significant trits. k / 3**m is never half way
        // between integers, so a product with the reciprocal rounds to the same one.
        F top[4] = {level<V, L, true>(a[i], inverse), V::set(0), V::set(0), V::set(0)};
        for (int m = 1; m < kDepth; m++) {
            constexpr float reciprocal[] = {1, 1 / 3.0f, 1 / 9.0f, 1 / 27.0f};
            top[m] = V::rint(V::mul(top[0], V::set(reciprocal[m])));
            dot[m] = V::add(dot[m], V::mul(a[i], top[m]));
            norm[m] = V::exact_fma(top[m], top[m], norm[m]);
        }
        F low = top[0], high = V::set(0);
        if (kDepth > 1) low = V::exact_fma(top[1], V::set(253), low);
        if (kDepth > 2) {
            low = V::exact_fma(top[2], V::set(-768), low);
            high = top[2];
        }
        if (kDepth > 3) high = V::exact_fma(top[3], V::set(253), high);
        digits.low[first + i] = V::times_sign_of(low, x[i]);
        if (kDepth > 2) digits.high[first + i] = V::times_sign_of(high, x[i]);
    }
    const typename V::D wide_step = V::wide(step);
    for (int m = 1; m < kDepth; m++) {
        constexpr double power[] = {1, 3, 9, 27};
        const typename V::D base = V::mul_wide(wide_step, V::wide_set(power[m]));
        sums.dot[m] = V::add_wide(sums.dot[m], V::mul_wide(V::wide(dot[m]), base));
        sums.norm[m] = V::add_wide(
            sums.norm[m], V::mul_wide(V::mul_wide(V::wide(norm[m]), base), base));
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
        for (int i = 0; i < 5; i++) sum = V::exact_fma(low[i], V::set(power[i]), sum);
        word[b] = V::to_int(sum);
        if (kDepth > 2) {
            sum = V::set(121 + (kDepth > 3 ? 121 * 256 : 0));
            for (int i = 0; i < 5; i++) sum = V::exact_fma(high[i], V::set(power[i]), sum);
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
    byte[0] = V::exact_fma(V::lookup(d.first, index[1]), n27, V::lookup(d.whole, index[0]));
    byte[0] = V::exact_fma(V::lookup(d.second, index[1]), n81, byte[0]);
    byte[1] = V::exact_fma(V::lookup(d.whole, index[2]), three, V::lookup(d.third, index[1]));
    byte[1] = V::exact_fma(V::lookup(d.first, index[3]), n81, byte[1]);
    byte[2] = V::exact_fma(V::lookup(d.third, index[3]), three, V::lookup(d.second, index[3]));
    byte[2] = V::exact_fma(V::lookup(d.whole, index[4]), nine, byte[2]);
    int32_t lane[3][V::W];
    for (int b = 0; b < 3; b++) V::store_int(lane[b], V::to_int(byte[b]));
    const int64_t n = width - 3 * span < 3 ? width - 3 * span : 3;
    for (int64_t i = 0; i < V::W && row + i < rows; i++)
        for (int64_t b = 0; b < n; b++)
            target.scale[(row + i) * width + 3 * span + b] = uint8_t(lane[b][i]);
}

template <class V, int kDepth>
void encode_span(const typename V::F (*x)[kGroup], int n_groups, const Prepared &p,
                 const tritllm_matrix &m, int64_t row, int64_t span, int64_t groups,
                 RowSums<V> &sums) {
    SpanDigits<V> digits;
    typename V::I index[kSpan];
    for (int g = 0; g < n_groups; g++)
        index[g] = encode_group<V, kDepth>(x[g], p, tiled(row, span * kSpan + g, groups), sums,
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
    Prepared prepared[4];
    for (int t = 0; t < n_targets; t++) {
        Prepared &p = prepared[t];
        p.target = targets + t;
        fill_steps(targets[t].codebook, m.exponent, targets[t].depth, &p.steps);
        const float *published = targets[t].published ? targets[t].published : targets[t].codebook;
        fill_steps(published, m.exponent, targets[t].depth, &p.published_steps);
        fill_midpoints(published, &p.midpoints);
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
            typename V::F x[kSpan][kGroup];
            const int64_t left = groups - span * kSpan;
            const int n_groups = left < kSpan ? int(left) : kSpan;
            for (int g = 0; g < n_groups; g++) load(row, span * kSpan + g, x[g]);
            for (int t = 0; t < n_targets; t++) {
                const Prepared &p = prepared[t];
                switch (p.target->depth) {
                    case 1: encode_span<V, 1>(x, n_groups, p, m, row, span, groups, sums[t]); break;
                    case 2: encode_span<V, 2>(x, n_groups, p, m, row, span, groups, sums[t]); break;
                    case 3: encode_span<V, 3>(x, n_groups, p, m, row, span, groups, sums[t]); break;
                    default: encode_span<V, 4>(x, n_groups, p, m, row, span, groups, sums[t]);
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

// --- The error table of the fit ---------------------------------------------------------------------

template <class V, int L>
void tabulate(const float *magnitudes, int64_t stride, int64_t count, float step, float *error) {
    const typename V::F inverse = V::div(V::set(1), V::set(step));
    for (int64_t n = 0; n < count; n += V::W) {
        typename V::F a[kGroup];
        for (int i = 0; i < kGroup; i++) a[i] = V::load(magnitudes + i * stride + n);
        V::store(error + n, group_error<V, L>(a, V::set(step), inverse));
    }
}

template <class V>
void trit_tabulate(const float *magnitudes, int64_t stride, int64_t count, float step, int depth,
                   float *error) {
    switch (depth) {
        case 1: return tabulate<V, 1>(magnitudes, stride, count, step, error);
        case 2: return tabulate<V, 4>(magnitudes, stride, count, step, error);
        case 3: return tabulate<V, 13>(magnitudes, stride, count, step, error);
        default: return tabulate<V, 40>(magnitudes, stride, count, step, error);
    }
}

// --- The largest magnitude --------------------------------------------------------------------------

// Plain loops: a compiler vectorises them as well as a hand would, and memory is the limit.
inline uint32_t largest_bits(const uint16_t *p, int64_t n) {
    uint16_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t u = p[i] & 0x7fff;
        largest = u > largest ? u : largest;
    }
    return largest;
}

inline uint32_t largest_bits(const uint32_t *p, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = p[i] & 0x7fffffff;
        largest = u > largest ? u : largest;
    }
    return largest;
}

// The largest magnitude of the rows, as bits of the element type.
template <class V, class Bits>
uint32_t trit_peak(const tritllm_matrix &m, int64_t begin, int64_t end) {
    uint32_t largest = 0;
    for (int64_t row = begin; row < end; row++) {
        uint32_t u =
            largest_bits(static_cast<const Bits *>(m.weight) + row * m.row_stride, m.columns);
        largest = u > largest ? u : largest;
    }
    return largest;
}

}  // namespace
