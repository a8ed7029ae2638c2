// y = x W^T in plain C++: arrays of sixteen rows, which a compiler may vectorize or not.
#include "fields_kernels.h"

namespace {

struct Plain {
    static constexpr int kRows = 16;
    struct Bytes {
        uint8_t v[64];
    };
    struct Ints {
        int32_t v[16];
    };
    struct Floats {
        float v[16];
    };

    using Sums = Ints;
    using Lanes = Scalar;
    using Reader = PlainReader;
    static constexpr RowKernels rows = plain_rows;

    static void prefetch(const uint8_t *) {}
    static Bytes load(const uint8_t *p) {
        Bytes x;
        std::memcpy(x.v, p, 64);
        return x;
    }
    static void store(uint8_t *p, const Bytes &x) { std::memcpy(p, x.v, 64); }
    static Bytes add(Bytes x, const Bytes &y) {
        for (int i = 0; i < 64; i++) x.v[i] = uint8_t(x.v[i] + y.v[i]);
        return x;
    }
    template <int P>
    static void trits(const Bytes &x, Bytes *w) {
        constexpr int power[] = {1, 3, 9, 27};
        for (int f = 0; f < 4; f++)
            for (int i = 0; i < 64; i++) w[f].v[i] = uint8_t((x.v[i] >> 2 * f & 3) * power[P]);
    }

    template <int D, int H>
    static void codes(const uint8_t *unit, Bytes *w) {
        constexpr int bits = D == 2 ? 15 : D == 3 ? 31 : 127;
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 64; i++) {
                const auto at = [&](int u) { return unit[u * kUnit + i]; };
                if (D == 2) {
                    w[k].v[i] = uint8_t(at(k) >> 4 * H & bits);
                } else if (H == 0 || 4 + k < together_units(D)) {
                    w[k].v[i] = uint8_t(at(4 * H + k) & bits);
                } else if (D == 4) {
                    int code = 0;
                    for (int u = 0; u < 7; u++) code |= at(u) >> 7 << u;
                    w[k].v[i] = uint8_t(code);
                } else if (k < 3) {
                    w[k].v[i] = uint8_t(at(2 * k - 2) >> 5 << 2 | at(2 * k - 1) >> 6);
                } else {
                    w[k].v[i] = uint8_t(at(4) >> 5 << 2 | (at(1) >> 5 & 1) << 1 | (at(3) >> 5 & 1));
                }
            }
    }

    struct Four {
        int8_t v[4];
    };
    static Four four(const int8_t *x) {
        Four r;
        std::memcpy(r.v, x, 4);
        return r;
    }
    template <int D>
    static Sums first(const Bytes &w, const Four &x) {
        return more<D>({}, w, x);
    }
    template <int D>
    static Sums more(Sums sum, const Bytes &w, const Four &x) {
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 4; c++) sum.v[r] += w.v[4 * r + c] * x.v[c];
        return sum;
    }
    template <int D>
    static Ints total(Sums sum, int32_t offset) {
        for (auto &v : sum.v) v += offset;
        return sum;
    }
    // Of superblocks (level_superblocks.h).
    static constexpr bool kLevelSuperblocks = true;
    static constexpr int kSuperRows = 4, kSuperBias = 0;
    template <int D>
    static constexpr int kSuperRun = 4;
    static Bytes levels(Bytes codes, int middle) {
        for (auto &v : codes.v) v = uint8_t(v - middle);
        return codes;
    }
    static Ints to_ints(const Floats &x) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = round_to_int(x.v[i]);
        return r;
    }
    static Ints multiplier(const Ints &m) { return m; }
    static Ints times(Ints x, int by) {
        for (auto &v : x.v) v = int32_t(uint32_t(v) * uint32_t(by));
        return x;
    }
    static Sums first_levels(const Bytes &w, const Four &x) { return more_levels({}, w, x); }
    static Sums more_levels(Sums sum, const Bytes &w, const Four &x) {
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 4; c++) sum.v[r] += int8_t(w.v[4 * r + c]) * x.v[c];
        return sum;
    }
    // Steps that no file holds, of damaged memory, may take it past 31 bits; as vectors do, it wraps.
    static Ints scaled(Ints dot, const Sums &sum, const Ints &m) {
        for (int r = 0; r < 16; r++)
            dot.v[r] = int32_t(uint32_t(dot.v[r]) + uint32_t(sum.v[r]) * uint32_t(m.v[r]));
        return dot;
    }
    static Ints set(int32_t x) {
        Ints r;
        for (auto &v : r.v) v = x;
        return r;
    }

    // Of rows with one scale.
    static Sums none() { return {}; }
    static Ints plus(Ints x, const Ints &y) {
        for (int i = 0; i < 16; i++) x.v[i] += y.v[i];
        return x;
    }
    static Ints load(const int32_t *p) {
        Ints r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static void store(int32_t *p, const Ints &x) { std::memcpy(p, x.v, sizeof x.v); }

    static Ints byte(const Bytes &w, int c, int middle) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = w.v[4 * i + c] - middle;
        return r;
    }
    static Floats set(float x) {
        Floats r;
        for (auto &v : r.v) v = x;
        return r;
    }
    static Floats to_floats(const Ints &x) {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = float(x.v[i]);
        return r;
    }
    static Floats mul(Floats x, const Floats &y) {
        for (int i = 0; i < 16; i++) x.v[i] *= y.v[i];
        return x;
    }
    // Rounds twice: without the instruction a fused operation takes a hundred times longer.
    static Floats fma(const Floats &x, const Floats &y, Floats sum) {
        for (int i = 0; i < 16; i++) sum.v[i] += x.v[i] * y.v[i];
        return sum;
    }
    static Floats load_floats(const float *p) {
        Floats r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static void store(float *p, const Floats &x) { std::memcpy(p, x.v, sizeof x.v); }
    template <class T>
    static void store_tile(T *out, const float *y) {
        store_plain(out, y);
    }

    struct Steps {
        const float *steps;
        explicit Steps(const float *of_indices) : steps(of_indices) {}
        void of_groups(const uint8_t *unit, int pair, Floats (*step)[1]) const {
            for (int second = 0; second < 2; second++)
                for (int r = 0; r < 16; r++) {
                    const int low = unit[16 * pair + r] >> 4 * second & 15;
                    const int top = unit[48 + r] >> (2 * pair + second) & 1;
                    step[second][0].v[r] = steps[low | top << 4];
                }
        }
    };
};

}  // namespace

extern const ProductKernels products_scalar = fields_kernels<Plain>();
