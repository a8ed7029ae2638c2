// AVX-512: activations in, results out.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "cpu/lanes_avx512.h"
#include "product_kernels.h"
#include "superblocks.h"

namespace {

inline __m512 load16(const float *p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
inline __m512 load16(const Half *p, __mmask16 m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
}
inline __m512 load16(const Bfloat *p, __mmask16 m) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

inline void store16(float *p, __mmask16 m, __m512 x) { _mm512_mask_storeu_ps(p, m, x); }
inline void store16(Half *p, __mmask16 m, __m512 x) {
    _mm256_mask_storeu_epi16(p, m,
                             _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store16(Bfloat *p, __mmask16 m, __m512 x) {
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i r =
        _mm512_mask_blend_epi32(nan, Avx512::bfloat_high(x), _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

inline __mmask16 first(int64_t n) { return __mmask16(n >= 16 ? 0xffff : (1 << n) - 1); }

template <class T>
void quantize_row_avx512(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, groups] = quantized_output(row, blocks);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t left = columns - 16 * g;
        if (left <= 0) {
            _mm_storeu_si128((__m128i *)(q + 16 * g), _mm_setzero_si128());
            for (int d = 0; d < 4; d++) offset[d * groups + g] = 0;
            scale[g] = 0;
            continue;
        }
        const __m512 v = load16(in + 16 * g, first(left));
        const __m512 magnitude = _mm512_abs_ps(v);
        const float largest = _mm512_reduce_max_ps(magnitude);
        const bool finite =
            _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(INFINITY), _CMP_LT_OQ) == 0xffff;
        const bool zero = !finite || largest < kSmallestMagnitude;
        const float inverse = zero ? 0.0f : 127.0f / largest;
        __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse)));
        if (zero) n = _mm512_setzero_si512();
        _mm_storeu_si128((__m128i *)(q + 16 * g), _mm512_cvtepi32_epi8(n));
        const int32_t sum = _mm512_reduce_add_epi32(n);
        for (int d = 0; d < 4; d++) offset[d * groups + g] = -kMaxLevel[d + 1] * sum;
        scale[g] = !finite ? NAN : zero ? 0.0f : largest / 127.0f;
    }
}

template <class T>
void widen_row_avx512(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    float *out = reinterpret_cast<float *>(row);
    for (int64_t i = 0; i < blocks * kBlockColumns; i += 16) {
        const __mmask16 m = columns > i ? first(columns - i) : 0;
        _mm512_storeu_ps(out + i, load16(in + i, m));
    }
}

// What AVX-512 and AMX have in common.
constexpr RowKernels avx512_rows = {
    {quantize_row_avx512<Half>, quantize_row_avx512<Bfloat>, quantize_row_avx512<float>},
    {widen_row_avx512<Half>, widen_row_avx512<Bfloat>, widen_row_avx512<float>},
    {quantize_superblocks<Half>, quantize_superblocks<Bfloat>, quantize_superblocks<float>},
    {quantize_token<Half>, quantize_token<Bfloat>, quantize_token<float>},
};

// Sixteen results of one batch row from row `row` on, `bias` added, rounded once.
inline void finish16(const Product &p, int64_t b, int64_t row, __m512 sum) {
    const __mmask16 m = first(p.rows - row);
    if (p.bias) {
        __m512 bias;
        switch (p.bias_dtype) {
            case TRITLLM_FLOAT16: bias = load16((const Half *)p.bias + row, m); break;
            case TRITLLM_BFLOAT16: bias = load16((const Bfloat *)p.bias + row, m); break;
            default: bias = load16((const float *)p.bias + row, m);
        }
        sum = _mm512_add_ps(sum, bias);
    }
    const int64_t at = b * p.stride + row;
    switch (p.dtype) {
        case TRITLLM_FLOAT16: store16((Half *)p.y + at, m, sum); break;
        case TRITLLM_BFLOAT16: store16((Bfloat *)p.y + at, m, sum); break;
        default: store16((float *)p.y + at, m, sum);
    }
}

}  // namespace
