// Packing and unpacking as docs/format.md defines them, plain and slow: what tests compare with.
#pragma once

#include <cstdint>

#include "tritllm.h"

namespace {

// Digit 0, 1 or 2 of a byte, or of a scale index 0..26 (most significant first).
int digit_of(int byte, int64_t i) {
    for (; i > 0; i--) byte /= 3;
    return byte % 3;
}
int index_digit(int index, int64_t i) { return digit_of(index, 2 - i); }

// Rows of n digits, `digit(row, i)`, five a byte; what is missing in a row's last byte is 1.
template <class Digit>
void pack_digits(int64_t rows, int64_t n, Digit digit, uint8_t *packed) {
    const int64_t width = (n + 4) / 5;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t b = 0; b < width; b++) {
            int byte = 0;
            for (int64_t i = 5 * b + 4; i >= 5 * b; i--)
                byte = 3 * byte + (i < n ? digit(row, i) : 1);
            packed[row * width + b] = uint8_t(byte);
        }
}

// Calls set(row, i, digit) for all; TRITLLM_BAD_BYTE before any bad padding is looked at.
template <class Set>
int unpack_digits(const uint8_t *packed, int64_t rows, int64_t n, Set set) {
    const int64_t width = (n + 4) / 5;
    for (int64_t i = 0; i < rows * width; i++)
        if (packed[i] > 242) return TRITLLM_BAD_BYTE;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < 5 * width; i++) {
            const int digit = digit_of(packed[row * width + i / 5], i % 5);
            if (i < n)
                set(row, i, digit);
            else if (digit != 1)
                return TRITLLM_BAD_PADDING;
        }
    return TRITLLM_OK;
}

void pack_trits(const int8_t *trits, int64_t rows, int64_t n, uint8_t *packed) {
    pack_digits(rows, n, [&](int64_t row, int64_t i) { return trits[row * n + i] + 1; }, packed);
}

int unpack_trits(const uint8_t *packed, int64_t rows, int64_t n, int8_t *trits) {
    return unpack_digits(packed, rows, n, [&](int64_t row, int64_t i, int digit) {
        trits[row * n + i] = int8_t(digit - 1);
    });
}

void pack_scale_index(const uint8_t *index, int64_t rows, int64_t groups, uint8_t *packed) {
    auto digit = [&](int64_t row, int64_t i) {
        return index_digit(index[row * groups + i / 3], i % 3);
    };
    pack_digits(rows, 3 * groups, digit, packed);
}

int unpack_scale_index(const uint8_t *packed, int64_t rows, int64_t groups, uint8_t *index) {
    return unpack_digits(packed, rows, 3 * groups, [&](int64_t row, int64_t i, int digit) {
        uint8_t &at = index[row * groups + i / 3];
        at = uint8_t((i % 3 ? 3 * at : 0) + digit);
    });
}

}  // namespace
