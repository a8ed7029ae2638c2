// The decoder step of every instruction set that runs here against the scalar one, with memory of
// just the size that it asks for, and the same bits from any number of threads.
#include <cmath>
#include <cstring>

#include "random_matrix.h"
#include "tritllm_step.h"

namespace {

constexpr int64_t kHidden = 48, kWide = 112, kHeads = 6, kKvHeads = 2, kHeadDim = 64;
constexpr int kBlocks = 2, kExperts = 3, kChosen = 2;

struct Case {
    int64_t batch, new_tokens, tokens;
    bool masked, head_norms, gemma, mixture, sub_norms;
};

struct Random {
    std::mt19937 rng{5};
    std::normal_distribution<float> normal;
    std::vector<float> floats(int64_t n) {
        std::vector<float> x(static_cast<size_t>(n));
        for (auto &v : x) v = normal(rng);
        return x;
    }
};

struct Model {
    std::vector<Matrix> matrices;
    std::vector<std::vector<float>> vectors;

    Model() {
        Random random;
        const int64_t q = kHeads * kHeadDim, kv = kKvHeads * kHeadDim;
        const int64_t shapes[][2] = {{q, kHidden},    {kv, kHidden},    {kv, kHidden},
                                     {kHidden, q},    {kWide, kHidden}, {kWide, kHidden},
                                     {kHidden, kWide}};
        for (int i = 0; i < kBlocks; i++) {
            for (const auto &s : shapes)
                matrices.emplace_back(s[0], s[1], int(matrices.size() % 4) + 1, random.rng);
            for (int64_t n : {kHidden, kHidden, kHeadDim, kHeadDim, q, kWide, kExperts * kHidden})
                vectors.push_back(random.floats(n));
        }
    }
};

struct Result {
    std::vector<float> hidden, cache;
};

Result run(const Model &model, int isa, const Case &c, int threads) {
    std::vector<Memory> prepared;
    std::vector<tritllm_block> blocks;
    tritllm_expert expert[kBlocks][kExperts];
    tritllm_experts mixtures[kBlocks];
    const tritllm_vector none = {nullptr, 0};
    for (int i = 0; i < kBlocks; i++) {
        for (int j = 0; j < 7; j++)
            prepared.push_back(model.matrices[size_t(7 * i + j)].prepare(isa));
        auto vector = [&](int j) {
            return tritllm_vector{model.vectors[size_t(7 * i + j)].data(), TRITLLM_FLOAT32};
        };
        auto weight = [&](int j) {
            const size_t number = size_t(7 * i + j);
            return tritllm_weight{prepared[number].get(), model.matrices[number].prepared_size(isa),
                                  j ? none : vector(4), nullptr, 0};
        };
        tritllm_block block = {};
        block.hidden = kHidden;
        block.intermediate = kWide;
        block.heads = kHeads;
        block.kv_heads = kKvHeads;
        block.head_dim = block.rotary_dim = kHeadDim;
        block.dtype = TRITLLM_FLOAT32;
        block.arithmetic = TRITLLM_EXACT;
        block.epsilon = 1e-6f;
        block.scaling = 0.125f;
        block.input_norm = vector(0);
        block.post_norm = vector(1);
        if (c.head_norms) {
            block.q_norm = vector(2);
            block.k_norm = vector(3);
        }
        if (c.gemma) {
            block.activation = TRITLLM_GELU_TANH;
            block.norm_offset = 1;
            block.softcap = 3;
            block.window = 20;
            block.attention_norm = block.feedforward_norm = vector(0);
        }
        if (c.sub_norms) {
            block.activation = TRITLLM_RELU_SQUARED;
            block.attention_sub_norm = vector(4);
            block.unit_sub_norm = vector(5);
        }
        block.q = weight(0);
        block.k = weight(1);
        block.v = weight(2);
        block.o = weight(3);
        block.gate = weight(4);
        block.up = weight(5);
        block.down = weight(6);
        // The last block's unit, that of this one, and that of this one without its own up.
        const tritllm_block &other = i ? blocks[0] : block;
        expert[i][0] = {other.gate, other.up, other.down};
        expert[i][1] = {block.gate, block.up, block.down};
        expert[i][2] = {block.gate, block.gate, block.down};
        mixtures[i] = {kExperts, kChosen, 1, kWide, vector(6), vector(1), expert[i]};
        if (c.mixture) block.experts = &mixtures[i];
        blocks.push_back(block);
    }
    Random random;
    Result r;
    const int64_t rows = c.batch * c.new_tokens;
    r.hidden = random.floats(rows * kHidden);
    const std::vector<float> cos = random.floats(rows * kHeadDim),
                             sin = random.floats(rows * kHeadDim);
    const int64_t size = c.batch * kKvHeads * c.tokens * kHeadDim;
    r.cache = random.floats(2 * kBlocks * size);
    std::vector<uint8_t> mask(static_cast<size_t>(c.batch * c.tokens));
    for (size_t i = 0; i < mask.size(); i++) mask[i] = i % 3 != 1 || i % size_t(c.tokens) == 0;
    void *keys[kBlocks], *values[kBlocks];
    for (int i = 0; i < kBlocks; i++) {
        keys[i] = r.cache.data() + 2 * i * size;
        values[i] = r.cache.data() + (2 * i + 1) * size;
    }
    const tritllm_step step = {c.batch,
                               c.new_tokens,
                               c.tokens,
                               r.hidden.data(),
                               {cos.data(), nullptr},
                               {sin.data(), nullptr},
                               c.new_tokens * kHeadDim,
                               keys,
                               values,
                               {kKvHeads * c.tokens * kHeadDim, c.tokens * kHeadDim, kHeadDim},
                               c.masked ? mask.data() : nullptr,
                               c.tokens,
                               {model.vectors[0].data(), TRITLLM_FLOAT32},
                               1e-6f,
                               nullptr,
                               nullptr};
    const Memory scratch = aligned(
        tritllm_llama_step_scratch(blocks.data(), kBlocks, c.batch, c.new_tokens, c.tokens));
    CHECK(tritllm_llama_step(threads, blocks.data(), kBlocks, &step, scratch.get()) == TRITLLM_OK);
    return r;
}

void compare(const std::vector<float> &ours, const std::vector<float> &theirs) {
    float largest = 0;
    for (float x : theirs) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < ours.size(); i++)
        CHECK(std::fabs(ours[i] - theirs[i]) <= 1e-4f * largest);
}

bool same(const std::vector<float> &x, const std::vector<float> &y) {
    return std::memcmp(x.data(), y.data(), 4 * x.size()) == 0;
}

}  // namespace

int main() {
    const Model model;
    const Case cases[] = {
        {1, 1, 1, false, false, false, false, false}, {1, 1, 33, false, true, false, false, false},
        {3, 1, 300, true, true, false, false, false}, {2, 4, 258, true, true, false, false, false},
        {2, 4, 258, true, true, true, false, false},  {1, 2, 33, false, false, false, true, false},
        {2, 3, 40, false, false, false, false, true}};
    for (const Case &c : cases) {
        const Result plain = run(model, TRITLLM_SCALAR, c, 1);
        for (int isa = 0; tritllm_isa_name(isa); isa++) {
            if (tritllm_isa_serving(isa, TRITLLM_PRODUCTS) != isa) continue;
            const Result alone = run(model, isa, c, 1), together = run(model, isa, c, 3);
            CHECK(same(alone.hidden, together.hidden) && same(alone.cache, together.cache));
            compare(alone.hidden, plain.hidden);
            compare(alone.cache, plain.cache);
            std::printf("%s agrees on %d new tokens over %d keys\n", tritllm_isa_name(isa),
                        int(c.new_tokens), int(c.tokens));
        }
    }
}
