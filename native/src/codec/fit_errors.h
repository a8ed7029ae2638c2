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

// The errors of a tile of groups at a step. Not inlined: it would take the registers of its caller.
template <class V, int L, Clip kClip>
TRIT_NOINLINE void sum_squares(const FitTable &table, int row, const float *magnitudes,
                               float *out) {
    constexpr int kVectors = TRITLLM_TILE / V::W;
    const Steps<V> steps{V::set(table.step[row]), V::set(table.inverse[row]),
                         V::set(table.half[row])};
    typename V::F error[kVectors];
    for (int v = 0; v < kVectors; v++) error[v] = V::set(0);
    for (int i = 0; i < kGroup; i++)
        for (int v = 0; v < kVectors; v++) {
            const typename V::F a = V::load(magnitudes + i * TRITLLM_TILE + v * V::W);
            const typename V::F e = deviation<V, L, kClip>(a, steps);
            error[v] = V::add(error[v], V::mul(e, e));
        }
    for (int v = 0; v < kVectors; v++) V::store(out + v * V::W, error[v]);
}

// A tile of groups at the rows of the table.
template <class V, int L>
class TileErrors {
 public:
    using F = typename V::F;
    static constexpr int kVectors = TRITLLM_TILE / V::W;

    TileErrors(FitTable &table, int64_t tile)
        : table_(table),
          a_(table.magnitudes + tile * kTileFloats),
          error_(table.error + tile * TRITLLM_GRID * TRITLLM_TILE),
          first_(table.first[tile]),
          low_(table.low[tile]) {}

    // Computes the errors at a row that no codebook had before.
    void add(int row) {
        if (row >= low_) sum(row);
    }

    // Of every group the least error at `rows`, of which `begin` is the first that clips nothing.
    void least(const int32_t *rows, int begin, float *out) {
        if (rows[begin] < low_) lower(rows[begin]);
        // Down to what was needed before; then as far as clipping alone leaves some lane a chance:
        // if it leaves none at a row, then none below.
        int from = begin;
        while (from > 0 && rows[from - 1] >= low_) from--;
        F best[kVectors];
        for (int v = 0; v < kVectors; v++) best[v] = V::load(cell(rows[from]) + v * V::W);
        for (int j = from + 1; j < TRITLLM_ENTRIES; j++) {
            for (int v = 0; v < kVectors; v++)
                best[v] = V::min(best[v], V::load(cell(rows[j]) + v * V::W));
        }
        for (int v = 0; v < kVectors; v++) V::store(out + v * V::W, best[v]);
        for (int j = from - 1; j >= 0 && clips_little(rows[j], out); j--) {
            lower(rows[j]);
            for (int v = 0; v < kVectors; v++) {
                const F error = V::load(cell(rows[j]) + v * V::W);
                V::store(out + v * V::W, V::min(V::load(out + v * V::W), error));
            }
        }
    }

 private:
    float *cell(int row) const { return error_ + row * TRITLLM_TILE; }

    // Computes the errors down to a row, at all that any codebook had.
    void lower(int row) {
        while (low_ > row)
            if (table_.used[--low_]) sum(low_);
    }

    void sum(int row) {
        if (row < first_)
            sum_squares<V, L, kClips>(table_, row, a_, cell(row));
        else
            sum_squares<V, L, kFits>(table_, row, a_, cell(row));
    }

    bool clips_little(int row, const float *least) const {
        const F reach = V::set(table_.reach[row]);
        bool any = false;
        for (int v = 0; v < kVectors; v++) {
            const F largest = V::load(a_ + kGroup * TRITLLM_TILE + v * V::W);
            any |= V::any(V::le(clipped<V>(largest, reach), V::load(least + v * V::W)));
        }
        return any;
    }

    FitTable &table_;
    const float *const a_;
    float *const error_;
    const int32_t first_;
    int32_t &low_;
};

template <class V, int L>
void least_errors(FitTable &table, const int32_t (*rows)[TRITLLM_ENTRIES], int n,
                  float (*least)[TRITLLM_SAMPLE]) {
    int32_t fresh[kBooks * TRITLLM_ENTRIES];
    int n_fresh = 0;
    for (int c = 0; c < n; c++)
        for (int j = 0; j < TRITLLM_ENTRIES; j++) {
            uint8_t &used = table.used[rows[c][j]];
            if (!used) fresh[n_fresh++] = rows[c][j];
            used = 1;
        }
    int begin[kBooks] = {};  // the first entry that clips nothing of a tile; tiles ascend, nearly
    for (int64_t tile = 0; tile < table.tiles; tile++) {
        const int32_t first = table.first[tile];
        TileErrors<V, L> errors(table, tile);
        for (int i = 0; i < n_fresh; i++) errors.add(fresh[i]);
        for (int c = 0; c < n; c++) {
            int &b = begin[c];
            while (b > 0 && rows[c][b - 1] >= first) b--;
            while (b < TRITLLM_ENTRIES - 1 && rows[c][b] < first) b++;
            errors.least(rows[c], b, least[c] + tile * TRITLLM_TILE);
        }
    }
}

// Of every group the least error at each of n <= kBooks times 27 rows, these ascending; least: in
// the sample's order.
template <class V>
void trit_least_errors(FitTable &table, const int32_t (*rows)[TRITLLM_ENTRIES], int n,
                       float (*least)[TRITLLM_SAMPLE]) {
    switch (table.depth) {
        case 1: return least_errors<V, kMaxLevel[1]>(table, rows, n, least);
        case 2: return least_errors<V, kMaxLevel[2]>(table, rows, n, least);
        case 3: return least_errors<V, kMaxLevel[3]>(table, rows, n, least);
        default: return least_errors<V, kMaxLevel[4]>(table, rows, n, least);
    }
}

}  // namespace
