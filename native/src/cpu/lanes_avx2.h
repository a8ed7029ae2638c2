// Eight lanes: AVX2, FMA and F16C (Haswell, Zen and later). See lanes_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "elements.h"
#include "trits.h"

namespace {

struct Avx2 {
    static constexpr int W = 8;
    using F = __m256;
    using I = __m256i;
    using M = __m256;
    struct D {
        __m256d low, high;
    };

    static F set(float x) { return _mm256_set1_ps(x); }
    static F load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, F x) { _mm256_storeu_ps(p, x); }
    static F add(F x, F y) { return _mm256_add_ps(x, y); }
    static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
    static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
    static F div(F x, F y) { return _mm256_div_ps(x, y); }
    static F min(F x, F y) { return _mm256_min_ps(x, y); }
    static F max(F x, F y) { return _mm256_max_ps(x, y); }
    static F rint(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F fraction(F x) { return sub(x, rint(x)); }
    static F abs(F x) { return _mm256_andnot_ps(set(-0.0f), x); }
    static F fma(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
    static F times_sign_of(F x, F y) { return _mm256_xor_ps(x, _mm256_and_ps(y, set(-0.0f))); }

    static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
    static I bits(F x) { return _mm256_castps_si256(x); }
    static F from_bits(I x) { return _mm256_castsi256_ps(x); }
    static I add(I x, I y) { return _mm256_add_epi32(x, y); }
    static I sub(I x, I y) { return _mm256_sub_epi32(x, y); }
    static I min(I x, I y) { return _mm256_min_epi32(x, y); }
    static I max(I x, I y) { return _mm256_max_epi32(x, y); }
    static I shift16(I x) { return _mm256_slli_epi32(x, 16); }
    static I or_(I x, I y) { return _mm256_or_si256(x, y); }
    static I to_int(F x) { return _mm256_cvttps_epi32(x); }
    static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
    static void store_int(int32_t *p, I x) { _mm256_storeu_si256((__m256i *)p, x); }

    static M lt(F x, F y) { return _mm256_cmp_ps(x, y, _CMP_LT_OQ); }
    static M le(F x, F y) { return _mm256_cmp_ps(x, y, _CMP_LE_OQ); }
    static M lt(I x, I y) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(y, x)); }
    static M le(I x, I y) { return lt(sub(x, set_int(1)), y); }
    static M both(M x, M y) { return _mm256_and_ps(x, y); }
    static M either(M x, M y) { return _mm256_or_ps(x, y); }
    static M but_not(M x, M y) { return _mm256_andnot_ps(y, x); }
    static bool any(M x) { return _mm256_movemask_ps(x) != 0; }
    static F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
    static I select(M m, I yes, I no) {
        return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m));
    }

    // Of 32 entries: a gather takes three times as long as these permutations.
    static F lookup(const float *table, I index) {
        const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
        const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
        const auto eight = [&](int first) {
            return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + first), index);
        };
        return _mm256_blendv_ps(_mm256_blendv_ps(eight(0), eight(8), bit3),
                                _mm256_blendv_ps(eight(16), eight(24), bit3), bit4);
    }

    static D wide(F x) {
        return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)),
                _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
    }
    static D wide_set(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
    static D add_wide(D x, D y) {
        return {_mm256_add_pd(x.low, y.low), _mm256_add_pd(x.high, y.high)};
    }
    static D mul_wide(D x, D y) {
        return {_mm256_mul_pd(x.low, y.low), _mm256_mul_pd(x.high, y.high)};
    }
    static void store_wide(double *p, D x) {
        _mm256_storeu_pd(p, x.low);
        _mm256_storeu_pd(p + 4, x.high);
    }

    static constexpr bool has_pairs = true;
    using P = __m256i;
    static P pairs(F even, F odd) {
        return _mm256_or_si256(_mm256_cvtps_epi32(even),
                               _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16));
    }
    static P twice(F x) {
        return _mm256_shuffle_epi8(_mm256_cvtps_epi32(x),
                                   _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                       0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13)));
    }
    static F product_if(M m, F x, F y) { return _mm256_and_ps(m, mul(x, y)); }
    static F least(F x, F y) { return min(x, y); }
    static F greatest(F x, F y) { return max(x, y); }
    static F minus_product(F x, F y, F z) { return _mm256_fnmadd_ps(y, z, x); }
    static I and_(I x, I y) { return _mm256_and_si256(x, y); }
    static I tagged(F x, I j) { return or_(and_(bits(x), set_int(~31)), j); }

    // See Avx512. Squares are rounded down; four of the largest of them overflow, which makes their
    // sum less, and the mean of two such sums is rounded up.
    static constexpr float kSquareUnit = 0x1p15f, kSquareOrigin = -0x1p-15f;
    template <int kBits>
    static void fraction_squares(const P *pair, const P (&inverse)[3], F *squares) {
        for (int e = 0; e < 3; e++) {  // in turn: all registers together are too few for three
            __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int i = 0; i < 8; i++) {
                const __m256i t = _mm256_mulhi_epu16(pair[i], inverse[e]);
                const __m256i f = _mm256_slli_epi16(t, 16 - kBits);
                sum[i / 4] = _mm256_add_epi16(sum[i / 4], _mm256_mulhi_epi16(f, f));
            }
            const __m256i both = _mm256_avg_epu16(sum[0], sum[1]);
            squares[e] = to_float(
                add(_mm256_srli_epi32(both, 16), _mm256_blend_epi16(both, set_int(0), 0xaa)));
        }
    }

    static void excess_sum(const P *pair, const P (&least)[3], F *excess) {
        __m256i sum[3] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int i = 0; i < 8; i++)
            for (int e = 0; e < 3; e++) {
                const __m256i x = _mm256_subs_epu16(pair[i], least[e]);
                sum[e] = add(sum[e], _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
            }
        for (int e = 0; e < 3; e++) excess[e] = to_float(sum[e]);
    }

    static void load_columns(const float *p, int64_t stride, F *column) {
        for (int half = 0; half < 16; half += 8) {
            __m256i x[8];
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_si256((const __m256i *)(p + i * stride + half));
            transpose(x);
            for (int i = 0; i < 8; i++) column[half + i] = _mm256_castsi256_ps(x[i]);
        }
    }
    static void load_columns(const Half *p, int64_t stride, F *column) {
        __m128i x[16];
        load_words(p, stride, x);
        for (int i = 0; i < 16; i++) column[i] = _mm256_cvtph_ps(x[i]);
    }
    static void load_columns(const Bfloat *p, int64_t stride, F *column) {
        __m128i x[16];
        load_words(p, stride, x);
        for (int i = 0; i < 16; i++)
            column[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x[i]), 16));
    }

    static void split_planes(const I *x, uint8_t (*bytes)[4][16]) {
        const __m256i by_plane = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        for (int half = 0; half < 16; half += 8) {
            __m256i row[8];
            for (int i = 0; i < 8; i++) row[i] = x[half + i];
            transpose(row);
            for (int i = 0; i < 8; i++) {  // dwords: plane q of bytes 0..3 | of bytes 4..7
                alignas(32) uint32_t word[8];
                _mm256_store_si256((__m256i *)word, _mm256_shuffle_epi8(row[i], by_plane));
                for (int q = 0; q < 4; q++) {
                    std::memcpy(&bytes[i][q][half], &word[q], 4);
                    std::memcpy(&bytes[i][q][half + 4], &word[4 + q], 4);
                }
            }
        }
    }

    template <class T>
    static constexpr bool looks_up = false;

    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }

    static void store_group(const uint8_t *digits, float middle, float step, float *out) {
        _mm256_storeu_ps(out, scaled(digits, middle, step));
        _mm256_storeu_ps(out + 8, scaled(digits + 8, middle, step));
    }
    static void store_group(const uint8_t *digits, float middle, float step, Half *out) {
        for (int i = 0; i < 16; i += 8)
            _mm_storeu_si128((__m128i *)(out + i),
                             _mm256_cvtps_ph(scaled(digits + i, middle, step),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void store_group(const uint8_t *digits, float middle, float step, Bfloat *out) {
        __m256i x = bfloat_bits(scaled(digits, middle, step));
        __m256i y = bfloat_bits(scaled(digits + 8, middle, step));
        x = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, y), 0xd8);
        _mm256_storeu_si256((__m256i *)out, x);
    }

    // A number that is not NaN as bfloat16, half to even, in the low 16 bits.
    static __m256i bfloat_bits(F value) {
        __m256i x = _mm256_castps_si256(value);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
        x = _mm256_add_epi32(_mm256_add_epi32(x, odd), _mm256_set1_epi32(0x7fff));
        return _mm256_srli_epi32(x, 16);
    }

    // Rows of eight 32-bit words to columns, in place.
    static void transpose(__m256i *x) {
        __m256i y[8];
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
            x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
            x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
            x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
        }
        for (int c = 0; c < 4; c++) {
            y[c] = _mm256_permute2x128_si256(x[c], x[4 + c], 0x20);
            y[4 + c] = _mm256_permute2x128_si256(x[c], x[4 + c], 0x31);
        }
        for (int i = 0; i < 8; i++) x[i] = y[i];
    }

 private:
    static F scaled(const uint8_t *digits, float middle, float step) {
        F k = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)digits)));
        return mul(sub(k, set(middle)), set(step));
    }

    // Eight rows of sixteen 16-bit words -> one vector a column.
    template <class T>
    static void load_words(const T *p, int64_t stride, __m128i *column) {
        for (int half = 0; half < 16; half += 8) {
            __m128i x[8], y[8];
            for (int i = 0; i < 8; i++)
                x[i] = _mm_loadu_si128((const __m128i *)(p + i * stride + half));
            for (int i = 0; i < 4; i++) {
                y[i] = _mm_unpacklo_epi16(x[2 * i], x[2 * i + 1]);      // columns 0..3
                y[4 + i] = _mm_unpackhi_epi16(x[2 * i], x[2 * i + 1]);  // columns 4..7
            }
            for (int h = 0; h < 8; h += 4) {
                __m128i a = _mm_unpacklo_epi32(y[h], y[h + 1]),
                        b = _mm_unpackhi_epi32(y[h], y[h + 1]);
                __m128i c = _mm_unpacklo_epi32(y[h + 2], y[h + 3]);
                __m128i d = _mm_unpackhi_epi32(y[h + 2], y[h + 3]);
                column[half + h] = _mm_unpacklo_epi64(a, c);
                column[half + h + 1] = _mm_unpackhi_epi64(a, c);
                column[half + h + 2] = _mm_unpacklo_epi64(b, d);
                column[half + h + 3] = _mm_unpackhi_epi64(b, d);
            }
        }
    }
};

}  // namespace
