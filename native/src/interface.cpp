// What callers in other languages can compare with their own picture of the interface.
#include <cstdint>
#include <cstring>

#include "tritllm_step.h"

namespace {

struct Fact {
    const char *name;
    int64_t value;
};

#define TRITLLM_SIZE(type) {#type, int64_t(sizeof(type))}
#define TRITLLM_VALUE(constant) {#constant, int64_t(constant)}

constexpr Fact kFacts[] = {
    TRITLLM_SIZE(tritllm_matrix),
    TRITLLM_SIZE(tritllm_sample_set),
    TRITLLM_SIZE(tritllm_target),
    TRITLLM_SIZE(tritllm_columns),
    TRITLLM_SIZE(tritllm_packed),
    TRITLLM_SIZE(tritllm_portable),
    TRITLLM_SIZE(tritllm_prepared),
    TRITLLM_SIZE(tritllm_input),
    TRITLLM_SIZE(tritllm_product),
    TRITLLM_SIZE(tritllm_vector),
    TRITLLM_SIZE(tritllm_weight),
    TRITLLM_SIZE(tritllm_expert),
    TRITLLM_SIZE(tritllm_experts),
    TRITLLM_SIZE(tritllm_block),
    TRITLLM_SIZE(tritllm_step),
    TRITLLM_VALUE(TRITLLM_GROUP),
    TRITLLM_VALUE(TRITLLM_ENTRIES),
    TRITLLM_VALUE(TRITLLM_TILE),
    TRITLLM_VALUE(TRITLLM_GRID),
    TRITLLM_VALUE(TRITLLM_SAMPLE),
    TRITLLM_VALUE(TRITLLM_BLOCK),
    TRITLLM_VALUE(TRITLLM_ALIGNMENT),
    TRITLLM_VALUE(TRITLLM_PRODUCTS_AT_ONCE),
    TRITLLM_VALUE(TRITLLM_WIDTH_MULTIPLE),
    TRITLLM_VALUE(TRITLLM_HEAD_MULTIPLE),
    TRITLLM_VALUE(TRITLLM_MOST_HEAD_DIM),
    TRITLLM_VALUE(TRITLLM_CACHE_GROUP),
    TRITLLM_VALUE(TRITLLM_STEP_TOKENS),
    TRITLLM_VALUE(TRITLLM_SILU),
    TRITLLM_VALUE(TRITLLM_GELU_TANH),
    TRITLLM_VALUE(TRITLLM_RELU_SQUARED),
    TRITLLM_VALUE(TRITLLM_MOST_CHOSEN),
    TRITLLM_VALUE(TRITLLM_CODEC),
    TRITLLM_VALUE(TRITLLM_PRODUCTS),
    TRITLLM_VALUE(TRITLLM_STEP),
    TRITLLM_VALUE(TRITLLM_FLOAT16),
    TRITLLM_VALUE(TRITLLM_BFLOAT16),
    TRITLLM_VALUE(TRITLLM_FLOAT32),
    TRITLLM_VALUE(TRITLLM_OK),
    TRITLLM_VALUE(TRITLLM_UNSUPPORTED),
    TRITLLM_VALUE(TRITLLM_BAD_BYTE),
    TRITLLM_VALUE(TRITLLM_BAD_PADDING),
    TRITLLM_VALUE(TRITLLM_BAD_ARGUMENT),
};

}  // namespace

int64_t tritllm_interface(const char *name) {
    for (const Fact &fact : kFacts)
        if (!std::strcmp(fact.name, name)) return fact.value;
    return -1;
}

const char *tritllm_interface_hash(void) { return TRITLLM_INTERFACE_HASH; }
