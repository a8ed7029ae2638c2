// y = x W^T with NEON's dot product (Armv8.2 and later): four rows a vector.
#include <arm_neon.h>

#include "fields_product.h"

namespace {

struct NeonProducts {
    static constexpr int kRows = 4;
    using Bytes = uint8x16_t;
    using Ints = int32x4_t;
    using Floats = float32x4_t;

    static void prefetch(const uint8_t *p) { __builtin_prefetch(p); }
    static Bytes load(const uint8_t *p) { return vld1q_u8(p); }
    template <int F>
    static Bytes pair(Bytes x) {
        if constexpr (F == 0)
            return vandq_u8(x, vdupq_n_u8(3));
        else if constexpr (F == 3)
            return vshrq_n_u8(x, 6);
        else
            return vandq_u8(vshrq_n_u8(x, 2 * F), vdupq_n_u8(3));
    }
    static Bytes low_nibble(Bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
    static Bytes high_nibble(Bytes x) { return vshrq_n_u8(x, 4); }
    static Bytes add(Bytes x, Bytes y) { return vaddq_u8(x, y); }
    static Bytes times9(Bytes x) { return vmulq_u8(x, vdupq_n_u8(9)); }
    static Ints set(int32_t x) { return vdupq_n_s32(x); }
    // Codes are at most 80, so they are the same as signed bytes.
    static Ints dot(Ints sum, Bytes w, const int8_t *x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_s32(vdupq_n_s32(word)));
    }
    static Ints byte(Bytes w, int c, int middle) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(w), vdupq_n_s32(-8 * c));
        return vsubq_s32(vreinterpretq_s32_u32(vandq_u32(shifted, vdupq_n_u32(255))),
                         vdupq_n_s32(middle));
    }
    static Floats zero() { return vdupq_n_f32(0); }
    static Floats set(float x) { return vdupq_n_f32(x); }
    static Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }
    static Floats mul(Floats x, Floats y) { return vmulq_f32(x, y); }
    static Floats fma(Floats x, Floats y, Floats sum) { return vfmaq_f32(sum, x, y); }
    static Floats lookup(const float *steps, const uint8_t *index, int shift) {
        float found[4];
        for (int i = 0; i < 4; i++) {
            uint32_t word;
            std::memcpy(&word, index + 4 * i, 4);
            found[i] = steps[word >> shift & 31];
        }
        return vld1q_f32(found);
    }
    static void store(float *p, Floats x) { vst1q_f32(p, x); }
};

}  // namespace

extern const ProductKernels products_neon = fields_kernels<NeonProducts>();
