// The error table of v3's fit.
#pragma once

#include "group_error.h"
#include "kernels.h"

namespace {

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

}  // namespace
