#include "calibrated.h"
#include "cpu/lanes_neon.h"
#include "dequantize.h"
#include "fit_errors.h"
#include "measure.h"
#include "write.h"

extern const CodecKernels codec_neon = {
    {trit_peak<Neon, uint16_t>, trit_peak<Neon, uint16_t>, trit_peak<Neon, uint32_t>},
    {trit_measure<Neon, Half>, trit_measure<Neon, Bfloat>, trit_measure<Neon, float>},
    {trit_write<Neon, Half>, trit_write<Neon, Bfloat>, trit_write<Neon, float>},
    {trit_gather<Neon, Half>, trit_gather<Neon, Bfloat>, trit_gather<Neon, float>},
    trit_least_errors<Neon>,
    {trit_dequantize<Neon, Half>, trit_dequantize<Neon, Bfloat>, trit_dequantize<Neon, float>},
    trit_feed_back<Neon>,
    trit_descend<Neon>,
    trit_step_products<Neon>,
};
