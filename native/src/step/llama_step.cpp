// The C interface of the step.
#include "block_loop.h"
#include "cpu/team.h"
#include "scratch.h"
#include "step_call.h"
#include "valid_blocks.h"

namespace {

void run_thread(void *data) {
    StepCall &call = *static_cast<StepCall *>(data);
    Phases phases(call.counters);
    BlockLoop(StepThread(call, phases)).run();
}

}  // namespace

int64_t tritllm_llama_step_scratch(const tritllm_block *blocks, int64_t n_blocks, int64_t batch,
                                   int64_t new_tokens, int64_t tokens) {
    if (!valid_blocks(blocks, n_blocks) || batch < 1 || new_tokens < 1 || tokens < new_tokens)
        return -1;
    const Shape shape(blocks, n_blocks);
    return Scratch(blocks[0], shape, batch, new_tokens, tokens, nullptr).bytes;
}

int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                       const tritllm_step *step, void *memory) {
    if (!valid_blocks(blocks, n_blocks) || step->batch < 1 || step->new_tokens < 1 ||
        step->tokens < step->new_tokens || !valid_vector(step->final_norm, true))
        return TRITLLM_BAD_ARGUMENT;
    StepCall call(threads, blocks, n_blocks, *step, memory);
    const int status = call.begin();
    if (status != TRITLLM_OK) return status;
    run_team(call.threads, run_thread, &call);
    return call.status.load();
}
