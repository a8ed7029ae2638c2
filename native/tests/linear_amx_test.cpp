// The kernel for AMX on emulated tiles gives the bits of the one for AVX-512.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define TRITLLM_EMULATE_TILES
#define products_amx emulated_kernels_amx
#define products_avx512 products_avx512vnni  // the same to the bit, and on more machines
#include "../src/products/products_amx.cpp"
#include "plain_trits.h"

int main() {
    int avx512 = 0;
    while (std::strcmp(tritllm_isa_name(avx512), "avx512vnni")) avx512++;
    if (tritllm_isa_serving(avx512, TRITLLM_PRODUCTS) < 0) return 77;
    std::mt19937 rng(1);
    const int64_t rows = 70, columns = 700, groups = 44;
    for (int depth = 1; depth <= 4; depth++)
        for (int64_t batch : {15, 16, 33, 112})
            for (int arithmetic : {TRITLLM_GROUPS, TRITLLM_SUPERBLOCKS}) {
                std::vector<uint8_t> weight(size_t(depth * rows * 140)), scale(size_t(rows * 27));
                for (auto &b : weight) b = uint8_t(rng() % 243);
                std::vector<uint8_t> index(size_t(rows * groups));
                for (auto &i : index) i = uint8_t(rng() % 27);
                pack_scale_index(index.data(), rows, groups, scale.data());
                std::vector<float> steps(27, 0.01f), x(size_t(batch * columns));
                std::normal_distribution<float> normal;
                for (auto &v : x) v = normal(rng);

                const tritllm_portable portable = {weight.data(),
                                                   rows * 140,
                                                   scale.data(),
                                                   steps.data(),
                                                   rows,
                                                   columns,
                                                   depth,
                                                   0,
                                                   0,
                                                   0};
                void *memory = std::aligned_alloc(
                    64, size_t(tritllm_linear_size(avx512, rows, columns, depth, 0, 0)));
                if (tritllm_linear_prepare(avx512, &portable, 0, rows, memory)) return 1;
                void *activations = std::aligned_alloc(
                    64, size_t(tritllm_linear_activations_size(batch, columns, arithmetic)));
                const tritllm_input input = {x.data(), columns,         batch,
                                             columns,  TRITLLM_FLOAT32, arithmetic};
                if (tritllm_linear_begin(avx512, &input, activations)) return 1;
                if (tritllm_linear_quantize(&input, 0, batch, activations)) return 1;

                std::vector<float> y[2];
                for (int i = 0; i < 2; i++) {
                    y[i].resize(size_t(batch * rows));
                    const auto *header = static_cast<const PreparedHeader *>(memory);
                    Product product = {};
                    product.rows = rows;
                    product.blocks = blocks_of(columns);
                    product.index = reinterpret_cast<const uint8_t *>(header + 1);
                    for (int p = 0; p < depth; p++)
                        product.plane[p] = product.index +
                                           index_bytes(false, tiles_of(rows), product.blocks) +
                                           p * plane_bytes(kFives, tiles_of(rows), product.blocks);
                    product.dtype = TRITLLM_FLOAT32;
                    product.y = y[i].data();
                    product.stride = rows;
                    product.depth = depth;
                    std::copy_n(header->steps, 32, product.steps);
                    const auto *h = static_cast<const ActivationsHeader *>(activations);
                    const Activations a = {reinterpret_cast<const uint8_t *>(h + 1), h->row_bytes,
                                           batch, product.blocks};
                    const ProductKernels &k = i ? emulated_kernels_amx : products_avx512vnni;
                    (arithmetic == TRITLLM_GROUPS ? k.compute : k.compute_superblocks)(
                        product, a, 0, tiles_of(rows));
                }
                if (y[0] != y[1]) {
                    std::fprintf(stderr, "depth %d, batch %d: results differ\n", depth, int(batch));
                    return 1;
                }
                std::free(memory);
                std::free(activations);
            }
    std::puts("emulated AMX gives the bits of AVX-512");
}
