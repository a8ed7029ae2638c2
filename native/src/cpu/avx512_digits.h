// AVX-512 VBMI: bytes of trits to digits, levels and 16-bit weights, by permutations of tables.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "trits.h"

namespace {

struct Avx512DigitIndex {
    uint8_t source[3][64] = {}, part[3][64] = {};
    int8_t digit[4][128] = {};

    constexpr Avx512DigitIndex() {
        // Of weight 64 * c + i: where the part of its byte is, and where the part's digits begin.
        constexpr int part_of[] = {0, 27, 54, 81, 90};
        for (int c = 0; c < 3; c++)
            for (int i = 0; i < 64; i++) {
                const int trit = (64 * c + i) % kDecodeColumns, place = trit % kTritsPerByte;
                source[c][i] = uint8_t(trit / kTritsPerByte * 2 + place / 3);
                part[c][i] = uint8_t(part_of[place]);
            }
        // Digits by part, times the power of the plane; at four planes the sum is a level.
        constexpr int power[] = {1, 3, 9, 27};
        for (int p = 0; p < 4; p++) {
            for (int i = 0; i < 27; i++)
                for (int place = 0, rest = i; place < 3; place++, rest /= 3)
                    digit[p][part_of[place] + i] = int8_t(rest % 3 * power[p] - (p == 3 ? 40 : 0));
            for (int i = 0; i < 9; i++)
                for (int place = 0, rest = i; place < 2; place++, rest /= 3)
                    digit[p][81 + 9 * place + i] = int8_t(rest % 3 * power[p] - (p == 3 ? 40 : 0));
        }
    }
};

struct Avx512Digits {
    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        switch (planes) {
            case 1: return add_planes<1>(plane, digits);
            case 2: return add_planes<2>(plane, digits);
            case 3: return add_planes<3>(plane, digits);
            default: return add_planes<4>(plane, digits);
        }
    }

    template <class T>
    static constexpr bool looks_up = sizeof(T) == 2;

    // 160 weights, 32 at a time, from a table of the weights of every level at every step.
    template <int kPlanes, class T>
    static bool decode_unit(const uint8_t *const *plane, const uint8_t *step,
                            const T (*table)[kLevelSlots], T *out) {
        __m512i parts[4];
        const bool valid = load_planes<kPlanes>(plane, parts);
        for (int c = 0; c < 3; c++) {
            const __m512i sum = sum_digits<kPlanes>(parts, c);
            look_up<kPlanes>(_mm512_castsi512_si256(sum), table[step[4 * c]],
                             table[step[4 * c + 1]], out + 64 * c);
            if (c < 2)
                look_up<kPlanes>(_mm512_extracti64x4_epi64(sum, 1), table[step[4 * c + 2]],
                                 table[step[4 * c + 3]], out + 64 * c + 32);
        }
        return valid;
    }

 private:
    static constexpr Avx512DigitIndex digits_of{};

    // The bytes b of the planes as pairs of b % 27, three digits, and b / 27, two; returns whether
    // all are valid. (2428 / 65536 is 1 / 27 and less than 1 / (27 * 243) more.)
    template <int kPlanes>
    static bool load_planes(const uint8_t *const *plane, __m512i *parts) {
        __m256i highest = _mm256_setzero_si256();
        for (int p = 0; p < kPlanes; p++) {
            const __m256i x = _mm256_loadu_si256((const __m256i *)plane[p]);
            highest = _mm256_max_epu8(highest, x);
            const __m512i b = _mm512_cvtepu8_epi16(x);
            const __m512i upper = _mm512_mulhi_epu16(b, _mm512_set1_epi16(2428));
            parts[p] = _mm512_add_epi16(b, _mm512_mullo_epi16(upper, _mm512_set1_epi16(256 - 27)));
        }
        const __m256i excess = _mm256_subs_epu8(highest, _mm256_set1_epi8(char(kLastByte)));
        return _mm256_testz_si256(excess, excess);
    }

    // Of weights 64 * c on, in bytes: the sum of the planes' digits, at four planes the level.
    template <int kPlanes>
    static __m512i sum_digits(const __m512i *parts, int c) {
        const __m512i source = _mm512_loadu_si512(&digits_of.source[c]);
        const __m512i part = _mm512_loadu_si512(&digits_of.part[c]);
        __m512i sum = _mm512_setzero_si512();
        for (int p = 0; p < kPlanes; p++) {
            const int8_t *digit = digits_of.digit[kPlanes - 1 - p];
            const __m512i at = _mm512_add_epi8(_mm512_permutexvar_epi8(source, parts[p]), part);
            const __m512i found = _mm512_permutex2var_epi8(_mm512_loadu_si512(digit), at,
                                                           _mm512_loadu_si512(digit + 64));
            sum = p == 0 ? found : _mm512_add_epi8(sum, found);
        }
        return sum;
    }

    template <int kPlanes>
    static bool add_planes(const uint8_t *const *plane, uint8_t *digits) {
        __m512i parts[4];
        const bool valid = load_planes<kPlanes>(plane, parts);
        const __m512i middle = _mm512_set1_epi8(kPlanes == 4 ? 40 : 0);
        for (int c = 0; c < 2; c++)
            _mm512_storeu_si512(digits + 64 * c,
                                _mm512_add_epi8(sum_digits<kPlanes>(parts, c), middle));
        _mm256_storeu_si256((__m256i *)(digits + 128), _mm512_castsi512_si256(_mm512_add_epi8(
                                                           sum_digits<kPlanes>(parts, 2), middle)));
        return valid;
    }

    // Two groups. At four planes the 41 magnitudes fit two registers; the level's sign turns
    // theirs (which a step may have turned already).
    template <int kPlanes, class T>
    static void look_up(__m256i digits, const T *x, const T *y, T *out) {
        constexpr __mmask32 upper = 0xffff0000;  // of two groups the second
        __m512i w;
        if (kPlanes <= 3) {
            const __m512i sum = _mm512_cvtepu8_epi16(digits);
            w = _mm512_permutexvar_epi16(sum, _mm512_loadu_si512(x));
            w = _mm512_mask_permutexvar_epi16(w, upper, sum, _mm512_loadu_si512(y));
        } else {
            const __m512i level = _mm512_cvtepi8_epi16(digits), magnitude = _mm512_abs_epi16(level);
            const __m512i first = _mm512_permutex2var_epi16(_mm512_loadu_si512(x), magnitude,
                                                            _mm512_loadu_si512(x + 32));
            const __m512i second = _mm512_permutex2var_epi16(_mm512_loadu_si512(y), magnitude,
                                                             _mm512_loadu_si512(y + 32));
            w = _mm512_mask_blend_epi16(upper, first, second);
            w = _mm512_ternarylogic_epi32(w, level, _mm512_set1_epi16(INT16_MIN), 0x78);
        }
        _mm512_storeu_si512(out, w);
    }
};

}  // namespace
