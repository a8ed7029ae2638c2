// Five trits a byte, row by row.
#include "cpu/trits.h"

#include <algorithm>
#include <cstring>

#include "tritllm.h"

void tritllm_pack_trits(const int8_t *trits, int64_t rows, int64_t n, uint8_t *packed) {
    const int64_t width = (n + 4) / 5;
    for (int64_t row = 0; row < rows; row++, trits += n, packed += width) {
        int64_t b = 0;
        for (; 5 * b + 5 <= n; b++) {
            const int8_t *t = trits + 5 * b;
            packed[b] = uint8_t(kZeroTrits + t[0] + 3 * t[1] + 9 * t[2] + 27 * t[3] + 81 * t[4]);
        }
        if (b < width) {
            int byte = kZeroTrits;
            for (int64_t i = 5 * b, power = 1; i < n; i++, power *= 3)
                byte += int(trits[i] * power);
            packed[b] = uint8_t(byte);
        }
    }
}

int tritllm_unpack_trits(const uint8_t *packed, int64_t rows, int64_t n, int8_t *trits) {
    const int64_t width = (n + 4) / 5;
    for (int64_t i = 0; i < rows * width; i++)
        if (packed[i] > kLastByte) return TRITLLM_BAD_BYTE;
    for (int64_t row = 0; row < rows; row++, packed += width, trits += n) {
        if (n > 0 && !padding_is_zero(packed[width - 1], n)) return TRITLLM_BAD_PADDING;
        for (int64_t b = 0; b < width; b++) {
            const uint64_t digits = kDigits.plane[0][packed[b]];
            const int64_t end = std::min<int64_t>(5, n - 5 * b);
            for (int64_t i = 0; i < end; i++)
                trits[5 * b + i] = int8_t((digits >> 8 * i & 255) - 1);
        }
    }
    return TRITLLM_OK;
}

void tritllm_pack_scale_index(const uint8_t *index, int64_t rows, int64_t groups, uint8_t *packed) {
    const int64_t n = 3 * groups, width = (n + 4) / 5;
    for (int64_t row = 0; row < rows; row++, index += groups, packed += width) {
        for (int64_t b = 0; b < width; b++) {
            int byte = 0;
            for (int i = 4; i >= 0; i--) {
                constexpr int power[] = {9, 3, 1};
                const int64_t t = 5 * b + i;
                byte = 3 * byte + (t < n ? index[t / 3] / power[t % 3] % 3 : 1);
            }
            packed[b] = uint8_t(byte);
        }
    }
}

int tritllm_unpack_scale_index(const uint8_t *packed, int64_t rows, int64_t groups,
                               uint8_t *index) {
    const int64_t n = 3 * groups, width = (n + 4) / 5;
    for (int64_t i = 0; i < rows * width; i++)
        if (packed[i] > kLastByte) return TRITLLM_BAD_BYTE;
    for (int64_t row = 0; row < rows; row++, packed += width, index += groups) {
        if (n > 0 && !padding_is_zero(packed[width - 1], n)) return TRITLLM_BAD_PADDING;
        for (int64_t b = 0, g = 0; b < width; b += 3, g += 5) {
            uint64_t sum = 0;
            for (int64_t i = 0; i < std::min<int64_t>(3, width - b); i++)
                sum += kIndices.part[i][packed[b + i]];
            for (int64_t i = 0; i < std::min<int64_t>(5, groups - g); i++)
                index[g + i] = uint8_t(sum >> 8 * i);
        }
    }
    return TRITLLM_OK;
}
