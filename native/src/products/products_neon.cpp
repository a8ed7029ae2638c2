// y = x W^T with NEON's dot product (Armv8.2 and later): four rows a vector.
#include <arm_neon.h>

#include "cpu/lanes_neon.h"
#include "fields_kernels.h"

namespace {

struct NeonProducts {
    static constexpr int kRows = 4;
    using Bytes = uint8x16_t;
    using Ints = int32x4_t;
    using Floats = float32x4_t;

    using Sums = int32x4_t;
    using Lanes = Neon;
    using Reader = PlainReader;
    static constexpr RowKernels rows = plain_rows;

    static void prefetch(const uint8_t *p) { __builtin_prefetch(p); }
    static Bytes load(const uint8_t *p) { return vld1q_u8(p); }
    static void store(uint8_t *p, Bytes x) { vst1q_u8(p, x); }
    static Bytes add(Bytes x, Bytes y) { return vaddq_u8(x, y); }

    // The four trits of a byte times 3**P: by shifts, or two at a time from tables.
    template <int P>
    static void trits(Bytes x, Bytes *w) {
        if constexpr (P == 0) {
            const Bytes two_bits = vdupq_n_u8(3);
            w[0] = vandq_u8(x, two_bits);
            w[1] = vandq_u8(vshrq_n_u8(x, 2), two_bits);
            w[2] = vandq_u8(vshrq_n_u8(x, 4), two_bits);
            w[3] = vshrq_n_u8(x, 6);
        } else {
            constexpr uint8_t t = P == 1 ? 3 : P == 2 ? 9 : 27;
            constexpr uint8_t of_first[16] = {0, t, 2 * t, 3 * t, 0, t, 2 * t, 3 * t,
                                              0, t, 2 * t, 3 * t, 0, t, 2 * t, 3 * t};
            constexpr uint8_t of_second[16] = {
                0, 0, 0, 0, t, t, t, t, 2 * t, 2 * t, 2 * t, 2 * t, 3 * t, 3 * t, 3 * t, 3 * t};
            const Bytes first = vld1q_u8(of_first), second = vld1q_u8(of_second);
            const Bytes low = vandq_u8(x, vdupq_n_u8(15)), high = vshrq_n_u8(x, 4);
            w[0] = vqtbl1q_u8(first, low);
            w[1] = vqtbl1q_u8(second, low);
            w[2] = vqtbl1q_u8(first, high);
            w[3] = vqtbl1q_u8(second, high);
        }
    }

    template <int D, int H>
    static void codes(const uint8_t *unit, Bytes *w) {
        const auto at = [&](int k) { return load(unit + k * kUnit); };
        const auto low = [&](int k, int bits) {
            return vandq_u8(at(k), vdupq_n_u8(uint8_t(bits)));
        };
        if constexpr (D == 2) {
            for (int i = 0; i < 4; i++) w[i] = H ? vshrq_n_u8(at(i), 4) : low(i, 15);
        } else if constexpr (H == 0) {
            for (int i = 0; i < 4; i++) w[i] = low(i, D == 3 ? 31 : 127);
        } else if constexpr (D == 3) {  // the top bits of one, then those of the next, shifted in
            w[0] = low(4, 31);
            w[1] = vshrq_n_u8(vsriq_n_u8(at(0), at(1), 3), 3);
            w[2] = vshrq_n_u8(vsriq_n_u8(at(2), at(3), 3), 3);
            const Bytes four = vsriq_n_u8(at(4), vshlq_n_u8(at(1), 2), 3);
            w[3] = vshrq_n_u8(vsriq_n_u8(four, vshlq_n_u8(at(3), 2), 4), 3);
        } else {
            for (int i = 0; i < 3; i++) w[i] = low(4 + i, 127);
            Bytes tops = at(0);
            for (int k = 1; k < 7; k++) tops = vsriq_n_u8(at(k), tops, 1);
            w[3] = vshrq_n_u8(tops, 1);
        }
    }

    static int8x16_t four(const int8_t *x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(word));
    }
    // Codes are at most 120 (whatever bits memory holds), so they are the same as signed bytes.
    template <int D>
    static Sums first(Bytes w, int8x16_t x) {
        return more<D>(vdupq_n_s32(0), w, x);
    }
    template <int D>
    static Sums more(Sums sum, Bytes w, int8x16_t x) {
        return vdotq_s32(sum, vreinterpretq_s8_u8(w), x);
    }
    template <int D>
    static Ints total(Sums sum, int32_t offset) {
        return vaddq_s32(sum, vdupq_n_s32(offset));
    }

    // Of superblocks (level_superblocks.h).
    static constexpr bool kLevelSuperblocks = true;
    static constexpr int kSuperRows = 4, kSuperBias = 0;
    template <int D>
    static constexpr int kSuperRun = 4;
    static Bytes levels(Bytes codes, int middle) {
        return vsubq_u8(codes, vdupq_n_u8(uint8_t(middle)));
    }
    static Ints to_ints(Floats x) { return vcvtnq_s32_f32(x); }
    static Ints multiplier(Ints m) { return m; }
    static Ints times(Ints x, int by) { return vmulq_n_s32(x, by); }
    static Sums first_levels(Bytes w, int8x16_t x) { return first<1>(w, x); }
    static Sums more_levels(Sums sum, Bytes w, int8x16_t x) { return more<1>(sum, w, x); }
    static Ints scaled(Ints dot, Sums sum, Ints m) { return vmlaq_s32(dot, sum, m); }
    static Ints set(int32_t x) { return vdupq_n_s32(x); }

    // Of rows with one scale.
    static Sums none() { return vdupq_n_s32(0); }
    static Ints plus(Ints x, Ints y) { return vaddq_s32(x, y); }
    static Ints load(const int32_t *p) { return vld1q_s32(p); }
    static void store(int32_t *p, Ints x) { vst1q_s32(p, x); }

    static Ints byte(Bytes w, int c, int middle) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(w), vdupq_n_s32(-8 * c));
        return vsubq_s32(vreinterpretq_s32_u32(vandq_u32(shifted, vdupq_n_u32(255))),
                         vdupq_n_s32(middle));
    }
    static Floats set(float x) { return vdupq_n_f32(x); }
    static Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }
    static Floats mul(Floats x, Floats y) { return vmulq_f32(x, y); }
    static Floats fma(Floats x, Floats y, Floats sum) { return vfmaq_f32(sum, x, y); }
    static Floats load_floats(const float *p) { return vld1q_f32(p); }
    static void store(float *p, Floats x) { vst1q_f32(p, x); }
    template <class T>
    static void store_tile(T *out, const float *y) {
        store_plain(out, y);
    }

    // Sixteen rows at a time.
    class Steps {
     public:
        explicit Steps(const float *steps) : bytes_(steps) {}

        void of_groups(const uint8_t *unit, int pair, Floats (*step)[4]) const {
            const uint8x16_t nibbles = vld1q_u8(unit + 16 * pair), tops = vld1q_u8(unit + 48);
            one_group(vandq_u8(nibbles, vdupq_n_u8(15)), tops, 2 * pair, step[0]);
            one_group(vshrq_n_u8(nibbles, 4), tops, 2 * pair + 1, step[1]);
        }

     private:
        void one_group(uint8x16_t low, uint8x16_t tops, int group, Floats *step) const {
            const uint8x16_t top =
                vandq_u8(vshlq_u8(tops, vdupq_n_s8(int8_t(-group))), vdupq_n_u8(1));
            const uint8x16_t index = vorrq_u8(low, vshlq_n_u8(top, 4));
            uint8x16_t byte[4];
            for (int b = 0; b < 4; b++) {
                const uint8x16x2_t table = {vld1q_u8(bytes_.table[b]),
                                            vld1q_u8(bytes_.table[b] + 16)};
                byte[b] = vqtbl2q_u8(table, index);
            }
            const uint8x16x2_t low_half = vzipq_u8(byte[0], byte[1]);
            const uint8x16x2_t high_half = vzipq_u8(byte[2], byte[3]);
            for (int i = 0; i < 2; i++) {
                const uint16x8x2_t word = vzipq_u16(vreinterpretq_u16_u8(low_half.val[i]),
                                                    vreinterpretq_u16_u8(high_half.val[i]));
                step[2 * i] = vreinterpretq_f32_u16(word.val[0]);
                step[2 * i + 1] = vreinterpretq_f32_u16(word.val[1]);
            }
        }

        StepBytes bytes_;
    };
};

}  // namespace

extern const ProductKernels products_neon = fields_kernels<NeonProducts>();
