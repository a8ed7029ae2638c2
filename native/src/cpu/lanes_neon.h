// Four lanes: AArch64's Advanced SIMD. See lanes_scalar.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "elements.h"
#include "trits.h"

namespace {

struct Neon {
    static constexpr int W = 4;
    using F = float32x4_t;
    using I = int32x4_t;
    using M = uint32x4_t;
    struct D {
        float64x2_t low, high;
    };

    static F set(float x) { return vdupq_n_f32(x); }
    static F load(const float *p) { return vld1q_f32(p); }
    static void store(float *p, F x) { vst1q_f32(p, x); }
    static F add(F x, F y) { return vaddq_f32(x, y); }
    static F sub(F x, F y) { return vsubq_f32(x, y); }
    static F mul(F x, F y) { return vmulq_f32(x, y); }
    static F div(F x, F y) { return vdivq_f32(x, y); }
    static F min(F x, F y) { return vminq_f32(x, y); }
    static F max(F x, F y) { return vmaxq_f32(x, y); }
    static F rint(F x) { return vrndnq_f32(x); }
    static F fraction(F x) { return vsubq_f32(x, vrndnq_f32(x)); }
    static F abs(F x) { return vabsq_f32(x); }
    static F fma(F x, F y, F z) { return vfmaq_f32(z, x, y); }
    static F times_sign_of(F x, F y) {
        const uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(y), vdupq_n_u32(0x80000000u));
        return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), sign));
    }

    static I set_int(int32_t x) { return vdupq_n_s32(x); }
    static I bits(F x) { return vreinterpretq_s32_f32(x); }
    static F from_bits(I x) { return vreinterpretq_f32_s32(x); }
    static I add(I x, I y) { return vaddq_s32(x, y); }
    static I sub(I x, I y) { return vsubq_s32(x, y); }
    static I min(I x, I y) { return vminq_s32(x, y); }
    static I max(I x, I y) { return vmaxq_s32(x, y); }
    static I shift16(I x) { return vshlq_n_s32(x, 16); }
    static I or_(I x, I y) { return vorrq_s32(x, y); }
    static I to_int(F x) { return vcvtq_s32_f32(x); }
    static F to_float(I x) { return vcvtq_f32_s32(x); }
    static void store_int(int32_t *p, I x) { vst1q_s32(p, x); }

    static M lt(F x, F y) { return vcltq_f32(x, y); }
    static M le(F x, F y) { return vcleq_f32(x, y); }
    static M lt(I x, I y) { return vcltq_s32(x, y); }
    static M le(I x, I y) { return vcleq_s32(x, y); }
    static M both(M x, M y) { return vandq_u32(x, y); }
    static M either(M x, M y) { return vorrq_u32(x, y); }
    static M but_not(M x, M y) { return vbicq_u32(x, y); }
    static bool any(M x) { return vmaxvq_u32(x) != 0; }
    static F select(M m, F yes, F no) { return vbslq_f32(m, yes, no); }
    static I select(M m, I yes, I no) { return vbslq_s32(m, yes, no); }

    static F lookup(const float *table, I index) {
        int32_t lane[4];
        vst1q_s32(lane, index);
        const float found[4] = {table[lane[0]], table[lane[1]], table[lane[2]], table[lane[3]]};
        return vld1q_f32(found);
    }

    static D wide(F x) { return {vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)}; }
    static D wide_set(double x) { return {vdupq_n_f64(x), vdupq_n_f64(x)}; }
    static D add_wide(D x, D y) { return {vaddq_f64(x.low, y.low), vaddq_f64(x.high, y.high)}; }
    static D mul_wide(D x, D y) { return {vmulq_f64(x.low, y.low), vmulq_f64(x.high, y.high)}; }
    static void store_wide(double *p, D x) {
        vst1q_f64(p, x.low);
        vst1q_f64(p + 2, x.high);
    }

    static constexpr bool has_pairs = false;

    static void load_columns(const float *p, int64_t stride, F *column) {
        for (int quarter = 0; quarter < 16; quarter += 4) {
            uint32x4_t x[4];
            for (int i = 0; i < 4; i++)
                x[i] = vreinterpretq_u32_f32(vld1q_f32(p + i * stride + quarter));
            transpose(x);
            for (int i = 0; i < 4; i++) column[quarter + i] = vreinterpretq_f32_u32(x[i]);
        }
    }
    static void load_columns(const Half *p, int64_t stride, F *column) {
        uint16x4_t x[16];
        load_words(reinterpret_cast<const uint16_t *>(p), stride, x);
        for (int i = 0; i < 16; i++) column[i] = vcvt_f32_f16(vreinterpret_f16_u16(x[i]));
    }
    static void load_columns(const Bfloat *p, int64_t stride, F *column) {
        uint16x4_t x[16];
        load_words(reinterpret_cast<const uint16_t *>(p), stride, x);
        for (int i = 0; i < 16; i++) column[i] = vreinterpretq_f32_u32(vshll_n_u16(x[i], 16));
    }

    static void split_planes(const I *x, uint8_t (*bytes)[4][16]) {
        for (int quarter = 0; quarter < 16; quarter += 4) {
            for (int i = 0; i < 4; i++) {
                uint32_t lane[4];
                vst1q_u32(lane, vreinterpretq_u32_s32(x[quarter + i]));
                for (int row = 0; row < 4; row++)
                    for (int q = 0; q < 4; q++)
                        bytes[row][q][quarter + i] = uint8_t(lane[row] >> 8 * q);
            }
        }
    }

    template <class T>
    static constexpr bool looks_up = false;

    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }

    static void store_group(const uint8_t *digits, float middle, float step, float *out) {
        F w[4];
        scaled(digits, middle, step, w);
        for (int i = 0; i < 4; i++) vst1q_f32(out + 4 * i, w[i]);
    }
    static void store_group(const uint8_t *digits, float middle, float step, Half *out) {
        F w[4];
        scaled(digits, middle, step, w);
        uint16_t *p = reinterpret_cast<uint16_t *>(out);
        for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(w[i])));
    }
    static void store_group(const uint8_t *digits, float middle, float step, Bfloat *out) {
        F w[4];
        scaled(digits, middle, step, w);
        uint16_t *p = reinterpret_cast<uint16_t *>(out);
        for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vshrn_n_u32(bfloat_high(w[i]), 16));
    }

    // A number that is not NaN as bfloat16, half to even, in the high 16 bits.
    static uint32x4_t bfloat_high(F value) {
        const uint32x4_t u = vreinterpretq_u32_f32(value);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
        return vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7fff));
    }

 private:
    static void scaled(const uint8_t *digits, float middle, float step, F *w) {
        const uint8x16_t x = vld1q_u8(digits);
        const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
        const uint32x4_t k[4] = {vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)),
                                 vmovl_u16(vget_low_u16(high)), vmovl_u16(vget_high_u16(high))};
        for (int i = 0; i < 4; i++) w[i] = mul(sub(vcvtq_f32_u32(k[i]), set(middle)), set(step));
    }

    // Rows of four 32-bit words to columns, in place.
    static void transpose(uint32x4_t *x) {
        const uint32x4x2_t a = vtrnq_u32(x[0], x[1]), b = vtrnq_u32(x[2], x[3]);
        x[0] = vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0]));
        x[1] = vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1]));
        x[2] = vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0]));
        x[3] = vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1]));
    }

    // Four rows of sixteen 16-bit words -> one vector a column.
    static void load_words(const uint16_t *p, int64_t stride, uint16x4_t *column) {
        for (int quarter = 0; quarter < 16; quarter += 4) {
            uint16x4_t x[4];
            for (int i = 0; i < 4; i++) x[i] = vld1_u16(p + i * stride + quarter);
            const uint16x4x2_t a = vtrn_u16(x[0], x[1]), b = vtrn_u16(x[2], x[3]);
            for (int i = 0; i < 2; i++) {
                const uint32x2x2_t c =
                    vtrn_u32(vreinterpret_u32_u16(a.val[i]), vreinterpret_u32_u16(b.val[i]));
                column[quarter + i] = vreinterpret_u16_u32(c.val[0]);
                column[quarter + 2 + i] = vreinterpret_u16_u32(c.val[1]);
            }
        }
    }
};

}  // namespace
