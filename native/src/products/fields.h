// The layout kFields: what shifts and masks unpack, a group of four steps at a time, `depth` units
// each. A code is a level + L.
//
//   depth 1   one unit: bits 2f, 2f + 1 of a byte are the code of step f
//   depth 2   two units: unit u's low four bits are the code of step u, the high ones of step u + 2
//   depth 3   units as of depth 2 hold the lower two trits, then one as of depth 1 holds the
//             top trit
//   depth 4   four units: a byte is a code
#pragma once

#include <cstdint>

#include "portable_tile.h"

namespace {

constexpr Split kFieldsSplit[] = {
    {}, {1, {1}, {1}}, {1, {2}, {4}}, {2, {1, 2}, {1, 4}}, {1, {4}, {40}},
};

inline void pack_twos(const uint8_t (*step)[kUnit], uint8_t *out) {
    for (int i = 0; i < kUnit; i++)
        out[i] = uint8_t(step[0][i] | step[1][i] << 2 | step[2][i] << 4 | step[3][i] << 6);
}

inline void pack_nibbles(const uint8_t (*step)[kUnit], uint8_t *out) {
    for (int u = 0; u < 2; u++)
        for (int i = 0; i < kUnit; i++)
            out[kUnit * u + i] = uint8_t(step[u][i] | step[u + 2][i] << 4);
}

// The codes of one block; 6 * depth units.
inline void pack_fields(const Span &span, int block, int depth, uint8_t *out) {
    for (int g = 0; g < kBlockGroups; g++, out += depth * kUnit) {
        const int s = block * kBlockSteps + g * kGroupSteps;
        switch (depth) {
            case 1: pack_twos(span.unit[0] + s, out); break;
            case 2: pack_nibbles(span.unit[0] + s, out); break;
            case 3:
                pack_nibbles(span.unit[1] + s, out);
                pack_twos(span.unit[0] + s, out + 2 * kUnit);
                break;
            default: std::memcpy(out, span.unit[0] + s, 4 * kUnit);
        }
    }
}

}  // namespace
