// The C interface of the products: headers, checks, and the sharing of one call between threads.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

#if defined(_MSC_VER)
#include <intrin.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/team.h"
#include "product_set.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif

namespace {

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
void cpuid(int leaf, uint32_t *r) { __cpuidex(reinterpret_cast<int *>(r), leaf, 0); }
#else
void cpuid(int leaf, uint32_t *r) { __cpuid_count(leaf, 0, r[0], r[1], r[2], r[3]); }
#endif

// Whether the system lets this process use the tiles: Linux does when it is asked.
bool may_use_tiles() {
#if defined(TRITLLM_WITH_AMX) && defined(__linux__)
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

// What tritllm_isas found, less AVX-512 without VNNI; AMX needs its tiles and their int8 products.
int detect() {
    int isas = tritllm_isas() & (1 << TRITLLM_SCALAR | 1 << TRITLLM_AVX2 | 1 << TRITLLM_AVX512);
    if (!(isas >> TRITLLM_AVX512 & 1)) return isas;
    uint32_t seven[4];
    cpuid(7, seven);
    const bool vnni = seven[2] >> 11 & 1, tiles = seven[3] >> 24 & 1, int8 = seven[3] >> 25 & 1;
    if (!vnni) return isas & ~(1 << TRITLLM_AVX512);
    if (tiles && int8 && may_use_tiles()) isas |= 1 << TRITLLM_AMX;
    return isas;
}
#elif defined(__aarch64__)
int detect() {
    int isas = 1 << TRITLLM_SCALAR;
#if defined(__linux__)
    constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    if (getauxval(AT_HWCAP) & kDotProduct) isas |= 1 << TRITLLM_NEON;
#elif defined(__APPLE__)
    isas |= 1 << TRITLLM_NEON;
#endif
    return isas;
}
#else
int detect() { return 1 << TRITLLM_SCALAR; }
#endif

const ProductKernels *kernels(int isa) {
    if (isa < 0 || isa > TRITLLM_AMX || !(tritllm_linear_isas() >> isa & 1)) return nullptr;
    switch (isa) {
#if defined(__x86_64__) || defined(_M_X64)
        case TRITLLM_AVX2: return &products_avx2;
        case TRITLLM_AVX512: return &products_avx512;
#if defined(TRITLLM_WITH_AMX)
        case TRITLLM_AMX: return &products_amx;
#endif
#elif defined(__aarch64__)
        case TRITLLM_NEON: return &products_neon;
#endif
        default: return &products_scalar;
    }
}

uint32_t layout_of(int isa) {
    return isa == TRITLLM_AVX512 || isa == TRITLLM_AMX ? kFives : kFields;
}

constexpr int64_t kLargest = int64_t(1)
                             << 40;  // of a dimension or a product of two: sizes do not wrap

bool valid_shape(int64_t rows, int64_t columns) {
    return rows > 0 && columns > 0 && rows <= kLargest && columns <= kLargest / rows;
}

bool valid_type(int dtype) { return dtype >= TRITLLM_FLOAT16 && dtype <= TRITLLM_FLOAT32; }

// FNV-1a of the header's fields before `check`.
uint64_t checksum(const PreparedHeader &h) {
    uint64_t sum = 0xcbf29ce484222325;
    const auto *bytes = reinterpret_cast<const uint8_t *>(&h);
    for (size_t i = 0; i < offsetof(PreparedHeader, check); i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3;
    return sum;
}

// The product as kernels see it, or the reason why it cannot be computed.
int open_product(const tritllm_product &product, const ActivationsHeader &activations, Product *p,
                 const ProductKernels **k) {
    const auto *h = static_cast<const PreparedHeader *>(product.prepared);
    if (std::memcmp(h->magic, kPreparedMagic, 8) || h->version != kPreparedVersion ||
        h->check != checksum(*h))
        return TRITLLM_BAD_ARGUMENT;
    *k = kernels(int(h->isa));
    if (!*k) return TRITLLM_UNSUPPORTED;
    if ((*k)->layout != h->layout || h->columns != activations.columns ||
        !valid_type(product.dtype) || (product.bias && !valid_type(product.bias_dtype)))
        return TRITLLM_BAD_ARGUMENT;
    const int64_t blocks = blocks_of(h->columns);
    *p = {h,
          reinterpret_cast<const uint8_t *>(h + 1),
          blocks,
          blocks * block_bytes(h->layout, h->depth),
          product.bias,
          product.bias_dtype,
          product.dtype,
          product.y,
          product.stride};
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
    const bool exact = static_cast<const ActivationsHeader *>(activations)->exact;
    (exact ? k.compute_exact : k.compute)(p, a, begin, end);
}

// --- One call on many threads
// ---------------------------------------------------------------------

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

int open_products(const tritllm_product *products, int count, const void *activations,
                  ProductSet *set) {
    if (count < 0 || count > kMostProducts) return TRITLLM_BAD_ARGUMENT;
    const auto &header = *static_cast<const ActivationsHeader *>(activations);
    set->count = count;
    set->tiles_before[0] = 0;
    for (int i = 0; i < count; i++) {
        const int status = open_product(products[i], header, &set->product[i], &set->kernel[i]);
        if (status != TRITLLM_OK) return status;
        set->tiles_before[i + 1] = set->tiles_before[i] + tiles_of(set->product[i].header->rows);
    }
    return TRITLLM_OK;
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

int tritllm_linear_isas(void) {
    static const int isas = detect();
    return isas;
}

int64_t tritllm_linear_size(int isa, int64_t rows, int64_t columns, int depth) {
    if (isa < 0 || isa > TRITLLM_AMX || depth < 1 || depth > 4 || !valid_shape(rows, columns))
        return -1;
    return int64_t(sizeof(PreparedHeader)) +
           tiles_of(rows) * blocks_of(columns) * block_bytes(layout_of(isa), depth);
}

int tritllm_linear_prepare(int isa, const tritllm_portable *portable, int64_t begin, int64_t end,
                           void *prepared) {
    const ProductKernels *k = kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    const int64_t size =
        tritllm_linear_size(isa, portable->rows, portable->columns, portable->depth);
    if (size < 0 || begin < 0 || begin > end || end > portable->rows || begin % kTileRows ||
        (end % kTileRows && end != portable->rows))
        return TRITLLM_BAD_ARGUMENT;
    auto *h = static_cast<PreparedHeader *>(prepared);
    if (begin == 0) {
        PreparedHeader made = {};
        std::memcpy(made.magic, kPreparedMagic, 8);
        made.version = kPreparedVersion;
        made.isa = uint32_t(isa);
        made.layout = k->layout;
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

int tritllm_linear_check(const void *prepared, int64_t size) {
    if (size < int64_t(sizeof(PreparedHeader))) return TRITLLM_BAD_ARGUMENT;
    PreparedHeader h;
    std::memcpy(&h, prepared, sizeof h);
    if (std::memcmp(h.magic, kPreparedMagic, 8) || h.version != kPreparedVersion ||
        h.check != checksum(h) || h.isa > TRITLLM_AMX || h.layout != layout_of(int(h.isa)) ||
        h.size > size || h.size != tritllm_linear_size(int(h.isa), h.rows, h.columns, h.depth))
        return TRITLLM_BAD_ARGUMENT;
    return kernels(int(h.isa)) ? TRITLLM_OK : TRITLLM_UNSUPPORTED;
}

int64_t tritllm_linear_activations_size(int64_t batch, int64_t columns, int exact) {
    if (batch < 0 || columns < 1 || columns > kLargest || batch > kLargest / columns) return -1;
    return int64_t(sizeof(ActivationsHeader)) +
           batch * activation_row_bytes(blocks_of(columns), exact);
}

int tritllm_linear_begin(const tritllm_input *input, void *activations) {
    if (!valid_type(input->dtype) ||
        tritllm_linear_activations_size(input->batch, input->columns, input->exact) < 0)
        return TRITLLM_BAD_ARGUMENT;
    ActivationsHeader h = {};
    std::memcpy(h.magic, kActivationsMagic, 8);
    h.batch = input->batch;
    h.columns = input->columns;
    h.row_bytes = activation_row_bytes(blocks_of(input->columns), input->exact);
    h.exact = input->exact != 0;
    std::memcpy(activations, &h, sizeof h);
    return TRITLLM_OK;
}

int tritllm_linear_quantize(const tritllm_input *input, int64_t begin, int64_t end,
                            void *activations) {
    const auto *h = static_cast<const ActivationsHeader *>(activations);
    if (std::memcmp(h->magic, kActivationsMagic, 8) || h->columns != input->columns || begin < 0 ||
        begin > end || end > h->batch || !valid_type(input->dtype))
        return TRITLLM_BAD_ARGUMENT;
    // The row format is the same for all; so the fastest that is there.
    static const ProductKernels *const k = [] {
        for (int isa : {TRITLLM_AVX512, TRITLLM_AVX2, TRITLLM_NEON})
            if (const ProductKernels *found = kernels(isa)) return found;
        return &products_scalar;
    }();
    const auto convert = (h->exact ? k->widen : k->quantize)[input->dtype];
    const int64_t blocks = blocks_of(h->columns), width = input->dtype == TRITLLM_FLOAT32 ? 4 : 2;
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
    const ProductKernels *k;
    const int status = open_product(*product, *h, &p, &k);
    if (status != TRITLLM_OK) return status;
    if (begin < 0 || begin > end || end > p.header->rows || begin % kTileRows ||
        (end % kTileRows && end != p.header->rows))
        return TRITLLM_BAD_ARGUMENT;
    multiply(*k, p, activations, begin / kTileRows, tiles_of(end));
    return TRITLLM_OK;
}

int tritllm_linear_run(int threads, const tritllm_input *input, void *activations,
                       const tritllm_product *products, int n_products) {
    int status = tritllm_linear_begin(input, activations);
    if (status != TRITLLM_OK) return status;
    Call call;
    call.input = input;
    call.activations = activations;
    status = open_products(products, n_products, activations, &call.products);
    if (status != TRITLLM_OK) return status;
    call.next = 0;
    run_team(input->batch <= kAloneBatch ? 1 : threads, quantize_part, &call);
    call.part = tiles_at_a_time(call.products, threads);
    call.next = 0;
    run_team(call.products.tiles() <= call.part ? 1 : threads, multiply_part, &call);
    return TRITLLM_OK;
}

void tritllm_linear_use_openmp(void *gomp_parallel) { use_openmp(gomp_parallel); }
