// Which experts the tokens of a step choose, and which tokens share an expert.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

// A choice is a token's expert; choices lie in places, those of an expert together.
struct ExpertGroups {
    float *weight;       // [rows][chosen]: how much each choice counts
    int64_t *place;      // [rows][chosen]
    int64_t *row;        // [places]: whose choice it is; ascending in a group
    int64_t *group;      // [places]
    int64_t *expert;     // [groups]: which one, ascending
    int64_t *first;      // [groups + 1]: the place where a group begins
    int64_t *of_expert;  // [experts]: how many choices, then the next one's place
    int64_t count;       // groups

    int64_t size(int64_t number) const { return first[number + 1] - first[number]; }

    // The `chosen` largest of p = softmax(logits), the first of equal ones first, and their p;
    // normalized: divided by their sum. Changes the logits.
    void choose(int64_t token, float *logits, int64_t experts, int chosen, bool normalized) {
        int64_t *choice = place + token * chosen;
        float *p = weight + token * chosen;
        const float largest = *std::max_element(logits, logits + experts);
        float sum = 0, taken = 0;
        for (int64_t i = 0; i < experts; i++) sum += logits[i] = std::exp(logits[i] - largest);
        for (int i = 0; i < chosen; i++) {
            choice[i] = std::max_element(logits, logits + experts) - logits;
            taken += p[i] = logits[choice[i]];
            logits[choice[i]] = -1;
        }
        for (int i = 0; i < chosen; i++) p[i] /= normalized ? taken : sum;
    }

    // Of choices, which `place` holds, to places.
    void sort(int64_t rows, int64_t chosen, int64_t experts) {
        std::fill(of_expert, of_expert + experts, 0);
        for (int64_t i = 0; i < rows * chosen; i++) of_expert[place[i]]++;
        int64_t at = 0;
        count = 0;
        for (int64_t e = 0; e < experts; e++) {
            const int64_t size = of_expert[e];
            if (!size) continue;
            std::fill(group + at, group + at + size, count);
            expert[count] = e;
            first[count++] = of_expert[e] = at;
            at += size;
        }
        first[count] = at;
        for (int64_t i = 0; i < rows * chosen; i++) {
            place[i] = of_expert[place[i]]++;
            row[place[i]] = i / chosen;
        }
    }
};

}  // namespace
