// Bytes of five trits: tables made at compile time, and what makes a byte invalid.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTritsPerByte = 5;
constexpr int kLastByte = 242;

// By depth, L = (3**depth - 1) / 2: the largest level, and the digits of level 0.
constexpr int kMaxLevel[] = {0, 1, 4, 13, 40};

// Eight bytes per packed byte, so that a table entry is one 64-bit load and planes add up in one
// 64-bit addition: bytes 0..4 hold something about the five digits, byte 7 marks a value over 242.
constexpr uint64_t kInvalid = uint64_t(1) << 56;

// plane[p][b]: the digits (0, 1, 2) of byte b, each times 3**p.
struct DigitTable {
    uint64_t plane[4][256];

    constexpr DigitTable() : plane() {
        for (int b = 0; b < 256; b++) {
            uint64_t digits = 0;
            for (int i = 0, rest = b; i < kTritsPerByte; i++, rest /= 3)
                digits |= uint64_t(rest % 3) << 8 * i;
            for (int p = 0, power = 1; p < 4; p++, power *= 3)
                plane[p][b] = digits * uint64_t(power) | (b > kLastByte ? kInvalid : 0);
        }
    }
};

// Three bytes are five scale indices of three digits: byte i of the sum of part[0][b0], part[1][b1]
// and part[2][b2] is index i.
struct IndexTable {
    uint64_t part[3][256];

    constexpr IndexTable() : part() {
        constexpr int weight[3] = {9, 3, 1};
        for (int byte = 0; byte < 3; byte++) {
            for (int b = 0; b < 256; b++) {
                uint64_t sum = b > kLastByte ? kInvalid : 0;
                for (int i = 0, rest = b; i < kTritsPerByte; i++, rest /= 3) {
                    int trit = byte * kTritsPerByte + i;
                    sum += uint64_t(rest % 3 * weight[trit % 3]) << 8 * (trit / 3);
                }
                part[byte][b] = sum;
            }
        }
    }
};

constexpr DigitTable kDigits;
constexpr IndexTable kIndices;

constexpr uint8_t kZeroTrits = 121;  // five trits 0

// Whether the trits of a row's last byte from `used` on (1..5) are 0.
inline bool padding_is_zero(uint8_t last, int64_t n) {
    int used = int(n % kTritsPerByte);
    if (used == 0) return true;
    int power = 1;
    for (int i = 0; i < used; i++) power *= 3;
    return last / power == kZeroTrits / power;
}

// `size` bytes at p, or a copy in `edge` filled up with zero trits where fewer are left (or none,
// where `left` is negative).
inline const uint8_t *at_least(const uint8_t *p, int64_t left, int64_t size, uint8_t *edge) {
    if (left >= size) return p;
    std::memset(edge, kZeroTrits, size_t(size));
    if (left > 0) std::memcpy(edge, p, size_t(left));
    return edge;
}

constexpr int kDecodeColumns = 160;  // 10 groups: 32 bytes a plane and 6 bytes of scale indices
constexpr int kLevelSlots = 64;      // 27 levels, or 41 magnitudes, in whole vectors
constexpr int kPlaneBytes = kDecodeColumns / kTritsPerByte;

// The digits sum(3**(planes - 1 - p) * (t[p] + 1)) of 160 weights from 32 bytes of each plane;
// writes up to 8 bytes more. Returns whether all bytes are valid.
inline bool add_planes(const uint8_t *const *plane, int planes, uint8_t *digits) {
    uint64_t seen = 0;
    for (int b = 0; b < kPlaneBytes; b++) {
        uint64_t sum = 0;
        for (int p = 0; p < planes; p++) {
            const uint64_t word = kDigits.plane[planes - 1 - p][plane[p][b]];
            seen |= word;
            sum += word;
        }
        std::memcpy(digits + kTritsPerByte * b, &sum, 8);
    }
    return seen < kInvalid;
}

}  // namespace
