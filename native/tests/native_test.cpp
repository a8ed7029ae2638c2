// The codec of every instruction set that runs here against the scalar one. The bits
// themselves are compared with the NumPy reference by tests/native.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "calibrated_case.h"
#include "check.h"
#include "encoding.h"
#include "tritllm.h"

namespace {

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
        const Result expected = encode_and_dequantize(TRITLLM_SCALAR, m, search, rows + 15, out);
        for (int isa = TRITLLM_SCALAR + 1; tritllm_isa_name(isa); isa++)
            if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
                CHECK(encode_and_dequantize(isa, m, search, 16, out) == expected);
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

void compare_calibrated(int rounds) {
    std::mt19937 random(2);
    constexpr int kReach[] = {1, 4, 13, 40};
    for (int round = 0; round < rounds; round++) {
        CalibratedCase block;
        block.rows = 16 * (1 + int64_t(random() % 4));
        block.columns = 16 * int(1 + random() % 8);
        block.reach = kReach[round % 4];
        block.centred = round % 3 == 0;
        block.fixed = round % 5 == 0;
        block.fill([&] { return float(int(random() % 32001) - 16000) / 250; });
        block.compare();
    }
}

void check_calibrated_refusals() {
    CalibratedCase block;
    block.fill([] { return 1.0f; });
    tritllm_columns c = {};
    c.rows = 16;
    c.columns = 16;
    c.reach = 1;
    auto refused = [&](int64_t begin, int64_t end) {
        return tritllm_feed_back(TRITLLM_SCALAR, &c, begin, end) == TRITLLM_BAD_ARGUMENT &&
               tritllm_descend(TRITLLM_SCALAR, &c, begin, end) == TRITLLM_BAD_ARGUMENT;
    };
    CHECK(refused(0, 17) && refused(-16, 16) && refused(8, 16) && refused(16, 0));
    c.columns = 8;
    CHECK(refused(0, 16));
    c.columns = TRITLLM_BLOCK + 16;
    CHECK(refused(0, 16));
    c.columns = 16;
    c.reach = 41;
    CHECK(refused(0, 16));
    c.reach = 1;
    c.fixed = 1;
    block.index[3] = 27;
    c.index = block.index.data();
    CHECK(refused(0, 16));
    CHECK(tritllm_feed_back(-1, &c, 0, 16) == TRITLLM_UNSUPPORTED);
    double sums[2 * 27 * 27];
    CHECK(tritllm_step_products(TRITLLM_SCALAR, block.value.data(), block.index.data(),
                                block.coupling.data(), 16, 1, 0, 1, sums) == TRITLLM_BAD_ARGUMENT);
}

}  // namespace

int main(int argc, char **argv) {
    check_refusals();
    check_calibrated_refusals();
    compare_calibrated(40);
    const uint64_t hash = compare_isas(argc > 1 ? std::atoi(argv[1]) : 60);
    std::printf("ok, instruction sets");
    for (int isa = 0; tritllm_isa_name(isa); isa++)
        if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
            std::printf(" %s", tritllm_isa_name(isa));
    std::printf(", results %016llx\n", static_cast<unsigned long long>(hash));
}
