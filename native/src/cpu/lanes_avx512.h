// Sixteen lanes: AVX-512 F, BW, DQ, VL and VNNI (Cascade Lake and later), and with TRITLLM_VBMI also
// VBMI (Ice Lake, Zen 4 and later). See lanes_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "elements.h"
#if defined(TRITLLM_VBMI)
#include "avx512_digits.h"
#else
#include "trits.h"
#endif

namespace {

// Index vectors of the permutations below.
struct Avx512Index {
    uint8_t by_plane[64] = {};
    uint8_t by_plane_of_four[16] = {};
    uint32_t by_four[16] = {};
    uint16_t pairs[32] = {};
    uint32_t quads[2][16] = {};
    uint64_t eights[2][8] = {};
    uint64_t sixteens[2][8] = {};

    constexpr Avx512Index() {
        for (int q = 0; q < 4; q++)
            for (int i = 0; i < 16; i++) by_plane[16 * q + i] = uint8_t(4 * i + q);
        for (int i = 0; i < 16; i++) {  // in two steps: within four words, then of those
            by_plane_of_four[i] = uint8_t(i % 4 * 4 + i / 4);
            by_four[i] = uint32_t(i % 4 * 4 + i / 4);
        }
        for (int i = 0; i < 32; i++) pairs[i] = uint16_t(i % 2 * 16 + i / 2);
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 16; i++) quads[h][i] = uint32_t(i % 2 * 16 + h * 8 + i / 2);
            for (int i = 0; i < 8; i++) {
                eights[h][i] = uint64_t(i % 2 * 8 + h * 4 + i / 2);
                sixteens[h][i] = uint64_t(i / 2 % 2 * 8 + h * 4 + i / 4 * 2 + i % 2);
            }
        }
    }
};

#if !defined(TRITLLM_VBMI)
struct Avx512Digits {
    template <class T>
    static constexpr bool looks_up = false;

    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }
};
#endif

struct Avx512 : Avx512Digits {
    static constexpr int W = 16;
    using F = __m512;
    using I = __m512i;
    using M = __mmask16;
    struct D {
        __m512d low, high;
    };

    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, F x) { _mm512_storeu_ps(p, x); }
    static F add(F x, F y) { return _mm512_add_ps(x, y); }
    static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
    static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
    static F div(F x, F y) { return _mm512_div_ps(x, y); }
    static F min(F x, F y) { return _mm512_min_ps(x, y); }
    static F max(F x, F y) { return _mm512_max_ps(x, y); }
    static F rint(F x) {
        return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static F fraction(F x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT); }
    static F abs(F x) { return _mm512_abs_ps(x); }
    static F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
    static F times_sign_of(F x, F y) {
        const __m512i sign = _mm512_set1_epi32(INT32_MIN);
        return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(  // x ^ (y & sign)
            _mm512_castps_si512(x), _mm512_castps_si512(y), sign, 0x78));
    }

    static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
    static I bits(F x) { return _mm512_castps_si512(x); }
    static F from_bits(I x) { return _mm512_castsi512_ps(x); }
    static I add(I x, I y) { return _mm512_add_epi32(x, y); }
    static I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
    static I min(I x, I y) { return _mm512_min_epi32(x, y); }
    static I max(I x, I y) { return _mm512_max_epi32(x, y); }
    static I shift16(I x) { return _mm512_slli_epi32(x, 16); }
    static I or_(I x, I y) { return _mm512_or_si512(x, y); }
    static I to_int(F x) { return _mm512_cvttps_epi32(x); }
    static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
    static void store_int(int32_t *p, I x) { _mm512_storeu_si512(p, x); }

    static M lt(F x, F y) { return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ); }
    static M le(F x, F y) { return _mm512_cmp_ps_mask(x, y, _CMP_LE_OQ); }
    static M lt(I x, I y) { return _mm512_cmplt_epi32_mask(x, y); }
    static M le(I x, I y) { return _mm512_cmple_epi32_mask(x, y); }
    static M both(M x, M y) { return M(x & y); }
    static M either(M x, M y) { return M(x | y); }
    static M but_not(M x, M y) { return M(x & ~y); }
    static bool any(M x) { return x != 0; }
    static F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
    static I select(M m, I yes, I no) { return _mm512_mask_blend_epi32(m, no, yes); }

    static F lookup(const float *table, I index) {
        return _mm512_permutex2var_ps(_mm512_loadu_ps(table), index, _mm512_loadu_ps(table + 16));
    }

    static D wide(F x) {
        return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
                _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
    }
    static D wide_set(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
    static D add_wide(D x, D y) {
        return {_mm512_add_pd(x.low, y.low), _mm512_add_pd(x.high, y.high)};
    }
    static D mul_wide(D x, D y) {
        return {_mm512_mul_pd(x.low, y.low), _mm512_mul_pd(x.high, y.high)};
    }
    static void store_wide(double *p, D x) {
        _mm512_storeu_pd(p, x.low);
        _mm512_storeu_pd(p + 8, x.high);
    }

    static constexpr bool has_pairs = true;
    using P = __m512i;
    static P pairs(F even, F odd) {  // rounded, below 65536
        return _mm512_or_si512(_mm512_cvtps_epi32(even),
                               _mm512_slli_epi32(_mm512_cvtps_epi32(odd), 16));
    }
    static P twice(F x) {
        return _mm512_shuffle_epi8(
            _mm512_cvtps_epi32(x),
            _mm512_set4_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100));
    }
    static F product_if(M m, F x, F y) { return _mm512_maskz_mul_ps(m, x, y); }
    // Of floats that are not negative, as integers: twice as many run at once.
    static F least(F x, F y) { return from_bits(min(bits(x), bits(y))); }
    static F greatest(F x, F y) { return from_bits(max(bits(x), bits(y))); }
    static F minus_product(F x, F y, F z) { return _mm512_fnmadd_ps(y, z, x); }
    static I and_(I x, I y) { return _mm512_and_si512(x, y); }
    // x with its last five bits replaced by j.
    static I tagged(F x, I j) { return _mm512_ternarylogic_epi32(bits(x), set_int(~31), j, 0xea); }

    // (sum of f**2 over a row's pairs - origin) * unit, or less where the sum is over 1, f being
    // how far pair * inverse / 2**(16 + bits) is from an integer. Half of the pairs reaches 2**31
    // where its sum reaches 1, and stays there.
    static constexpr float kSquareUnit = 0x1p32f, kSquareOrigin = 1;
    // Of three inverses at once, step by step: what waits for the last one leaves room for others.
    template <int kBits>
    static void fraction_squares(const P *pair, const P (&inverse)[3], F *squares) {
        __m512i sum[3][2];
        for (auto &s : sum) s[0] = s[1] = set_int(INT32_MIN);
        for (int i = 0; i < 8; i++)
            for (int e = 0; e < 3; e++) {
                const __m512i t = _mm512_mulhi_epu16(pair[i], inverse[e]);
                const __m512i f = _mm512_slli_epi16(t, 16 - kBits);
                sum[e][i % 2] = _mm512_dpwssds_epi32(sum[e][i % 2], f, f);
            }
        for (int e = 0; e < 3; e++) squares[e] = add(to_float(sum[e][0]), to_float(sum[e][1]));
    }

    // Sum over a row's pairs of what exceeds `least`; words below 32768.
    static void excess_sum(const P *pair, const P (&least)[3], F *excess) {
        const __m512i one = _mm512_set1_epi16(1);
        __m512i sum[3][2];
        for (auto &s : sum) s[0] = s[1] = _mm512_setzero_si512();
        for (int i = 0; i < 8; i++)
            for (int e = 0; e < 3; e++) {
                const __m512i x = _mm512_subs_epu16(pair[i], least[e]);
                sum[e][i % 2] = _mm512_dpwssd_epi32(sum[e][i % 2], x, one);
            }
        for (int e = 0; e < 3; e++) excess[e] = to_float(add(sum[e][0], sum[e][1]));
    }

    static void load_columns(const float *p, int64_t stride, F *column) {
        __m512i x[16];
        for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(p + i * stride);
        transpose(x);
        for (int i = 0; i < 16; i++) column[i] = _mm512_castsi512_ps(x[i]);
    }
    static void load_columns(const Half *p, int64_t stride, F *column) {
        __m256i x[16];
        load_words(p, stride, x);
        for (int i = 0; i < 16; i++) column[i] = _mm512_cvtph_ps(x[i]);
    }
    static void load_columns(const Bfloat *p, int64_t stride, F *column) {
        __m256i x[16];
        load_words(p, stride, x);
        for (int i = 0; i < 16; i++)
            column[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x[i]), 16));
    }

    static void split_planes(const I *x, uint8_t (*bytes)[4][16]) {
        __m512i row[16];
        for (int i = 0; i < 16; i++) row[i] = x[i];
        transpose(row);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(bytes[i], bytes_by_plane(row[i]));
    }

    static void store_group(const uint8_t *digits, float middle, float step, float *out) {
        _mm512_storeu_ps(out, scaled(digits, middle, step));
    }
    static void store_group(const uint8_t *digits, float middle, float step, Half *out) {
        _mm256_storeu_si256((__m256i *)out,
                            _mm512_cvtps_ph(scaled(digits, middle, step),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void store_group(const uint8_t *digits, float middle, float step, Bfloat *out) {
        const __m512i x = bfloat_high(scaled(digits, middle, step));
        _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
    }

    // A number that is not NaN as bfloat16, half to even, in the high 16 bits.
    static __m512i bfloat_high(F value) {
        const __m512i x = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
        return _mm512_add_epi32(_mm512_add_epi32(x, odd), _mm512_set1_epi32(0x7fff));
    }

    // Rows of sixteen 32-bit words to columns, in place.
    static void transpose(__m512i *x) {
        __m512i y[16];
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
            x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
            x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
            x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
        }
        // x[4r + c]: rows 4r..4r+3 of columns c, c+4, c+8, c+12
        for (int c = 0; c < 4; c++) {
            y[c] = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
            y[4 + c] = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
            y[8 + c] = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
            y[12 + c] = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
        }
        for (int c = 0; c < 4; c++) {
            x[c] = _mm512_shuffle_i32x4(y[c], y[8 + c], 0x88);
            x[8 + c] = _mm512_shuffle_i32x4(y[c], y[8 + c], 0xdd);
            x[4 + c] = _mm512_shuffle_i32x4(y[4 + c], y[12 + c], 0x88);
            x[12 + c] = _mm512_shuffle_i32x4(y[4 + c], y[12 + c], 0xdd);
        }
    }

 private:
    static constexpr Avx512Index index{};

    // The first bytes of sixteen words, then their second bytes, ...
    static __m512i bytes_by_plane(__m512i words) {
#if defined(TRITLLM_VBMI)
        return _mm512_permutexvar_epi8(_mm512_loadu_si512(&index.by_plane), words);
#else
        const __m128i of_four = _mm_loadu_si128((const __m128i *)&index.by_plane_of_four);
        return _mm512_permutexvar_epi32(
            _mm512_loadu_si512(&index.by_four),
            _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(of_four)));
#endif
    }

    static F scaled(const uint8_t *digits, float middle, float step) {
        F k = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)digits)));
        return mul(sub(k, set(middle)), set(step));
    }

    // Sixteen rows of sixteen 16-bit words -> one vector a column. In each 512-bit vector two rows
    // are interleaved first, then 4, 8 and 16 rows.
    template <class T>
    static void load_words(const T *p, int64_t stride, __m256i *column) {
        __m512i x[8], y[8];
        for (int i = 0; i < 8; i++) {
            __m256i even = _mm256_loadu_si256((const __m256i *)(p + 2 * i * stride));
            __m256i odd = _mm256_loadu_si256((const __m256i *)(p + (2 * i + 1) * stride));
            __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
            x[i] = _mm512_permutexvar_epi16(_mm512_loadu_si512(&index.pairs), both);
        }
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 4; i++)  // rows 4i.., columns 8h..
                y[4 * h + i] = _mm512_permutex2var_epi32(
                    x[2 * i], _mm512_loadu_si512(&index.quads[h]), x[2 * i + 1]);
        for (int c = 0; c < 4; c++)  // columns 4c.., rows 0.. and 8..
            for (int i = 0; i < 2; i++)
                x[2 * c + i] = _mm512_permutex2var_epi64(y[c / 2 * 4 + 2 * i],
                                                         _mm512_loadu_si512(&index.eights[c % 2]),
                                                         y[c / 2 * 4 + 2 * i + 1]);
        for (int c = 0; c < 8; c++) {  // columns 2c, 2c + 1
            __m512i z = _mm512_permutex2var_epi64(
                x[c / 2 * 2], _mm512_loadu_si512(&index.sixteens[c % 2]), x[c / 2 * 2 + 1]);
            column[2 * c] = _mm512_castsi512_si256(z);
            column[2 * c + 1] = _mm512_extracti64x4_epi64(z, 1);
        }
    }
};

}  // namespace
