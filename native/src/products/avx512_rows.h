// AVX-512: every row of W has one scale, and every row of x: a result is one dot product of integers,
// times both.
#pragma once

#include "avx512_panel.h"

namespace {

// Sixteen results of integers.
inline __m512 scaled_rows(const Product &p, const Activations &a, int64_t b, int64_t tile,
                          __m512i dot) {
    const __m512 step = StepRegisters(p.steps).of_group<0>(load_unit(FivesTile<1>(p, tile).index));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(*scale_row(a, b))),
                         step);
}

template <int M>
void decode_rows_tile(const Product &p, const Activations &a, int64_t tile) {
    FivesTile<1> at(p, tile);
    const int8_t *q[M];
    __m512i dot[M];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, m);
        dot[m] = _mm512_set1_epi32(-token_sum(a, m));
    }
    for (int64_t n = 0; n < p.blocks; n++, at.advance(1)) {
        for (int line = 0; line < plane_units(kFives); line++)
            _mm_prefetch(
                (const char *)at.plane[0] + plane_bytes(kFives, kPrefetch, 1) + line * kUnit,
                _MM_HINT_T1);
        repeat<kBlockSteps>([&](auto s) {
            const __m512i w = at.template unit<s.value>();
            for (int m = 0; m < M; m++)
                dot[m] = _mm512_dpbusd_epi32(dot[m], w, broadcast(q[m] + 4 * s.value));
        });
        for (int m = 0; m < M; m++) q[m] += kBlockColumns;
    }
    for (int m = 0; m < M; m++)
        finish16(p, m, tile * kTileRows, scaled_rows(p, a, m, tile, dot[m]));
}

template <int M>
void decode_rows(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) decode_rows_tile<M>(p, a, tile);
}

// A panel's sums are integers here, kept as their bits.
struct VnniRows {
    static constexpr int kRows = 6;

    static __m512 result(const Product &p, const Activations &a, int64_t b, int64_t tile,
                         const float *sum) {
        const __m512i dot =
            _mm512_add_epi32(_mm512_load_si512(sum), _mm512_set1_epi32(-token_sum(a, b)));
        return scaled_rows(p, a, b, tile, dot);
    }

    template <int T>
    static void multiply(int rows, const Panel &panel, int t0, const Activations &a, int depth,
                         int64_t b, int64_t n, int64_t count, float (*sums)[kPanelTiles][16]) {
        if (rows == kRows) return take<T, kRows>(panel, t0, a, b, n, count, sums);
        take<T, 1>(panel, t0, a, b, n, count, sums);
        if (rows > 1) multiply<T>(rows - 1, panel, t0, a, depth, b + 1, n, count, sums + 1);
    }

 private:
    template <int T, int M>
    static void take(const Panel &panel, int t0, const Activations &a, int64_t b, int64_t n,
                     int64_t count, float (*sums)[kPanelTiles][16]) {
        const int8_t *q[M];
        __m512i dot[M][T];
        for (int m = 0; m < M; m++) {
            q[m] = quantized_row(a, b + m) + n * kBlockColumns;
            for (int t = 0; t < T; t++) dot[m][t] = _mm512_load_si512(sums[m][t0 + t]);
        }
        for (int64_t s = 0; s < count * kBlockSteps; s++) {
            __m512i w[T];
            for (int t = 0; t < T; t++) w[t] = _mm512_load_si512(panel.unit[t0 + t][s]);
            for (int m = 0; m < M; m++) {
                const __m512i x = broadcast(q[m] + 4 * s);
                for (int t = 0; t < T; t++) dot[m][t] = add_products(dot[m][t], w[t], x);
            }
        }
        for (int m = 0; m < M; m++)
            for (int t = 0; t < T; t++) _mm512_store_si512(sums[m][t0 + t], dot[m][t]);
    }
};

inline void compute_rows_avx512(const Product &p, const Activations &a, int64_t begin,
                                int64_t end) {
    switch (a.batch) {
        case 0: return;
        case 1: return decode_rows<1>(p, a, begin, end);
        case 2: return decode_rows<2>(p, a, begin, end);
        case 3: return decode_rows<3>(p, a, begin, end);
        case 4: return decode_rows<4>(p, a, begin, end);
        default: return prefill<1, VnniRows>(p, a, begin, end);
    }
}

}  // namespace
