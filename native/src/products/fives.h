// The layout kFives: a code is the trits of three steps (a step: 4 columns), 27 of the 32 values of
// five bits. A byte permutation of a table of 27 entries unpacks it, once a step, or where there is
// none two shuffles.
//
// Of a plane, a block's 24 steps are eight codes a byte position, in five units of 64 bytes: the low
// bits of a byte are codes 0..4 as they are, and the three high bits are the other codes,
//   5: unit 0 bits 5-7, unit 1 bits 5-6     6: unit 2 bits 5-7, unit 3 bits 5-6
//   7: unit 4 bits 5-7, unit 3 bit 7, unit 1 bit 7
// so that two shifts and a select extract one, for vpermb does not look at the top bits of an
// index.
//
// Scale indices: 16 words of 32 bits, one a row; group g has bits 5g .. 5g + 4.
#pragma once

#include <cstdint>

#include "portable_tile.h"

namespace {

struct Fives {
    static constexpr uint32_t kLayout = kFives;
    static constexpr bool kPlanesTogether = false;

    // The trits of 24 steps -> five units.
    static void pack_plane(const uint8_t (*trit)[kUnit], uint8_t *out) {
        for (int i = 0; i < kUnit; i++) {
            uint8_t code[8];
            for (int k = 0; k < 8; k++)
                code[k] = uint8_t(trit[3 * k][i] + 3 * trit[3 * k + 1][i] + 9 * trit[3 * k + 2][i]);
            out[i] = uint8_t(code[0] | code[5] << 5);
            out[kUnit + i] = uint8_t(code[1] | (code[5] >> 3) << 5 | (code[7] >> 4) << 7);
            out[2 * kUnit + i] = uint8_t(code[2] | code[6] << 5);
            out[3 * kUnit + i] = uint8_t(code[3] | (code[6] >> 3) << 5 | (code[7] >> 3 & 1) << 7);
            out[4 * kUnit + i] = uint8_t(code[4] | code[7] << 5);
        }
    }

    static void pack_index(const uint8_t (*index)[kTileRows], uint8_t *out) {
        for (int r = 0; r < kTileRows; r++) {
            uint32_t word = 0;
            for (int g = 0; g < kBlockGroups; g++) word |= uint32_t(index[g][r]) << 5 * g;
            std::memcpy(out + 4 * r, &word, 4);
        }
    }
};

}  // namespace
