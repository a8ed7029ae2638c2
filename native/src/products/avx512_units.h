// AVX-512 VBMI: the codes of the layout kFives (fives.h) -> units of sixteen rows x four bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "fives.h"

namespace {

// For each of the 32 values of a code (twice, as bit 5 of an index is not the code's): its three
// trits times `power`, or the quotient and remainder of a division by nine.
struct CodeTables {
    alignas(64) uint8_t trit[3][64] = {};
    alignas(64) uint8_t top[3][64] = {};  // trits times 27
    alignas(64) uint8_t rest[64] = {};    // code % 9
    alignas(64) uint8_t ninth[64] = {};   // code / 9
    alignas(64) uint8_t thirds[64] = {};  // code / 9 * 3

    constexpr CodeTables() {
        for (int i = 0; i < 64; i++) {
            const int code = i % 32;
            for (int j = 0, rest = code; j < 3; j++, rest /= 3) {
                trit[j][i] = uint8_t(rest % 3);
                top[j][i] = uint8_t(rest % 3 * 27);
            }
            this->rest[i] = uint8_t(code % 9);
            ninth[i] = uint8_t(code / 9);
            thirds[i] = uint8_t(code / 9 * 3);
        }
    }
};

constexpr CodeTables kCodeTables;

inline __m512i load_unit(const uint8_t *p) { return _mm512_loadu_si512(p); }

// Code k of eight as an index of vpermb: bits 0-4, above them anything. The shifts are of 16-bit
// words; what they carry in from the byte above lands in bits that nobody looks at.
template <int K>
inline __m512i code_of_eight(const uint8_t *units) {
    if constexpr (K < 5) return load_unit(units + K * kUnit);
    constexpr int select = 0xca;  // where the mask is set the first, else the second
    const __m512i low3 = _mm512_set1_epi8(7), top = _mm512_set1_epi8(-128);
    const __m512i z1 = load_unit(units + kUnit), z3 = load_unit(units + 3 * kUnit);
    if constexpr (K == 5) {
        const __m512i z0 = load_unit(units);
        return _mm512_ternarylogic_epi64(low3, _mm512_srli_epi16(z0, 5), _mm512_srli_epi16(z1, 2),
                                         select);
    } else if constexpr (K == 6) {
        const __m512i z2 = load_unit(units + 2 * kUnit);
        return _mm512_ternarylogic_epi64(low3, _mm512_srli_epi16(z2, 5), _mm512_srli_epi16(z3, 2),
                                         select);
    } else {
        const __m512i z4 = load_unit(units + 4 * kUnit);
        const __m512i both = _mm512_ternarylogic_epi64(top, z1, _mm512_srli_epi16(z3, 1), select);
        return _mm512_ternarylogic_epi64(low3, _mm512_srli_epi16(z4, 5), _mm512_srli_epi16(both, 3),
                                         select);
    }
}

inline __m512i lookup_code(const uint8_t *table, __m512i code) {
    return _mm512_permutexvar_epi8(code, _mm512_load_si512(table));
}

#if defined(_MSC_VER)
#define TRITLLM_INLINE __forceinline
#else
#define TRITLLM_INLINE inline __attribute__((always_inline))
#endif

// Calls f(std::integral_constant<int, 0>) .. f(<N - 1>).
template <int... I, class F>
TRITLLM_INLINE void repeat(std::integer_sequence<int, I...>, F &&f) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
TRITLLM_INLINE void repeat(F &&f) {
    repeat(std::make_integer_sequence<int, N>{}, std::forward<F>(f));
}

// The codes of a block. Where steps share a code the compiler extracts it once.
template <int D>
class BlockCodes {
 public:
    explicit BlockCodes(const uint8_t *__restrict codes) : codes_(codes) {
        // The top trits are read first, so that memory is read in order.
        if constexpr (D == 4)
            repeat<8>([&](auto k) {
                __m512i code = code_of_eight<k.value>(codes);
#if defined(__GNUC__)
                __asm__("" : "+v"(code));  // not later, where it is used
#endif
                top_[k.value] = code;
            });
    }

    // Step S (0..23): 16 rows x 4 columns, level + L in each byte.
    template <int S>
    __m512i unit() const {
        constexpr int k = S / 3, j = S % 3;
        if constexpr (D == 1) {
            return lookup_code(kCodeTables.trit[j], code_of_eight<k>(codes_));
        } else if constexpr (D == 2) {
            constexpr int a = 2 * k % 8;
            const uint8_t *half = codes_ + k / 4 * 5 * kUnit;
            if constexpr (j == 0) return lookup_code(kCodeTables.rest, code_of_eight<a>(half));
            if constexpr (j == 1) return lookup_code(kCodeTables.rest, code_of_eight<a + 1>(half));
            return _mm512_add_epi8(lookup_code(kCodeTables.thirds, code_of_eight<a>(half)),
                                   lookup_code(kCodeTables.ninth, code_of_eight<a + 1>(half)));
        } else {
            constexpr int chunk = S / 8 + D - 3;
            const __m512i code = code_of_eight<S % 8>(codes_ + chunk * 5 * kUnit);
            const __m512i low = _mm512_and_si512(code, _mm512_set1_epi8(31));
            if constexpr (D == 3) return low;
            return _mm512_add_epi8(low, lookup_code(kCodeTables.top[j], top_[k]));
        }
    }

 private:
    const uint8_t *codes_;
    __m512i top_[D == 4 ? 8 : 1];
};

// The steps (scales) of 16 rows for group G of a block: vpermi2ps looks at the low five bits alone.
struct StepRegisters {
    __m512 low, high;
    explicit StepRegisters(const float *steps)
        : low(_mm512_loadu_ps(steps)), high(_mm512_loadu_ps(steps + 16)) {}
    template <int G>
    __m512 of_group(__m512i index) const {
        return _mm512_permutex2var_ps(low, _mm512_srli_epi32(index, 5 * G), high);
    }
};

}  // namespace
