// What stands between the products of a block, sixteen floats at a time.
#pragma once

#include "cpu/lanes_avx512.h"
#include "products/avx512_elements.h"
#include "rows.h"

namespace {

struct Avx512Rows : Avx512 {
    static constexpr int kRegisters = 32;
    static void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
    static constexpr __mmask16 kAll = 0xffff;
    template <class T>
    static F load_as(const T *p) {
        return load16(p, kAll);
    }
    static F load_as(const int8_t *p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    template <class T>
    static void store_as(T *p, F x) {
        store16(p, kAll, x);
    }
    static float total(F x) { return _mm512_reduce_add_ps(x); }
    static void store_totals(float *p, const F *x) {
        for (int i = 0; i < 4; i++) p[i] = total(x[i]);
    }
};

constexpr StepKernels avx512_step = step_kernels<Avx512Rows>();

}  // namespace
