#include "calibrated.h"
#include "cpu/lanes_scalar.h"
#include "dequantize.h"
#include "fit_errors.h"
#include "measure.h"
#include "write.h"

extern const CodecKernels codec_scalar = {
    {trit_peak<Scalar, uint16_t>, trit_peak<Scalar, uint16_t>, trit_peak<Scalar, uint32_t>},
    {trit_measure<Scalar, Half>, trit_measure<Scalar, Bfloat>, trit_measure<Scalar, float>},
    {trit_write<Scalar, Half>, trit_write<Scalar, Bfloat>, trit_write<Scalar, float>},
    {trit_gather<Scalar, Half>, trit_gather<Scalar, Bfloat>, trit_gather<Scalar, float>},
    trit_least_errors<Scalar>,
    {trit_dequantize<Scalar, Half>, trit_dequantize<Scalar, Bfloat>,
     trit_dequantize<Scalar, float>},
    trit_feed_back<Scalar>,
    trit_descend<Scalar>,
    trit_step_products<Scalar>,
};
