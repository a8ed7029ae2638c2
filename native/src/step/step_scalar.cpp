// What stands between the products of a block, in plain C++.
#include "cpu/lanes_scalar.h"
#include "rows.h"

namespace {

struct ScalarRows : Scalar {
    static constexpr int kRegisters = 16;
    static void prefetch(const void *) {}
    template <class T>
    static F load_as(const T *p) {
        return ::to_float(*p);
    }
    static F load_as(const int8_t *p) { return float(*p); }
    template <class T>
    static void store_as(T *p, F x) {
        round_any(x, p);
    }
    static float total(F x) { return x; }
    static void store_totals(float *p, const F *x) {
        for (int i = 0; i < 4; i++) p[i] = x[i];
    }
};

}  // namespace

extern const StepKernels step_scalar = step_kernels<ScalarRows>();
