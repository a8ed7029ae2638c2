#include "avx512_step.h"

extern const StepKernels step_avx512 = avx512_step;
