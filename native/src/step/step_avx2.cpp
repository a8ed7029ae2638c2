// What stands between the products of a block, eight floats at a time.
#include "cpu/lanes_avx2.h"
#include "products/avx2_elements.h"
#include "rows.h"

namespace {

struct Avx2Rows : Avx2 {
    static constexpr int kRegisters = 16;
    static void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
    template <class T>
    static F load_as(const T *p) {
        return load8(p);
    }
    static F load_as(const int8_t *p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    template <class T>
    static void store_as(T *p, F x) {
        store8(p, x);
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
