// A random packed matrix, for tests: its portable arrays, its values, and its prepared memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "plain_trits.h"
#include "tritllm_linear.h"

namespace {

struct Free {
    void operator()(void *p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

Memory aligned(int64_t size) { return Memory(std::aligned_alloc(64, size_t(size))); }

struct Matrix {
    int64_t rows, columns;
    int depth;
    bool row_scales;               // every row has one
    bool planes_together = false;  // in prepared memory
    std::vector<uint8_t> weight, scale, index;
    std::vector<int> level;
    std::vector<float> steps;

    Matrix(int64_t n, int64_t k, int d, std::mt19937 &rng, bool one_a_row = false)
        : rows(n),
          columns(k),
          depth(d),
          row_scales(one_a_row || (d == 1 && k <= 16)),
          index(size_t(n * ((k + 15) / 16))),
          level(size_t(n * k)),
          steps(27) {
        const int64_t groups = (k + 15) / 16, width = (k + 4) / 5,
                      scale_width = (3 * groups + 4) / 5;
        std::vector<int8_t> trits(size_t(d * n * k));
        for (auto &t : trits) t = int8_t(int(rng() % 3) - 1);
        for (auto &i : index) i = uint8_t(rng() % 27);
        for (int64_t i = 0; one_a_row && i < n; i++)
            std::fill_n(&index[size_t(i * groups)], groups, index[size_t(i * groups)]);
        for (int i = 0; i < 27; i++) steps[size_t(i)] = 0.001f * float(i + 1);
        weight.resize(size_t(d * n * width));
        scale.resize(size_t(n * scale_width));
        pack_trits(trits.data(), d * n, k, weight.data());
        pack_scale_index(index.data(), n, groups, scale.data());
        for (int64_t i = 0; i < n * k; i++)
            for (int p = 0; p < d; p++)
                level[size_t(i)] = 3 * level[size_t(i)] + trits[size_t(p * n * k + i)];
    }

    // Of row n's group that holds column k.
    float step(int64_t n, int64_t k) const {
        return steps[index[size_t(n * ((columns + 15) / 16) + k / 16)]];
    }

    int64_t prepared_size(int isa) const {
        return tritllm_linear_size(isa, rows, columns, depth, row_scales, planes_together);
    }

    Memory prepare(int isa) const {
        tritllm_portable portable = {weight.data(),
                                     rows * ((columns + 4) / 5),
                                     scale.data(),
                                     steps.data(),
                                     rows,
                                     columns,
                                     depth,
                                     row_scales,
                                     planes_together,
                                     0};
        CHECK(tritllm_linear_row_scales(&portable) == int(row_scales));
        const int64_t size = prepared_size(isa);
        CHECK(size > 0);
        Memory memory = aligned(size);
        for (int64_t row = 0; row < rows; row += 32)
            CHECK(tritllm_linear_prepare(isa, &portable, row, std::min(row + 32, rows),
                                         memory.get()) == TRITLLM_OK);
        tritllm_prepared found;
        CHECK(tritllm_linear_describe(memory.get(), size, &found) == TRITLLM_OK);
        CHECK(found.rows == rows && found.columns == columns && found.depth == depth);
        CHECK(found.row_scales == int(row_scales));
        CHECK(found.planes_together == int(planes_together));
        CHECK(found.size == size && found.isa == isa && found.layout == tritllm_linear_layout(isa));
        CHECK(tritllm_linear_describe(memory.get(), size - 64, &found) == TRITLLM_BAD_ARGUMENT);
        return memory;
    }
};

}  // namespace
