// A tile: V::W rows by one group of 16 columns, loaded as 16 vectors, so that one lane is one row.
//
// Sums over a group and over the groups of a row then run in index order inside a lane, as the
// reference defines them, and no result depends on the number of lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "tritllm.h"

namespace {

constexpr int kGroup = TRITLLM_GROUP;
constexpr float kNegligible = 0x1p-64f;

template <class V, class T>
struct Loader {
    const T *weight;
    int64_t stride, columns, rows;
    typename V::F up, up_more;  // their product is 2**-exponent, which alone may not be a float32

    explicit Loader(const tritllm_matrix &m)
        : weight(static_cast<const T *>(m.weight)),
          stride(m.row_stride),
          columns(m.columns),
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
        scale(x);
    }

    // The same of groups that lie anywhere; number: of each lane's group, row-major.
    void operator()(const int64_t *number, typename V::F *x) const {
        const int64_t groups = (columns + kGroup - 1) / kGroup;
        T edge[V::W * kGroup] = {};
        for (int lane = 0; lane < V::W; lane++) {
            const int64_t first = number[lane] % groups * kGroup;
            const int64_t n = columns - first < kGroup ? columns - first : kGroup;
            const T *p = weight + number[lane] / groups * stride + first;
            T *to = edge + lane * kGroup;
            if (n == kGroup)
                std::memcpy(static_cast<void *>(to), p, kGroup * sizeof(T));
            else
                std::memcpy(static_cast<void *>(to), p, size_t(n) * sizeof(T));
        }
        V::load_columns(edge, kGroup, x);
        scale(x);
    }

 private:
    void scale(typename V::F *x) const {
        for (int i = 0; i < kGroup; i++) {
            x[i] = V::mul(V::mul(x[i], up), up_more);
            if (sizeof(T) != 2 || !is_half(weight))  // float16 spans 40 powers of two only
                x[i] = V::select(V::lt(V::abs(x[i]), V::set(kNegligible)), V::set(0), x[i]);
        }
    }
    static float power_of_two(int e) {  // -126 <= e <= 127
        uint32_t u = uint32_t(e + 127) << 23;
        float x;
        std::memcpy(&x, &u, 4);
        return x;
    }
    static constexpr bool is_half(const Half *) { return true; }
    static constexpr bool is_half(const void *) { return false; }
};

// Where a tiled array holds a group.
inline int64_t tiled(int64_t row, int64_t group, int64_t groups) {
    return (row / TRITLLM_TILE * groups + group) * TRITLLM_TILE + row % TRITLLM_TILE;
}

template <class V>
void store_rows(const typename V::D &sum, int64_t row, int64_t rows, double *out) {
    double lane[V::W];
    V::store_wide(lane, sum);
    for (int64_t i = 0; i < V::W && row + i < rows; i++) out[row + i] = lane[i];
}

}  // namespace
