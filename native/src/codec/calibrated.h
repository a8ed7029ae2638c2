// The inner work of the calibrated encoder: src/tritllm/codec/calibrated/search.py says what is
// computed, operation by operation. One lane is one row; no sum crosses lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "codec_kernels.h"
#include "tile.h"

namespace {

constexpr int kEntriesAtOnce = 3;  // independent chains of rounding, for the processor to overlap

// What a search reads beside its aim.
template <class V>
struct GroupRule {
    const float *feedback;    // [16][16]
    const float *importance;  // [16]
    const float *steps, *inverse;
    float reach;
    const typename V::F *centre;  // [16], or null
};

// The choice of a group: levels, entry and loss.
template <class V>
struct GroupChoice {
    typename V::F level[kGroup], step, loss;
    typename V::I index;
};

// Levels of a group at kCount steps, column by column, each corrected by those before it.
template <class V, int kCount, bool kCentred>
TRIT_INLINE void round_group(const typename V::F *aim, const GroupRule<V> &rule,
                             const typename V::F *step, const typename V::F *inverse,
                             typename V::F (*level)[kGroup], typename V::F *loss) {
    using F = typename V::F;
    const F low = V::set(-rule.reach), high = V::set(rule.reach);
    F value[kCount][kGroup];
    for (int e = 0; e < kCount; e++) loss[e] = V::set(0);
    for (int j = 0; j < kGroup; j++) {
        F v[kCount];
        for (int e = 0; e < kCount; e++) v[e] = aim[j];
        for (int i = 0; i < j; i++) {
            const F share = V::set(rule.feedback[i * kGroup + j]);
            for (int e = 0; e < kCount; e++) v[e] = V::sub(v[e], V::mul(value[e][i], share));
        }
        const F importance = V::set(rule.importance[j]);
        for (int e = 0; e < kCount; e++) {
            F k = V::mul(v[e], inverse[e]);
            if (kCentred) k = V::sub(k, rule.centre[j]);
            k = V::rint(V::min(V::max(k, low), high));
            if (kCentred) k = V::add(rule.centre[j], k);
            level[e][j] = k;
            value[e][j] = V::mul(k, step[e]);
            const F error = V::sub(v[e], value[e][j]);
            loss[e] = V::add(loss[e], V::mul(V::mul(error, error), importance));
        }
    }
}

template <class V, bool kCentred>
TRIT_INLINE void search_entries(const typename V::F *aim, const GroupRule<V> &rule,
                                GroupChoice<V> &best) {
    using F = typename V::F;
    best.loss = V::set(INFINITY);
    best.index = V::set_int(0);
    best.step = V::set(0);
    for (int j = 0; j < kGroup; j++) best.level[j] = V::set(0);
    for (int first = 0; first < TRITLLM_ENTRIES; first += kEntriesAtOnce) {
        F step[kEntriesAtOnce], inverse[kEntriesAtOnce], loss[kEntriesAtOnce];
        F level[kEntriesAtOnce][kGroup];
        for (int e = 0; e < kEntriesAtOnce; e++) {
            step[e] = V::set(rule.steps[first + e]);
            inverse[e] = V::set(rule.inverse[first + e]);
        }
        round_group<V, kEntriesAtOnce, kCentred>(aim, rule, step, inverse, level, loss);
        for (int e = 0; e < kEntriesAtOnce; e++) {
            const typename V::M better = V::lt(loss[e], best.loss);
            if (!V::any(better)) continue;
            best.loss = V::select(better, loss[e], best.loss);
            best.index = V::select(better, V::set_int(first + e), best.index);
            best.step = V::select(better, step[e], best.step);
            for (int j = 0; j < kGroup; j++)
                best.level[j] = V::select(better, level[e][j], best.level[j]);
        }
    }
}

template <class V, bool kCentred>
TRIT_INLINE void search_group(const typename V::F *aim, const GroupRule<V> &rule,
                              const int32_t *fixed, GroupChoice<V> &best) {
    if (!fixed) return search_entries<V, kCentred>(aim, rule, best);
    float table[2][32] = {};
    std::memcpy(table[0], rule.steps, sizeof(float) * TRITLLM_ENTRIES);
    std::memcpy(table[1], rule.inverse, sizeof(float) * TRITLLM_ENTRIES);
    best.index = V::bits(V::load(reinterpret_cast<const float *>(fixed)));
    best.step = V::lookup(table[0], best.index);
    const typename V::F inverse = V::lookup(table[1], best.index);
    round_group<V, 1, kCentred>(aim, rule, &best.step, &inverse, &best.level, &best.loss);
    const typename V::M finite = V::lt(best.loss, V::set(INFINITY));
    best.loss = V::select(finite, best.loss, V::set(INFINITY));
    for (int j = 0; j < kGroup; j++) best.level[j] = V::select(finite, best.level[j], V::set(0));
}

// What of a block's arrays a tile of rows sees: column c of an array at array + c * rows + row.
template <class V, bool kCentred>
class BlockTile {
    using F = typename V::F;

 public:
    BlockTile(const tritllm_columns &block, int64_t row) : b(block), row(row) {}

    void feed_back() const {
        F error[TRITLLM_BLOCK];
        for (int start = 0; start < b.columns; start += kGroup) {
            F aim[kGroup], target[kGroup];
            for (int j = 0; j < kGroup; j++) {
                aim[j] = V::load(at(b.given, start + j));
                target[j] = V::load(at(b.target, start + j));
            }
            for (int half = 0; half < kGroup; half += 8)
                for (int i = 0; i < start; i++) {
                    const float *share = b.coupling + int64_t(i) * b.columns + start + half;
                    for (int j = 0; j < 8; j++)
                        aim[half + j] = V::add(aim[half + j], V::mul(error[i], V::set(share[j])));
                }
            for (int i = 0; i < kGroup; i++) {
                const float *share = b.feedback + (start + i) * kGroup;
                for (int j = i + 1; j < kGroup; j++)
                    aim[j] = V::add(aim[j], V::mul(target[i], V::set(share[j])));
            }
            const GroupChoice<V> choice = searched(aim, start);
            for (int j = 0; j < kGroup; j++) {
                const F value = V::mul(choice.level[j], choice.step);
                V::store(at(b.level, start + j), choice.level[j]);
                V::store(at(b.value, start + j), value);
                error[start + j] = V::sub(target[j], value);
            }
            V::store_int(index(start), choice.index);
        }
    }

    void descend() const {
        F gradient[TRITLLM_BLOCK];
        for (int j = 0; j < b.columns; j++) gradient[j] = V::load(at(b.given, j));
        for (int start = 0; start < b.columns; start += kGroup) {
            F value[kGroup], left[kGroup], aim[kGroup], present = V::set(0);
            for (int j = 0; j < kGroup; j++) value[j] = V::load(at(b.value, start + j));
            const float *solve = b.solve + start * kGroup, *share = b.feedback + start * kGroup;
            for (int j = 0; j < kGroup; j++) {
                left[j] = V::set(0);
                for (int i = j; i < kGroup; i++)
                    left[j] =
                        V::add(left[j], V::mul(gradient[start + i], V::set(solve[i * kGroup + j])));
                aim[j] = value[j];
                for (int i = 0; i < j; i++)
                    aim[j] = V::add(aim[j], V::mul(value[i], V::set(share[i * kGroup + j])));
                aim[j] = V::add(aim[j], left[j]);
                present = V::add(present,
                                 V::mul(V::mul(left[j], left[j]), V::set(b.importance[start + j])));
            }
            const GroupChoice<V> choice = searched(aim, start);
            const typename V::M better = V::lt(choice.loss, present);
            if (!V::any(better)) continue;
            F change[kGroup];
            for (int j = 0; j < kGroup; j++) {
                const F found = V::mul(choice.level[j], choice.step);
                change[j] = V::select(better, V::sub(value[j], found), V::set(0));
                float *level = at(b.level, start + j);
                V::store(level, V::select(better, choice.level[j], V::load(level)));
                V::store(at(b.value, start + j), V::select(better, found, value[j]));
            }
            const typename V::I old =
                V::bits(V::load(reinterpret_cast<const float *>(index(start))));
            V::store_int(index(start), V::select(better, choice.index, old));
            for (int j = start + kGroup; j < b.columns; j += 8)
                for (int i = 0; i < kGroup; i++) {
                    const float *h = b.coupling + int64_t(start + i) * b.columns + j;
                    for (int k = 0; k < 8; k++)
                        gradient[j + k] = V::add(gradient[j + k], V::mul(change[i], V::set(h[k])));
                }
        }
    }

 private:
    template <class T>
    T *at(T *array, int column) const {
        return array + column * b.rows + row;
    }
    int32_t *index(int start) const { return b.index + start / kGroup * b.rows + row; }

    GroupChoice<V> searched(const F *aim, int start) const {
        F centre[kGroup];
        if (kCentred)
            for (int j = 0; j < kGroup; j++) centre[j] = V::load(at(b.centre, start + j));
        const GroupRule<V> rule{b.feedback + start * kGroup,
                                b.importance + start,
                                b.steps,
                                b.inverse,
                                float(b.reach),
                                centre};
        GroupChoice<V> choice;
        search_group<V, kCentred>(aim, rule, b.fixed ? index(start) : nullptr, choice);
        return choice;
    }

    const tritllm_columns &b;
    const int64_t row;
};

template <class V>
void trit_feed_back(const tritllm_columns &block, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += V::W)
        if (block.centre)
            BlockTile<V, true>(block, row).feed_back();
        else
            BlockTile<V, false>(block, row).feed_back();
}

template <class V>
void trit_descend(const tritllm_columns &block, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += V::W)
        if (block.centre)
            BlockTile<V, true>(block, row).descend();
        else
            BlockTile<V, false>(block, row).descend();
}

// Of one group: sums[0] with the groups before it, sums[1] with itself.
template <class V>
void trit_step_products(const float *level, const int32_t *index, const float *hessian,
                        int64_t rows, int64_t groups, int64_t group, double *sums) {
    using F = typename V::F;
    constexpr int kSums = TRITLLM_ENTRIES * TRITLLM_ENTRIES;
    for (int i = 0; i < 2 * kSums; i++) sums[i] = 0;
    const float *own = level + group * kGroup * rows;
    for (int64_t other = 0; other <= group; other++) {
        const float *h = hessian + group * kGroup * groups * kGroup + other * kGroup;
        const float *theirs = level + other * kGroup * rows;
        double *into = sums + (other == group ? kSums : 0);
        for (int64_t row = 0; row < rows; row += V::W) {
            F k[kGroup], dot = V::set(0);
            for (int i = 0; i < kGroup; i++) k[i] = V::load(own + i * rows + row);
            for (int half = 0; half < kGroup; half += 8) {
                F product[8];
                for (int j = 0; j < 8; j++) product[j] = V::set(0);
                for (int i = 0; i < kGroup; i++)
                    for (int j = 0; j < 8; j++)
                        product[j] = V::add(
                            product[j], V::mul(k[i], V::set(h[i * groups * kGroup + half + j])));
                for (int j = 0; j < 8; j++)
                    dot =
                        V::add(dot, V::mul(product[j], V::load(theirs + (half + j) * rows + row)));
            }
            float lane[V::W];
            V::store(lane, dot);
            for (int i = 0; i < V::W; i++)
                into[index[group * rows + row + i] * TRITLLM_ENTRIES +
                     index[other * rows + row + i]] += lane[i];
        }
    }
}

}  // namespace
