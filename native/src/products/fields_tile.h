// Where the codes of a tile lie on the layout kFields, and how vectors of them are unpacked. A vector
// V holds V::kRows rows: bytes as in a unit, or one 32-bit lane a row. Of a group, four vectors hold
// the codes of its 16 columns, four columns each; a code is level + L.
//
// V::trits<P> unpacks four vectors of trits, times 3**P, from one of a plane; V::codes<D, H> the four
// vectors of a group from the units of planes that lie together, of the H-th of the two groups that
// share them. V::Steps unpacks scale indices: the steps of two groups at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fields.h"
#include "product_kernels.h"

namespace {

constexpr int kFieldsPrefetch = 1024;  // bytes ahead in each stream

// Adds trits times 3**P and of the planes below.
template <class V, int P>
inline void add_trits(const uint8_t *const *unit, int64_t at, typename V::Bytes *w) {
    typename V::Bytes lower[4];
    V::template trits<P>(V::load(*unit + at), lower);
    for (int i = 0; i < 4; i++) w[i] = V::add(w[i], lower[i]);
    if constexpr (P > 0) add_trits<V, P - 1>(unit + 1, at, w);
}

// A tile whose planes are D streams.
template <class V, int D>
struct ApartTile : TileStreams<kFields, D> {
    static constexpr int kDepth = D, kShared = 1;
    using TileStreams<kFields, D>::TileStreams;

    void prefetch(int g) const {
        for (int i = 0; i < D; i++) V::prefetch(this->plane[i] + kFieldsPrefetch + g * kUnit);
    }
    // The codes of group g of the block, the H-th of those that share units, of the rows whose bytes
    // begin at `at`.
    template <int H>
    void unpack(int g, int64_t at, typename V::Bytes *w) const {
        V::template trits<D - 1>(V::load(this->plane[0] + g * kUnit + at), w);
        if constexpr (D > 1) add_trits<V, D - 2>(this->plane + 1, g * kUnit + at, w);
    }
};

// A tile whose D planes are together, in three streams.
template <class V, int D>
struct TogetherTile : TogetherStreams<D> {
    static constexpr int kDepth = D, kShared = kTogetherSteps / kGroupSteps;
    using TogetherStreams<D>::TogetherStreams;

    void prefetch(int g) const {
        if (g % kShared) return;
        for (int k = 0; k < together_units(D); k++)
            V::prefetch(this->units[g / kShared] + kFieldsPrefetch + k * kUnit);
    }
    template <int H>
    void unpack(int g, int64_t at, typename V::Bytes *w) const {
        V::template codes<D, H>(this->units[g / kShared] + at, w);
    }
};

// Calls take(g, H) for the groups of a block, with H, which `unpack` asks for, as a constant.
template <class Tile, class Take>
inline void each_group(Take take) {
    for (int g = 0; g < kBlockGroups; g += Tile::kShared) {
        take(g, std::integral_constant<int, 0>());
        if constexpr (Tile::kShared > 1) take(g + 1, std::integral_constant<int, 1>());
    }
}

// 32 steps by tables of their bytes: entry i of table b is byte b of step i.
struct StepBytes {
    alignas(16) uint8_t table[4][32];

    explicit StepBytes(const float *steps) {
        for (int i = 0; i < 32; i++)
            for (int b = 0; b < 4; b++) table[b][i] = uint8_t(bits_of(steps[i]) >> 8 * b);
    }
};

// The steps of a block's six groups.
template <class V>
inline void unpack_steps(const uint8_t *index, const typename V::Steps &steps,
                         float (*step)[kTileRows]) {
    constexpr int kParts = kTileRows / V::kRows;
    for (int pair = 0; pair < kBlockGroups / 2; pair++) {
        typename V::Floats found[2][kParts];
        steps.of_groups(index, pair, found);
        for (int second = 0; second < 2; second++)
            for (int part = 0; part < kParts; part++)
                V::store(step[2 * pair + second] + part * V::kRows, found[second][part]);
    }
}

template <class V, class Tile>
void unpack_tile(const Product &p, const typename V::Steps &steps, int64_t tile, int64_t block,
                 int64_t count, uint8_t (*code)[kUnit], float (*step)[kTileRows]) {
    constexpr int kParts = kTileRows / V::kRows;
    Tile at(p, tile);
    at.advance(block);
    for (int64_t n = 0; n < count; n++, at.advance(1), step += kBlockGroups) {
        unpack_steps<V>(at.index, steps, step);
        each_group<Tile>([&](int g, auto half) {
            for (int part = 0; part < kParts; part++) {
                typename V::Bytes w[4];
                at.template unpack<half>(g, part * 4 * V::kRows, w);
                for (int i = 0; i < 4; i++)
                    V::store(code[g * kGroupSteps + i] + part * 4 * V::kRows, w[i]);
            }
        });
        code += kBlockSteps;
    }
}

// The codes and steps of `count` blocks of a tile, however they lie: of which all else than few batch
// rows is computed.
template <class V, int D>
void unpack_blocks(const Product &p, const typename V::Steps &steps, int64_t tile, int64_t block,
                   int64_t count, uint8_t (*code)[kUnit], float (*step)[kTileRows]) {
    if constexpr (D > 1)
        if (p.planes_together)
            return unpack_tile<V, TogetherTile<V, D>>(p, steps, tile, block, count, code, step);
    unpack_tile<V, ApartTile<V, D>>(p, steps, tile, block, count, code, step);
}

}  // namespace
