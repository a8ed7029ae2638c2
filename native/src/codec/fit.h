// v3's fit: the search of a codebook's two ends.
#pragma once

#include "codec_kernels.h"

void fit_codebook(const CodecKernels &kernels, const float *magnitudes,
                  const tritllm_sample_set &sample, const float *published, int depth,
                  float *scratch, float *codebook);
