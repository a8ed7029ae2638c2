// The codec over sixteen lanes, for each of the instruction sets that have them.
#pragma once

#include "calibrated.h"
#include "cpu/lanes_avx512.h"
#include "dequantize.h"
#include "fit_errors.h"
#include "measure.h"
#include "write.h"

namespace {

constexpr CodecKernels avx512_codec = {
    {trit_peak<Avx512, uint16_t>, trit_peak<Avx512, uint16_t>, trit_peak<Avx512, uint32_t>},
    {trit_measure<Avx512, Half>, trit_measure<Avx512, Bfloat>, trit_measure<Avx512, float>},
    {trit_write<Avx512, Half>, trit_write<Avx512, Bfloat>, trit_write<Avx512, float>},
    {trit_gather<Avx512, Half>, trit_gather<Avx512, Bfloat>, trit_gather<Avx512, float>},
    trit_least_errors<Avx512>,
    {trit_dequantize<Avx512, Half>, trit_dequantize<Avx512, Bfloat>,
     trit_dequantize<Avx512, float>},
    trit_feed_back<Avx512>,
    trit_descend<Avx512>,
    trit_step_products<Avx512>,
};

}  // namespace
