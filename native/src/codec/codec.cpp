// The C interface of the codec: picks the kernels of an instruction set and checks what a caller
// can get wrong.
#include <cmath>
#include <cstdint>

#include "codebook.h"
#include "codec_kernels.h"
#include "cpu/ieee.h"
#include "cpu/isa.h"
#include "cpu/lanes_scalar.h"
#include "fit.h"

namespace {

bool valid_rows(const tritllm_matrix &m, int64_t begin, int64_t end) {
    return valid_type(m.dtype) && m.columns > 0 && m.row_stride >= m.columns && 0 <= begin &&
           begin <= end && end <= m.rows && begin % TRITLLM_TILE == 0;
}

bool valid_depth(int depth) { return depth >= 1 && depth <= 4; }

template <class T>
int64_t first_nonfinite(const tritllm_matrix &m) {
    for (int64_t row = 0; row < m.rows; row++) {
        const T *p = static_cast<const T *>(m.weight) + row * m.row_stride;
        for (int64_t column = 0; column < m.columns; column++)
            if (!std::isfinite(to_float(p[column]))) return row * m.columns + column;
    }
    return -1;
}

bool valid_entries(const int32_t *index, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= TRITLLM_ENTRIES) return false;
    return true;
}

bool valid_block(const tritllm_columns &b, int64_t begin, int64_t end) {
    if (b.columns < 0 || b.columns > TRITLLM_BLOCK || b.columns % TRITLLM_GROUP || begin < 0 ||
        begin > end || end > b.rows || b.rows % TRITLLM_TILE || begin % TRITLLM_TILE ||
        end % TRITLLM_TILE || b.reach < 0 || b.reach > 40)
        return false;
    for (int group = 0; b.fixed && group < b.columns / TRITLLM_GROUP; group++)
        if (!valid_entries(b.index + group * b.rows + begin, end - begin)) return false;
    return true;
}

}  // namespace

int tritllm_peak(int isa, const tritllm_matrix *m, int64_t begin, int64_t end, uint32_t *bits) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_rows(*m, begin, end)) return TRITLLM_BAD_ARGUMENT;
    const uint32_t u = k->peak[m->dtype](*m, begin, end);
    switch (m->dtype) {
        case TRITLLM_FLOAT16: *bits = bits_of(to_float(Half{uint16_t(u)})); break;
        case TRITLLM_BFLOAT16: *bits = u << 16; break;
        default: *bits = u;
    }
    return TRITLLM_OK;
}

int64_t tritllm_first_nonfinite(const tritllm_matrix *m) {
    switch (m->dtype) {
        case TRITLLM_FLOAT16: return first_nonfinite<Half>(*m);
        case TRITLLM_BFLOAT16: return first_nonfinite<Bfloat>(*m);
        default: return first_nonfinite<float>(*m);
    }
}

int tritllm_measure(int isa, const tritllm_matrix *m, int64_t begin, int64_t end, int n_depths,
                    const int32_t *depths, float *largest, float *const *scales,
                    double *row_energy) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_rows(*m, begin, end) || n_depths < 0 || n_depths > 4) return TRITLLM_BAD_ARGUMENT;
    for (int i = 0; i < n_depths; i++)
        if (!valid_depth(depths[i])) return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    k->measure[m->dtype](*m, begin, end, n_depths, depths, largest, scales, row_energy);
    return TRITLLM_OK;
}

int tritllm_gather(int isa, const tritllm_matrix *m, const tritllm_sample_set *sample,
                   float *magnitudes) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_rows(*m, 0, m->rows) || sample->count < 0 || sample->count > TRITLLM_SAMPLE)
        return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    if (sample->count) k->gather[m->dtype](*m, *sample, magnitudes);
    return TRITLLM_OK;
}

int tritllm_fit(int isa, const float *magnitudes, const tritllm_sample_set *sample,
                const float *published, int depth, float *scratch, float *codebook) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_depth(depth) || sample->count < 1 || sample->count > TRITLLM_SAMPLE)
        return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    fit_codebook(*k, magnitudes, *sample, published, depth, scratch, codebook);
    return TRITLLM_OK;
}

int tritllm_write(int isa, const tritllm_matrix *m, int64_t begin, int64_t end, int n_targets,
                  const tritllm_target *targets) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_rows(*m, begin, end) || n_targets < 0 || n_targets > 4) return TRITLLM_BAD_ARGUMENT;
    for (int i = 0; i < n_targets; i++)
        if (!valid_depth(targets[i].depth)) return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    k->write[m->dtype](*m, begin, end, n_targets, targets);
    return TRITLLM_OK;
}

int tritllm_feed_back(int isa, const tritllm_columns *block, int64_t begin, int64_t end) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_block(*block, begin, end)) return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    k->feed_back(*block, begin, end);
    return TRITLLM_OK;
}

int tritllm_descend(int isa, const tritllm_columns *block, int64_t begin, int64_t end) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_block(*block, begin, end)) return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    k->descend(*block, begin, end);
    return TRITLLM_OK;
}

int tritllm_step_products(int isa, const float *level, const int32_t *index, const float *hessian,
                          int64_t rows, int64_t groups, int64_t begin, int64_t end,
                          double *products) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (rows < 0 || rows % TRITLLM_TILE || begin < 0 || begin > end || end > groups ||
        !valid_entries(index, rows * groups))
        return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    constexpr int64_t kSums = 2 * TRITLLM_ENTRIES * TRITLLM_ENTRIES;
    for (int64_t group = begin; group < end; group++)
        k->step_products(level, index, hessian, rows, groups, group, products + group * kSums);
    return TRITLLM_OK;
}

int tritllm_dequantize(int isa, const tritllm_packed *packed, int64_t begin, int64_t end) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_type(packed->dtype) || !valid_depth(packed->planes) || packed->columns < 1)
        return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    return k->decode[packed->dtype](*packed, begin, end);
}
