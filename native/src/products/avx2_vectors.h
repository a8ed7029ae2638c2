// Eight rows a vector with AVX2, for fields_product.h.
#pragma once

#include <immintrin.h>

#include "avx2_elements.h"
#include "fields_kernels.h"

namespace {

struct Avx2Products {
    static constexpr int kRows = 8;
    using Bytes = __m256i;
    using Ints = __m256i;
    using Floats = __m256;
    using Sums = __m256i;
    using Lanes = Avx2;
    using Reader = Avx2Reader;
    static constexpr RowKernels rows = avx2_rows;

    static void prefetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
    static Bytes load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static void store(uint8_t *p, Bytes x) { _mm256_storeu_si256((__m256i *)p, x); }
    static Bytes add(Bytes x, Bytes y) { return _mm256_add_epi8(x, y); }

    // The four trits of a byte times 3**P: by shifts, or two at a time from tables.
    template <int P>
    static void trits(Bytes x, Bytes *w) {
        if constexpr (P == 0) {
            const Bytes two_bits = _mm256_set1_epi8(3);
            w[0] = _mm256_and_si256(x, two_bits);
            w[1] = _mm256_and_si256(_mm256_srli_epi16(x, 2), two_bits);
            w[2] = _mm256_and_si256(_mm256_srli_epi16(x, 4), two_bits);
            w[3] = _mm256_and_si256(_mm256_srli_epi16(x, 6), two_bits);
        } else {
            constexpr char t = P == 1 ? 3 : P == 2 ? 9 : 27;
            const Bytes first = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, t, 2 * t, 3 * t, 0, t, 2 * t, 3 * t, 0, t, 2 * t, 3 * t, 0, t, 2 * t, 3 * t));
            const Bytes second = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 0, 0, 0, t, t, t, t, 2 * t, 2 * t, 2 * t, 2 * t, 3 * t, 3 * t, 3 * t, 3 * t));
            const Bytes nibble = _mm256_set1_epi8(15);
            const Bytes low = _mm256_and_si256(x, nibble);
            const Bytes high = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
            w[0] = _mm256_shuffle_epi8(first, low);
            w[1] = _mm256_shuffle_epi8(second, low);
            w[2] = _mm256_shuffle_epi8(first, high);
            w[3] = _mm256_shuffle_epi8(second, high);
        }
    }

    // Shifts are of 16 bits, so a mask takes off what came from the neighbour.
    template <int D, int H>
    static void codes(const uint8_t *unit, Bytes *w) {
        const auto low = [&](int k, int bits) {
            return _mm256_and_si256(load(unit + k * kUnit), _mm256_set1_epi8(char(bits)));
        };
        const auto high = [&](int k, int shift, int bits) {
            return _mm256_and_si256(_mm256_srli_epi16(load(unit + k * kUnit), shift),
                                    _mm256_set1_epi8(char(bits)));
        };
        if constexpr (D == 2) {
            for (int i = 0; i < 4; i++) w[i] = H ? high(i, 4, 15) : low(i, 15);
        } else if constexpr (H == 0) {
            for (int i = 0; i < 4; i++) w[i] = low(i, D == 3 ? 31 : 127);
        } else if constexpr (D == 3) {
            w[0] = low(4, 31);
            w[1] = _mm256_or_si256(high(0, 3, 0x1c), high(1, 6, 3));
            w[2] = _mm256_or_si256(high(2, 3, 0x1c), high(3, 6, 3));
            w[3] = _mm256_or_si256(high(4, 3, 0x1c), _mm256_or_si256(high(1, 4, 2), high(3, 5, 1)));
        } else {
            for (int i = 0; i < 3; i++) w[i] = low(4 + i, 127);
            // The average of bytes shifts their sum, which is even here, by one.
            w[3] = _mm256_srli_epi16(low(0, 128), 1);
            for (int k = 1; k < 7; k++) w[3] = _mm256_avg_epu8(w[3], low(k, 128));
        }
    }

    static Bytes four(const int8_t *x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        return _mm256_set1_epi32(word);
    }
    // vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits with saturation;
    // codes go up to 80 and activations to 127, so 2 * 80 * 127 = 20,320 never saturates. Up to
    // depth 3 codes go up to 26, and all 16 columns of a row, in its two sums of 16 bits, up to
    // 8 * 26 * 127 = 26,416; at depth 4 pairs are added up in 32 bits at once.
    template <int D>
    static Sums first(Bytes w, Bytes x) {
        const __m256i pairs = _mm256_maddubs_epi16(w, x);
        return D < 4 ? pairs : in_32_bits(pairs);
    }
    template <int D>
    static Sums more(Sums sum, Bytes w, Bytes x) {
        const __m256i next = first<D>(w, x);
        return now(D < 4 ? _mm256_add_epi16(sum, next) : _mm256_add_epi32(sum, next));
    }
    // In this order: a tree of sums takes more registers.
    static __m256i now(__m256i added) {
#if defined(__GNUC__)
        __asm__("" : "+x"(added));
#endif
        return added;
    }
    template <int D>
    static Ints total(Sums sum, int32_t offset) {
        return _mm256_add_epi32(D < 4 ? in_32_bits(sum) : sum, _mm256_set1_epi32(offset));
    }

    // Of superblocks (level_superblocks.h): activations are unsigned, q + 128, as vpmaddubsw wants its
    // left operand. Up to depth 3 the 16 columns of a row, in its two sums of 16 bits, are up to
    // 8 * 13 * 255 = 26,520; at depth 4 pairs, up to 2 * 40 * 255 = 20,400, are scaled at once.
    static constexpr bool kLevelSuperblocks = true;
    static constexpr int kSuperRows = 3, kSuperBias = 128;
    template <int D>
    static constexpr int kSuperRun = D < 4 ? 4 : 1;
    static Bytes levels(Bytes codes, int middle) {
        return _mm256_sub_epi8(codes, _mm256_set1_epi8(char(middle)));
    }
    static Ints to_ints(Floats x) { return _mm256_cvtps_epi32(x); }
    static Ints multiplier(Ints m) {  // twice
        return _mm256_blend_epi16(m, _mm256_slli_epi32(m, 16), 0xaa);
    }
    static Ints times(Ints x, int by) { return _mm256_mullo_epi32(x, _mm256_set1_epi32(by)); }
    static Sums first_levels(Bytes w, Bytes x) { return _mm256_maddubs_epi16(x, w); }
    static Sums more_levels(Sums sum, Bytes w, Bytes x) {
        return now(_mm256_add_epi16(sum, _mm256_maddubs_epi16(x, w)));
    }
    static Ints scaled(Ints dot, Sums sum, Ints m) {
        return now(_mm256_add_epi32(dot, _mm256_madd_epi16(sum, m)));
    }
    static Ints set(int32_t x) { return _mm256_set1_epi32(x); }

    // Of rows with one scale.
    static Sums none() { return _mm256_setzero_si256(); }
    static Ints plus(Ints x, Ints y) { return _mm256_add_epi32(x, y); }
    static Ints load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static void store(int32_t *p, Ints x) { _mm256_storeu_si256((__m256i *)p, x); }

    static Ints byte(Bytes w, int c, int middle) {
        const __m256i shifted = _mm256_srl_epi32(w, _mm_cvtsi32_si128(8 * c));
        return _mm256_sub_epi32(_mm256_and_si256(shifted, _mm256_set1_epi32(255)),
                                _mm256_set1_epi32(middle));
    }
    static Floats set(float x) { return _mm256_set1_ps(x); }
    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
    static Floats mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
    static Floats fma(Floats x, Floats y, Floats sum) { return _mm256_fmadd_ps(x, y, sum); }
    static Floats load_floats(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }
    template <class T>
    static void store_tile(T *out, const float *y) {
        store8(out, load_floats(y));
        store8(out + 8, load_floats(y + 8));
    }

    // A gather of eight steps takes some 20 cycles on Zen 3, two groups of sixteen rows by tables
    // of bytes as many.
    class Steps {
     public:
        explicit Steps(const float *steps) : bytes_(steps) {}

        // Groups 2 * pair (in the lower halves of vectors) and the next (in the upper ones).
        void of_groups(const uint8_t *unit, int pair, Floats (*step)[2]) const {
            const __m256i nibbles = both(unit + 16 * pair), tops = both(unit + 48);
            const __m256i by_half = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
            const __m256i low =
                _mm256_and_si256(_mm256_srlv_epi32(nibbles, by_half), _mm256_set1_epi8(15));
            const __m256i to_sign = _mm256_sub_epi32(_mm256_setr_epi32(7, 7, 7, 7, 6, 6, 6, 6),
                                                     _mm256_set1_epi32(2 * pair));
            const __m256i top = _mm256_sllv_epi32(tops, to_sign);
            __m256i byte[4];
            for (int b = 0; b < 4; b++)
                byte[b] =
                    _mm256_blendv_epi8(_mm256_shuffle_epi8(both(bytes_.table[b]), low),
                                       _mm256_shuffle_epi8(both(bytes_.table[b] + 16), low), top);
            const __m256i a = _mm256_unpacklo_epi8(byte[0], byte[1]);  // rows 0..7
            const __m256i b = _mm256_unpacklo_epi8(byte[2], byte[3]);
            const __m256i c = _mm256_unpackhi_epi8(byte[0], byte[1]);  // rows 8..15
            const __m256i d = _mm256_unpackhi_epi8(byte[2], byte[3]);
            halves(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), step, 0);
            halves(_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d), step, 1);
        }

     private:
        static __m256i both(const uint8_t *p) {
            return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        }
        static void halves(__m256i x, __m256i y, Floats (*step)[2], int part) {
            step[0][part] = _mm256_castsi256_ps(_mm256_permute2x128_si256(x, y, 0x20));
            step[1][part] = _mm256_castsi256_ps(_mm256_permute2x128_si256(x, y, 0x31));
        }

        StepBytes bytes_;
    };

    static __m256i in_32_bits(__m256i pairs) {
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
};

}  // namespace
