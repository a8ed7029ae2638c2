// y = x W^T with AVX-512 VNNI. Lanes are rows of the weights: vpdpbusd multiplies four
// bytes of sixteen rows by the same four activations, broadcast from memory, so that a group of 16
// columns is four of them, and its scales are one vector.
//
// vpdpbusd takes unsigned bytes times signed ones. Weights are the unsigned side, as codes level +
// L; the sum starts at -L * (sum of the group's activations), which the activations bring along, so
// it ends as the dot product of the levels.
#pragma once

#include "avx512_elements.h"
#include "avx512_panel.h"
#include "avx512_rows.h"
#include "avx512_superblocks.h"
#include "cpu/lanes_avx512.h"
#include "decode_prepared.h"

namespace {

// --- Decode: M batch rows (few), weights go from memory to registers --------------------------

template <class Tile, int M>
void decode_tile(const Product &p, const Activations &a, int64_t tile) {
    const StepRegisters table(p.steps);
    Tile at(p, tile);
    const int8_t *q[M];
    const int32_t *offset[M];
    const float *scale[M];
    __m512 sum[M];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, m);
        offset[m] = offset_row(a, m, Tile::kDepth);
        scale[m] = scale_row(a, m);
        sum[m] = _mm512_setzero_ps();
    }
    for (int64_t n = 0; n < p.blocks; n++, at.advance(1)) {
        const __m512i index = load_unit(at.index);
        repeat<kBlockGroups>([&](auto group) {
            constexpr int g = group.value;
            constexpr int from = g * Tile::kLines / kBlockGroups;
            for (int i = from; i < (g + 1) * Tile::kLines / kBlockGroups; i++)
                _mm_prefetch((const char *)at.line(i, kPrefetch), _MM_HINT_T1);
            if constexpr (g == 0)
                _mm_prefetch((const char *)at.index + index_bytes(false, 1, kPrefetch),
                             _MM_HINT_T1);
            __m512i dot[M];
            for (int m = 0; m < M; m++) dot[m] = _mm512_set1_epi32(offset[m][g]);
            repeat<kGroupSteps>([&](auto step) {
                constexpr int s = g * kGroupSteps + step.value;
                const __m512i w = at.template unit<s>();
                for (int m = 0; m < M; m++)
                    dot[m] = _mm512_dpbusd_epi32(dot[m], w, broadcast(q[m] + 4 * s));
            });
            const __m512 step = table.of_group<g>(index);
            for (int m = 0; m < M; m++)
                sum[m] = _mm512_fmadd_ps(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(dot[m]), _mm512_set1_ps(scale[m][g])), step,
                    sum[m]);
        });
        for (int m = 0; m < M; m++) {
            q[m] += kBlockColumns;
            offset[m] += kBlockGroups;
            scale[m] += kBlockGroups;
        }
    }
    for (int m = 0; m < M; m++) finish16(p, m, tile * kTileRows, sum[m]);
}

template <class Tile, int M>
void decode(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) decode_tile<Tile, M>(p, a, tile);
}

template <class Tile>
void decode_few(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (a.batch) {
        case 0: return;
        case 1: return decode<Tile, 1>(p, a, begin, end);
        case 2: return decode<Tile, 2>(p, a, begin, end);
        case 3: return decode<Tile, 3>(p, a, begin, end);
        default: return decode<Tile, 4>(p, a, begin, end);
    }
}

template <int D>
void compute_depth(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    if (a.batch > 4) return prefill<D, Vnni>(p, a, begin, end);
    with_tile<D>(p,
                 [&](auto kind) { decode_few<typename decltype(kind)::Tile>(p, a, begin, end); });
}

void compute(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (p.depth) {
        case 1: return compute_depth<1>(p, a, begin, end);
        case 2: return compute_depth<2>(p, a, begin, end);
        case 3: return compute_depth<3>(p, a, begin, end);
        default: return compute_depth<4>(p, a, begin, end);
    }
}

// --- Exact: float32 weights of a block, then fused multiply-adds ------------------------------

template <class Tile>
void exact_tile(const Product &p, const Activations &a, int64_t tile) {
    struct {
        alignas(64) float weight[kBlockColumns][16];
        alignas(64) float sum[kPanelBatch][16];
    } part;
    const StepRegisters table(p.steps);
    const __m512i middle = _mm512_set1_epi32(kMaxLevel[Tile::kDepth]),
                  byte = _mm512_set1_epi32(255);
    for (int64_t first_row = 0; first_row < a.batch; first_row += kPanelBatch) {
        const int64_t rows = std::min<int64_t>(kPanelBatch, a.batch - first_row);
        std::memset(part.sum, 0, size_t(rows) * sizeof part.sum[0]);
        Tile at(p, tile);
        for (int64_t n = 0; n < p.blocks; n++, at.advance(1)) {
            const __m512i index = load_unit(at.index);
            repeat<kBlockSteps>([&](auto s) {
                const __m512 step = table.of_group<s.value / kGroupSteps>(index);
                const __m512i unit = at.template unit<s.value>();
                repeat<4>([&](auto c) {
                    const __m512i code =
                        _mm512_and_si512(_mm512_srli_epi32(unit, 8 * c.value), byte);
                    const __m512 level = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, middle));
                    _mm512_store_ps(part.weight[4 * s.value + c.value], _mm512_mul_ps(level, step));
                });
            });
            for (int64_t b = 0; b < rows; b++) {
                const float *x = exact_row(a, first_row + b) + n * kBlockColumns;
                __m512 sum = _mm512_load_ps(part.sum[b]);
                for (int k = 0; k < kBlockColumns; k++)
                    sum =
                        _mm512_fmadd_ps(_mm512_set1_ps(x[k]), _mm512_load_ps(part.weight[k]), sum);
                _mm512_store_ps(part.sum[b], sum);
            }
        }
        for (int64_t b = 0; b < rows; b++)
            finish16(p, first_row + b, tile * kTileRows, _mm512_load_ps(part.sum[b]));
    }
}

template <int D>
void exact_depth(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    with_tile<D>(p, [&](auto kind) {
        for (int64_t tile = begin; tile < end; tile++)
            exact_tile<typename decltype(kind)::Tile>(p, a, tile);
    });
}

void compute_exact(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (p.depth) {
        case 1: return exact_depth<1>(p, a, begin, end);
        case 2: return exact_depth<2>(p, a, begin, end);
        case 3: return exact_depth<3>(p, a, begin, end);
        default: return exact_depth<4>(p, a, begin, end);
    }
}

// --- Superblocks ------------------------------------------------------------------------------

struct Avx512Superblocks : Avx512Engine {
    static void multiply(SuperPanel &panel, int tiles, const Activations &a, int64_t first,
                         int64_t rows, int64_t s, int64_t count) {
        multiply_super_panel<Avx512Vnni>(panel, tiles, a, first, rows, s, count);
    }
};

// --- Preparation ------------------------------------------------------------------------------

struct Avx512Reader {
    static void prefetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return Avx512::add_planes(plane, planes, digits);
    }
    // Sixteen rows of sixteen words of 32 bits at a time.
    static void units(const SpanRows &rows, int plane, Span *span) {
        for (int s = 0; s < kSpanUnits; s += 16) {
            __m512i word[16];
            for (int r = 0; r < 16; r++) word[r] = _mm512_load_si512(&rows.trit[plane][r][4 * s]);
            Avx512::transpose(word);
            for (int i = 0; i < 16; i++) _mm512_store_si512(span->unit[plane][s + i], word[i]);
        }
    }
};

constexpr ProductKernels avx512_products = {
    kFives,
    prepare_tiles<FivesOrTogether, Avx512Reader>,
    avx512_rows,
    compute,
    compute_exact,
    superblocks_compute<Avx512Superblocks>,
    compute_rows_avx512,
    decode_prepared<Avx512Engine, Avx512>,
    kSuperblockRows,
    kTogetherFrom,
};

}  // namespace
