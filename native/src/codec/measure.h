// First passes over a matrix: its largest magnitude; then of every group the largest magnitude, the
// energy and v2's scale at each depth.
#pragma once

#include <cmath>
#include <cstdint>

#include "codec_kernels.h"
#include "group_error.h"
#include "tile.h"

namespace {

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

template <class V>
void exchange(typename V::I &x, typename V::I &y) {
    typename V::I low = V::min(x, y);
    y = V::max(x, y);
    x = low;
}

template <class V>
TRIT_INLINE void sort8(typename V::I *x) {  // Batcher's odd-even merge sort
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
TRIT_INLINE void rank(const typename V::F *a, typename V::F *ranked) {
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
    F scale = V::set(0), best = V::set(INFINITY);
    for (int c = 3; c >= 0; c--) {
        const F candidate = ranked[c];
        const F step = V::div(candidate, V::set(L)), inverse = V::div(V::set(1), step);
        typename V::M usable = V::lt(V::set(0), candidate);
        if (c < 3) {
            usable = V::both(usable, V::le(clipped<V>(largest, V::mul(V::set(L), step)), best));
            if (!V::any(usable)) continue;
        }
        const F error = c == 3 ? group_error<V, L, kFits>(a, step, inverse)
                               : group_error<V, L>(a, step, inverse);
        const typename V::M better = V::both(usable, V::le(error, best));
        scale = V::select(better, candidate, scale);
        best = V::select(better, error, best);
    }
    return scale;
}

template <class V>
typename V::F v2_scale(const typename V::F *a, const typename V::F *ranked, int depth) {
    switch (depth) {
        case 1: return v2_scale<V, kMaxLevel[1]>(a, ranked);
        case 2: return v2_scale<V, kMaxLevel[2]>(a, ranked);
        case 3: return v2_scale<V, kMaxLevel[3]>(a, ranked);
        default: return v2_scale<V, kMaxLevel[4]>(a, ranked);
    }
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

}  // namespace
