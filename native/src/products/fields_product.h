// y = x W^T on the layout kFields, written once over the vectors of an instruction set. A vector V
// holds V::kRows rows: bytes as in a unit, or one 32-bit lane a row.
#pragma once

#include <cmath>
#include <cstdint>

#include "fields.h"
#include "product_kernels.h"

namespace {

// --- Elements ----------------------------------------------------------------------------------

template <class T>
void quantize_row(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    const auto [q, scale, offset, groups] = quantized_output(row, blocks);
    for (int64_t g = 0; g < groups; g++) {
        float v[16] = {}, largest = 0;
        for (int64_t i = 0; i < std::min<int64_t>(16, columns - 16 * g); i++)
            v[i] = to_float(in[16 * g + i]);
        bool finite = true;
        for (int i = 0; i < 16; i++) {
            const float magnitude = std::fabs(v[i]);
            finite &= magnitude < INFINITY;
            largest = magnitude > largest ? magnitude : largest;
        }
        const bool zero = !finite || largest < kSmallestActivation;
        const float inverse = zero ? 0.0f : 127.0f / largest;
        int32_t sum = 0;
        for (int i = 0; i < 16; i++) {
            // Adding 1.5 * 2**23 leaves the integer, rounded half to even, in the low bits.
            const float shifted = v[i] * inverse + 12582912.0f;
            const int32_t n = zero ? 0 : int32_t(bits_of(shifted) - bits_of(12582912.0f));
            q[16 * g + i] = int8_t(n);
            sum += n;
        }
        for (int d = 0; d < 4; d++) offset[d * groups + g] = -kMaxLevel[d + 1] * sum;
        scale[g] = !finite ? NAN : zero ? 0.0f : largest / 127.0f;
    }
}

template <class T>
void widen_row(const void *x, int64_t columns, int64_t blocks, uint8_t *row) {
    const T *in = static_cast<const T *>(x);
    float *out = reinterpret_cast<float *>(row);
    for (int64_t i = 0; i < blocks * kBlockColumns; i++) out[i] = i < columns ? to_float(in[i]) : 0;
}

// The results of one tile and batch row.
inline void finish_tile(const Product &p, int64_t b, int64_t tile, const float *sum) {
    const int64_t row = tile * kTileRows;
    for (int64_t r = 0; r < std::min<int64_t>(kTileRows, p.rows - row); r++) {
        const float bias = p.bias ? element(p.bias, p.bias_dtype, row + r) : 0.0f;
        set_element(p.y, p.dtype, b * p.stride + row + r, p.bias ? sum[r] + bias : sum[r]);
    }
}

// --- A group: four vectors of codes (level + L) ------------------------------------------------

template <class V, int D>
inline void unpack_group(const uint8_t *units, typename V::Bytes *w) {
    if constexpr (D == 1) {
        const auto x = V::load(units);
        w[0] = V::template pair<0>(x);
        w[1] = V::template pair<1>(x);
        w[2] = V::template pair<2>(x);
        w[3] = V::template pair<3>(x);
    } else if constexpr (D == 4) {
        for (int i = 0; i < 4; i++) w[i] = V::load(units + i * kUnit);
    } else {
        for (int u = 0; u < 2; u++) {
            const auto x = V::load(units + u * kUnit);
            w[u] = V::low_nibble(x);
            w[u + 2] = V::high_nibble(x);
        }
        if constexpr (D == 3) {
            typename V::Bytes top[4];
            unpack_group<V, 1>(units + 2 * kUnit, top);
            for (int i = 0; i < 4; i++) w[i] = V::add(w[i], V::times9(top[i]));
        }
    }
}

constexpr int kFieldsPrefetch = 1024;

// --- Products ----------------------------------------------------------------------------------

template <class V, int D, int M>
void fields_tile(const Product &p, const Activations &a, int64_t b, int64_t tile) {
    constexpr int kParts = kTileRows / V::kRows;
    const uint8_t *block = p.tiles + tile * p.tile_bytes;
    const int8_t *q[M];
    const int32_t *offset[M];
    const float *scale[M];
    typename V::Floats sum[M][kParts];
    for (int m = 0; m < M; m++) {
        q[m] = quantized_row(a, b + m);
        offset[m] = offset_row(a, b + m, D);
        scale[m] = scale_row(a, b + m);
        for (int part = 0; part < kParts; part++) sum[m][part] = V::zero();
    }
    for (int64_t n = 0; n < p.blocks; n++, block += block_bytes(kFields, D)) {
        const uint8_t *units = block + kUnit;
        for (int g = 0; g < kBlockGroups; g++, units += D * kUnit) {
            for (int line = 0; line < D; line++)
                V::prefetch(units + kFieldsPrefetch + line * kUnit);
            for (int part = 0; part < kParts; part++) {
                typename V::Bytes w[4];
                unpack_group<V, D>(units + part * 4 * V::kRows, w);
                const auto step = V::lookup(p.steps, block + part * 4 * V::kRows, 5 * g);
                for (int m = 0; m < M; m++) {
                    auto dot = V::set(offset[m][g]);
                    for (int i = 0; i < 4; i++) dot = V::dot(dot, w[i], q[m] + 16 * g + 4 * i);
                    sum[m][part] =
                        V::fma(V::mul(V::to_floats(dot), V::set(scale[m][g])), step, sum[m][part]);
                }
            }
        }
        for (int m = 0; m < M; m++) {
            q[m] += kBlockColumns;
            offset[m] += kBlockGroups;
            scale[m] += kBlockGroups;
        }
    }
    for (int m = 0; m < M; m++) {
        float result[kTileRows];
        for (int part = 0; part < kParts; part++) V::store(result + part * V::kRows, sum[m][part]);
        finish_tile(p, b + m, tile, result);
    }
}

template <class V, int D>
void fields_exact_tile(const Product &p, const Activations &a, int64_t b, int64_t tile) {
    constexpr int kParts = kTileRows / V::kRows;
    const uint8_t *block = p.tiles + tile * p.tile_bytes;
    const float *x = exact_row(a, b);
    typename V::Floats sum[kParts];
    for (int part = 0; part < kParts; part++) sum[part] = V::zero();
    for (int64_t n = 0; n < p.blocks; n++, block += block_bytes(kFields, D)) {
        const uint8_t *units = block + kUnit;
        for (int g = 0; g < kBlockGroups; g++, units += D * kUnit, x += 16)
            for (int part = 0; part < kParts; part++) {
                typename V::Bytes w[4];
                unpack_group<V, D>(units + part * 4 * V::kRows, w);
                const auto step = V::lookup(p.steps, block + part * 4 * V::kRows, 5 * g);
                for (int i = 0; i < 4; i++)
                    for (int c = 0; c < 4; c++) {
                        const auto level = V::to_floats(V::byte(w[i], c, kMaxLevel[D]));
                        sum[part] = V::fma(V::set(x[4 * i + c]), V::mul(level, step), sum[part]);
                    }
            }
    }
    float result[kTileRows];
    for (int part = 0; part < kParts; part++) V::store(result + part * V::kRows, sum[part]);
    finish_tile(p, b, tile, result);
}

constexpr int kFieldsBatch = 4;  // batch rows for which codes are unpacked once

template <class V, int D>
void fields_depth(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++)
        for (int64_t b = 0; b < a.batch; b += kFieldsBatch) switch (a.batch - b) {
                case 1: fields_tile<V, D, 1>(p, a, b, tile); break;
                case 2: fields_tile<V, D, 2>(p, a, b, tile); break;
                case 3: fields_tile<V, D, 3>(p, a, b, tile); break;
                default: fields_tile<V, D, kFieldsBatch>(p, a, b, tile);
            }
}

template <class V>
void fields_compute(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    switch (p.depth) {
        case 1: return fields_depth<V, 1>(p, a, begin, end);
        case 2: return fields_depth<V, 2>(p, a, begin, end);
        case 3: return fields_depth<V, 3>(p, a, begin, end);
        default: return fields_depth<V, 4>(p, a, begin, end);
    }
}

template <class V>
void fields_exact(const Product &p, const Activations &a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++)
        for (int64_t b = 0; b < a.batch; b++) switch (p.depth) {
                case 1: fields_exact_tile<V, 1>(p, a, b, tile); break;
                case 2: fields_exact_tile<V, 2>(p, a, b, tile); break;
                case 3: fields_exact_tile<V, 3>(p, a, b, tile); break;
                default: fields_exact_tile<V, 4>(p, a, b, tile);
            }
}

inline int fields_prepare(const tritllm_portable &portable, int64_t begin, int64_t end,
                          uint8_t *tiles) {
    return prepare_tiles<PlainReader>(portable, kFields, kFieldsSplit[portable.depth], begin, end,
                                      tiles, [&](const Span &span, int block, uint8_t *out) {
                                          pack_fields(span, block, portable.depth, out);
                                      });
}

template <class V>
constexpr ProductKernels fields_kernels() {
    return {kFields,
            fields_prepare,
            {{quantize_row<Half>, quantize_row<Bfloat>, quantize_row<float>},
             {widen_row<Half>, widen_row<Bfloat>, widen_row<float>}},
            fields_compute<V>,
            fields_exact<V>};
}

}  // namespace
