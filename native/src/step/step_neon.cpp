// What stands between the products of a block, four floats at a time.
#include "cpu/lanes_neon.h"
#include "rows.h"

namespace {

struct NeonRows : Neon {
    static constexpr int kRegisters = 32;
    static void prefetch(const void *p) { __builtin_prefetch(p); }
    static F load_as(const float *p) { return vld1q_f32(p); }
    static F load_as(const Half *p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t *>(p))));
    }
    static F load_as(const Bfloat *p) {
        return vreinterpretq_f32_u32(
            vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t *>(p)), 16));
    }
    static F load_as(const int8_t *p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
    }
    static void store_as(float *p, F x) { vst1q_f32(p, x); }
    static void store_as(Half *p, F x) {
        vst1_u16(reinterpret_cast<uint16_t *>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
    }
    static void store_as(Bfloat *p, F x) {
        const uint32x4_t r = vbslq_u32(vceqq_f32(x, x), bfloat_high(x), vdupq_n_u32(0x7fc00000));
        vst1_u16(reinterpret_cast<uint16_t *>(p), vshrn_n_u32(r, 16));
    }
    static float total(F x) { return vaddvq_f32(x); }
    static void store_totals(float *p, const F *x) {
        vst1q_f32(p, vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])));
    }
};

}  // namespace

extern const StepKernels step_neon = step_kernels<NeonRows>();
