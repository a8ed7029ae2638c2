// Fuzzing of what reads a file's bytes: unpacking and dequantizing, on every instruction set, which
// must agree with each other.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fuzz_driver.h"
#include "plain_trits.h"
#include "tritllm.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 6) return 0;
    const int64_t rows = 1 + data[0] % 4, columns = 1 + (data[1] | data[2] % 4 << 8);
    const int planes = 1 + data[3] % 4, dtype = data[4] % 3;
    const bool repair = data[5] % 2;  // most random bytes are refused: make them valid
    data += 6;
    size -= 6;
    const int64_t groups = (columns + 15) / 16, width = (columns + 4) / 5;
    const int64_t scale_width = (3 * groups + 4) / 5;

    // Exact sizes on the heap, so that AddressSanitizer sees any byte read or written beyond.
    auto fill = [&](int64_t n, int64_t row_width, int64_t trits) {
        std::vector<uint8_t> bytes(size_t(n), 121);
        const size_t taken = std::min(size, bytes.size());
        if (taken) std::memcpy(bytes.data(), data, taken);
        data += taken;
        size -= taken;
        for (size_t i = 0; repair && i < bytes.size(); i++) {
            bytes[i] = uint8_t(bytes[i] % 243);
            if (int64_t(i) % row_width == row_width - 1 && trits % 5) bytes[i] = 121;
        }
        return bytes;
    };
    const std::vector<uint8_t> packed = fill(planes * rows * width, width, columns);
    const std::vector<uint8_t> scale = fill(rows * scale_width, scale_width, 3 * groups);

    std::vector<int8_t> trits(size_t(planes * rows * columns));
    std::vector<uint8_t> index(size_t(rows * groups));
    const int weight_status = unpack_trits(packed.data(), planes * rows, columns, trits.data());
    const int scale_status = unpack_scale_index(scale.data(), rows, groups, index.data());
    const bool valid = weight_status == TRITLLM_OK && scale_status == TRITLLM_OK;
    if (repair && !valid) std::abort();
    if (valid) {
        std::vector<uint8_t> again(packed.size());
        pack_trits(trits.data(), planes * rows, columns, again.data());
        if (again != packed) std::abort();
        again.resize(scale.size());
        pack_scale_index(index.data(), rows, groups, again.data());
        if (again != scale) std::abort();
    }

    float steps[27];
    for (int i = 0; i < 27; i++) steps[i] = 0.001f * float(i + 1) * float(i + 1);
    const size_t n = size_t(rows * columns) * (dtype == TRITLLM_FLOAT32 ? 4 : 2);
    std::vector<uint8_t> first;
    for (int isa = TRITLLM_SCALAR; tritllm_isa_name(isa); isa++) {
        if (tritllm_isa_serving(isa, TRITLLM_CODEC) != isa) continue;
        std::vector<uint8_t> out(n);
        const tritllm_packed p = {packed.data(), rows * width, width,   scale.data(),
                                  scale_width,   steps,        columns, planes,
                                  dtype,         out.data(),   columns};
        const int status = tritllm_dequantize(isa, &p, 0, rows);
        if ((status == TRITLLM_OK) != valid) std::abort();
        if (!valid) continue;
        if (first.empty()) first = out;
        if (out != first) std::abort();
    }
    return 0;
}
