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

    static Bytes load(const uint8_t *p) { return _mm512_load_si512(p); }
    static Bytes four(const int8_t *x) { return broadcast(x); }
    static Ints set(int32_t x) { return _mm512_set1_epi32(x); }
    static Ints dot(Ints sum, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
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
        FivesTile<D> at(p, tile);
        at.advance(block);
        for (int i = 0; i < count; i++, at.advance(1))
            unpack_block<D>(steps, at, code + i * kBlockSteps, step + i * kBlockGroups);
    }
    static void finish(const Product &p, int64_t b, int64_t tile, const float *sum) {
        finish16(p, b, tile * kTileRows, _mm512_load_ps(sum));
    }
};

}  // namespace
