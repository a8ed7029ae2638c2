// What every piece of a thread's work sees: the call, the thread's way through the phases, and the
// rows that one piece leaves to the next.
#pragma once

#include <cstdint>

#include "cpu/elements.h"
#include "step_call.h"

namespace {

inline const void *element_at(const void *p, int dtype, int64_t i) {
    return static_cast<const uint8_t *>(p) + i * element_size(dtype);
}
inline void *element_at(void *p, int dtype, int64_t i) {
    return static_cast<uint8_t *>(p) + i * element_size(dtype);
}

// Pieces are made of this: each holds a copy of the references.
struct StepThread {
    StepCall &call;
    Phases &phases;
    const tritllm_step &step;
    const Shape &shape;
    const Scratch &scratch;
    const StepKernels &kernel;

    StepThread(StepCall &c, Phases &p)
        : call(c), phases(p), step(c.step), shape(c.shape), scratch(c.scratch), kernel(*c.kernel) {}

    void *hidden_row(const tritllm_block &block, int64_t row) const {
        return element_at(step.hidden, block.dtype, row * shape.hidden);
    }

    // Of what the gated unit and the experts take.
    float *z_row(int64_t row) const { return scratch.rows + row * shape.hidden; }

    void norm(const tritllm_block &block, const float *x, int64_t n, const tritllm_vector &weight,
              float *out) const {
        kernel.rms_norm(x, n, weight, block.epsilon, block.norm_offset, out);
    }
};

}  // namespace
