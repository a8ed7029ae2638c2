// y = x W^T in plain C++: arrays of sixteen rows, which a compiler may vectorize or not.
#include "fields_product.h"

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

    static void prefetch(const uint8_t *) {}
    static Bytes load(const uint8_t *p) {
        Bytes x;
        std::memcpy(x.v, p, 64);
        return x;
    }
    template <int F>
    static Bytes pair(Bytes x) {
        for (auto &v : x.v) v = v >> 2 * F & 3;
        return x;
    }
    static Bytes low_nibble(Bytes x) {
        for (auto &v : x.v) v &= 15;
        return x;
    }
    static Bytes high_nibble(Bytes x) {
        for (auto &v : x.v) v >>= 4;
        return x;
    }
    static Bytes add(Bytes x, const Bytes &y) {
        for (int i = 0; i < 64; i++) x.v[i] = uint8_t(x.v[i] + y.v[i]);
        return x;
    }
    static Bytes times9(Bytes x) {
        for (auto &v : x.v) v = uint8_t(9 * v);
        return x;
    }
    static Ints set(int32_t x) {
        Ints r;
        for (auto &v : r.v) v = x;
        return r;
    }
    static Ints dot(Ints sum, const Bytes &w, const int8_t *x) {
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 4; c++) sum.v[r] += w.v[4 * r + c] * x[c];
        return sum;
    }
    static Ints byte(const Bytes &w, int c, int middle) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = w.v[4 * i + c] - middle;
        return r;
    }
    static Floats zero() { return {}; }
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
    static Floats lookup(const float *steps, const uint8_t *index, int shift) {
        Floats r;
        for (int i = 0; i < 16; i++) {
            uint32_t word;
            std::memcpy(&word, index + 4 * i, 4);
            r.v[i] = steps[word >> shift & 31];
        }
        return r;
    }
    static void store(float *p, const Floats &x) { std::memcpy(p, x.v, sizeof x.v); }
};

}  // namespace

extern const ProductKernels products_scalar = fields_kernels<Plain>();
