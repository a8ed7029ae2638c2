// v3's search at depths 2 to 4 for instruction sets that have words of 16 bits: all 27 entries are
// ranked by lower bounds on their errors in 16-bit fixed point, twice as many weights a vector as
// in floats; exact errors are computed for the best of them and for those that it does not exclude.
#pragma once

#include <cmath>
#include <cstdint>

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

// The largest magnitudes of a group, which are the first to be clipped, are followed in floats.
template <int L>
constexpr int kFollowed = L == 4 ? 2 : 1;

// How a bound relates to the error; see search_ranked.
template <int L>
constexpr float kSlope = L == 4    ? 0x1p-10f
                         : L == 13 ? 0x1p-9f
                                   : 0x1p-7f;

// Of each entry: step, 1 / step, and the bound as a multiple of the sum of squares and a constant.
struct RankTable {
    float step[TRITLLM_ENTRIES], inverse[TRITLLM_ENTRIES];
    float per_square[TRITLLM_ENTRIES], constant[TRITLLM_ENTRIES];
    int32_t entry[TRITLLM_ENTRIES];  // its number: a load that spreads it is free
};

template <class V, int L>
void fill_ranks(const StepTable &table, RankTable *rank) {
    if constexpr (V::has_pairs) {
        const double unit = std::ldexp(1.0, 1 - kPointBits<L>);
        const double slack = (1 + 1 / double(kSlope<L>)) * 16 * unit * unit * (1 + 0x1p-8);
        for (int j = 0; j < TRITLLM_ENTRIES; j++) {
            const double square = double(table.step[j]) * double(table.step[j]);
            rank->entry[j] = j;
            rank->step[j] = table.step[j];
            rank->inverse[j] = table.inverse[j];
            rank->per_square[j] = float(square / double(V::kSquareUnit));
            rank->constant[j] = float(square * (double(V::kSquareOrigin) - slack));
        }
    }
}

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

// The bound of an entry. With t = a / s let f be the distance of t to the nearest integer. Unless t
// is followed, its fixed-point value is floor(A * I / 2**16) with A = rint(65535 * a / rest), I =
// rint(2**bits * 65536 / 65535 * rest / s), where A and I are off by less than 0.51 and at most
// 65535; so t is off by less than h = 2 / 2**bits and so is f, which is the value's low bits taken
// as signed. Sums of f**2 may saturate, which makes them less. So, of norms over the group,
//
//     sqrt(bound / s**2 before `constant`) <= sqrt(sum(f**2)) + 3.9 * h
//
// where the followed magnitudes, of which the clipped error is taken, are exact but for 2**-20 of
// themselves. The exact error E is rounded to levels by a product with 1 / s, and in its terms; its
// root is at least (1 - 2**-20) * sqrt(sum(f**2)) * s - 2**-19.4 * min(a, (2L + 1) * s), the last
// less than 0.09 * h * s. As (x + y)**2 <= (1 + slope) * x**2 + (1 + 1 / slope) * y**2,
//
//     bound <= (1 + slope) * (1 + 2**-18) * E + (1 + 1 / slope) * (4 * h)**2 * s**2,
//
// and the last term, with a margin for rounding, is what `constant` takes away. Where `rest` is so
// large that I exceeds 65535, the sum of the others counts as 0. Tagging a bound with its entry
// adds at most 2**-18 of it. A bound above (1 + slope) * (1 + 2**-15) * E of some entry is
// therefore that of a greater error.
template <class V, int L>
Choice<V> search_ranked(const typename V::F *a, const StepTable &table, const RankTable &rank) {
    using F = typename V::F;
    using I = typename V::I;
    F top[2] = {V::set(0), V::set(0)};
    for (int i = 0; i < kGroup; i++) {
        if (kFollowed<L> == 2) top[1] = V::max(top[1], V::min(top[0], a[i]));
        top[0] = V::max(top[0], a[i]);
    }
    const F rest = top[kFollowed<L> - 1], scale = V::div(V::set(65535), rest);
    typename V::P pair[kGroup / 2];
    for (int i = 0; i < kGroup / 2; i++)
        pair[i] = V::pairs(V::product_if(V::lt(a[2 * i], rest), a[2 * i], scale),
                           V::product_if(V::lt(a[2 * i + 1], rest), a[2 * i + 1], scale));
    const F gain = V::mul(rest, V::set(float(65536.0 / 65535 * (1 << kPointBits<L>))));

    const I none = V::bits(V::set(INFINITY));
    I bound[TRITLLM_ENTRIES], first = none, second = none, third = none;
    bool overflows = true;
    for (int j = 0; j < TRITLLM_ENTRIES; j++) {
        const F inverse = V::set(rank.inverse[j]), step = V::set(rank.step[j]);
        const F multiplier = V::mul(gain, inverse);
        F squares = V::template fraction_squares<kPointBits<L>>(pair, V::twice(multiplier));
        if (overflows) {
            const typename V::M over = V::lt(V::set(65535), multiplier);
            overflows = V::any(over);
            squares = V::select(over, V::set(-V::kSquareOrigin * V::kSquareUnit), squares);
        }
        F value = V::fma(squares, V::set(rank.per_square[j]), V::set(rank.constant[j]));
        for (int i = 0; i < kFollowed<L>; i++) {
            const F k = V::min(V::rint(V::mul(top[i], inverse)), V::set(L));
            const F e = V::minus_product(top[i], k, step);
            value = V::fma(e, e, value);
        }
        const I x = bound[j] = V::tagged(value, V::set_int(rank.entry[j]));
        const I above_first = V::max(first, x), above_second = V::max(second, above_first);
        first = V::min(first, x);
        second = V::min(second, above_first);
        third = V::min(third, above_second);
    }

    const I tag = V::set_int(31);
    Choice<V> best{V::and_(first, tag), V::set(0)};
    best.error = group_error<V, L>(a, Steps<V>::template at<L>(table, best.index));
    F limit = V::mul(best.error, V::set((1 + kSlope<L>)*(1 + 0x1p-15f)));
    limit = V::select(V::lt(V::set(0), top[0]), limit, V::set(-INFINITY));  // zeros: entry 0, below
    if (V::any(V::le(V::from_bits(second), limit)))
        try_entry<V, L>(a, table, V::and_(second, tag), best);
    if (V::any(V::le(V::from_bits(third), limit)))
        for (int j = 0; j < TRITLLM_ENTRIES; j++)
            if (V::any(V::le(V::from_bits(bound[j]), limit)))
                try_entry<V, L>(a, table, V::set_int(j), best);
    best.index = V::select(V::lt(V::set(0), top[0]), best.index, V::set_int(0));
    return best;
}

}  // namespace
