// v3's codebook: a sample of the groups, their errors on a grid of scales, a search of the two ends.
#include "fit.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstdint>

#include "codebook.h"
#include "cpu/ieee.h"
#include "cpu/lanes_scalar.h"

namespace {

constexpr int64_t kBodySample = 2048;
constexpr int64_t kTailSample = 1024;
static_assert(kBodySample + kTailSample == TRITLLM_SAMPLE, "a sample set holds both");

constexpr int64_t kLooks = 8192;  // values, at least where there are so many, for a first guess
constexpr int kBins = 0x7f80;     // of finite magnitudes

uint32_t bin_of(float x) { return bits_of(x) >> 16; }

// Calls visit(position) for every value whose bin is at least `lowest`; most blocks hold none.
template <class Visit>
void for_each_from(const float *values, int64_t n, uint32_t lowest, Visit visit) {
    const float least = float_of(lowest << 16);
    for (int64_t block = 0; block < n; block += kBlock) {
        int found = 0;
        for (int64_t i = block; i < block + kBlock; i++) found += values[i] >= least;
        if (!found) continue;
        for (int64_t i = block; i < block + kBlock; i++)
            if (values[i] >= least) visit(i);
    }
}

// The lowest bin such that it and those above, up to `top`, hold at most kTailSample values in all.
uint32_t tail_bin(const float *largest, int64_t n, uint32_t top) {
    float sample[2 * kLooks];
    const int64_t stride = std::max<int64_t>(1, n / kLooks);
    int64_t sampled = 0;
    if (stride > 1)  // of fewer values all are counted
        for (int64_t i = 0; i < n; i += stride) sample[sampled++] = largest[i];
    int32_t count[kBins];
    // A guess that leaves somewhat more than the tail above it, lowered until it does.
    int64_t above = 4 * kTailSample / stride + 8;
    for (;; above *= 8) {
        uint32_t lowest = 1;  // bin 0 holds zero groups only, which no one samples
        if (above < sampled) {
            float *end = sample + sampled, *at = end - above;
            std::nth_element(sample, at, end);
            lowest = std::max(lowest, bin_of(*at));
        }
        std::fill_n(count, std::max(top, lowest) - lowest + 1, 0);
        for_each_from(largest, n, lowest, [&](int64_t i) { count[bin_of(largest[i]) - lowest]++; });
        int64_t sum = 0;
        for (uint32_t bin = top; bin >= lowest; bin--) {
            sum += count[bin - lowest];
            if (sum > kTailSample) return bin + 1;
        }
        if (lowest <= 1) return 1;
    }
}

struct Tiling {
    int64_t rows, groups;

    // Numbers of the groups that are held at positions of a tiled array, both ascending.
    void groups_at(const int64_t *position, int64_t n, int64_t *group) const {
        const int64_t tile_size = TRITLLM_TILE * groups;
        for (int64_t begin = 0, end; begin < n; begin = end) {
            const int64_t first = position[begin] / tile_size * tile_size;
            for (end = begin; end < n && position[end] < first + tile_size;) end++;
            for (int lane = 0; lane < TRITLLM_TILE; lane++)
                for (int64_t i = begin; i < end; i++)
                    if (position[i] % TRITLLM_TILE == lane)
                        *group++ = first + lane * groups + (position[i] - first) / TRITLLM_TILE;
        }
    }
    int64_t position_of(int64_t group) const {
        const int64_t row = group / groups;
        return (row / TRITLLM_TILE * groups + group % groups) * TRITLLM_TILE + row % TRITLLM_TILE;
    }
};

// Puts groups in the order of their largest magnitudes, by bins: the order is for speed alone.
void order_by_largest(const float *prominence, int64_t count, uint16_t *order) {
    if (!count) return;
    uint32_t low = kBins - 1, high = 0;
    for (int64_t i = 0; i < count; i++) {
        low = std::min(low, bin_of(prominence[i]));
        high = std::max(high, bin_of(prominence[i]));
    }
    uint16_t place[kBins + 1];
    std::fill(place + low, place + high + 2, uint16_t(0));
    for (int64_t i = 0; i < count; i++) place[bin_of(prominence[i]) + 1]++;
    for (uint32_t bin = low; bin < high; bin++)
        place[bin + 1] = uint16_t(place[bin + 1] + place[bin]);
    for (int64_t i = 0; i < count; i++) order[place[bin_of(prominence[i])]++] = uint16_t(i);
}

}  // namespace

int64_t tritllm_tiled(int64_t rows, int64_t columns) {
    return (rows + TRITLLM_TILE - 1) / TRITLLM_TILE * TRITLLM_TILE *
           ((columns + TRITLLM_GROUP - 1) / TRITLLM_GROUP);
}

int tritllm_sample(const float *largest, int64_t rows, int64_t columns,
                   tritllm_sample_set *sample) {
    const IeeeArithmetic ieee;
    const Tiling tiling{rows, (columns + TRITLLM_GROUP - 1) / TRITLLM_GROUP};
    const int64_t n = rows * tiling.groups, stored = tritllm_tiled(rows, columns);
    int64_t present;
    summarize(largest, stored, &sample->largest, &present);
    const uint32_t tail = tail_bin(largest, stored, bin_of(sample->largest));

    int64_t position[kTailSample], in_tail[kTailSample + 1];  // and one that is above all
    int64_t n_tail = 0;
    for_each_from(largest, stored, tail, [&](int64_t i) { position[n_tail++] = i; });
    tiling.groups_at(position, n_tail, in_tail);
    in_tail[n_tail] = n;

    float prominence[TRITLLM_SAMPLE];
    int64_t n_chosen = 0, next = 0;
    const auto choose = [&](int64_t group, float x, bool tail) {
        sample->group[n_chosen] = group;
        sample->in_tail[n_chosen] = tail;
        prominence[n_chosen++] = x;
    };
    const auto tail_below = [&](int64_t group) {
        for (; in_tail[next] < group; next++)
            choose(in_tail[next], largest[tiling.position_of(in_tail[next])], true);
    };
    const int64_t count = std::min(n, kBodySample);
    for (int64_t i = 0; i < count; i++) {
        const int64_t group = i * n / count;
        const float x = largest[tiling.position_of(group)];
        if (!(x > 0 && bin_of(x) < tail)) continue;
        tail_below(group);
        choose(group, x, false);
    }
    tail_below(n);
    order_by_largest(prominence, n_chosen, sample->order);

    sample->count = n_chosen;
    const int64_t n_body = n_chosen - n_tail;
    sample->body_weight = n_body ? double(present - n_tail) / double(n_body) : 0.0;
    return TRITLLM_OK;
}

namespace {

// Entry j of the codebook that spans the grid's rows from low to high.
int row_of(int low, int high, int j) { return low + (2 * j * (high - low) + 26) / 52; }

// The total error of the sample under codebooks.
class Totals {
 public:
    Totals(const CodecKernels &kernels, const tritllm_sample_set &sample, FitTable &table)
        : kernels_(kernels), table_(table), body_weight_(sample.body_weight) {
        uint16_t place[TRITLLM_SAMPLE];
        for (int64_t i = 0; i < sample.count; i++) place[sample.order[i]] = uint16_t(i);
        for (int64_t i = 0; i < sample.count; i++)
            if (sample.in_tail[i])
                tail_[n_tail_++] = place[i];
            else
                body_[n_body_++] = place[i];
    }

    // Of n <= kBooks codebooks, their ends given by grid rows.
    void operator()(const int (*ends)[2], int n, double *totals) {
        int32_t rows[kBooks][TRITLLM_ENTRIES];
        for (int c = 0; c < n; c++)
            for (int j = 0; j < TRITLLM_ENTRIES; j++)
                rows[c][j] = row_of(ends[c][0], ends[c][1], j);
        kernels_.least_errors(table_, rows, n, least_);
        const float *least[kBooks];
        for (int c = 0; c < kBooks; c++) least[c] = least_[c < n ? c : 0];
        double tail[kBooks] = {}, body[kBooks] = {};
        // Each sum in the order of the groups; those of several codebooks do not wait for each other.
        for (int i = 0; i < n_tail_; i++)
            for (int c = 0; c < kBooks; c++) tail[c] += double(least[c][tail_[i]]);
        for (int i = 0; i < n_body_; i++)
            for (int c = 0; c < kBooks; c++) body[c] += double(least[c][body_[i]]);
        for (int c = 0; c < n; c++) totals[c] = tail[c] + body_weight_ * body[c];
    }

 private:
    const CodecKernels &kernels_;
    FitTable &table_;
    const double body_weight_;
    int n_tail_ = 0, n_body_ = 0;
    uint16_t tail_[TRITLLM_SAMPLE], body_[TRITLLM_SAMPLE];  // where each group's least error is
    float least_[kBooks][TRITLLM_SAMPLE];
};

void fill_table(const float *magnitudes, const tritllm_sample_set &sample, const float *grid,
                int depth, float *scratch, FitTable *table) {
    table->magnitudes = magnitudes;
    table->tiles = (sample.count + TRITLLM_TILE - 1) / TRITLLM_TILE;
    table->depth = depth;
    table->error = scratch;
    const float level = float(kMaxLevel[depth]);
    for (int i = 0; i < TRITLLM_GRID; i++) {
        table->step[i] = grid[i] / level;
        table->inverse[i] = 1.0f / table->step[i];
        table->reach[i] = level * table->step[i];
        table->half[i] = depth == 1 ? largest_at_zero(table->step[i], table->inverse[i]) : 0;
    }
    for (int64_t tile = 0; tile < table->tiles; tile++) {
        const float *largest = magnitudes + tile * kTileFloats + TRITLLM_GROUP * TRITLLM_TILE;
        const float top = *std::max_element(largest, largest + TRITLLM_TILE);
        table->first[tile] = int32_t(
            std::lower_bound(table->reach, table->reach + TRITLLM_GRID, top) - table->reach);
    }
    std::fill_n(table->used, TRITLLM_GRID, uint8_t(0));
    std::fill_n(table->low, kSampleTiles, TRITLLM_GRID);
}

}  // namespace

void fit_codebook(const CodecKernels &kernels, const float *magnitudes,
                  const tritllm_sample_set &sample, const float *published, int depth,
                  float *scratch, float *codebook) {
    float grid[TRITLLM_GRID];
    const float top = std::min(published[TRITLLM_ENTRIES - 1] * 1.25f, sample.largest);
    log_spaced(published[0] * 0.5f, top, TRITLLM_GRID, grid);
    FitTable table;
    fill_table(magnitudes, sample, grid, depth, scratch, &table);
    Totals totals(kernels, sample, table);

    int ends[1][2];
    for (int end = 0; end < 2; end++)
        ends[0][end] = int(
            std::lower_bound(grid, grid + TRITLLM_GRID, published[end * (TRITLLM_ENTRIES - 1)]) -
            grid);
    double best;
    totals(ends, 1, &best);
    std::bitset<TRITLLM_GRID * TRITLLM_GRID> seen;  // none of them was better than the best so far
    for (int stride = 32; stride;) {
        const int low = ends[0][0], high = ends[0][1];
        const int moves[kBooks][2] = {
            {low - stride, high}, {low + stride, high}, {low, high - stride}, {low, high + stride}};
        int inside[kBooks][2], n = 0;
        for (const int *move : moves) {
            if (move[0] < 0 || move[0] > move[1] || move[1] >= TRITLLM_GRID) continue;
            if (seen[size_t(move[0] * TRITLLM_GRID + move[1])]) continue;
            seen.set(size_t(move[0] * TRITLLM_GRID + move[1]));
            inside[n][0] = move[0];
            inside[n++][1] = move[1];
        }
        double error[kBooks];
        totals(inside, n, error);
        const int chosen = int(std::min_element(error, error + n) - error);
        if (n && error[chosen] < best) {
            best = error[chosen];
            std::copy_n(inside[chosen], 2, ends[0]);
        } else {
            stride /= 2;
        }
    }
    log_spaced(grid[ends[0][0]], grid[ends[0][1]], TRITLLM_ENTRIES, codebook);
}
