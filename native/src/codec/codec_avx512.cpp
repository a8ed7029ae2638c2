#include "avx512_codec.h"

extern const CodecKernels codec_avx512 = avx512_codec;
