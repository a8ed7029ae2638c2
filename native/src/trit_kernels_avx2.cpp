#include "decode.h"
#include "lanes_avx2.h"
#include "measure.h"
#include "tabulate.h"
#include "write.h"

const Kernels trit_kernels_avx2 = {
    {trit_peak<Avx2, uint16_t>, trit_peak<Avx2, uint16_t>, trit_peak<Avx2, uint32_t>},
    {trit_measure<Avx2, Half>, trit_measure<Avx2, Bfloat>, trit_measure<Avx2, float>},
    {trit_write<Avx2, Half>, trit_write<Avx2, Bfloat>, trit_write<Avx2, float>},
    trit_tabulate<Avx2>,
    {trit_decode<Avx2, Half>, trit_decode<Avx2, Bfloat>, trit_decode<Avx2, float>},
};
