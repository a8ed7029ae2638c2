// The element types of a weight matrix, as their bits.
#pragma once

#include <cstdint>

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

}  // namespace
