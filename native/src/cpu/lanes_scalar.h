// One lane: the plain statement of what every other lanes_*.h does with more of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "elements.h"
#include "trits.h"

namespace {

inline uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

inline float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

inline float to_float(float x) { return x; }

inline float to_float(Bfloat x) { return float_of(uint32_t(x.bits) << 16); }

inline float to_float(Half x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000u | magnitude << 13);
    if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + (112u << 23)));
    return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));
}

inline void round_to(float x, float *out) { *out = x; }

inline void round_to(float x, Bfloat *out) {
    uint32_t u = bits_of(x);
    out->bits = uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline void round_to(float x, Half *out) {
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    uint32_t half;
    if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
        half = 0x7c00;
    } else if (magnitude >= 0x38800000) {  // normal in float16
        half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    } else {  // adding 0.5 leaves units of 2**-24 in the low bits, rounded half to even
        half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    }
    out->bits = uint16_t(sign | half);
}

// Element i of an array of any of the three types.
inline float element(const void *p, int32_t dtype, int64_t i) {
    switch (dtype) {
        case TRITLLM_FLOAT16: return to_float(static_cast<const Half *>(p)[i]);
        case TRITLLM_BFLOAT16: return to_float(static_cast<const Bfloat *>(p)[i]);
        default: return static_cast<const float *>(p)[i];
    }
}

// As round_to, which knows numbers alone; a NaN becomes the quiet one.
inline void round_any(float x, float *out) { *out = x; }
inline void round_any(float x, Half *out) {
    if (x != x)
        out->bits = 0x7e00;
    else
        round_to(x, out);
}
inline void round_any(float x, Bfloat *out) {
    if (x != x)
        out->bits = 0x7fc0;
    else
        round_to(x, out);
}

inline void set_element(void *p, int32_t dtype, int64_t i, float x) {
    switch (dtype) {
        case TRITLLM_FLOAT16: return round_any(x, static_cast<Half *>(p) + i);
        case TRITLLM_BFLOAT16: return round_any(x, static_cast<Bfloat *>(p) + i);
        default: static_cast<float *>(p)[i] = x;
    }
}

struct Scalar {
    static constexpr int W = 1;
    using F = float;
    using I = int32_t;
    using M = bool;
    using D = double;

    static F set(float x) { return x; }
    static F load(const float *p) { return *p; }
    static void store(float *p, F x) { *p = x; }
    static F add(F x, F y) { return x + y; }
    static F sub(F x, F y) { return x - y; }
    static F mul(F x, F y) { return x * y; }
    static F div(F x, F y) { return x / y; }
    static F min(F x, F y) { return x < y ? x : y; }
    static F max(F x, F y) { return x > y ? x : y; }
    // Half to even for 0 <= x < 2**22; larger values stay large, which is all that a min needs.
    static F rint(F x) { return x + 12582912.0f - 12582912.0f; }
    static F fraction(F x) { return x - rint(x); }
    static F abs(F x) { return std::fabs(x); }
    // x * y + z, rounded once or twice: for exact results and for estimates only.
    static F fma(F x, F y, F z) { return x * y + z; }
    static F times_sign_of(F x, F y) { return float_of(bits_of(x) ^ (bits_of(y) & 0x80000000u)); }

    static I set_int(int32_t x) { return x; }
    static I bits(F x) { return int32_t(bits_of(x)); }
    static F from_bits(I x) { return float_of(uint32_t(x)); }
    static I add(I x, I y) { return x + y; }
    static I sub(I x, I y) { return x - y; }
    static I min(I x, I y) { return x < y ? x : y; }
    static I max(I x, I y) { return x > y ? x : y; }
    static I shift16(I x) { return int32_t(uint32_t(x) << 16); }
    static I or_(I x, I y) { return x | y; }
    static I to_int(F x) { return int32_t(x); }
    static F to_float(I x) { return float(x); }
    static void store_int(int32_t *p, I x) { *p = x; }

    static M lt(F x, F y) { return x < y; }
    static M le(F x, F y) { return x <= y; }
    static M lt(I x, I y) { return x < y; }
    static M le(I x, I y) { return x <= y; }
    static M both(M x, M y) { return x && y; }
    static M either(M x, M y) { return x || y; }
    static M but_not(M x, M y) { return x && !y; }
    static bool any(M x) { return x; }
    static F select(M m, F yes, F no) { return m ? yes : no; }
    static I select(M m, I yes, I no) { return m ? yes : no; }

    // table: 32 floats.
    static F lookup(const float *table, I index) { return table[index]; }

    static D wide(F x) { return double(x); }
    static D wide_set(double x) { return x; }
    static D add_wide(D x, D y) { return x + y; }
    static D mul_wide(D x, D y) { return x * y; }
    static void store_wide(double *p, D x) { *p = x; }

    // Whether there are words of 16 bits, two of a row in 32: see rank.h.
    static constexpr bool has_pairs = false;

    // Elements of W rows and 16 columns -> one vector a column.
    template <class T>
    static void load_columns(const T *p, int64_t, F *column) {
        for (int i = 0; i < 16; i++) column[i] = ::to_float(p[i]);
    }

    // x[i]: one 32-bit word a row, whose byte q belongs to plane q -> bytes[row][plane][i].
    static void split_planes(const I *x, uint8_t (*bytes)[4][16]) {
        for (int i = 0; i < 16; i++)
            for (int q = 0; q < 4; q++) bytes[0][q][i] = uint8_t(uint32_t(x[i]) >> 8 * q);
    }

    // Whether `decode_unit` is there for outputs of type T.
    template <class T>
    static constexpr bool looks_up = false;

    static bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
        return ::add_planes(plane, planes, digits);
    }

    // out[i] = float(digits[i] - middle) * step for 16 weights.
    template <class T>
    static void store_group(const uint8_t *digits, float middle, float step, T *out) {
        for (int i = 0; i < 16; i++) round_to((float(digits[i]) - middle) * step, out + i);
    }
};

}  // namespace
