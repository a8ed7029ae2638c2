// The layout kFives: codes of three trits (27 of 32 values) in five bits.
//
//   depth 1   a code holds the trits of three steps (a step: 4 columns): a byte permutation of a
//             table of 27 entries unpacks it, once a step
//   depth 2   two codes hold three steps: A = w0 + 9 * (w2 / 3), B = w1 + 9 * (w2 % 3)
//   depth 3   a code is a weight
//   depth 4   a code is the lower three trits of a weight; codes as of depth 1 hold the top trits
//
// Eight codes of five bits lie in five units of 64 bytes: the low bits of a byte are codes 0..4 as
// they are, and the three high bits are the other codes,
//   5: unit 0 bits 5-7, unit 1 bits 5-6     6: unit 2 bits 5-7, unit 3 bits 5-6
//   7: unit 4 bits 5-7, unit 3 bit 7, unit 1 bit 7
// so that two shifts and a select extract one, for vpermb does not look at the top bits of an
// index.
#pragma once

#include <cstdint>

#include "portable_tile.h"

namespace {

constexpr Split kFivesSplit[] = {
    {}, {1, {1}, {1}}, {2, {1, 1}, {1, 1}}, {1, {3}, {13}}, {2, {1, 3}, {1, 13}},
};

// Eight codes a byte position -> five units.
inline void pack_eight(const uint8_t code[8][kUnit], uint8_t *out) {
    for (int i = 0; i < kUnit; i++) {
        const uint8_t c5 = code[5][i], c6 = code[6][i], c7 = code[7][i];
        out[i] = uint8_t(code[0][i] | c5 << 5);
        out[kUnit + i] = uint8_t(code[1][i] | (c5 >> 3) << 5 | (c7 >> 4) << 7);
        out[2 * kUnit + i] = uint8_t(code[2][i] | c6 << 5);
        out[3 * kUnit + i] = uint8_t(code[3][i] | (c6 >> 3) << 5 | (c7 >> 3 & 1) << 7);
        out[4 * kUnit + i] = uint8_t(code[4][i] | c7 << 5);
    }
}

// Eight codes of the trits of 24 steps.
inline void pack_trits_of_steps(const uint8_t (*trit)[kUnit], uint8_t *out) {
    alignas(64) uint8_t code[8][kUnit];
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < kUnit; i++)
            code[k][i] = uint8_t(trit[3 * k][i] + 3 * trit[3 * k + 1][i] + 9 * trit[3 * k + 2][i]);
    pack_eight(code, out);
}

// The codes of one block; 5 * depth units.
inline void pack_fives(const Span &span, int block, int depth, uint8_t *out) {
    const uint8_t (*first)[kUnit] = span.unit[0] + block * kBlockSteps;
    const uint8_t (*second)[kUnit] = span.unit[1] + block * kBlockSteps;
    switch (depth) {
        case 1: pack_trits_of_steps(first, out); break;
        case 2:
            for (int half = 0; half < 2; half++, out += 5 * kUnit) {
                alignas(64) uint8_t code[8][kUnit];
                for (int pair = 0; pair < 4; pair++) {
                    const int s = 3 * (4 * half + pair);
                    for (int i = 0; i < kUnit; i++) {
                        code[2 * pair][i] =
                            uint8_t(3 * first[s][i] + second[s][i] + 9 * first[s + 2][i]);
                        code[2 * pair + 1][i] =
                            uint8_t(3 * first[s + 1][i] + second[s + 1][i] + 9 * second[s + 2][i]);
                    }
                }
                pack_eight(code, out);
            }
            break;
        case 3:
            for (int k = 0; k < 3; k++) pack_eight(first + 8 * k, out + 5 * k * kUnit);
            break;
        default:
            pack_trits_of_steps(first, out);
            for (int k = 0; k < 3; k++) pack_eight(second + 8 * k, out + 5 * (k + 1) * kUnit);
    }
}

}  // namespace
