// The squared error of the groups of a tile at a step in every lane.
#pragma once

#include "codebook.h"
#include "tile.h"

namespace {

// A step in every lane and what follows from it.
template <class V>
struct Steps {
    typename V::F step, inverse, half;

    // Of a table's entries; `half` is there for depth 1 only.
    template <int L>
    static Steps at(const StepTable &table, typename V::I entry) {
        return {V::lookup(table.step, entry), V::lookup(table.inverse, entry),
                L == 1 ? V::lookup(table.half, entry) : V::set(0)};
    }
};

// Whether levels may exceed L before they are limited to it.
enum Clip { kClips, kFits };

template <class V, int L, Clip kClip>
typename V::F level(typename V::F a, typename V::F inverse) {
    const typename V::F k = V::rint(V::mul(a, inverse));
    return kClip == kClips ? V::min(k, V::set(L)) : k;
}

// A magnitude less its level.
template <class V, int L, Clip kClip>
typename V::F deviation(typename V::F a, const Steps<V> &s) {
    if (L == 1) return V::select(V::le(a, s.half), a, V::sub(a, s.step));
    return V::sub(a, V::mul(level<V, L, kClip>(a, s.inverse), s.step));
}

template <class V, int L, Clip kClip = kClips>
typename V::F group_error(const typename V::F *a, const Steps<V> &s) {
    typename V::F total = V::set(0);
    for (int i = 0; i < kGroup; i++) {
        const typename V::F e = deviation<V, L, kClip>(a[i], s);
        total = V::add(total, V::mul(e, e));
    }
    return total;
}

// A magnitude less its level, at a step that is in no table.
template <class V, int L, Clip kClip>
typename V::F deviation(typename V::F a, typename V::F step, typename V::F inverse) {
    if (L == 1)  // a product of 1/2 rounds to 0
        return V::select(V::lt(V::set(0.5f), V::mul(a, inverse)), V::sub(a, step), a);
    return V::sub(a, V::mul(level<V, L, kClip>(a, inverse), step));
}

template <class V, int L, Clip kClip = kClips>
typename V::F group_error(const typename V::F *a, typename V::F step, typename V::F inverse) {
    typename V::F total = V::set(0);
    for (int i = 0; i < kGroup; i++) {
        const typename V::F e = deviation<V, L, kClip>(a[i], step, inverse);
        total = V::add(total, V::mul(e, e));
    }
    return total;
}

// A lower bound on the error at a step and at every smaller one, exact on computed values: the
// largest magnitude is clipped there, its error alone is the square below, rounding is monotone,
// and a rounded sum of squares is never less than one of them. Zero where nothing is clipped.
template <class V>
typename V::F clipped(typename V::F largest, typename V::F reach) {
    typename V::F e = V::max(V::sub(largest, reach), V::set(0));
    return V::mul(e, e);
}

}  // namespace
