// v3's search for instruction sets that have words of 16 bits: all 27 entries are ranked by lower
// bounds on their errors in 16-bit fixed point, twice as many weights a vector as in floats; exact
// errors are computed for the best of them and for those that it does not exclude.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codebook.h"
#include "group_error.h"

namespace {

template <class V>
struct Choice {
    typename V::I index;
    typename V::F error;
};

// Fixed point of a / s: as many bits below the point as leave room for what is not clipped.
template <int L>
constexpr int kPointBits = L == 4    ? 13
                           : L == 13 ? 12
                                     : 10;

// How a bound relates to the error; see search_ranked.
template <int L>
constexpr float kSlope = L == 4    ? 0x1p-10f
                         : L == 13 ? 0x1p-9f
                                   : 0x1p-7f;

// What makes a bound of a sum, by entry, in every lane: AVX2 has no operand that spreads a float.
template <class V>
struct RankTable {
    alignas(64) float inverse[TRITLLM_ENTRIES][V::W];
    float step[TRITLLM_ENTRIES][V::W];    // at depth 1; at the others its square
    float number[TRITLLM_ENTRIES][V::W];  // as an integer's bits
};

template <class V, int L>
void fill_ranks(const StepTable &table, RankTable<V> *rank) {
    if constexpr (V::has_pairs)
        for (int j = 0; j < TRITLLM_ENTRIES; j++)
            for (int i = 0; i < V::W; i++) {
                const float step = table.step[j];
                rank->inverse[j][i] = table.inverse[j];
                rank->step[j][i] = L == 1 ? step : step * step;
                std::memcpy(&rank->number[j][i], &j, 4);
            }
}

// The magnitudes of a tile's group, and what the search shares at depths 2 to 4.
template <class V, bool kPairs = V::has_pairs>
struct Magnitudes {
    typename V::F a[kGroup], largest;
};

template <class V>
struct Magnitudes<V, true> {
    typename V::F a[kGroup], largest;
    typename V::F second;            // the largest but for one
    typename V::P pair[kGroup / 2];  // rint(65535 * a / largest), and 0 of the largest itself

    void fill_pairs() {
        using F = typename V::F;
        F top[4], next[4];  // of every fourth: they do not wait for each other
        for (int i = 0; i < 4; i++) {
            top[i] = V::greatest(a[i], a[i + 4]);
            next[i] = V::least(a[i], a[i + 4]);
            for (int j = i + 8; j < kGroup; j += 4) {
                next[i] = V::greatest(next[i], V::least(top[i], a[j]));
                top[i] = V::greatest(top[i], a[j]);
            }
        }
        for (int n = 2; n > 0; n /= 2)
            for (int i = 0; i < n; i++) {
                const F lesser = V::least(top[i], top[i + n]);
                next[i] = V::greatest(V::greatest(next[i], next[i + n]), lesser);
                top[i] = V::greatest(top[i], top[i + n]);
            }
        largest = top[0];
        second = next[0];
        const F scale = V::div(V::set(65535), largest);
        for (int i = 0; i < kGroup / 2; i++)
            pair[i] = V::pairs(V::product_if(V::lt(a[2 * i], largest), a[2 * i], scale),
                               V::product_if(V::lt(a[2 * i + 1], largest), a[2 * i + 1], scale));
    }
};

// Takes the entry where its error is less, or the same and its index smaller.
template <class V, int L>
void try_entry(const typename V::F *a, const StepTable &table, typename V::I entry,
               Choice<V> &best) {
    const typename V::F error = group_error<V, L>(a, Steps<V>::template at<L>(table, entry));
    const typename V::M tie = V::both(V::le(error, best.error), V::lt(entry, best.index));
    const typename V::M better = V::either(V::lt(error, best.error), tie);
    best.index = V::select(better, entry, best.index);
    best.error = V::select(better, error, best.error);
}

// The entries' bounds and, of each lane, the three least. Their last five bits are the entry's
// number.
template <class V>
struct Least {
    using F = typename V::F;
    F bound[TRITLLM_ENTRIES];
    F first = V::set(INFINITY), second = first, third = first;

    void add(const RankTable<V> &rank, int j, F value) {
        const F x = bound[j] = V::from_bits(V::tagged(value, V::bits(V::load(rank.number[j]))));
        const F above_first = V::max(first, x), above_second = V::max(second, above_first);
        first = V::min(first, x);
        second = V::min(second, above_first);
        third = V::min(third, above_second);
    }
    static typename V::I entry(F x) { return V::and_(V::bits(x), V::set_int(31)); }
    static bool any_within(F x, F limit) { return V::any(V::le(x, limit)); }
};

template <class V, int L>
Choice<V> exact(const typename V::F *a, const StepTable &table, const Least<V> &least) {
    const typename V::I entry = Least<V>::entry(least.first);
    return {entry, group_error<V, L>(a, Steps<V>::template at<L>(table, entry))};
}

// `best`, or what is better among the entries whose bound is not above the limit.
template <class V, int L>
Choice<V> choose(const typename V::F *a, typename V::F largest, const StepTable &table,
                 const Least<V> &least, typename V::F limit, Choice<V> best) {
    const typename V::M present = V::lt(V::set(0), largest);  // groups of zeros: entry 0
    limit = V::select(present, limit, V::set(-INFINITY));
    if (Least<V>::any_within(least.second, limit))
        try_entry<V, L>(a, table, Least<V>::entry(least.second), best);
    if (Least<V>::any_within(least.third, limit))
        for (int j = 0; j < TRITLLM_ENTRIES; j++)
            if (Least<V>::any_within(least.bound[j], limit))
                try_entry<V, L>(a, table, V::set_int(j), best);
    best.index = V::select(present, best.index, V::set_int(0));
    return best;
}

// Depths 2 to 4. With t = a / s let f be the distance of t to the nearest integer. Unless a is the
// largest, its fixed-point value is floor(A * I / 2**16) with A = rint(65535 * a / largest), I =
// rint(2**bits * 65536 / 65535 * largest / s), where A and I are off by less than 0.52 and at most
// 65535; so t is off by less than 1.02 * h with h = 2 / 2**bits and so is f, which is the value's
// low bits taken as signed. What the lanes make of sums of f**2 may be less. So, of norms over the
// group,
//
//     sqrt(bound / s**2 before kSlack) <= (1 + 2**-20) * sqrt(sum(f**2)) + 3.95 * h
//
// where f of the largest, the first to be clipped, is computed in floats and taken as clipped, exact
// but for 2**-20 of itself and 2**-22 * (2L + 1), less than h / 16. At depth 2 the second is clipped
// often, too: where its t is by x above L + 1/2, (t - L)**2 is x**2 + x + 1/4, of which f**2 is the
// last at most, and x**2 + x is added. The exact error E is that of levels that were rounded from a
// product with 1 / s, and is rounded itself; its root is at least (1 - 2**-20) * sqrt(sum(f**2)) * s
// - 2**-19.4 * min(largest, (2L + 1) * s), the last less than 0.09 * h * s. As (x + y)**2 <=
// (1 + slope) * x**2 + (1 + 1 / slope) * y**2,
//
//     bound <= (1 + slope) * (1 + 2**-17) * E + (1 + 1 / slope) * 16.4 * h**2 * s**2,
//
// and the last term, with a margin for rounding, is what kSlack takes away. Where `largest` is so
// large that I exceeds 65535, the sum of the others counts as 0. A tag adds at most 2**-18. So a
// bound above (1 + slope) * (1 + 2**-15) times some entry's E is that of a greater error.
template <class V, int L>
Choice<V> search_ranked(const Magnitudes<V> &m, const StepTable &table, const RankTable<V> &rank) {
    using F = typename V::F;
    constexpr double kH = 2.0 / (1 << kPointBits<L>);
    constexpr double kSlack = (1 + 1 / double(kSlope<L>)) * 16.5 * kH * kH * (1 + 0x1p-8);
    const F to_word = V::set(float(65536.0 / 65535 * (1 << kPointBits<L>)));
    Least<V> least;
    bool overflows = true;
    for (int j = 0; j < TRITLLM_ENTRIES; j += 3) {
        F t[3], multiplier[3], squares[3];
        typename V::P word[3];
        for (int e = 0; e < 3; e++) {
            t[e] = V::mul(m.largest, V::load(rank.inverse[j + e]));
            multiplier[e] = V::mul(t[e], to_word);
            word[e] = V::twice(multiplier[e]);
        }
        V::template fraction_squares<kPointBits<L>>(m.pair, word, squares);
        if (overflows) {
            const F none = V::set(-V::kSquareOrigin * V::kSquareUnit);
            for (int e = 0; e < 3; e++)
                squares[e] = V::select(V::lt(V::set(65535), multiplier[e]), none, squares[e]);
            overflows = V::any(V::lt(V::set(65535), multiplier[2]));
        }
        for (int e = 0; e < 3; e++) {
            const F f = V::sub(t[e], V::min(V::rint(t[e]), V::set(L)));
            F value = V::fma(squares[e], V::set(1 / V::kSquareUnit),
                             V::set(float(double(V::kSquareOrigin) - kSlack)));
            value = V::fma(f, f, value);
            if (L == 4) {
                const F next = V::mul(m.second, V::load(rank.inverse[j + e]));
                const F x = V::max(V::sub(next, V::set(L + 0.5f)), V::set(0));
                value = V::add(value, V::fma(x, x, x));
            }
            least.add(rank, j + e, V::mul(value, V::load(rank.step[j + e])));
        }
    }
    Choice<V> best = exact<V, L>(m.a, table, least);
    const F limit = V::mul(best.error, V::set((1 + kSlope<L>)*(1 + 0x1p-15f)));
    return choose<V, L>(m.a, m.largest, table, least, limit, best);
}

// Depth 1. A weight above s / 2 becomes s, so that the error is sum(a**2) - 2 * s * S with S the
// sum of what magnitudes exceed s / 2 by. In units of largest / 32767, a and s / 2 are off by less
// than 0.51 when rounded, so S by less than 16.5, and in units of 2 * largest / 32767, sum(a**2) -
// s * (S + 16.5) is a bound. Exact errors are within 2**-19 of themselves, as is the sum of squares
// (near s / 2 both levels err the same, nearly); rounding and tags add less than 2**-17 of the sum
// of squares, which s * S is at most half of. Hence the 2**-15 of both.
template <class V>
Choice<V> search_trits(const typename V::F *a, typename V::F largest, const StepTable &table,
                       const RankTable<V> &rank) {
    using F = typename V::F;
    const typename V::M present = V::lt(V::set(0), largest);
    const F scale = V::select(present, V::div(V::set(32767), largest), V::set(0));
    typename V::P pair[kGroup / 2];
    F energy = V::set(0);
    for (int i = 0; i < kGroup / 2; i++) {
        pair[i] = V::pairs(V::mul(a[2 * i], scale), V::mul(a[2 * i + 1], scale));
        energy = V::fma(a[2 * i], a[2 * i], energy);
        energy = V::fma(a[2 * i + 1], a[2 * i + 1], energy);
    }
    const F half_scale = V::mul(scale, V::set(0.5f)), all = V::mul(energy, half_scale);
    Least<V> least;
    for (int j = 0; j < TRITLLM_ENTRIES; j += 3) {
        F sum[3];
        typename V::P word[3];
        for (int e = 0; e < 3; e++) {
            const F half = V::mul(V::load(rank.step[j + e]), half_scale);
            word[e] = V::twice(V::least(half, V::set(32768)));
        }
        V::excess_sum(pair, word, sum);
        for (int e = 0; e < 3; e++) {
            const F above = V::add(sum[e], V::set(16.5f));
            least.add(rank, j + e, V::minus_product(all, above, V::load(rank.step[j + e])));
        }
    }
    Choice<V> best = exact<V, 1>(a, table, least);
    const F limit =
        V::fma(V::mul(best.error, V::set(1 + 0x1p-15f)), half_scale, V::mul(all, V::set(0x1p-15f)));
    return choose<V, 1>(a, largest, table, least, limit, best);
}

}  // namespace
