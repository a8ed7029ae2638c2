// The layout kFields: what shifts, masks and tables of 16 entries unpack.
//
// Of a plane, a unit is a group of 16 columns, which are four steps of four: bits 2f, 2f + 1 of byte
// 4 * r + c are the trit (0, 1, 2) of row r, column 4 * f + c.
//
// Planes together: a weight is its code level + L (0..8, 0..26 or 0..80), in 4, 5 or 7 bits. Eight
// steps, which are two groups, share so many units; in a byte of them
//   depth 2   unit k: code k in the low four bits, code k + 4 in the high four
//   depth 3   unit k: code k in the low five bits; the high three bits of units 0, 2 and 4 are those of
//             codes 5, 6 and 7, and of units 1 and 3: bits 7 and 6 the low ones of codes 5 and 6, bit 5
//             of unit 1 is bit 1 and of unit 3 bit 0 of code 7
//   depth 4   unit k: code k in the low seven bits, and on top bit k of code 7
//
// Scale indices, of five bits: byte 16 * h + r holds the low four bits of row r's groups 2h (below)
// and 2h + 1 (above), bit g of byte 48 + r the top bit of group g.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable_tile.h"

namespace {

struct Fields {
    static constexpr uint32_t kLayout = kFields;
    static constexpr bool kPlanesTogether = true;

    // The trits of 24 steps -> six units.
    static void pack_plane(const uint8_t (*step)[kUnit], uint8_t *out) {
        for (int g = 0; g < kBlockGroups; g++, step += kGroupSteps, out += kUnit)
            for (int i = 0; i < kUnit; i++)
                out[i] = uint8_t(step[0][i] | step[1][i] << 2 | step[2][i] << 4 | step[3][i] << 6);
    }

    // The trits of each plane, the first one first, of eight steps -> the units that these share.
    static void pack_together(const uint8_t (*const *plane)[kUnit], int first, int depth,
                              uint8_t *out) {
        uint8_t code[kTogetherSteps][kUnit];
        for (int k = 0; k < kTogetherSteps; k++) {
            std::memcpy(code[k], plane[0][first + k], kUnit);
            for (int p = 1; p < depth; p++)
                for (int i = 0; i < kUnit; i++)
                    code[k][i] = uint8_t(3 * code[k][i] + plane[p][first + k][i]);
        }
        for (int k = 0; k < together_units(depth); k++, out += kUnit) {
            uint8_t above[kUnit];
            spill(code, depth, k, above);
            for (int i = 0; i < kUnit; i++) out[i] = uint8_t(code[k][i] | above[i]);
        }
    }

    static void pack_index(const uint8_t (*index)[kTileRows], uint8_t *out) {
        for (int r = 0; r < kTileRows; r++) {
            uint8_t top = 0;
            for (int g = 0; g < kBlockGroups; g++) top |= uint8_t((index[g][r] >> 4) << g);
            for (int h = 0; h < kBlockGroups / 2; h++)
                out[kTileRows * h + r] =
                    uint8_t((index[2 * h][r] & 15) | (index[2 * h + 1][r] & 15) << 4);
            out[kTileRows * (kBlockGroups / 2) + r] = top;
        }
    }

 private:
    // What the bytes of unit k hold above code k. Loops are by bytes, with nothing to decide in them:
    // so they become vectors, and preparing takes a tenth of the time.
    static void spill(const uint8_t (*code)[kUnit], int depth, int k, uint8_t *above) {
        const uint8_t *const of = code[depth == 2   ? 4 + k
                                       : depth == 3 ? 5 + k / 2
                                                    : 7];  // 3: 5, 5, 6, 6, 7
        const uint8_t *const last = code[kTogetherSteps - 1];
        if (depth == 2)
            for (int i = 0; i < kUnit; i++) above[i] = uint8_t(of[i] << 4);
        else if (depth == 4)
            for (int i = 0; i < kUnit; i++) above[i] = uint8_t(last[i] >> k << 7);
        else if (k % 2 == 0)
            for (int i = 0; i < kUnit; i++) above[i] = uint8_t(of[i] >> 2 << 5);
        else
            for (int i = 0; i < kUnit; i++)
                above[i] = uint8_t(of[i] << 6 | (last[i] >> (k == 1) & 1) << 5);
    }
};

}  // namespace
