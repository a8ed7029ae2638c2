// How many int8 multiply-adds a core can do: its dot-product instructions on registers alone, as
// many independent ones as hide their latency. Built by linear.py with the machine's own flags.
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512VNNI__)
static const char kName[] = "vpdpbusd, 512 bits";
static const int kMacs = 64;
using Vector = __m512i;
static inline Vector any() { return _mm512_set1_epi8(3); }
static inline void dot(Vector &sum, Vector w, Vector x) { sum = _mm512_dpbusd_epi32(sum, w, x); }
#define KEEP(v) __asm__ volatile("" : "+v"(v))
#elif defined(__AVX2__)
static const int kMacs = 32;
using Vector = __m256i;
static inline Vector any() { return _mm256_set1_epi8(3); }
#define KEEP(v) __asm__ volatile("" : "+x"(v))
#if defined(__AVXVNNI__)
static const char kName[] = "vpdpbusd, 256 bits";
static inline void dot(Vector &sum, Vector w, Vector x) {
    sum = _mm256_dpbusd_avx_epi32(sum, w, x);
}
#else
static const char kName[] = "vpmaddubsw, vpmaddwd, vpaddd";
static inline void dot(Vector &sum, Vector w, Vector x) {
    Vector pairs = _mm256_maddubs_epi16(w, x);
    KEEP(pairs);
    Vector fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    KEEP(fours);
    sum = _mm256_add_epi32(sum, fours);
}
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
static const char kName[] = "sdot";
static const int kMacs = 16;
using Vector = int32x4_t;
static inline Vector any() { return vdupq_n_s32(0x03030303); }
static inline void dot(Vector &sum, Vector w, Vector x) {
    sum = vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
#define KEEP(v) __asm__ volatile("" : "+w"(v))
#else
static const char kName[] = "";
static const int kMacs = 0;
#endif

extern "C" const char *int8_peak_name() { return kName; }

// Multiply-adds done in so many rounds; 0 where the compiler names no instruction.
extern "C" int64_t int8_peak_run(int64_t rounds) {
#if defined(KEEP)
    Vector w = any(), x = any(), a = any(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int64_t i = 0; i < rounds; i++) {
        KEEP(w);
        KEEP(x);
        dot(a, w, x), dot(b, w, x), dot(c, w, x), dot(d, w, x);
        dot(e, w, x), dot(f, w, x), dot(g, w, x), dot(h, w, x);
        KEEP(a);
        KEEP(b);
        KEEP(c);
        KEEP(d);
        KEEP(e);
        KEEP(f);
        KEEP(g);
        KEEP(h);
    }
#endif
    return 8 * rounds * kMacs;
}
