// Fuzzing of the encoder: weights of any bits, of any shape. The instruction sets must agree with
// the scalar one, bit for bit, and on what is not finite.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "encoding.h"
#include "fuzz_driver.h"

namespace {

constexpr int kExponentBits[] = {5, 8, 8}, kFractionBits[] = {10, 7, 23};

// Clears the highest bit of the exponent where a value is not finite.
template <class T>
void make_finite(std::vector<T> &values, int dtype) {
    const T exponent = T(T((T(1) << kExponentBits[dtype]) - 1) << kFractionBits[dtype]);
    const T top = T(T(1) << (kExponentBits[dtype] + kFractionBits[dtype] - 1));
    for (T &v : values)
        if ((v & exponent) == exponent) v = T(v ^ top);
}

template <class T>
int64_t first_nonfinite(const std::vector<T> &values, const tritllm_matrix &m) {
    const T exponent = T(T((T(1) << kExponentBits[m.dtype]) - 1) << kFractionBits[m.dtype]);
    for (int64_t row = 0; row < m.rows; row++)
        for (int64_t column = 0; column < m.columns; column++)
            if ((values[size_t(row * m.row_stride + column)] & exponent) == exponent)
                return row * m.columns + column;
    return -1;
}

template <class T>
void compare(tritllm_matrix m, const uint8_t *data, size_t size, bool finite, bool search,
             int64_t part, int out_dtype) {
    // The last row ends with its last column: AddressSanitizer sees what is read beyond.
    std::vector<T> values(size_t((m.rows - 1) * m.row_stride + m.columns));
    if (size) std::memcpy(values.data(), data, std::min(size, values.size() * sizeof(T)));
    if (finite) make_finite(values, m.dtype);
    m.weight = values.data();
    const int64_t nonfinite = first_nonfinite(values, m);
    CHECK(tritllm_first_nonfinite(&m) == nonfinite);
    for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++) {
        if (tritllm_isa_serving(isa, TRITLLM_CODEC) != isa) continue;
        uint32_t bits;
        CHECK(tritllm_peak(isa, &m, 0, m.rows, &bits) == TRITLLM_OK);
        CHECK((bits > 0x7f7fffff) == (nonfinite >= 0));
    }
    if (nonfinite >= 0) return;  // what comes next wants finite weights
    const Result expected =
        encode_and_dequantize(TRITLLM_SCALAR, m, search, m.rows + 15, out_dtype);
    for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++)
        if (tritllm_isa_serving(isa, TRITLLM_CODEC) == isa)
            CHECK(encode_and_dequantize(isa, m, search, part, out_dtype) == expected);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 6) return 0;
    tritllm_matrix m = {};
    m.dtype = data[0] % 3;
    m.rows = 1 + data[1] % 40;
    m.columns = 1 + data[2] % 100;
    m.row_stride = m.columns + data[3] % 3;
    const bool finite = data[4] % 8, search = data[4] / 8 % 2;
    const int64_t part = 16 * (1 + data[5] % 3);
    const int out_dtype = data[5] / 3 % 3;
    if (m.dtype == TRITLLM_FLOAT32)
        compare<uint32_t>(m, data + 6, size - 6, finite, search, part, out_dtype);
    else
        compare<uint16_t>(m, data + 6, size - 6, finite, search, part, out_dtype);
    return 0;
}
