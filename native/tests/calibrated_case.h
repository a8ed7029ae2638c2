// A block of columns for the calibrated encoder's passes, and what an instruction set makes of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "tritllm.h"

namespace {

struct CalibratedCase {
    int64_t rows = 16;
    int columns = 16, reach = 1;
    bool centred = false, fixed = false;
    std::vector<float> steps, inverse, centre, target, given, coupling, feedback, solve, importance,
        level, value;
    std::vector<int32_t> index;

    // next(): the numbers, anything between -64 and 64.
    template <class Next>
    void fill(Next next) {
        const size_t n = size_t(rows), b = size_t(columns);
        auto numbers = [&](std::vector<float> &v, size_t size, float scale) {
            v.resize(size);
            for (float &x : v) x = next() * scale;
        };
        numbers(steps, 27, 1 / 64.0f);
        for (float &s : steps) s = s < 0 ? -s : s;
        std::sort(steps.begin(), steps.end());
        inverse.resize(27);
        for (size_t i = 0; i < 27; i++) inverse[i] = steps[i] > 0x1p-100f ? 1 / steps[i] : 0;
        numbers(target, b * n, 1);
        numbers(given, b * n, 1);
        numbers(coupling, b * b, 1 / 64.0f);
        numbers(feedback, b * 16, 1 / 64.0f);
        numbers(solve, b * 16, 1 / 64.0f);
        numbers(importance, b, 1);
        for (float &x : importance) x = x < 0 ? -x : x;
        numbers(value, b * n, 1);
        level.assign(b * n, 0);
        centre.resize(b * n);
        for (float &x : centre) x = 9 * float(int(next()) % 5);
        index.resize(b / 16 * n);
        for (int32_t &i : index) i = int32_t(next() + 64) % 27;
    }

    // Level, value and index after a pass, rows in parts.
    std::vector<uint32_t> run(int isa, bool descend, int64_t part) const {
        CalibratedCase copy = *this;
        const tritllm_columns block = {rows,
                                       columns,
                                       reach,
                                       copy.steps.data(),
                                       copy.inverse.data(),
                                       centred ? copy.centre.data() : nullptr,
                                       copy.target.data(),
                                       copy.given.data(),
                                       copy.coupling.data(),
                                       copy.feedback.data(),
                                       descend ? copy.solve.data() : nullptr,
                                       copy.importance.data(),
                                       copy.level.data(),
                                       copy.value.data(),
                                       copy.index.data(),
                                       fixed,
                                       0};
        for (int64_t row = 0; row < rows; row += part) {
            const int64_t end = std::min(row + part, rows);
            const int status = descend ? tritllm_descend(isa, &block, row, end)
                                       : tritllm_feed_back(isa, &block, row, end);
            CHECK(status == TRITLLM_OK);
        }
        std::vector<uint32_t> bits;
        auto add = [&](const auto &v) {
            const size_t old = bits.size();
            bits.resize(old + v.size());
            if (!v.empty()) std::memcpy(bits.data() + old, v.data(), 4 * v.size());
        };
        for (float &x : copy.level) x += 0.0f;  // the sign of a zero is nobody's
        for (float &x : copy.value) x += 0.0f;
        add(copy.level);
        add(copy.value);
        add(copy.index);
        return bits;
    }

    std::vector<double> products(int isa) const {
        const int64_t groups = columns / 16;
        std::vector<double> sums(size_t(groups) * 2 * 27 * 27);
        CHECK(tritllm_step_products(isa, value.data(), index.data(), coupling.data(), rows, groups,
                                    0, groups, sums.data()) == TRITLLM_OK);
        return sums;
    }

    // Every instruction set that runs here against the scalar one.
    void compare() const {
        for (const bool descend : {false, true}) {
            const std::vector<uint32_t> expected = run(TRITLLM_SCALAR, descend, rows);
            for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++)
                if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
                    CHECK(run(isa, descend, 16) == expected);
        }
        const std::vector<double> expected = products(TRITLLM_SCALAR);
        for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++)
            if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa) CHECK(products(isa) == expected);
    }
};

}  // namespace
