// v3's codebook: a sample of the groups, their error on a grid of scales, a search of the two ends.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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

    // Number of the group that is held at a position of a tiled array.
    int64_t group_at(int64_t position) const {
        const int64_t lane = position % TRITLLM_TILE, rest = position / TRITLLM_TILE;
        return (rest / groups * TRITLLM_TILE + lane) * groups + rest % groups;
    }
    int64_t position_of(int64_t group) const {
        const int64_t row = group / groups;
        return (row / TRITLLM_TILE * groups + group % groups) * TRITLLM_TILE + row % TRITLLM_TILE;
    }
};

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

    int64_t *const chosen = sample->group;  // at most kTailSample and kBodySample of them
    int64_t n_tail = 0;
    for_each_from(largest, stored, tail, [&](int64_t i) { chosen[n_tail++] = tiling.group_at(i); });
    int64_t n_chosen = n_tail;
    const int64_t count = std::min(n, kBodySample);
    for (int64_t i = 0; i < count; i++) {
        const int64_t group = i * n / count;
        const float x = largest[tiling.position_of(group)];
        if (x > 0 && bin_of(x) < tail) chosen[n_chosen++] = group;
    }
    std::sort(chosen, chosen + n_chosen);

    sample->count = n_chosen;
    const int64_t n_body = n_chosen - n_tail;
    sample->body_weight = n_body ? double(present - n_tail) / double(n_body) : 0.0;
    for (int64_t i = 0; i < n_chosen; i++)
        sample->in_tail[i] = bin_of(largest[tiling.position_of(chosen[i])]) >= tail;
    return TRITLLM_OK;
}

int tritllm_gather(const tritllm_matrix *m, const tritllm_sample_set *sample, float *magnitudes) {
    const IeeeArithmetic ieee;
    const int64_t groups = (m->columns + TRITLLM_GROUP - 1) / TRITLLM_GROUP;
    const int64_t stored = (sample->count + 15) / 16 * 16;
    // 2**-exponent, which alone may not be a float32. What rounds on the way is negligible.
    const int first = -m->exponent / 2;
    const float up = std::ldexp(1.0f, first), up_more = std::ldexp(1.0f, -m->exponent - first);
    for (int64_t n = 0; n < stored; n++) {
        for (int i = 0; i < TRITLLM_GROUP; i++) {
            float a = 0;
            if (n < sample->count) {
                const int64_t row = sample->group[n] / groups;
                const int64_t column = sample->group[n] % groups * TRITLLM_GROUP + i;
                if (column < m->columns)
                    a = std::fabs(element(m->weight, m->dtype, row * m->row_stride + column)) * up *
                        up_more;
                if (a < 0x1p-64f) a = 0;
            }
            magnitudes[i * TRITLLM_SAMPLE + n] = a;
        }
    }
    return TRITLLM_OK;
}

int tritllm_grid(const float *published, const tritllm_sample_set *sample, float *grid) {
    const IeeeArithmetic ieee;
    const float top = std::min(published[TRITLLM_ENTRIES - 1] * 1.25f, sample->largest);
    log_spaced(published[0] * 0.5f, top, TRITLLM_GRID, grid);
    return TRITLLM_OK;
}

int tritllm_fit(const float *published, const tritllm_sample_set *sample, const float *grid,
                const float *table, float *codebook) {
    const IeeeArithmetic ieee;
    const int64_t count = sample->count;
    float least[TRITLLM_SAMPLE];
    double in_body[TRITLLM_SAMPLE] = {}, in_tail[TRITLLM_SAMPLE] = {};
    for (int64_t i = 0; i < count; i++) (sample->in_tail[i] ? in_tail : in_body)[i] = 1;

    auto total = [&](int low, int high) {
        const float *first = table + int64_t(low) * TRITLLM_SAMPLE;
        std::copy(first, first + count, least);
        for (int j = 1; j < TRITLLM_ENTRIES; j++) {
            const int row = low + (2 * j * (high - low) + 26) / 52;
            const float *error = table + int64_t(row) * TRITLLM_SAMPLE;
            for (int64_t i = 0; i < count; i++)
                least[i] = error[i] < least[i] ? error[i] : least[i];
        }
        // Adding 0 changes nothing, and the two sums do not wait for each other.
        double body = 0, tail = 0;
        for (int64_t i = 0; i < count; i++) {
            body += double(least[i]) * in_body[i];
            tail += double(least[i]) * in_tail[i];
        }
        return tail + sample->body_weight * body;
    };

    int low = int(std::lower_bound(grid, grid + TRITLLM_GRID, published[0]) - grid);
    int high =
        int(std::lower_bound(grid, grid + TRITLLM_GRID, published[TRITLLM_ENTRIES - 1]) - grid);
    double best = total(low, high);
    for (int stride = 32; stride;) {
        const int moves[4][2] = {
            {low - stride, high}, {low + stride, high}, {low, high - stride}, {low, high + stride}};
        double least_error = INFINITY;
        int chosen = -1;
        for (int i = 0; i < 4; i++) {
            const int p = moves[i][0], q = moves[i][1];
            if (p < 0 || p > q || q >= TRITLLM_GRID) continue;
            const double error = total(p, q);
            if (chosen < 0 || error < least_error) {
                least_error = error;
                chosen = i;
            }
        }
        if (chosen >= 0 && least_error < best) {
            best = least_error;
            low = moves[chosen][0];
            high = moves[chosen][1];
        } else {
            stride /= 2;
        }
    }
    log_spaced(grid[low], grid[high], TRITLLM_ENTRIES, codebook);
    return TRITLLM_OK;
}
