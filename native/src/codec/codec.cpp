// The C interface of the codec: picks the kernels of an instruction set and checks what a caller
// can get wrong.
#include <cmath>
#include <cstdint>

#include "codebook.h"
#include "codec_kernels.h"
#include "cpu/ieee.h"
#include "cpu/isa.h"
#include "cpu/lanes_scalar.h"

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

int tritllm_tabulate(int isa, const float *magnitudes, const tritllm_sample_set *sample,
                     const float *grid, int depth, int begin, int end, float *table) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_depth(depth) || begin < 0 || end > TRITLLM_GRID) return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    for (int i = begin; i < end; i++)
        k->tabulate(magnitudes, TRITLLM_SAMPLE, (sample->count + 15) / 16 * 16,
                    grid[i] / float(kMaxLevel[depth]), depth, table + int64_t(i) * TRITLLM_SAMPLE);
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

int tritllm_dequantize(int isa, const tritllm_packed *packed, int64_t begin, int64_t end) {
    const CodecKernels *k = codec_kernels(isa);
    if (!k) return TRITLLM_UNSUPPORTED;
    if (!valid_type(packed->dtype) || !valid_depth(packed->planes) || packed->columns < 1)
        return TRITLLM_BAD_ARGUMENT;
    const IeeeArithmetic ieee;
    return k->decode[packed->dtype](*packed, begin, end);
}
