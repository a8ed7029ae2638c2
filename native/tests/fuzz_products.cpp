// Fuzzing of the products: portable arrays and activations of any bits, prepared memory that was
// damaged or cut, and callers who believe it to be something else.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "check.h"
#include "fuzz_driver.h"
#include "plain_trits.h"
#include "products/prepared.h"
#include "tritllm_linear.h"

namespace {

// Memory of just `size` bytes, which begins as prepared memory has to.
struct Aligned {
    void *data = nullptr;
    explicit Aligned(int64_t size) { CHECK(posix_memalign(&data, 64, size_t(size)) == 0); }
    ~Aligned() { std::free(data); }
    Aligned(const Aligned &) = delete;
    Aligned &operator=(const Aligned &) = delete;
};

// The fuzzer's bytes, then zeros.
struct Input {
    const uint8_t *data;
    size_t size;
    uint8_t next() { return size ? (size--, *data++) : uint8_t(0); }
    std::vector<uint8_t> take(int64_t n) {
        std::vector<uint8_t> bytes(static_cast<size_t>(n));
        const size_t taken = std::min(size, bytes.size());
        if (taken) std::memcpy(bytes.data(), data, taken);
        data += taken;
        size -= taken;
        return bytes;
    }
};

int64_t element_bytes(int dtype) { return dtype == TRITLLM_FLOAT32 ? 4 : 2; }

// Makes most of what is refused valid: bytes above 242, and digits that pad a row.
void repair(std::vector<uint8_t> &bytes, int64_t row_width, int64_t trits) {
    for (size_t i = 0; i < bytes.size(); i++) {
        bytes[i] = uint8_t(bytes[i] % 243);
        if (int64_t(i) % row_width == row_width - 1 && trits % 5) bytes[i] = 121;
    }
}

// One byte, or eight that say a small number, at a place of the header or anywhere.
void damage(uint8_t *memory, int64_t size, Input &input) {
    const int kind = input.next();
    const int64_t anywhere = input.next() | int64_t(input.next()) << 8;
    const int64_t at = anywhere % (kind & 1 ? size : 64);
    const int8_t value = int8_t(input.next());
    if (kind & 2) {
        const int64_t wide = value;
        std::memcpy(memory + std::min(at / 8 * 8, size - 8), &wide, 8);
    } else {
        memory[at] = uint8_t(value);
    }
}

// So that what the header says is looked at, not only its checksum.
void sign_header(uint8_t *memory, int64_t size) {
    const size_t end = offsetof(PreparedHeader, check);
    if (size < int64_t(sizeof(PreparedHeader))) return;
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t i = 0; i < end; i++) sum = (sum ^ memory[i]) * 0x100000001b3;
    std::memcpy(memory + end, &sum, sizeof sum);
}

// Whether superblocks round steps alone (level_superblocks.h), and not weights.
bool keeps_levels(int isa) {
    return !std::strcmp(tritllm_isa_name(isa), "avx2") ||
           !std::strcmp(tritllm_isa_name(isa), "neon");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 10) return 0;
    Input input = {data, size};
    const int64_t rows = 1 + input.next() % 50,
                  columns = 1 + (input.next() | input.next() % 2 << 8);
    const int depth = 1 + input.next() % 4;
    const int64_t batch = 1 + input.next() % 18;
    const int flags = input.next(), dtypes = input.next();
    const bool repaired = flags & 1, tame = flags & 4, signs = flags & 8;
    const int arithmetic = flags & 2     ? flags & 128 ? TRITLLM_PER_TOKEN : TRITLLM_EXACT
                           : flags & 128 ? TRITLLM_SUPERBLOCKS
                                         : TRITLLM_GROUPS;
    const int x_dtype = tame ? int(TRITLLM_FLOAT32) : dtypes % 3;
    const int y_dtype = dtypes / 3 % 3, bias_dtype = dtypes / 9 % 3;
    const int n_damages = input.next() % 4, cut = input.next() % 65, believed = input.next();

    const int64_t groups = (columns + 15) / 16, width = (columns + 4) / 5;
    const int64_t scale_width = (3 * groups + 4) / 5;
    std::vector<uint8_t> damages = input.take(4 * n_damages);
    std::vector<uint8_t> weight = input.take(depth * rows * width);
    std::vector<uint8_t> scale = input.take(rows * scale_width);
    if (repaired) {
        repair(weight, width, columns);
        repair(scale, scale_width, 3 * groups);
    }
    std::vector<int8_t> trits(size_t(depth * rows * columns));
    std::vector<uint8_t> index(size_t(rows * groups));
    if (dtypes / 27 % 2) {  // one scale a row
        for (int64_t i = 0; i < rows * groups; i++) index[size_t(i)] = uint8_t(i / groups % 27);
        pack_scale_index(index.data(), rows, groups, scale.data());
    }
    const bool valid =
        unpack_trits(weight.data(), depth * rows, columns, trits.data()) == TRITLLM_OK &&
        unpack_scale_index(scale.data(), rows, groups, index.data()) == TRITLLM_OK;
    CHECK(valid || !repaired);
    float steps[27];
    for (int i = 0; i < 27; i++) steps[i] = 0.001f * float(i + 1) * float(i + 1);
    tritllm_portable portable = {
        weight.data(), rows * width, scale.data(), steps, rows, columns, depth, 0, 0, 0};
    portable.row_scales = tritllm_linear_row_scales(&portable);

    std::vector<uint8_t> bias = input.take(flags & 16 ? rows * element_bytes(bias_dtype) : 0);
    std::vector<uint8_t> x = input.take(batch * columns * element_bytes(x_dtype));
    if (tame)
        for (size_t i = 0; i + 4 <= x.size(); i += 4) {
            const float value = float(int8_t(x[i])) / 8;
            std::memcpy(&x[i], &value, 4);
        }
    const tritllm_input activated = {x.data(), columns, batch, columns, x_dtype, arithmetic};
    const int64_t activations_size = tritllm_linear_activations_size(batch, columns, arithmetic);
    CHECK(activations_size > 0);
    const Aligned activations(activations_size);

    std::vector<uint8_t> fused[2];  // the second of superblocks that keep levels
    for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++) {
        if (tritllm_isa_serving(isa, TRITLLM_PRODUCTS) != isa) continue;
        portable.planes_together = dtypes / 54 % 2 ? tritllm_linear_planes_together(isa, depth) : 0;
        const int64_t prepared_size = tritllm_linear_size(
            isa, rows, columns, depth, portable.row_scales, portable.planes_together);
        CHECK(prepared_size > 0);
        const Aligned prepared(prepared_size);
        const int status = tritllm_linear_prepare(isa, &portable, 0, rows, prepared.data);
        CHECK((status == TRITLLM_OK) == valid);
        if (!valid) continue;

        std::vector<uint8_t> y(size_t(batch * rows * element_bytes(y_dtype))), parts(y.size());
        tritllm_product product = {};
        product.prepared = prepared.data;
        product.size = prepared_size;
        product.rows = rows;
        product.layout = tritllm_linear_layout(isa);
        product.depth = depth;
        product.steps = flags & 32 ? steps : nullptr;
        product.bias = bias.empty() ? nullptr : bias.data();
        product.bias_dtype = bias_dtype;
        product.dtype = y_dtype;
        product.stride = rows;
        product.y = y.data();
        const int threads = flags & 64 ? 2 : 1;
        CHECK(tritllm_linear_run(threads, &activated, activations.data, &product, 1) == TRITLLM_OK);
        product.y = parts.data();
        for (int64_t row = 0; row < rows; row += 16)
            CHECK(tritllm_linear_compute(&product, activations.data, row,
                                         std::min(row + 16, rows)) == TRITLLM_OK);
        const int64_t first = believed % rows, n_decoded = rows - first;
        std::vector<uint8_t> decoded(size_t(n_decoded * columns * element_bytes(y_dtype)));
        tritllm_product weights = product;
        weights.y = decoded.data();
        weights.stride = columns;
        CHECK(tritllm_linear_decode(threads, &weights, columns, first, rows) == TRITLLM_OK);
        if (y_dtype == TRITLLM_FLOAT32)
            for (size_t i = 0; i < size_t(n_decoded * columns); i++) {
                const size_t at = size_t(first * columns) + i;
                int level = 0;
                for (int p = 0; p < depth; p++)
                    level = 3 * level + trits[size_t(p) * size_t(rows * columns) + at];
                const size_t group =
                    at / size_t(columns) * size_t(groups) + at % size_t(columns) / TRITLLM_GROUP;
                const float expected = float(level) * steps[index[group]];
                CHECK(std::memcmp(&decoded[4 * i], &expected, 4) == 0);
            }
        if (tame && bias.empty()) {  // where no NaN can come out
            CHECK(parts == y);
            std::vector<uint8_t> &other =
                fused[arithmetic == TRITLLM_SUPERBLOCKS && keeps_levels(isa)];
            if (isa != TRITLLM_SCALAR && other.empty()) other = y;
            if (isa != TRITLLM_SCALAR) CHECK(y == other);
        }

        // Damaged memory, cut where the caller says that it ends: refused, or used within its
        // bounds. What the caller believes of rows and columns is what y and x were made for.
        const int64_t held = std::max<int64_t>(prepared_size - (believed & 1 ? cut : 0), 64);
        const Aligned copy(held);
        auto *bytes = static_cast<uint8_t *>(copy.data);
        std::memcpy(bytes, prepared.data, size_t(held));
        Input from = {damages.data(), damages.size()};
        for (int i = 0; i < n_damages; i++) damage(bytes, held, from);
        if (signs) sign_header(bytes, held);
        tritllm_prepared found = {};
        const bool opened = tritllm_linear_describe(bytes, held, &found) == TRITLLM_OK;
        CHECK(!opened || (found.size <= held && found.rows > 0 && found.columns > 0 &&
                          found.depth >= 1 && found.depth <= 4));
        product.prepared = bytes;
        product.size = held;
        if (believed & 2) product.layout = 0;
        if (believed & 4) product.depth = 0;
        const int ran = tritllm_linear_run(threads, &activated, activations.data, &product, 1);
        CHECK(opened || ran != TRITLLM_OK);
        weights.prepared = bytes;
        weights.size = held;
        weights.layout = product.layout;
        weights.depth = product.depth;
        CHECK(tritllm_linear_decode(threads, &weights, columns, first, rows) == ran);
    }
    return 0;
}
