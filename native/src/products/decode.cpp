// The C interface that gives prepared memory back as weights.
#include <algorithm>
#include <atomic>

#include "cpu/elements.h"
#include "cpu/team.h"
#include "product_set.h"

namespace {

constexpr int64_t kTilesAtATime = 4;

struct Rows {
    const Product *product;
    const ProductKernels *kernels;
    int64_t columns;
    int64_t begin, end;
    std::atomic<int64_t> next;
};

// Pieces begin at tiles, so that no tile but the first and the last is unpacked twice.
void decode_part(void *data) {
    Rows &rows = *static_cast<Rows *>(data);
    const int64_t width = rows.product->stride * element_size(rows.product->dtype);
    for (;;) {
        const int64_t row = rows.next.fetch_add(kTilesAtATime * kTileRows);
        if (row >= rows.end) return;
        const int64_t from = std::max(row, rows.begin);
        const int64_t to = std::min(row + kTilesAtATime * kTileRows, rows.end);
        auto *out = static_cast<uint8_t *>(rows.product->y) + (from - rows.begin) * width;
        rows.kernels->decode(*rows.product, rows.columns, from, to, out);
    }
}

}  // namespace

int tritllm_linear_decode(int threads, const tritllm_product *product, int64_t columns,
                          int64_t begin, int64_t end) {
    ProductSet set;
    const int status = open_products(product, 1, columns, &set);
    if (status != TRITLLM_OK) return status;
    if (begin < 0 || begin > end || end > product->rows || product->stride < columns)
        return TRITLLM_BAD_ARGUMENT;
    Rows rows;
    rows.product = &set.product[0];
    rows.kernels = set.kernel[0];
    rows.columns = columns;
    rows.begin = begin;
    rows.end = end;
    rows.next = begin / kTileRows * kTileRows;
    run_team(end - rows.next <= kTilesAtATime * kTileRows ? 1 : threads, decode_part, &rows);
    return TRITLLM_OK;
}
