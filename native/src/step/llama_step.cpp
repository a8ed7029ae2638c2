// The C interface of the step: a block's work in order, each piece shared between threads.
#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/phase.h"
#include "cpu/team.h"
#include "products/product_set.h"
#include "step_kernels.h"

namespace {

constexpr int64_t kKeysAPart = 256;  // of one sequence and head of keys, that one thread takes

bool valid_vector(const tritllm_vector &v, bool optional) {
    return v.data ? valid_type(v.dtype) : optional;
}

bool valid_block(const tritllm_block &b) {
    return b.hidden > 0 && b.hidden % TRITLLM_WIDTH_MULTIPLE == 0 && b.intermediate > 0 &&
           b.intermediate % TRITLLM_WIDTH_MULTIPLE == 0 && b.kv_heads > 0 && b.heads > 0 &&
           b.heads % b.kv_heads == 0 && b.head_dim > 0 && b.head_dim % TRITLLM_HEAD_MULTIPLE == 0 &&
           b.head_dim <= kMostHeadDim && valid_type(b.dtype) && valid_vector(b.input_norm, false) &&
           valid_vector(b.post_norm, false) && valid_vector(b.q_norm, true) &&
           valid_vector(b.k_norm, true);
}

bool same_shape(const tritllm_block &a, const tritllm_block &b) {
    return a.hidden == b.hidden && a.intermediate == b.intermediate && a.heads == b.heads &&
           a.kv_heads == b.kv_heads && a.head_dim == b.head_dim && a.dtype == b.dtype &&
           a.exact == b.exact;
}

extern const void *element_at(const void *p, int dtype, int64_t i) {
    return static_cast<const uint8_t *>(p) + i * element_size(dtype);
}
void *element_at(void *p, int dtype, int64_t i) {
    return static_cast<uint8_t *>(p) + i * element_size(dtype);
}

struct Shape {
    int64_t hidden, wide, queries, keys;  // elements of a row

    explicit Shape(const tritllm_block &b)
        : hidden(b.hidden),
          wide(b.intermediate),
          queries(int64_t(b.heads) * b.head_dim),
          keys(int64_t(b.kv_heads) * b.head_dim) {}
};

int64_t splits_of(int64_t tokens) { return (tokens + kKeysAPart - 1) / kKeysAPart; }

// Where in scratch memory everything lies; without memory, how much it takes.
struct Scratch {
    float *rows;              // [batch][the widest]: what activations are made of
    float *result;            // [batch][as many]: products, one after the other
    float *residual;          // [batch][hidden]
    float *parts;             // [splits][batch][heads][kPartial]
    void *q;                  // [batch][heads][head_dim] of the block's dtype
    uint8_t *activations[4];  // of a block's four steps
    int64_t bytes = 0;

    Scratch(const tritllm_block &b, int64_t batch, int64_t tokens, void *memory) {
        const Shape s(b);
        const int64_t widest = std::max({s.hidden, s.queries, s.wide});
        auto take = [&](int64_t size) {
            uint8_t *at = memory ? static_cast<uint8_t *>(memory) + bytes : nullptr;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        auto floats = [&](int64_t n) { return reinterpret_cast<float *>(take(4 * n)); };
        rows = floats(batch * widest);
        result = floats(batch * std::max({s.queries + 2 * s.keys, s.hidden, 2 * s.wide}));
        residual = floats(batch * s.hidden);
        parts = floats(splits_of(tokens) * batch * b.heads * kPartial);
        q = take(batch * s.queries * element_size(b.dtype));
        for (auto &a : activations)
            a = take(tritllm_linear_activations_size(batch, widest, b.exact));
    }
};

// Products of one input, whose float32 rows are made first.
struct Piece {
    tritllm_input input;
    void *activations;
    ProductSet products;
    int64_t a_time;
    Phase make, multiply;

    // The products' results lie one after the other in `result`, [batch][N] each.
    int open(int threads, int64_t batch, int exact, const float *rows, int64_t columns,
             void *memory, const tritllm_weight *const *weights, const int64_t *widths, int count,
             float *result) {
        input = {rows, columns, batch, columns, TRITLLM_FLOAT32, exact};
        activations = memory;
        tritllm_product product[3];
        for (int i = 0; i < count; i++) {
            const tritllm_weight &w = *weights[i];
            if (!w.prepared || !valid_vector(w.bias, true)) return TRITLLM_BAD_ARGUMENT;
            product[i].prepared = w.prepared;
            product[i].size = w.size;
            product[i].rows = widths[i];
            product[i].layout = 0;
            product[i].depth = w.depth;
            product[i].steps = w.steps;
            product[i].bias = w.bias.data;
            product[i].bias_dtype = w.bias.dtype;
            product[i].y = result;
            product[i].stride = widths[i];
            product[i].dtype = TRITLLM_FLOAT32;
            result += batch * widths[i];
        }
        int status = open_products(product, count, columns, &products);
        if (status == TRITLLM_OK) status = tritllm_linear_begin(products.isa, &input, activations);
        if (status != TRITLLM_OK) return status;
        a_time = tiles_at_a_time(products, threads);
        return TRITLLM_OK;
    }

    // make_row(b) fills float32 row b of the input.
    template <class MakeRow>
    void run(MakeRow make_row) {
        make.run(input.batch, [&](int64_t b) {
            make_row(b);
            tritllm_linear_quantize(&input, b, b + 1, activations);
        });
        const int64_t tiles = products.tiles();
        multiply.run((tiles + a_time - 1) / a_time, [&](int64_t part) {
            multiply_tiles(products, activations, part * a_time,
                           std::min((part + 1) * a_time, tiles));
        });
    }
};

// One block. Rows of the batch are the parts of what stands between the products.
struct BlockRun {
    const tritllm_block &block;
    const tritllm_step &step;
    void *keys, *values;  // of this block
    const Scratch &scratch;
    const Shape shape;
    const int64_t splits;
    const StepKernels *kernel;
    Piece project, output, gates, down;
    Phase rotary, attend, end;

    BlockRun(const tritllm_block &b, const tritllm_step &s, int64_t number, const Scratch &memory)
        : block(b),
          step(s),
          keys(s.key[number]),
          values(s.value[number]),
          scratch(memory),
          shape(b),
          splits(splits_of(s.tokens)),
          kernel(nullptr) {}

    int open(int threads) {
        const tritllm_weight *qkv[] = {&block.q, &block.k, &block.v}, *o[] = {&block.o};
        const tritllm_weight *both[] = {&block.gate, &block.up}, *last[] = {&block.down};
        const int64_t thirds[] = {shape.queries, shape.keys, shape.keys};
        const int64_t halves[] = {shape.wide, shape.wide};
        auto open_piece = [&](Piece &piece, int number, int64_t columns,
                              const tritllm_weight *const *weights, const int64_t *widths,
                              int count) {
            return piece.open(threads, step.batch, block.exact, scratch.rows, columns,
                              scratch.activations[number], weights, widths, count, scratch.result);
        };
        int status = open_piece(project, 0, shape.hidden, qkv, thirds, 3);
        if (status == TRITLLM_OK)
            status = open_piece(output, 1, shape.queries, o, &shape.hidden, 1);
        if (status == TRITLLM_OK) status = open_piece(gates, 2, shape.hidden, both, halves, 2);
        if (status == TRITLLM_OK) status = open_piece(down, 3, shape.wide, last, &shape.hidden, 1);
        if (status == TRITLLM_OK) kernel = step_kernels(project.products.isa);
        return status;
    }

    // What every thread does.
    void run() {
        const int64_t hidden = shape.hidden, wide = shape.wide;
        project.run([&](int64_t b) {
            float *row = scratch.rows + b * hidden;
            kernel->widen(hidden_row(b), block.dtype, hidden, row);
            kernel->rms_norm(row, hidden, block.input_norm, block.epsilon, row);
        });
        rotary.run(step.batch, [&](int64_t b) { rotate_row(b); });
        attend.run(step.batch * block.kv_heads * splits, [&](int64_t part) { attend_part(part); });
        output.run([&](int64_t b) {
            for (int h = 0; h < block.heads; h++)
                kernel->combine(scratch.parts + (b * block.heads + h) * kPartial, splits,
                                step.batch * block.heads * kPartial, block.head_dim,
                                scratch.rows + b * shape.queries + h * block.head_dim);
        });
        gates.run([&](int64_t b) {
            float *sum = scratch.residual + b * hidden;
            kernel->add(scratch.result + b * hidden, {hidden_row(b), block.dtype}, hidden, sum);
            kernel->rms_norm(sum, hidden, block.post_norm, block.epsilon,
                             scratch.rows + b * hidden);
        });
        down.run([&](int64_t b) {
            kernel->gate(scratch.result + b * wide, scratch.result + (step.batch + b) * wide, wide,
                         scratch.rows + b * wide);
        });
        end.run(step.batch, [&](int64_t b) {
            float *sum = scratch.residual + b * hidden;
            kernel->add(sum, {scratch.result + b * hidden, TRITLLM_FLOAT32}, hidden, sum);
            kernel->narrow(sum, hidden, block.dtype, hidden_row(b));
        });
    }

    void *hidden_row(int64_t b) const {
        return element_at(step.hidden, block.dtype, b * shape.hidden);
    }

    void rotate_row(int64_t b) {
        const int width = block.head_dim;
        const int64_t *stride = step.key_stride;
        const int64_t slot = b * stride[0] + (step.tokens - 1) * stride[2];
        float *q = scratch.result + b * shape.queries;
        float *k = scratch.result + step.batch * shape.queries + b * shape.keys;
        float *v = k + step.batch * shape.keys;
        for (int h = 0; h < block.heads; h++)
            apply_rotary_to_head(b, q + h * width, block.q_norm,
                                 element_at(scratch.q, block.dtype, (b * block.heads + h) * width));
        for (int h = 0; h < block.kv_heads; h++) {
            const int64_t at = slot + h * stride[1];
            apply_rotary_to_head(b, k + h * width, block.k_norm, element_at(keys, block.dtype, at));
            kernel->narrow(v + h * width, width, block.dtype, element_at(values, block.dtype, at));
        }
    }

    void apply_rotary_to_head(int64_t b, float *x, const tritllm_vector &norm, void *out) {
        const int64_t at = b * step.rotary_stride;
        if (norm.data) kernel->rms_norm(x, block.head_dim, norm, block.epsilon, x);
        kernel->apply_rotary(x, block.head_dim, element_at(step.cos, block.dtype, at),
                             element_at(step.sin, block.dtype, at), block.dtype, out);
    }

    void attend_part(int64_t part) {
        const int64_t split = part % splits, head = part / splits % block.kv_heads;
        const int64_t b = part / splits / block.kv_heads, first = split * kKeysAPart;
        const int heads = block.heads / block.kv_heads;
        const int64_t row = b * block.heads + head * heads, *stride = step.key_stride;
        const int64_t at = b * stride[0] + head * stride[1] + first * stride[2];
        AttentionPart work;
        work.q = element_at(scratch.q, block.dtype, row * block.head_dim);
        work.key = element_at(keys, block.dtype, at);
        work.value = element_at(values, block.dtype, at);
        work.stride = stride[2];
        work.mask = step.mask ? step.mask + b * step.mask_stride + first : nullptr;
        work.tokens = std::min(kKeysAPart, step.tokens - first);
        work.heads = heads;
        work.head_dim = block.head_dim;
        work.dtype = block.dtype;
        work.scaling = block.scaling;
        work.out = scratch.parts + (split * step.batch * block.heads + row) * kPartial;
        kernel->attend(work);
    }
};

}  // namespace

int64_t tritllm_llama_step_scratch(const tritllm_block *block, int64_t batch, int64_t tokens) {
    if (!valid_block(*block) || batch < 1 || tokens < 1) return -1;
    return Scratch(*block, batch, tokens, nullptr).bytes;
}

int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                       const tritllm_step *step, void *memory) {
    if (n_blocks < 1 || step->batch < 1 || step->tokens < 1 ||
        !valid_vector(step->final_norm, true))
        return TRITLLM_BAD_ARGUMENT;
    for (int64_t i = 0; i < n_blocks; i++)
        if (!valid_block(blocks[i]) || !same_shape(blocks[i], blocks[0]))
            return TRITLLM_BAD_ARGUMENT;
    const tritllm_block &first = blocks[0];
    const Scratch scratch(first, step->batch, step->tokens, memory);
    const StepKernels *kernel = nullptr;
    for (int64_t i = 0; i < n_blocks; i++) {
        BlockRun run(blocks[i], *step, i, scratch);
        const int status = run.open(threads);
        if (status != TRITLLM_OK) return status;
        run_team(threads, [](void *data) { static_cast<BlockRun *>(data)->run(); }, &run);
        kernel = run.kernel;
    }
    if (!step->final_norm.data) return TRITLLM_OK;
    for (int64_t b = 0; b < step->batch; b++) {
        void *row = element_at(step->hidden, first.dtype, b * first.hidden);
        kernel->widen(row, first.dtype, first.hidden, scratch.rows);
        kernel->rms_norm(scratch.rows, first.hidden, step->final_norm, step->final_epsilon,
                         scratch.rows);
        kernel->narrow(scratch.rows, first.hidden, first.dtype, row);
    }
    return TRITLLM_OK;
}
