// The element types of a weight matrix, as their bits.
#pragma once

#include <cstdint>

#include "tritllm.h"

// For functions whose arrays are to stay in registers, and for those that would take all of them
// from their callers.
#if defined(_MSC_VER)
#define TRIT_INLINE __forceinline
#define TRIT_NOINLINE __declspec(noinline)
#else
#define TRIT_INLINE inline __attribute__((always_inline))
#define TRIT_NOINLINE __attribute__((noinline))
#endif

// Everything that the kernels of several instruction sets include lives in an anonymous namespace:
// the linker must never replace one file's copy of a function by another's, compiled for a machine
// that is not there.
namespace {

struct Half {
    uint16_t bits;
};

struct Bfloat {
    uint16_t bits;
};

inline bool valid_type(int dtype) { return dtype >= TRITLLM_FLOAT16 && dtype <= TRITLLM_FLOAT32; }

inline int64_t element_size(int dtype) { return dtype == TRITLLM_FLOAT32 ? 4 : 2; }

}  // namespace
