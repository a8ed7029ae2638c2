#include "calibrated.h"
#include "cpu/lanes_avx2.h"
#include "dequantize.h"
#include "fit_errors.h"
#include "measure.h"
#include "write.h"

extern const CodecKernels codec_avx2 = {
    {trit_peak<Avx2, uint16_t>, trit_peak<Avx2, uint16_t>, trit_peak<Avx2, uint32_t>},
    {trit_measure<Avx2, Half>, trit_measure<Avx2, Bfloat>, trit_measure<Avx2, float>},
    {trit_write<Avx2, Half>, trit_write<Avx2, Bfloat>, trit_write<Avx2, float>},
    {trit_gather<Avx2, Half>, trit_gather<Avx2, Bfloat>, trit_gather<Avx2, float>},
    trit_least_errors<Avx2>,
    {trit_dequantize<Avx2, Half>, trit_dequantize<Avx2, Bfloat>, trit_dequantize<Avx2, float>},
    trit_feed_back<Avx2>,
    trit_descend<Avx2>,
    trit_step_products<Avx2>,
};
