// Products of every instruction set that runs here against sums in double precision, through the
// three calls, with memory of just the size that they ask for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tritllm_linear.h"

namespace {

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (0)

struct Free {
    void operator()(void *p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

Memory aligned(int64_t size) { return Memory(std::aligned_alloc(64, size_t(size))); }

struct Matrix {
    int64_t rows, columns;
    int depth;
    std::vector<uint8_t> weight, scale;
    std::vector<float> value, steps;

    Matrix(int64_t n, int64_t k, int d, std::mt19937 &rng)
        : rows(n), columns(k), depth(d), value(size_t(n * k)), steps(27) {
        const int64_t groups = (k + 15) / 16, width = (k + 4) / 5,
                      scale_width = (3 * groups + 4) / 5;
        std::vector<int8_t> trits(size_t(d * n * k));
        for (auto &t : trits) t = int8_t(int(rng() % 3) - 1);
        std::vector<uint8_t> index(static_cast<size_t>(n * groups));
        for (auto &i : index) i = uint8_t(rng() % 27);
        for (int i = 0; i < 27; i++) steps[size_t(i)] = 0.001f * float(i + 1);
        weight.resize(size_t(d * n * width));
        scale.resize(size_t(n * scale_width));
        tritllm_pack_trits(trits.data(), d * n, k, weight.data());
        tritllm_pack_scale_index(index.data(), n, groups, scale.data());
        for (int64_t i = 0; i < n * k; i++) {
            int level = 0;
            for (int p = 0; p < d; p++) level = 3 * level + trits[size_t(p * n * k + i)];
            value[size_t(i)] = float(level) * steps[index[size_t(i / k * groups + i % k / 16)]];
        }
    }

    Memory prepare(int isa) const {
        const tritllm_portable portable = {
            weight.data(), rows * ((columns + 4) / 5), scale.data(), steps.data(), rows, columns,
            depth};
        const int64_t size = tritllm_linear_size(isa, rows, columns, depth);
        CHECK(size > 0);
        Memory memory = aligned(size);
        for (int64_t row = 0; row < rows; row += 32)
            CHECK(tritllm_linear_prepare(isa, &portable, row, std::min(row + 32, rows),
                                         memory.get()) == TRITLLM_OK);
        CHECK(tritllm_linear_check(memory.get(), size) == TRITLLM_OK);
        CHECK(tritllm_linear_check(memory.get(), size - 64) == TRITLLM_BAD_ARGUMENT);
        return memory;
    }
};

void compare(int isa, const Matrix &w, int64_t batch, bool exact, std::mt19937 &rng) {
    const Memory prepared = w.prepare(isa);
    std::vector<float> x(size_t(batch * w.columns)), bias(static_cast<size_t>(w.rows));
    std::normal_distribution<float> normal;
    for (auto &v : x) v = normal(rng);
    for (auto &v : bias) v = normal(rng);
    const Memory activations = aligned(tritllm_linear_activations_size(batch, w.columns, exact));
    const tritllm_input input = {x.data(), w.columns, batch, w.columns, TRITLLM_FLOAT32, exact};
    std::vector<float> y(size_t(batch * w.rows)), whole(y.size());
    tritllm_product product = {prepared.get(), bias.data(),     y.data(),
                               w.rows,         TRITLLM_FLOAT32, TRITLLM_FLOAT32};
    CHECK(tritllm_linear_begin(&input, activations.get()) == TRITLLM_OK);
    CHECK(tritllm_linear_quantize(&input, 0, batch, activations.get()) == TRITLLM_OK);
    for (int64_t row = 0; row < w.rows; row += 48)
        CHECK(tritllm_linear_compute(&product, activations.get(), row,
                                     std::min(row + 48, w.rows)) == TRITLLM_OK);
    product.y = whole.data();
    for (int threads : {1, 3}) {
        CHECK(tritllm_linear_run(threads, &input, activations.get(), &product, 1) == TRITLLM_OK);
        CHECK(std::memcmp(y.data(), whole.data(), 4 * y.size()) == 0);
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t n = 0; n < w.rows; n++) {
            double sum = bias[size_t(n)], magnitude = 0, step = 0;
            for (int64_t g = 0; g < w.columns; g += 16) {
                double largest = 0;
                for (int64_t k = g; k < std::min(g + 16, w.columns); k++)
                    largest = std::max<double>(largest, std::fabs(x[size_t(b * w.columns + k)]));
                for (int64_t k = g; k < std::min(g + 16, w.columns); k++) {
                    const double v = w.value[size_t(n * w.columns + k)];
                    sum += v * x[size_t(b * w.columns + k)];
                    magnitude += std::fabs(v * x[size_t(b * w.columns + k)]);
                    step += std::fabs(v) * largest / 254;
                }
            }
            const double bound = 1e-5 * (magnitude + 1) + (exact ? 0 : step);
            CHECK(std::fabs(y[size_t(b * w.rows + n)] - sum) <= bound);
        }
}

}  // namespace

int main() {
    std::mt19937 rng(1);
    const int64_t shapes[][2] = {{1, 1}, {16, 96}, {17, 97}, {50, 333}, {70, 700}};
    for (int isa = 0; isa <= TRITLLM_AMX; isa++) {
        if (!(tritllm_linear_isas() >> isa & 1)) continue;
        for (int depth = 1; depth <= 4; depth++)
            for (const auto &shape : shapes) {
                const Matrix w(shape[0], shape[1], depth, rng);
                for (int64_t batch : {1, 2, 3, 4, 5, 17, 100})
                    for (bool exact : {false, true}) compare(isa, w, batch, exact, rng);
            }
        std::printf("instruction set %d agrees\n", isa);
    }
}
