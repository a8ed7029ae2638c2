// Which experts a token has, and how much each counts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "tritllm_step.h"

struct ExpertChoice {
    int64_t expert[TRITLLM_MOST_CHOSEN];
    float weight[TRITLLM_MOST_CHOSEN];

    // The `chosen` largest of p = softmax(logits), the first of equal ones first, and their p;
    // normalized: divided by their sum. Changes the logits.
    void choose(float *logits, int64_t count, int chosen, bool normalized) {
        const float largest = *std::max_element(logits, logits + count);
        float sum = 0, taken = 0;
        for (int64_t i = 0; i < count; i++) sum += logits[i] = std::exp(logits[i] - largest);
        for (int i = 0; i < chosen; i++) {
            expert[i] = std::max_element(logits, logits + count) - logits;
            taken += weight[i] = logits[expert[i]];
            logits[expert[i]] = -1;
        }
        for (int i = 0; i < chosen; i++) weight[i] /= normalized ? taken : sum;
    }
};
