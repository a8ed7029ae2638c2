// y = x W^T with AVX2: eight rows a vector.
//
// vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits with saturation; codes
// go up to 80 and activations to 127, so 2 * 80 * 127 = 20,320 never saturates.
#include <immintrin.h>

#include "fields_product.h"

namespace {

struct Avx2Products {
    static constexpr int kRows = 8;
    using Bytes = __m256i;
    using Ints = __m256i;
    using Floats = __m256;

    static void prefetch(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
    static Bytes load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    template <int F>
    static Bytes pair(Bytes x) {
        return _mm256_and_si256(_mm256_srli_epi16(x, 2 * F), _mm256_set1_epi8(3));
    }
    static Bytes low_nibble(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Bytes high_nibble(Bytes x) { return low_nibble(_mm256_srli_epi16(x, 4)); }
    static Bytes add(Bytes x, Bytes y) { return _mm256_add_epi8(x, y); }
    static Bytes times9(Bytes x) { return _mm256_add_epi8(x, _mm256_slli_epi16(x, 3)); }  // x <= 2
    static Ints set(int32_t x) { return _mm256_set1_epi32(x); }
    static Ints dot(Ints sum, Bytes w, const int8_t *x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        const __m256i pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(word));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static Ints byte(Bytes w, int c, int middle) {
        const __m256i shifted = _mm256_srl_epi32(w, _mm_cvtsi32_si128(8 * c));
        return _mm256_sub_epi32(_mm256_and_si256(shifted, _mm256_set1_epi32(255)),
                                _mm256_set1_epi32(middle));
    }
    static Floats zero() { return _mm256_setzero_ps(); }
    static Floats set(float x) { return _mm256_set1_ps(x); }
    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
    static Floats mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
    static Floats fma(Floats x, Floats y, Floats sum) { return _mm256_fmadd_ps(x, y, sum); }
    static Floats lookup(const float *steps, const uint8_t *index, int shift) {
        const __m256i words = _mm256_srl_epi32(load(index), _mm_cvtsi32_si128(shift));
        return _mm256_i32gather_ps(steps, _mm256_and_si256(words, _mm256_set1_epi32(31)), 4);
    }
    static void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }
};

}  // namespace

extern const ProductKernels products_avx2 = fields_kernels<Avx2Products>();
