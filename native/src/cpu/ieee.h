// The arithmetic that the results are defined with: subnormals kept, rounding to nearest even.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

// A caller's thread may flush subnormals (torch.set_flush_denormal does); its mode comes back when
// the object ends.
class IeeeArithmetic {
 public:
    IeeeArithmetic(const IeeeArithmetic &) = delete;
    IeeeArithmetic &operator=(const IeeeArithmetic &) = delete;
#if defined(__x86_64__) || defined(_M_X64)
    IeeeArithmetic() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~IeeeArithmetic() { _mm_setcsr(saved_); }

 private:
    unsigned saved_;
#elif defined(__aarch64__)
    IeeeArithmetic() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t(0)) : "memory");
    }
    ~IeeeArithmetic() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
    uint64_t saved_;
#else
    IeeeArithmetic() {}
#endif
};
