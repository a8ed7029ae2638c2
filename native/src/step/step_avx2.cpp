// What stands between the products of a block, eight floats at a time.
#include "cpu/lanes_avx2.h"
#include "rows.h"

namespace {

struct Avx2Rows : Avx2 {
    static constexpr int kRegisters = 16;
    static void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
    static F load_as(const float *p) { return _mm256_loadu_ps(p); }
    static F load_as(const Half *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static F load_as(const Bfloat *p) {
        const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
    static F load_as(const int8_t *p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    static void store_as(float *p, F x) { _mm256_storeu_ps(p, x); }
    static void store_as(Half *p, F x) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                         _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void store_as(Bfloat *p, F x) {
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i r = _mm256_blendv_epi8(bfloat_bits(x), _mm256_set1_epi32(0x7fc0), nan);
        const __m256i packed = _mm256_packus_epi32(r, r);  // in each half of 128 bits
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                         _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
    }
    static float total(F x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    static void store_totals(float *p, const F *x) {
        const F ab = halves(x[0], x[1]), cd = halves(x[2], x[3]);
        // In each half: x[0] or x[1], then x[2] or x[3], two sums of two lanes each.
        const F y = _mm256_add_ps(_mm256_unpacklo_ps(ab, cd), _mm256_unpackhi_ps(ab, cd));
        const F z = _mm256_add_ps(y, _mm256_permute_ps(y, 0x4e));
        _mm_storeu_ps(p, _mm_unpacklo_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1)));
    }

 private:
    // The sums of both halves of x in the low half, those of y in the high one.
    static F halves(F x, F y) {
        return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20),
                             _mm256_permute2f128_ps(x, y, 0x31));
    }
};

}  // namespace

extern const StepKernels step_avx2 = step_kernels<Avx2Rows>();
