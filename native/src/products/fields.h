// The layout kFields: what shifts, masks and tables of 16 entries unpack.
//
// Of a plane, a unit is a group of 16 columns, which are four steps of four: bits 2f, 2f + 1 of byte
// 4 * r + c are the trit (0, 1, 2) of row r, column 4 * f + c.
//
// Scale indices, of five bits: byte 16 * h + r holds the low four bits of row r's groups 2h (below)
// and 2h + 1 (above), bit g of byte 48 + r the top bit of group g.
#pragma once

#include <cstdint>

#include "portable_tile.h"

namespace {

struct Fields {
    static constexpr uint32_t kLayout = kFields;

    // The trits of 24 steps -> six units.
    static void pack_plane(const uint8_t (*step)[kUnit], uint8_t *out) {
        for (int g = 0; g < kBlockGroups; g++, step += kGroupSteps, out += kUnit)
            for (int i = 0; i < kUnit; i++)
                out[i] = uint8_t(step[0][i] | step[1][i] << 2 | step[2][i] << 4 | step[3][i] << 6);
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
};

}  // namespace
