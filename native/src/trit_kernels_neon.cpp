#include "decode.h"
#include "lanes_neon.h"
#include "measure.h"
#include "tabulate.h"
#include "write.h"

const Kernels trit_kernels_neon = {
    {trit_peak<Neon, uint16_t>, trit_peak<Neon, uint16_t>, trit_peak<Neon, uint32_t>},
    {trit_measure<Neon, Half>, trit_measure<Neon, Bfloat>, trit_measure<Neon, float>},
    {trit_write<Neon, Half>, trit_write<Neon, Bfloat>, trit_write<Neon, float>},
    trit_tabulate<Neon>,
    {trit_decode<Neon, Half>, trit_decode<Neon, Bfloat>, trit_decode<Neon, float>},
};
