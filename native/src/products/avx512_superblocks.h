// AVX-512: superblocks (superblocks.h), unpacked for and multiplied with vpdpbusd; AMX takes what is
// here and multiplies by tiles.
#pragma once

#include "avx512_panel.h"

namespace {

// A panel is rounded once for so many rows that its cost does not count.
constexpr int64_t kSuperblockRows = 48;

// Weights are unsigned, w + 128; sums start at -128 * (sum of the activations).
struct Avx512Vnni {
    static constexpr int kRows = 16, kBias = 128, kSuperTiles = 2, kSuperRows = 12;
    using Bytes = __m512i;
    using Ints = __m512i;
    using Floats = __m512;

    static void prefetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
    static Bytes load(const uint8_t *p) { return _mm512_load_si512(p); }
    static Bytes four(const int8_t *x) { return broadcast(x); }
    static Ints set(int32_t x) { return _mm512_set1_epi32(x); }
    static Ints dot(Ints sum, Bytes w, Bytes x) { return add_products(sum, w, x); }
    static Floats set(float x) { return _mm512_set1_ps(x); }
    static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
    static Floats mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
    static Floats fma(Floats x, Floats y, Floats sum) { return _mm512_fmadd_ps(x, y, sum); }
    static Floats load_floats(const float *p) { return _mm512_load_ps(p); }
    static void store(float *p, Floats x) { _mm512_store_ps(p, x); }
};

// What engines of the layout kFives share.
struct Avx512Engine {
    static constexpr int kBias = Avx512Vnni::kBias;
    using Steps = StepRegisters;
    template <int D>
    using Panel = SuperPanel;

    template <int D>
    static void unpack(const Product &p, const Steps &steps, int64_t tile, int64_t block, int count,
                       uint8_t (*code)[kUnit], float (*step)[kTileRows]) {
        unpack_blocks<D>(steps, p, tile, block, count, code, step);
    }
    // Bytes 0 and 2 of a row's four, then 1 and 3, as words; vpmulhrsw of 128 times a level by m is
    // (level * m + 128) >> 8.
    template <int D>
    static void round(uint8_t (*code)[kUnit], const float *step, const float *factor) {
        const __m512 shift = _mm512_set1_ps(12582912.0f);  // as in round_to_int
        const __m512 wide = _mm512_mul_ps(_mm512_load_ps(step), _mm512_load_ps(factor));
        const __m512i m = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(wide, shift)),
                                           _mm512_castps_si512(shift));
        const __m512i low = _mm512_set1_epi32(0xffff);
        const __m512i twice =  // m | m << 16
            _mm512_ternarylogic_epi32(low, m, _mm512_slli_epi32(m, 16), 0xca);
        const __m512i middle = _mm512_set1_epi16(128 * kMaxLevel[D]);
        const __m512i place = _mm512_set1_epi16(0x7f80), even = _mm512_set1_epi16(255);
        const auto rounded = [&](__m512i codes) {
            return _mm512_mulhrs_epi16(_mm512_sub_epi16(_mm512_and_si512(codes, place), middle),
                                       twice);
        };
        for (int i = 0; i < kGroupSteps; i++) {
            const __m512i x = _mm512_load_si512(code[i]);
            const __m512i a = rounded(_mm512_slli_epi16(x, 7));
            const __m512i b = rounded(_mm512_srli_epi16(x, 1));
            const __m512i w = _mm512_ternarylogic_epi32(even, a, _mm512_slli_epi16(b, 8), 0xca);
            _mm512_store_si512(code[i], _mm512_add_epi8(w, _mm512_set1_epi8(char(kBias))));
        }
    }
    static void finish(const Product &p, int64_t b, int64_t tile, const float *sum) {
        finish16(p, b, tile * kTileRows, _mm512_load_ps(sum));
    }
};

}  // namespace
