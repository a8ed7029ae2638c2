// The C interface of the products: headers, checks, and the sharing of one call between threads.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "portable_tile.h"
#include "product_set.h"

namespace {

// Of a dimension, or a product of two: sizes do not wrap.
constexpr int64_t kLargest = int64_t(1) << 40;

bool valid_shape(int64_t rows, int64_t columns) {
    return rows > 0 && columns > 0 && rows <= kLargest && columns <= kLargest / rows;
}

// FNV-1a of the header's fields before `check`.
uint64_t checksum(const PreparedHeader &h) {
    uint64_t sum = 0xcbf29ce484222325;
    const auto *bytes = reinterpret_cast<const uint8_t *>(&h);
    for (size_t i = 0; i < offsetof(PreparedHeader, check); i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3;
    return sum;
}

// Whether `size` bytes at `prepared` are what tritllm_linear_prepare made; else the reason.
int open_prepared(const void *prepared, int64_t size, const PreparedHeader **header,
                  const ProductKernels **kernels) {
    if (!prepared || size < int64_t(sizeof(PreparedHeader)) ||
        reinterpret_cast<uintptr_t>(prepared) % kUnit)
        return TRITLLM_BAD_ARGUMENT;
    const auto *h = static_cast<const PreparedHeader *>(prepared);
    if (std::memcmp(h->magic, kPreparedMagic, 8) || h->version != kPreparedVersion ||
        h->check != checksum(*h) || h->size < int64_t(sizeof(PreparedHeader)) || h->size > size)
        return TRITLLM_BAD_ARGUMENT;
    *kernels = product_kernels(int(h->isa));
    if (!*kernels) return TRITLLM_UNSUPPORTED;
    if ((*kernels)->layout != h->layout ||
        h->size != tritllm_linear_size(int(h->isa), h->rows, h->columns, h->depth, h->row_scales,
                                       h->planes_together))
        return TRITLLM_BAD_ARGUMENT;
    *header = h;
    return TRITLLM_OK;
}

// The product as kernels see it, or the reason why it cannot be computed.
int open_product(const tritllm_product &product, int64_t columns, Product *p, int *isa,
                 const ProductKernels **k) {
    const PreparedHeader *h;
    const int status = open_prepared(product.prepared, product.size, &h, k);
    if (status != TRITLLM_OK) return status;
    const int depth = product.depth ? product.depth : h->depth;
    if (h->columns != columns || h->rows != product.rows || depth < 1 || depth > h->depth ||
        (depth < h->depth && (!product.steps || h->planes_together)) ||
        (product.layout && h->layout != product.layout) || !valid_type(product.dtype) ||
        (product.bias && !valid_type(product.bias_dtype)))
        return TRITLLM_BAD_ARGUMENT;
    *isa = int(h->isa);
    const int64_t blocks = blocks_of(h->columns), tiles = tiles_of(h->rows);
    p->index = reinterpret_cast<const uint8_t *>(h + 1);
    p->row_scales = h->row_scales != 0;
    p->planes_together = h->planes_together != 0;
    for (int i = 0; i < (p->planes_together ? 1 : depth); i++)
        p->plane[i] = p->index + index_bytes(p->row_scales, tiles, blocks) +
                      i * plane_bytes(h->layout, tiles, blocks);
    p->rows = h->rows;
    p->blocks = blocks;
    p->bias = product.bias;
    p->bias_dtype = product.bias_dtype;
    p->dtype = product.dtype;
    p->y = product.y;
    p->stride = product.stride;
    p->depth = depth;
    std::memcpy(p->steps, h->steps, sizeof p->steps);
    if (product.steps) std::copy_n(product.steps, TRITLLM_ENTRIES, p->steps);
    return TRITLLM_OK;
}

Activations open_activations(const void *activations) {
    const auto *h = static_cast<const ActivationsHeader *>(activations);
    return {reinterpret_cast<const uint8_t *>(h + 1), h->row_bytes, h->batch,
            blocks_of(h->columns)};
}

void multiply(const ProductKernels &k, const Product &p, const void *activations, int64_t begin,
              int64_t end) {
    const Activations a = open_activations(activations);
    switch (static_cast<const ActivationsHeader *>(activations)->arithmetic) {
        case TRITLLM_EXACT: return k.compute_exact(p, a, begin, end);
        case TRITLLM_SUPERBLOCKS: return k.compute_superblocks(p, a, begin, end);
        case TRITLLM_PER_TOKEN:
            return (p.row_scales ? k.compute_rows : k.compute)(p, a, begin, end);
        default: return k.compute(p, a, begin, end);
    }
}

using Conversion = void (*)(const void *, int64_t, int64_t, uint8_t *);

// What fills a row of activations, by the type of its elements.
const Conversion *conversion(const RowKernels &rows, int arithmetic) {
    switch (arithmetic) {
        case TRITLLM_EXACT: return rows.widen;
        case TRITLLM_SUPERBLOCKS: return rows.superblocks;
        case TRITLLM_PER_TOKEN: return rows.token;
        default: return rows.quantize;
    }
}

// --- One call on many threads -------------------------------------------------------------------

constexpr int64_t kAloneBatch = 4;      // so few batch rows the caller's thread quantizes alone
constexpr int64_t kPartsPerThread = 6;  // so that a thread which finishes early finds more work

struct Call {
    const tritllm_input *input;
    void *activations;
    ProductSet products;
    int64_t part;
    std::atomic<int64_t> next;
};

void quantize_part(void *data) {
    Call &call = *static_cast<Call *>(data);
    for (;;) {
        const int64_t b = call.next.fetch_add(1);
        if (b >= call.input->batch) return;
        tritllm_linear_quantize(call.input, b, b + 1, call.activations);
    }
}

void multiply_part(void *data) {
    Call &call = *static_cast<Call *>(data);
    const int64_t all = call.products.tiles();
    for (;;) {
        const int64_t begin = call.next.fetch_add(call.part);
        if (begin >= all) return;
        multiply_tiles(call.products, call.activations, begin, std::min(begin + call.part, all));
    }
}

}  // namespace

int open_products(const tritllm_product *products, int count, int64_t columns, ProductSet *set) {
    if (count < 1 || count > kMostProducts) return TRITLLM_BAD_ARGUMENT;
    set->count = count;
    set->tiles_before[0] = 0;
    for (int i = 0; i < count; i++) {
        int isa;
        const int status =
            open_product(products[i], columns, &set->product[i], &isa, &set->kernel[i]);
        if (status != TRITLLM_OK) return status;
        if (i == 0) set->isa = isa;
        set->tiles_before[i + 1] = set->tiles_before[i] + tiles_of(set->product[i].rows);
    }
    return TRITLLM_OK;
}

void copy_activations(const void *activations, int64_t from, void *others, int64_t to) {
    const auto *h = static_cast<const ActivationsHeader *>(activations);
    std::memcpy(static_cast<uint8_t *>(others) + sizeof *h + to * h->row_bytes,
                static_cast<const uint8_t *>(activations) + sizeof *h + from * h->row_bytes,
                size_t(h->row_bytes));
}

int64_t tiles_at_a_time(const ProductSet &set, int threads) {
    const int64_t all = set.tiles();
    // Multiples of four, for kernels that take so many tiles at a time.
    return threads <= 1 ? all + 1 : (all / (threads * kPartsPerThread) + 4) / 4 * 4;
}

void multiply_tiles(const ProductSet &set, const void *activations, int64_t begin, int64_t end) {
    for (int i = 0; i < set.count; i++) {
        const int64_t before = set.tiles_before[i];
        const int64_t from = std::max(begin, before) - before;
        const int64_t to = std::min(end, set.tiles_before[i + 1]) - before;
        if (from < to) multiply(*set.kernel[i], set.product[i], activations, from, to);
    }
}

int tritllm_linear_row_scales(const tritllm_portable *portable) {
    if (portable->depth != 1) return 0;
    for (int64_t row = 0; row < portable->rows; row++)
        if (row_index(*portable, row) < 0) return 0;
    return 1;
}

int tritllm_linear_planes_together(int isa, int depth) {
    const ProductKernels *k = product_kernels(isa);
    return k && k->planes_together && depth >= k->planes_together && depth <= 4;
}

int64_t tritllm_linear_size(int isa, int64_t rows, int64_t columns, int depth, int row_scales,
                            int planes_together) {
    const ProductKernels *k = product_kernels(isa);
    if (!k || depth < 1 || depth > 4 || !valid_shape(rows, columns)) return -1;
    if (row_scales != 0 && (row_scales != 1 || depth != 1)) return -1;
    if (planes_together != 0 &&
        (planes_together != 1 || !tritllm_linear_planes_together(isa, depth)))
        return -1;
    const int64_t tiles = tiles_of(rows), blocks = blocks_of(columns);
    return int64_t(sizeof(PreparedHeader)) + index_bytes(row_scales != 0, tiles, blocks) +
           (planes_together ? kTogetherStreams * together_bytes(depth, tiles, blocks)
                            : depth * plane_bytes(k->layout, tiles, blocks));
}

int tritllm_linear_layout(int isa) {
    const ProductKernels *k = product_kernels(isa);
    return k ? int(k->layout) : -1;
}

int tritllm_linear_prepare(int isa, const tritllm_portable *portable, int64_t begin, int64_t end,
                           void *prepared) {
    const ProductKernels *k = product_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    const int64_t size =
        tritllm_linear_size(isa, portable->rows, portable->columns, portable->depth,
                            portable->row_scales, portable->planes_together);
    if (size < 0 || begin < 0 || begin > end || end > portable->rows || begin % kTileRows ||
        (end % kTileRows && end != portable->rows))
        return TRITLLM_BAD_ARGUMENT;
    auto *h = static_cast<PreparedHeader *>(prepared);
    if (begin == 0) {
        PreparedHeader made = {};
        std::memcpy(made.magic, kPreparedMagic, 8);
        made.version = kPreparedVersion;
        made.isa = uint32_t(isa);
        made.layout = uint16_t(k->layout);
        made.row_scales = uint8_t(portable->row_scales);
        made.planes_together = uint8_t(portable->planes_together);
        made.depth = portable->depth;
        made.rows = portable->rows;
        made.columns = portable->columns;
        made.size = size;
        made.check = checksum(made);
        std::copy_n(portable->steps, TRITLLM_ENTRIES, made.steps);
        *h = made;
    }
    return k->prepare(*portable, begin / kTileRows, tiles_of(end),
                      reinterpret_cast<uint8_t *>(h + 1));
}

int tritllm_linear_describe(const void *prepared, int64_t size, tritllm_prepared *out) {
    const PreparedHeader *h;
    const ProductKernels *k;
    const int status = open_prepared(prepared, size, &h, &k);
    if (status == TRITLLM_OK)
        *out = {h->rows,         h->columns,         h->size,
                int32_t(h->isa), int32_t(h->layout), h->depth,
                h->row_scales,   h->planes_together, 0};
    return status;
}

int64_t tritllm_linear_superblock_rows(int isa) {
    const ProductKernels *k = product_kernels(isa);
    return k ? k->superblock_rows : -1;
}

int64_t tritllm_linear_activations_size(int64_t batch, int64_t columns, int arithmetic) {
    if (arithmetic < TRITLLM_GROUPS || arithmetic > TRITLLM_PER_TOKEN || batch < 0 || columns < 1 ||
        columns > kLargest || batch > kLargest / columns)
        return -1;
    return int64_t(sizeof(ActivationsHeader)) +
           batch * activation_row_bytes(blocks_of(columns), arithmetic);
}

int tritllm_linear_begin(int isa, const tritllm_input *input, void *activations) {
    if (!product_kernels(isa)) return TRITLLM_UNSUPPORTED;
    if (!valid_type(input->dtype) ||
        tritllm_linear_activations_size(input->batch, input->columns, input->arithmetic) < 0)
        return TRITLLM_BAD_ARGUMENT;
    ActivationsHeader h = {};
    std::memcpy(h.magic, kActivationsMagic, 8);
    h.batch = input->batch;
    h.columns = input->columns;
    h.row_bytes = activation_row_bytes(blocks_of(input->columns), input->arithmetic);
    h.arithmetic = input->arithmetic;
    h.isa = isa;
    std::memcpy(activations, &h, sizeof h);
    return TRITLLM_OK;
}

int tritllm_linear_quantize(const tritllm_input *input, int64_t begin, int64_t end,
                            void *activations) {
    const auto *h = static_cast<const ActivationsHeader *>(activations);
    if (std::memcmp(h->magic, kActivationsMagic, 8) || h->columns != input->columns || begin < 0 ||
        begin > end || end > h->batch || !valid_type(input->dtype))
        return TRITLLM_BAD_ARGUMENT;
    const ProductKernels *k = product_kernels(h->isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    const auto convert = conversion(k->rows, h->arithmetic)[input->dtype];
    const int64_t blocks = blocks_of(h->columns), width = element_size(input->dtype);
    for (int64_t b = begin; b < end; b++)
        convert(static_cast<const uint8_t *>(input->x) + b * input->stride * width, h->columns,
                blocks, static_cast<uint8_t *>(activations) + sizeof *h + b * h->row_bytes);
    return TRITLLM_OK;
}

int tritllm_linear_compute(const tritllm_product *product, const void *activations, int64_t begin,
                           int64_t end) {
    const auto *h = static_cast<const ActivationsHeader *>(activations);
    if (std::memcmp(h->magic, kActivationsMagic, 8)) return TRITLLM_BAD_ARGUMENT;
    Product p;
    int isa;
    const ProductKernels *k;
    const int status = open_product(*product, h->columns, &p, &isa, &k);
    if (status != TRITLLM_OK) return status;
    if (begin < 0 || begin > end || end > p.rows || begin % kTileRows ||
        (end % kTileRows && end != p.rows))
        return TRITLLM_BAD_ARGUMENT;
    multiply(*k, p, activations, begin / kTileRows, tiles_of(end));
    return TRITLLM_OK;
}

int tritllm_linear_run(int threads, const tritllm_input *input, void *activations,
                       const tritllm_product *products, int n_products) {
    Call call;
    call.input = input;
    call.activations = activations;
    int status = open_products(products, n_products, input->columns, &call.products);
    if (status != TRITLLM_OK) return status;
    status = tritllm_linear_begin(call.products.isa, input, activations);
    if (status != TRITLLM_OK) return status;
    call.next = 0;
    run_team(input->batch <= kAloneBatch ? 1 : threads, quantize_part, &call);
    call.part = tiles_at_a_time(call.products, threads);
    call.next = 0;
    run_team(call.products.tiles() <= call.part ? 1 : threads, multiply_part, &call);
    return TRITLLM_OK;
}

void tritllm_linear_use_openmp(void *gomp_parallel) { use_openmp(gomp_parallel); }
