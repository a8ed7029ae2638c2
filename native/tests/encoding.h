// Every pass of an encoding at all depths, then a dequantization, for tests that compare instruction
// sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "tritllm.h"

namespace {

template <class T>
bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Result {
    std::vector<uint8_t> weight[5], scale[5];
    std::vector<double> sums[5];
    std::vector<float> largest, codebook[5];
    std::vector<uint8_t> decoded;

    // The same bits, so a zero is not its negative.
    bool operator==(const Result &other) const {
        for (int depth = 1; depth <= 4; depth++)
            if (weight[depth] != other.weight[depth] || scale[depth] != other.scale[depth] ||
                !same_bits(sums[depth], other.sums[depth]) ||
                !same_bits(codebook[depth], other.codebook[depth]))
                return false;
        return same_bits(largest, other.largest) && decoded == other.decoded;
    }
};

// Each pass is cut into pieces of `part` rows. The weights are finite.
Result encode_and_dequantize(int isa, tritllm_matrix m, bool search, int64_t part, int out_dtype) {
    Result result;
    const int64_t rows = m.rows, groups = (m.columns + 15) / 16;
    const int64_t width = (m.columns + 4) / 5, scale_width = (3 * groups + 4) / 5;
    uint32_t peak = 0;
    for (int64_t row = 0; row < rows; row += part) {
        uint32_t bits;
        CHECK(tritllm_peak(isa, &m, row, std::min(rows, row + part), &bits) == TRITLLM_OK);
        peak = std::max(peak, bits);
    }
    float top;
    std::memcpy(&top, &peak, 4);
    CHECK(std::isfinite(top));
    m.exponent = 0;
    if (top > 0) {
        int exponent;
        std::frexp(top, &exponent);
        m.exponent = exponent - 1;
    }

    const int64_t tiled = tritllm_tiled(rows, m.columns);
    result.largest.resize(size_t(tiled));
    std::vector<float> scales[5], scratch(static_cast<size_t>(tiled));
    const int32_t depths[] = {1, 2, 3, 4};
    float *scale_of[4];
    for (int d = 1; d <= 4; d++) {
        scales[d].resize(size_t(tiled));
        scale_of[d - 1] = scales[d].data();
    }
    std::vector<double> energy(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; row += part)
        CHECK(tritllm_measure(isa, &m, row, std::min(rows, row + part), 4, depths,
                              result.largest.data(), scale_of, energy.data()) == TRITLLM_OK);

    static tritllm_sample_set sample;
    CHECK(tritllm_sample(result.largest.data(), rows, m.columns, &sample) == TRITLLM_OK);
    static std::vector<float> magnitudes(17 * TRITLLM_SAMPLE);
    static std::vector<float> scratch_of_fit(size_t(TRITLLM_GRID) * TRITLLM_SAMPLE);
    std::vector<float> published(27);
    CHECK(tritllm_gather(isa, &m, &sample, magnitudes.data()) == TRITLLM_OK);
    for (int d = 1; d <= 4; d++) {
        result.codebook[d].resize(27);
        float *codebook = result.codebook[d].data();
        tritllm_v2_codebook(scale_of[d - 1], tiled, scratch.data(), published.data());
        std::memcpy(codebook, published.data(), 27 * sizeof(float));
        if (search && sample.largest > 0)
            CHECK(tritllm_fit(isa, magnitudes.data(), &sample, published.data(), d,
                              scratch_of_fit.data(), codebook) == TRITLLM_OK);
        result.weight[d].resize(size_t(d * rows * width));
        result.scale[d].resize(size_t(rows * scale_width));
        result.sums[d].resize(size_t((2 + 2 * d) * rows));
        double *sums = result.sums[d].data();
        const tritllm_target target = {d,
                                       search,
                                       codebook,
                                       published.data(),
                                       scale_of[d - 1],
                                       result.weight[d].data(),
                                       result.scale[d].data(),
                                       sums,
                                       sums + rows,
                                       sums + 2 * rows,
                                       sums + (2 + d) * rows};
        for (int64_t row = 0; row < rows; row += part)
            CHECK(tritllm_write(isa, &m, row, std::min(rows, row + part), 1, &target) ==
                  TRITLLM_OK);
    }

    const size_t element = out_dtype == TRITLLM_FLOAT32 ? 4 : 2;
    result.decoded.resize(4 * size_t(rows * m.columns) * element);
    for (int planes = 1; planes <= 4; planes++) {
        const tritllm_packed packed = {
            result.weight[4].data(),
            rows * width,
            width,
            result.scale[4].data(),
            scale_width,
            result.codebook[4].data(),
            m.columns,
            planes,
            out_dtype,
            result.decoded.data() + size_t(planes - 1) * size_t(rows * m.columns) * element,
            m.columns};
        CHECK(tritllm_dequantize(isa, &packed, 0, rows) == TRITLLM_OK);
    }
    return result;
}

}  // namespace
