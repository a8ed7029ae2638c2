// The codec of every instruction set that runs here against the scalar one. The bits themselves are compared with the NumPy reference by tests/native.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "tritllm.h"

namespace {

struct Result {
    std::vector<uint8_t> weight[5], scale[5];
    std::vector<double> sums[5];
    std::vector<float> largest, codebook[5];
    std::vector<uint8_t> decoded;

    bool operator==(const Result &other) const {
        for (int depth = 1; depth <= 4; depth++) {
            if (weight[depth] != other.weight[depth] || scale[depth] != other.scale[depth])
                return false;
            if (sums[depth] != other.sums[depth] || codebook[depth] != other.codebook[depth])
                return false;
        }
        return largest == other.largest && decoded == other.decoded;
    }
};

// The passes of an encoding at all depths, each cut into pieces of `part` rows, then a decoding.
Result run(int isa, tritllm_matrix m, bool search, int64_t part, int out_dtype) {
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
    std::vector<float> magnitudes(16 * TRITLLM_SAMPLE), grid(TRITLLM_GRID);
    std::vector<float> table(size_t(TRITLLM_GRID) * TRITLLM_SAMPLE), published(27);
    CHECK(tritllm_gather(&m, &sample, magnitudes.data()) == TRITLLM_OK);
    for (int d = 1; d <= 4; d++) {
        result.codebook[d].resize(27);
        float *codebook = result.codebook[d].data();
        tritllm_v2_codebook(scale_of[d - 1], tiled, scratch.data(), published.data());
        std::memcpy(codebook, published.data(), 27 * sizeof(float));
        if (search && sample.largest > 0) {
            tritllm_grid(published.data(), &sample, grid.data());
            CHECK(tritllm_tabulate(isa, magnitudes.data(), &sample, grid.data(), d, 0, TRITLLM_GRID,
                                   table.data()) == TRITLLM_OK);
            tritllm_fit(published.data(), &sample, grid.data(), table.data(), codebook);
        }
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

// FNV-1a over every result, to compare machines with each other.
uint64_t fingerprint(uint64_t hash, const Result &result) {
    auto add = [&](const auto &values) {
        const uint8_t *p = reinterpret_cast<const uint8_t *>(values.data());
        for (size_t i = 0; i < values.size() * sizeof(values[0]); i++)
            hash = (hash ^ p[i]) * 0x100000001b3u;
    };
    for (int depth = 1; depth <= 4; depth++) {
        add(result.weight[depth]);
        add(result.scale[depth]);
        add(result.codebook[depth]);
    }
    add(result.decoded);
    return hash;
}

uint64_t compare_isas(int rounds) {
    std::mt19937 random(1);
    uint64_t hash = 0xcbf29ce484222325u;
    auto up_to = [&](int n) { return int(random() % unsigned(n)); };
    for (int round = 0; round < rounds; round++) {
        const int64_t rows = 1 + up_to(40), columns = 1 + up_to(round % 4 ? 70 : 400);
        const int64_t stride = columns + up_to(3);
        const int dtype = up_to(3), kind = up_to(5), out = up_to(3);
        std::vector<uint16_t> half(size_t(rows * stride));
        std::vector<float> whole(half.size());
        for (size_t i = 0; i < half.size(); i++) {
            float x = float(up_to(2001) - 1000) / 700;
            if (kind == 0) x = x * x * x / (0.01f + float(up_to(100)));
            if (kind == 1) x = std::rint(2 * x) / 2;
            if (kind == 2 && up_to(8)) x = 0;
            if (kind == 3) x *= 1e-39f;
            if (kind == 4) x *= 1e37f;
            whole[i] = x;
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            // As float16 any finite pattern will do.
            half[i] =
                dtype == TRITLLM_BFLOAT16 ? uint16_t(bits >> 16) : uint16_t(random() & 0xbbff);
        }
        const void *data = dtype == TRITLLM_FLOAT32 ? static_cast<const void *>(whole.data())
                                                    : static_cast<const void *>(half.data());
        const tritllm_matrix m = {data, dtype, 0, rows, columns, stride};
        const bool search = round % 2;
        const Result expected = run(TRITLLM_SCALAR, m, search, rows + 15, out);
        for (int isa = TRITLLM_SCALAR + 1; tritllm_isa_name(isa); isa++)
            if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
                CHECK(run(isa, m, search, 16, out) == expected);
        hash = fingerprint(hash, expected);
    }
    return hash;
}

void check_refusals() {
    const float one = 1;
    const tritllm_matrix m = {&one, TRITLLM_FLOAT32, 0, 1, 1, 1};
    uint32_t bits;
    CHECK(tritllm_peak(99, &m, 0, 1, &bits) == TRITLLM_UNSUPPORTED);
    CHECK(tritllm_peak(TRITLLM_SCALAR, &m, 0, 2, &bits) == TRITLLM_BAD_ARGUMENT);
    const float bad[] = {1, 2, NAN, INFINITY};
    const tritllm_matrix n = {bad, TRITLLM_FLOAT32, 0, 2, 2, 2};
    CHECK(tritllm_peak(TRITLLM_SCALAR, &n, 0, 2, &bits) == TRITLLM_OK && bits > 0x7f7fffff);
    CHECK(tritllm_first_nonfinite(&n) == 2);
}

}  // namespace

int main(int argc, char **argv) {
    check_refusals();
    const uint64_t hash = compare_isas(argc > 1 ? std::atoi(argv[1]) : 60);
    std::printf("ok, instruction sets");
    for (int isa = 0; tritllm_isa_name(isa); isa++)
        if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
            std::printf(" %s", tritllm_isa_name(isa));
    std::printf(", results %016llx\n", static_cast<unsigned long long>(hash));
}
