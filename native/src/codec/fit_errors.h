// What v3's fit looks at: sampled groups, and their least errors among the entries of a codebook.
#pragma once

#include "codec_kernels.h"
#include "group_error.h"
#include "tile.h"

namespace {

// Groups in the sample's order; the last tile is filled up with its last group.
template <class V, class T>
void trit_gather(const tritllm_matrix &m, const tritllm_sample_set &sample, float *magnitudes) {
    const Loader<V, T> load(m);
    for (int64_t tile = 0; tile * TRITLLM_TILE < sample.count; tile++)
        for (int lane = 0; lane < TRITLLM_TILE; lane += V::W) {
            int64_t number[V::W];
            for (int i = 0; i < V::W; i++) {
                const int64_t place = tile * TRITLLM_TILE + lane + i;
                number[i] =
                    sample.group[sample.order[place < sample.count ? place : sample.count - 1]];
            }
            typename V::F a[kGroup], largest = V::set(0);
            load(number, a);
            float *out = magnitudes + tile * kTileFloats + lane;
            for (int i = 0; i < kGroup; i++) {
                a[i] = V::abs(a[i]);
                largest = V::max(largest, a[i]);
                V::store(out + i * TRITLLM_TILE, a[i]);
            }
            V::store(out + kGroup * TRITLLM_TILE, largest);
        }
}

// A tile of groups at the rows of the table.
template <class V, int L>
class TileErrors {
 public:
    using F = typename V::F;
    static constexpr int kVectors = TRITLLM_TILE / V::W;

    TileErrors(FitTable &table, int64_t tile)
        : table_(table), tile_(tile), a_(table.magnitudes + tile * kTileFloats) {
        for (int v = 0; v < kVectors; v++) best_[v] = V::set(INFINITY);
    }

    // The error at a row takes part in the minimum. Beyond what clips, it is summed up only until no
    // lane can be less than what there is: a rounded sum of squares is never less than a part of it.
    template <Clip kClip>
    void take(int row) {
        float *const cell = table_.error + int64_t(row) * TRITLLM_SAMPLE + tile_ * TRITLLM_TILE;
        uint8_t &stored = table_.summed[row][tile_];
        F error[kVectors];
        for (int v = 0; v < kVectors; v++) error[v] = stored ? V::load(cell + v * V::W) : V::set(0);
        int n = stored;
        for (; n < kGroup && may_be_less(error); n += kPart) {
            const F step = V::set(table_.step[row]), inverse = V::set(table_.inverse[row]);
            for (int i = n; i < n + kPart; i++)
                for (int v = 0; v < kVectors; v++) {
                    const F a = V::load(a_ + i * TRITLLM_TILE + v * V::W);
                    const F e = deviation<V, L, kClip>(a, step, inverse);
                    error[v] = V::add(error[v], V::mul(e, e));
                }
        }
        if (n != stored)
            for (int v = 0; v < kVectors; v++) V::store(cell + v * V::W, error[v]);
        stored = uint8_t(n);
        for (int v = 0; v < kVectors; v++) best_[v] = V::min(best_[v], error[v]);
    }

    // Whether clipping alone leaves some lane a chance at a row; if not, then at none below.
    bool clips_little(int row) const {
        const F reach = V::set(table_.reach[row]);
        bool any = false;
        for (int v = 0; v < kVectors; v++) {
            const F largest = V::load(a_ + kGroup * TRITLLM_TILE + v * V::W);
            any |= V::any(V::le(clipped<V>(largest, reach), best_[v]));
        }
        return any;
    }

    void store(float *least) const {
        for (int v = 0; v < kVectors; v++) V::store(least + v * V::W, best_[v]);
    }

 private:
    static constexpr int kPart = 4;

    bool may_be_less(const F *error) const {
        bool any = false;
        for (int v = 0; v < kVectors; v++) any |= V::any(V::lt(error[v], best_[v]));
        return any;
    }

    FitTable &table_;
    const int64_t tile_;
    const float *const a_;
    F best_[kVectors];
};

template <class V, int L>
void least_errors(FitTable &table, const int32_t *rows, float *least) {
    int begin = 0;  // the first entry that clips nothing of a tile; tiles ascend, nearly
    for (int64_t tile = 0; tile < table.tiles; tile++) {
        const int32_t first = table.first[tile];
        while (begin > 0 && rows[begin - 1] >= first) begin--;
        while (begin < TRITLLM_ENTRIES - 1 && rows[begin] < first) begin++;
        TileErrors<V, L> errors(table, tile);
        errors.template take<kClips>(rows[begin]);
        for (int j = begin + 1; j < TRITLLM_ENTRIES; j++) errors.template take<kFits>(rows[j]);
        for (int j = begin - 1; j >= 0 && errors.clips_little(rows[j]); j--)
            errors.template take<kClips>(rows[j]);
        errors.store(least + tile * TRITLLM_TILE);
    }
}

// Of every group the least error at `rows`, 27 of them, ascending; least: in the sample's order.
template <class V>
void trit_least_errors(FitTable &table, const int32_t *rows, float *least) {
    switch (table.depth) {
        case 1: return least_errors<V, kMaxLevel[1]>(table, rows, least);
        case 2: return least_errors<V, kMaxLevel[2]>(table, rows, least);
        case 3: return least_errors<V, kMaxLevel[3]>(table, rows, least);
        default: return least_errors<V, kMaxLevel[4]>(table, rows, least);
    }
}

}  // namespace
