// Products of every instruction set that runs here against sums in double precision, through the
// three calls, with memory of just the size that they ask for.
#include <cmath>
#include <cstring>

#include "random_matrix.h"

namespace {

void compare(int isa, const Matrix &w, int64_t batch, bool exact, std::mt19937 &rng) {
    const Memory prepared = w.prepare(isa);
    std::vector<float> x(size_t(batch * w.columns)), bias(static_cast<size_t>(w.rows));
    std::normal_distribution<float> normal;
    for (auto &v : x) v = normal(rng);
    for (auto &v : bias) v = normal(rng);
    const Memory activations = aligned(tritllm_linear_activations_size(batch, w.columns, exact));
    const tritllm_input input = {x.data(), w.columns, batch, w.columns, TRITLLM_FLOAT32, exact};
    std::vector<float> y(size_t(batch * w.rows)), whole(y.size());
    tritllm_product product = {};
    product.prepared = prepared.get();
    product.size = w.prepared_size(isa);
    product.rows = w.rows;
    product.layout = tritllm_linear_layout(isa);
    product.depth = w.depth;
    product.bias = bias.data();
    product.bias_dtype = product.dtype = TRITLLM_FLOAT32;
    product.y = y.data();
    product.stride = w.rows;
    CHECK(tritllm_linear_begin(isa, &input, activations.get()) == TRITLLM_OK);
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
    for (int isa = 0; tritllm_isa_name(isa); isa++) {
        if (tritllm_isa_serving(isa, TRITLLM_PRODUCTS) != isa) continue;
        for (int depth = 1; depth <= 4; depth++)
            for (const auto &shape : shapes) {
                const Matrix w(shape[0], shape[1], depth, rng);
                for (int64_t batch : {1, 2, 3, 4, 5, 17, 100})
                    for (bool exact : {false, true}) compare(isa, w, batch, exact, rng);
            }
        std::printf("%s agrees\n", tritllm_isa_name(isa));
    }
}
