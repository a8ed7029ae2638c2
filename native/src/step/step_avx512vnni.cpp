#include "avx512_step.h"

extern const StepKernels step_avx512vnni = avx512_step;
