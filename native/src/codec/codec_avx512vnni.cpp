#include "avx512_codec.h"

extern const CodecKernels codec_avx512vnni = avx512_codec;
