// Of a codebook's 27 entries, the one that v3 or v2 takes for each group of a tile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codebook.h"
#include "group_error.h"
#include "rank.h"

namespace {

// Where the search of each lane begins: at the first entry that clips nothing, by the float's bits
// as its logarithm, and corrected. A matter of speed only.
template <class V>
typename V::I first_entry(typename V::F largest, const StepTable &table) {
    using I = typename V::I;
    const float low = table.reach[0], high = table.reach[TRITLLM_ENTRIES - 1];
    int32_t low_bits, high_bits;  // of a float, nearly its logarithm
    std::memcpy(&low_bits, &low, 4);
    std::memcpy(&high_bits, &high, 4);
    const float per_bit = high_bits > low_bits ? 26.0f / float(high_bits - low_bits) : 0.0f;
    const I offset = V::sub(V::bits(largest), V::set_int(low_bits));
    typename V::F guess = V::mul(V::to_float(offset), V::set(per_bit));
    guess = V::min(V::max(guess, V::set(0)), V::set(26));
    I entry = V::to_int(guess);
    for (int i = 0; i < 2; i++) {
        const typename V::M clips = V::lt(V::lookup(table.reach, entry), largest);
        entry = V::select(clips, V::min(V::add(entry, V::set_int(1)), V::set_int(26)), entry);
    }
    return entry;
}

template <class V, int L>
Choice<V> search_all(const typename V::F *a, const StepTable &table) {
    Choice<V> best{V::set_int(0), V::set(INFINITY)};
    for (int j = 0; j < TRITLLM_ENTRIES; j++) {
        const typename V::I entry = V::set_int(j);
        const typename V::F error = group_error<V, L>(a, Steps<V>::template at<L>(table, entry));
        const typename V::M better = V::lt(error, best.error);
        best.index = V::select(better, entry, best.index);
        best.error = V::select(better, error, best.error);
    }
    return best;
}

// Takes the entry where it is better; `le`: of equal errors the smaller index, going down.
template <class V, int L, Clip kClip>
void try_below(const typename V::F *a, const StepTable &table, typename V::I entry,
               Choice<V> &best) {
    const typename V::F error = group_error<V, L, kClip>(a, Steps<V>::template at<L>(table, entry));
    const typename V::M better = V::le(error, best.error);
    best.index = V::select(better, entry, best.index);
    best.error = V::select(better, error, best.error);
}

template <class V, int L, Clip kClip>
void try_above(const typename V::F *a, const StepTable &table, typename V::I entry,
               Choice<V> &best) {
    const typename V::F error = group_error<V, L, kClip>(a, Steps<V>::template at<L>(table, entry));
    const typename V::M better = V::lt(error, best.error);
    best.index = V::select(better, entry, best.index);
    best.error = V::select(better, error, best.error);
}

template <class V>
typename V::I offset_entry(typename V::I entry, int by) {
    const typename V::I moved = V::add(entry, V::set_int(by));
    return V::min(V::max(moved, V::set_int(0)), V::set_int(TRITLLM_ENTRIES - 1));
}

// The error at steps where nothing is clipped, nearly: s**2 * sum((a / s - rint(a / s))**2), in
// half the instructions of the exact one.
template <class V>
typename V::F nearly_error(const typename V::F *a, typename V::F step, typename V::F inverse) {
    typename V::F sum[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
    for (int i = 0; i < kGroup; i++) {
        const typename V::F t = V::mul(a[i], inverse);
        const typename V::F f = V::fraction(t);
        sum[i % 4] = V::fma(f, f, sum[i % 4]);
    }
    const typename V::F all = V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3]));
    return V::mul(V::mul(all, step), step);
}

// Depths 2 to 4. From each lane's first entry down by exact errors, until clipping alone costs more
// than the best. The entries above are too many for that: they are ranked by `nearly_error`, and
// exact errors are computed for the best of them and for those that it does not exclude.
//
// How near: with u = 2**-24 and the same rounded t = a / s, hence the same level k, the exact path
// rounds k * s and its difference to a, and s * (t - k) carries the rounding of t. Their difference
// is at most u * (3.1 * a + s) < d = 2**-20.9 * largest (where s > 2 * largest, k is 0 and so is
// the difference but for 2.1 * u * a). So two sums of 16 squares differ by at most 8 * d * sqrt(E)
// + 16 * d**2, which is less than 2**-15 * E + 2**-22.7 * largest**2, and their own rounding is
// below 2**-18 * E. An entry is excluded when its value is above E * (1 + 2**-13) + 2**-22 *
// largest**2.
template <class V, int L>
Choice<V> search_levels(const typename V::F *a, typename V::F largest, const StepTable &table) {
    using F = typename V::F;
    using I = typename V::I;
    using M = typename V::M;
    const I zero = V::set_int(0), one = V::set_int(1), end = V::set_int(TRITLLM_ENTRIES - 1);
    const I start = first_entry<V>(largest, table);
    const F infinite = V::set(INFINITY);
    Choice<V> best{start, infinite};

    constexpr int below = L == 4 ? 3 : 0;
    for (int i = 0; i >= -below; i--)
        try_below<V, L, kClips>(a, table, offset_entry<V>(start, i), best);
    for (I j = V::sub(start, V::set_int(below + 1));; j = V::sub(j, one)) {
        const F bound = clipped<V>(largest, V::lookup(table.reach, V::max(j, zero)));
        if (!V::any(V::both(V::le(zero, j), V::le(bound, best.error)))) break;
        try_below<V, L, kClips>(a, table, V::max(j, zero), best);
    }

    // Some lane's first entry clips after all: exact errors for all of the tile.
    const F reached = V::mul(largest, V::lookup(table.inverse, offset_entry<V>(start, 1)));
    const I first = V::add(start, one);
    if (V::any(V::le(V::set(L + 0.5f), reached))) {
        for (I j = first; V::any(V::le(j, end)); j = V::add(j, one))
            try_above<V, L, kClips>(a, table, V::min(j, end), best);
        return best;
    }

    F value[TRITLLM_ENTRIES], least = infinite, second = infinite;
    I candidate = start;
    int n = 0;
    for (I j = first; V::any(V::le(j, end)); j = V::add(j, one)) {
        const I entry = V::min(j, end);
        const F step = V::lookup(table.step, entry), inverse = V::lookup(table.inverse, entry);
        const F v = V::select(V::le(j, end), nearly_error<V>(a, step, inverse), infinite);
        value[n++] = v;
        second = V::min(second, V::max(v, least));
        candidate = V::select(V::lt(v, least), entry, candidate);
        least = V::min(v, least);
    }
    if (n == 0) return best;
    // For a lane without candidates: again its start.
    try_above<V, L, kFits>(a, table, candidate, best);

    const F margin = V::mul(V::mul(largest, largest), V::set(0x1p-22f));
    F limit = V::add(V::mul(best.error, V::set(1 + 0x1p-13f)), margin);
    limit = V::select(V::lt(V::set(0), largest), limit, V::set(-1));  // zeros: their start, entry 0
    if (!V::any(V::le(second, limit))) return best;
    Choice<V> again = best;
    for (int i = 0; i < n; i++) {
        if (!V::any(V::le(value[i], limit))) continue;
        const I entry = V::min(V::add(first, V::set_int(i)), end);
        const F error = group_error<V, L, kFits>(a, Steps<V>::template at<L>(table, entry));
        const M first_of_equals = V::both(V::le(error, again.error), V::lt(entry, again.index));
        const M better = V::either(V::lt(error, again.error), first_of_equals);
        again.index = V::select(better, entry, again.index);
        again.error = V::select(better, error, again.error);
    }
    return again;
}

template <class V, int L>
Choice<V> search(const Magnitudes<V> &m, const StepTable &table, const RankTable<V> &rank) {
    // Margins hold above underflow; zero is no matter.
    const typename V::M tiny =
        V::both(V::lt(V::set(0), m.largest), V::lt(m.largest, V::set(0x1p-40f)));
    if (!table.ascending || V::any(tiny)) return search_all<V, L>(m.a, table);
    if constexpr (V::has_pairs && L > 1)
        return search_ranked<V, L>(m, table, rank);
    else if constexpr (V::has_pairs)
        return search_trits<V>(m.a, m.largest, table, rank);
    else if constexpr (L > 1)
        return search_levels<V, L>(m.a, m.largest, table);
    else
        return search_all<V, L>(m.a, table);
}

// The number of midpoints below the scale.
template <class V>
typename V::I nearest(typename V::F scale, const MidpointTable &table) {
    typename V::I index = V::set_int(0);
    for (int stride = 16; stride; stride /= 2) {
        typename V::F below = V::lookup(table.midpoint, V::add(index, V::set_int(stride - 1)));
        index = V::select(V::lt(below, scale), V::add(index, V::set_int(stride)), index);
    }
    return index;
}

}  // namespace
