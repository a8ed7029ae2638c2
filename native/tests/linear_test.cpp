// Products of every instruction set that runs here against the arithmetic that tritllm_linear.h
// defines, bit for bit, through the three calls, with memory of just the size that they ask for.
#include <cmath>
#include <cstring>
#include <string>

#include "random_matrix.h"

namespace {

// Scalar code adds a rounded product, all others fuse.
float add_product(int isa, float x, float y, float sum) {
    return isa == TRITLLM_SCALAR ? sum + x * y : std::fma(x, y, sum);
}

bool keeps_levels_in_superblocks(int isa) {
    const std::string name = tritllm_isa_name(isa);
    return name == "scalar" || name == "avx2" || name == "neon";
}

// Activations of one row in int8, as the header defines them: a scale for each `width` columns.
struct Rounded {
    int64_t width;
    std::vector<float> scale;
    std::vector<int> value;

    Rounded(const float *x, int64_t columns, int arithmetic)
        : width(arithmetic == TRITLLM_PER_TOKEN     ? columns
                : arithmetic == TRITLLM_SUPERBLOCKS ? 192
                                                    : 16) {
        const bool whole = arithmetic == TRITLLM_PER_TOKEN;
        for (int64_t s = 0; s < columns; s += width) {
            const int64_t end = std::min(s + width, columns);
            float largest = whole ? 1e-5f : 0;
            for (int64_t k = s; k < end; k++) largest = std::max(largest, std::fabs(x[k]));
            const float inverse = largest > 0 ? 127 / largest : 0;
            scale.push_back(whole ? 1 / inverse : largest / 127);
            for (int64_t k = s; k < end; k++) value.push_back(int(std::nearbyint(x[k] * inverse)));
        }
    }
};

// Weights of one row: floats, and integers with a step for each `width` columns.
struct Row {
    int64_t width;
    std::vector<float> weight, step;
    std::vector<int> value;

    Row(int isa, const Matrix &w, int64_t n, int arithmetic)
        : width(arithmetic == TRITLLM_SUPERBLOCKS                 ? 192
                : arithmetic == TRITLLM_PER_TOKEN && w.row_scales ? w.columns
                                                                  : 16),
          value(w.level.begin() + n * w.columns, w.level.begin() + (n + 1) * w.columns) {
        for (int64_t k = 0; k < w.columns; k++)
            weight.push_back(float(value[size_t(k)]) * w.step(n, k));
        const bool keeps_levels = keeps_levels_in_superblocks(isa);
        const float most = float((std::pow(3, w.depth) - 1) / 2);
        for (int64_t s = 0; s < w.columns; s += width) {
            step.push_back(w.step(n, s));
            if (arithmetic != TRITLLM_SUPERBLOCKS) continue;
            const int64_t end = std::min(s + width, w.columns);
            float top = 0;
            for (int64_t k = s; k < end; k++) top = std::max(top, w.step(n, k));
            const float span = keeps_levels ? top : most * top;
            const float largest = keeps_levels ? 2047 : 32512;
            const float factor = span > 0 ? largest / span : 0;
            step.back() = span / (keeps_levels ? 2047 : 127);
            for (int64_t k = s; k < end; k++) {
                int &v = value[size_t(k)];
                v *= int(std::nearbyint(w.step(n, k) * factor));
                if (keeps_levels) continue;
                v = (v + 128) >> 8;
                CHECK(v >= -127 && v <= 127);
            }
        }
    }
};

// One element of y as the header defines it. x: the activations that are not rounded.
float defined(int isa, const Row &w, const float *x, const Rounded &a, bool exact) {
    const int64_t columns = int64_t(w.value.size());
    float y = 0;
    for (int64_t s = 0; s < columns; s += w.width) {
        const int64_t end = std::min(s + w.width, columns);
        if (exact) {
            for (int64_t k = s; k < end; k++) y = add_product(isa, x[k], w.weight[size_t(k)], y);
            continue;
        }
        int dot = 0;
        for (int64_t k = s; k < end; k++) dot += w.value[size_t(k)] * a.value[size_t(k)];
        const float scale = a.scale[size_t(s / a.width)];
        y = add_product(isa, float(dot) * scale, w.step[size_t(s / w.width)], y);
    }
    return y;
}

void compare(int isa, const Matrix &w, int64_t batch, int arithmetic, std::mt19937 &rng) {
    const Memory prepared = w.prepare(isa);
    std::vector<float> x(size_t(batch * w.columns)), bias(static_cast<size_t>(w.rows));
    std::normal_distribution<float> normal;
    for (auto &v : x) v = normal(rng);
    for (auto &v : bias) v = normal(rng);
    const Memory activations =
        aligned(tritllm_linear_activations_size(batch, w.columns, arithmetic));
    const tritllm_input input = {x.data(),  w.columns,       batch,
                                 w.columns, TRITLLM_FLOAT32, arithmetic};
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
    std::vector<Rounded> rounded;
    for (int64_t b = 0; b < batch; b++)
        rounded.emplace_back(x.data() + b * w.columns, w.columns, arithmetic);
    for (int64_t n = 0; n < w.rows; n++) {
        const Row row(isa, w, n, arithmetic);
        for (int64_t b = 0; b < batch; b++) {
            const float expected = defined(isa, row, x.data() + b * w.columns, rounded[size_t(b)],
                                           arithmetic == TRITLLM_EXACT) +
                                   bias[size_t(n)];
            CHECK(std::memcmp(&y[size_t(b * w.rows + n)], &expected, 4) == 0);
        }
    }
}

// All rows at once, and a range that begins and ends within tiles.
void compare_decoded(int isa, const Matrix &w, int threads) {
    const Memory prepared = w.prepare(isa);
    tritllm_product product = {};
    product.prepared = prepared.get();
    product.size = w.prepared_size(isa);
    product.rows = w.rows;
    product.stride = w.columns;
    product.dtype = TRITLLM_FLOAT32;
    for (int64_t begin : {int64_t(0), w.rows / 3})
        for (int64_t end : {w.rows, w.rows - w.rows / 4}) {
            std::vector<float> out(size_t((end - begin) * w.columns));
            product.y = out.data();
            CHECK(tritllm_linear_decode(threads, &product, w.columns, begin, end) == TRITLLM_OK);
            for (size_t i = 0; i < out.size(); i++) {
                const int64_t n = begin + int64_t(i) / w.columns, k = int64_t(i) % w.columns;
                const float expected = float(w.level[size_t(n * w.columns + k)]) * w.step(n, k);
                CHECK(std::memcmp(&out[i], &expected, 4) == 0);
            }
        }
}

void compare_all(int isa, const Matrix &w, std::mt19937 &rng) {
    for (int threads : {1, 3}) compare_decoded(isa, w, threads);
    std::vector<int64_t> batches = {1, 2, 3, 4, 5, 17};
    if (w.rows <= 50) batches.push_back(100);  // more than a panel's; the rest of it shows with 17
    for (int64_t batch : batches)
        for (int arithmetic :
             {TRITLLM_GROUPS, TRITLLM_EXACT, TRITLLM_SUPERBLOCKS, TRITLLM_PER_TOKEN})
            compare(isa, w, batch, arithmetic, rng);
}

}  // namespace

int main() {
    std::mt19937 rng(1);
    const int64_t shapes[][2] = {{1, 1}, {16, 96}, {17, 97}, {50, 333}, {70, 400}};
    for (int isa = 0; tritllm_isa_name(isa); isa++) {
        if (tritllm_isa_serving(isa, TRITLLM_PRODUCTS) != isa) continue;
        for (int depth = 1; depth <= 4; depth++)
            for (const auto &shape : shapes)
                for (const bool row_scales : {false, true}) {
                    if (row_scales && depth > 1) continue;
                    Matrix w(shape[0], shape[1], depth, rng, row_scales);
                    compare_all(isa, w, rng);
                    w.planes_together = tritllm_linear_planes_together(isa, depth) != 0;
                    if (w.planes_together) compare_all(isa, w, rng);
                }
        for (const int depth : {0, 1, 5})
            CHECK(!tritllm_linear_planes_together(isa, depth) &&
                  tritllm_linear_size(isa, 16, 96, depth, 0, 1) == -1);
        CHECK(tritllm_linear_size(isa, 16, 96, 2, 0, 2) == -1);
        std::printf("%s agrees\n", tritllm_isa_name(isa));
    }
}
