// AVX2: activations in, and portable trits transposed.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/lanes_avx2.h"
#include "portable_tile.h"
#include "product_kernels.h"
#include "superblocks.h"

namespace {

inline __m256 load8(const float *p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const Half *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline __m256 load8(const Bfloat *p) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

inline void store8(float *p, __m256 x) { _mm256_storeu_ps(p, x); }
inline void store8(Half *p, __m256 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store8(Bfloat *p, __m256 x) {
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(Avx2::bfloat_bits(x), _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_packus_epi32(r, r);  // in each half of 128 bits
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

inline float largest_of(__m256 x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline int32_t sum_of(__m256i x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}

// Sixteen elements, those from `count` on zero.
template <class T>
inline void load_group(const T *p, int64_t count, __m256 *v) {
    T edge[16];
    if (count < 16) {
        std::memset(edge, 0, sizeof edge);
        if (count > 0) std::memcpy(edge, p, size_t(count) * sizeof(T));
        p = edge;
    }
    v[0] = load8(p);
    v[1] = load8(p + 8);
}

template <class T>
void quantize_row_avx2(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, groups] = quantized_output(row, blocks);
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t g = 0; g < groups; g++) {
        __m256 v[2];
        load_group(in + 16 * g, columns - 16 * g, v);
        const __m256 a = _mm256_and_ps(v[0], magnitude_bits);
        const __m256 b = _mm256_and_ps(v[1], magnitude_bits);
        const __m256 infinity = _mm256_set1_ps(INFINITY);
        const bool finite =
            _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(a, infinity, _CMP_LT_OQ),
                                             _mm256_cmp_ps(b, infinity, _CMP_LT_OQ))) == 0xff;
        const float largest = largest_of(_mm256_max_ps(a, b));
        const bool zero = !finite || largest < kSmallestMagnitude;
        __m256i n[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        if (!zero) {
            const __m256 inverse = _mm256_set1_ps(127.0f / largest);
            n[0] = _mm256_cvtps_epi32(_mm256_mul_ps(v[0], inverse));
            n[1] = _mm256_cvtps_epi32(_mm256_mul_ps(v[1], inverse));
        }
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(n[0], n[1]), 0xd8);
        _mm_storeu_si128(
            (__m128i *)(q + 16 * g),
            _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        const int32_t sum = sum_of(_mm256_add_epi32(n[0], n[1]));
        for (int d = 0; d < 4; d++) offset[d * groups + g] = -kMaxLevel[d + 1] * sum;
        scale[g] = !finite ? NAN : zero ? 0.0f : largest / 127.0f;
    }
}

template <class T>
void widen_row_avx2(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    float *out = reinterpret_cast<float *>(row);
    for (int64_t i = 0; i < blocks * kBlockColumns; i += 16) {
        __m256 v[2];
        load_group(in + i, columns - i, v);
        _mm256_storeu_ps(out + i, v[0]);
        _mm256_storeu_ps(out + i + 8, v[1]);
    }
}

constexpr RowKernels avx2_rows = {
    {quantize_row_avx2<Half>, quantize_row_avx2<Bfloat>, quantize_row_avx2<float>},
    {widen_row_avx2<Half>, widen_row_avx2<Bfloat>, widen_row_avx2<float>},
    {quantize_superblocks<Half>, quantize_superblocks<Bfloat>, quantize_superblocks<float>},
    {quantize_token<Half>, quantize_token<Bfloat>, quantize_token<float>},
};

struct Avx2Reader {
    static void prefetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }
    // Eight rows of eight words of 32 bits at a time.
    static void units(const SpanRows &rows, int plane, Span *span) {
        for (int half = 0; half < kTileRows; half += 8)
            for (int s = 0; s < kSpanUnits; s += 8) {
                __m256i word[8];
                for (int r = 0; r < 8; r++)
                    word[r] =
                        _mm256_load_si256((const __m256i *)&rows.trit[plane][half + r][4 * s]);
                Avx2::transpose(word);
                for (int i = 0; i < 8; i++)
                    _mm256_store_si256((__m256i *)(span->unit[plane][s + i] + 4 * half), word[i]);
            }
    }
};

}  // namespace
