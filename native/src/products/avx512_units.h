// AVX-512: the codes of the layout kFives (fives.h) -> units of sixteen rows x four bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "fields.h"
#include "fives.h"
#include "product_kernels.h"

namespace {

// For each of the 32 values of a code (twice, as bit 5 of an index is not the code's): its three
// trits times a power of three.
struct CodeTables {
    alignas(64) uint8_t trit[4][3][64] = {};

    constexpr CodeTables() {
        for (int p = 0, power = 1; p < 4; p++, power *= 3)
            for (int i = 0; i < 64; i++)
                for (int j = 0, rest = i % 32; j < 3; j++, rest /= 3)
                    trit[p][j][i] = uint8_t(rest % 3 * power);
    }
};

constexpr CodeTables kCodeTables;

inline __m512i load_unit(const uint8_t *p) { return _mm512_loadu_si512(p); }

// Code k of eight as an index of a table: bits 0-4, above them anything. The shifts are of 16-bit
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

#if defined(TRITLLM_VBMI)
inline __m512i lookup_code(const uint8_t *table, __m512i code) {
    return _mm512_permutexvar_epi8(code, _mm512_load_si512(table));
}
#else
inline __m512i sixteen_entries(const uint8_t *table) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(table)));
}
// vpshufb looks at bits 0-3, and at bit 7, where it would give zero.
inline __m512i lookup_code(const uint8_t *table, __m512i code) {
    const __m512i index = _mm512_and_si512(code, _mm512_set1_epi8(31));
    const __mmask64 upper = _mm512_test_epi8_mask(code, _mm512_set1_epi8(16));
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(sixteen_entries(table), index), upper,
                                    sixteen_entries(table + 16), index);
}
#endif

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

template <int D>
struct FivesTile : TileStreams<kFives, D> {
    static constexpr int kDepth = D;
    using TileStreams<kFives, D>::TileStreams;

    // The lines of a block, those of so many blocks later.
    static constexpr int kLines = D * plane_units(kFives);
    const uint8_t *line(int i, int64_t blocks) const {
        return this->plane[i / plane_units(kFives)] + plane_bytes(kFives, blocks, 1) +
               i % plane_units(kFives) * kUnit;
    }

    // Step S (0..23) of a block: 16 rows x 4 columns, level + L in each byte. Steps that share a
    // code come one after the other, so that the compiler extracts it once.
    template <int S>
    __m512i unit() const {
        __m512i sum = trits<S, 0>();
        repeat<D - 1>([&](auto i) {
            const __m512i lower = trits<S, i.value + 1>();
            sum = _mm512_add_epi8(sum, lower);
        });
        return sum;
    }

 private:
    template <int S, int I>
    __m512i trits() const {
        return lookup_code(kCodeTables.trit[D - 1 - I][S % 3],
                           code_of_eight<S / 3>(this->plane[I]));
    }
};

// Without byte permutations three or four planes take less to unpack as codes of the layout kFields
// (fields.h), which have as many bits, or a third of one more.
#if defined(TRITLLM_VBMI)
constexpr int kTogetherFrom = 0;
#else
constexpr int kTogetherFrom = 3;
#endif
template <int D>
constexpr bool kMayBeTogether = kTogetherFrom && D >= kTogetherFrom;

struct FivesOrTogether : Fives {
    static constexpr bool kPlanesTogether = kTogetherFrom != 0;

    static void pack_together(const uint8_t (*const *plane)[kUnit], int first, int depth,
                              uint8_t *out) {
        Fields::pack_together(plane, first, depth, out);
    }
};

template <int D>
struct CodesTile : TogetherStreams<D> {
    static_assert(D == 3 || D == 4);
    static constexpr int kDepth = D;
    using TogetherStreams<D>::TogetherStreams;

    static constexpr int kLines = kTogetherStreams * TogetherStreams<D>::kUnits;
    const uint8_t *line(int i, int64_t blocks) const {
        return this->units[i / this->kUnits] + together_bytes(D, blocks, 1) +
               i % this->kUnits * kUnit;
    }

    template <int S>
    __m512i unit() const {
        constexpr int K = S % kTogetherSteps;
        const uint8_t *shared = this->units[S / kTogetherSteps];
        const auto load = [&](int k) { return load_unit(shared + k * kUnit); };
        const auto of = [](__m512i x, int bits) {
            return _mm512_and_si512(x, _mm512_set1_epi8(char(bits)));
        };
        const auto select = [](int bits, __m512i where_set, __m512i elsewhere) {
            return _mm512_ternarylogic_epi64(_mm512_set1_epi8(char(bits)), where_set, elsewhere,
                                             0xca);
        };
        if constexpr (K < kPlain) {
            return of(load(K), D == 3 ? 31 : 127);
        } else if constexpr (D == 4) {
            // The average of bytes shifts their sum, which is even here, by one.
            __m512i w = _mm512_srli_epi16(of(load(0), 128), 1);
            repeat<6>([&](auto k) { w = _mm512_avg_epu8(w, of(load(k.value + 1), 128)); });
            return w;
        } else if constexpr (K < 7) {  // 5: units 0 and 1, 6: units 2 and 3
            const __m512i high = _mm512_srli_epi16(load(2 * (K - 5)), 3);
            const __m512i low = _mm512_srli_epi16(load(2 * (K - 5) + 1), 6);
            return of(select(0x1c, high, low), 31);
        } else {
            const __m512i low =
                select(2, _mm512_srli_epi16(load(1), 4), _mm512_srli_epi16(load(3), 5));
            return of(select(0x1c, _mm512_srli_epi16(load(4), 3), low), 31);
        }
    }

 private:
    static constexpr int kPlain = D == 3 ? 5 : 7;
};

// Calls take(kind), whose kind's Tile is what the tiles are in memory.
template <class T>
struct TileKind {
    using Tile = T;
};
template <int D, class Take>
TRITLLM_INLINE void with_tile(const Product &p, Take take) {
    if constexpr (kMayBeTogether<D>)
        if (p.planes_together) return take(TileKind<CodesTile<D>>());
    take(TileKind<FivesTile<D>>());
}

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
