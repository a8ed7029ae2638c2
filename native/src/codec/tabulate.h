// The error table of v3's fit.
#pragma once

#include "codec_kernels.h"
#include "group_error.h"

namespace {

// The errors of kTiles vectors of groups at once: sums in index order wait for each other, so that
// one alone would leave most of the machine idle.
template <class V, int L, int kTiles>
void tabulate(const float *magnitudes, int64_t stride, typename V::F step, typename V::F inverse,
              float *error) {
    typename V::F total[kTiles];
    for (int t = 0; t < kTiles; t++) total[t] = V::set(0);
    for (int i = 0; i < kGroup; i++)
        for (int t = 0; t < kTiles; t++) {
            const typename V::F a = V::load(magnitudes + i * stride + t * V::W);
            const typename V::F e = deviation<V, L, kClips>(a, step, inverse);
            total[t] = V::add(total[t], V::mul(e, e));
        }
    for (int t = 0; t < kTiles; t++) V::store(error + t * V::W, total[t]);
}

template <class V, int L>
void tabulate(const float *magnitudes, int64_t stride, int64_t count, float step, float *error) {
    const typename V::F steps = V::set(step), inverse = V::div(V::set(1), steps);
    constexpr int kTiles = V::W == 1 ? 1 : 4;
    int64_t n = 0;
    for (; n + kTiles * V::W <= count; n += kTiles * V::W)
        tabulate<V, L, kTiles>(magnitudes + n, stride, steps, inverse, error + n);
    for (; n < count; n += V::W)
        tabulate<V, L, 1>(magnitudes + n, stride, steps, inverse, error + n);
}

template <class V>
void trit_tabulate(const float *magnitudes, int64_t stride, int64_t count, float step, int depth,
                   float *error) {
    switch (depth) {
        case 1: return tabulate<V, kMaxLevel[1]>(magnitudes, stride, count, step, error);
        case 2: return tabulate<V, kMaxLevel[2]>(magnitudes, stride, count, step, error);
        case 3: return tabulate<V, kMaxLevel[3]>(magnitudes, stride, count, step, error);
        default: return tabulate<V, kMaxLevel[4]>(magnitudes, stride, count, step, error);
    }
}

}  // namespace
