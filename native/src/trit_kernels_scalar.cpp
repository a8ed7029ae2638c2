#include "decode.h"
#include "lanes_scalar.h"
#include "measure.h"
#include "tabulate.h"
#include "write.h"

const Kernels trit_kernels_scalar = {
    {trit_peak<Scalar, uint16_t>, trit_peak<Scalar, uint16_t>, trit_peak<Scalar, uint32_t>},
    {trit_measure<Scalar, Half>, trit_measure<Scalar, Bfloat>, trit_measure<Scalar, float>},
    {trit_write<Scalar, Half>, trit_write<Scalar, Bfloat>, trit_write<Scalar, float>},
    trit_tabulate<Scalar>,
    {trit_decode<Scalar, Half>, trit_decode<Scalar, Bfloat>, trit_decode<Scalar, float>},
};
