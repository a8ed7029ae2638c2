// What stands between the products of a block, in plain C++.
#include "cpu/lanes_scalar.h"
#include "rows.h"

namespace {

struct ScalarRows : Scalar {
    template <class T>
    static F load_as(const T *p) {
        return ::to_float(*p);
    }
    static void store_as(float *p, F x) { *p = x; }
    static void store_as(Half *p, F x) {
        if (x != x)
            p->bits = 0x7e00;
        else
            round_to(x, p);
    }
    static void store_as(Bfloat *p, F x) {
        if (x != x)
            p->bits = 0x7fc0;
        else
            round_to(x, p);
    }
    static float total(F x) { return x; }
};

}  // namespace

extern const StepKernels step_scalar = step_kernels<ScalarRows>();
