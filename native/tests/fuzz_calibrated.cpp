// Fuzzing of the calibrated encoder's passes: blocks of any shape and numbers. The instruction sets
// must agree with the scalar one, and AddressSanitizer sees what is read or written beyond an array.
#include "calibrated_case.h"
#include "fuzz_driver.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) return 0;
    constexpr int kReach[] = {1, 4, 13, 40};
    CalibratedCase block;
    block.rows = 16 * (data[0] % 4);
    block.columns = 16 * (data[1] % 9);
    block.reach = kReach[data[2] % 4];
    block.centred = data[3] & 1;
    block.fixed = data[3] & 2;
    size_t at = 4;
    uint32_t state = 1;  // behind the input's end, numbers that follow from its last
    block.fill([&] {
        if (at + 2 <= size) {
            int16_t x;
            std::memcpy(&x, data + at, 2);
            at += 2;
            state = state * 2891336453u + uint16_t(x);
            return float(x) / 512;
        }
        state = state * 1664525u + 1013904223u;
        return float(int32_t(state) >> 16) / 512;
    });
    block.compare();
    return 0;
}
