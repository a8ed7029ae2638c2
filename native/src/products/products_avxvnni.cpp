// y = x W^T with AVX-VNNI, for processors that have it without AVX-512: what AVX2 does, and
// vpdpbusd in place of three instructions.
#include "avx2_vectors.h"

namespace {

struct AvxVnniProducts : Avx2Products {
    template <int D>
    static Sums first(Bytes w, Bytes x) {
        return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x);
    }
    template <int D>
    static Sums more(Sums sum, Bytes w, Bytes x) {
        return _mm256_dpbusd_avx_epi32(sum, w, x);
    }
    template <int D>
    static Ints total(Sums sum, int32_t offset) {
        return _mm256_add_epi32(sum, _mm256_set1_epi32(offset));
    }

    // Of superblocks: weights are unsigned, w + 128.
    static constexpr bool kLevelSuperblocks = false;
    static constexpr int kBias = 128, kSuperTiles = 1, kSuperRows = 6;
    static Ints dot(Ints sum, Bytes w, Bytes x) { return now(_mm256_dpbusd_avx_epi32(sum, w, x)); }
};

}  // namespace

extern const ProductKernels products_avxvnni = fields_kernels<AvxVnniProducts>(48);
