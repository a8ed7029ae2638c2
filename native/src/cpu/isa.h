// Which instruction sets there are, and the functions of each that run here.
#pragma once

#include "tritllm.h"

struct CodecKernels;
struct ProductKernels;
struct StepKernels;

// The functions of one family for instruction set `isa`, a row's number in the table of isa.cpp;
// null where this machine or this build cannot run them.
const CodecKernels *codec_kernels(int isa);
const ProductKernels *product_kernels(int isa);
const StepKernels *step_kernels(int isa);
