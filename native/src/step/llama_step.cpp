// The C interface of the step: a block's work in order, each piece shared between threads. A row is
// a new token; those of a sequence lie together.
#include <algorithm>
#include <atomic>
#include <initializer_list>

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
    float *rows;      // [rows][the widest]: what activations are made of
    float *result;    // [rows][as many]: products, one after the other
    float *residual;  // [rows][hidden]
    float *q;         // [rows][heads][head_dim], times the scores' scaling
    float *parts;     // [splits][rows][heads][partial_size]
    uint8_t *of_hidden, *of_queries, *of_wide;  // activations of so many columns
    int64_t bytes = 0;

    Scratch(const tritllm_block &b, int64_t n, int64_t tokens, void *memory) {
        const Shape s(b);
        auto take = [&](int64_t size) {
            uint8_t *at = memory ? static_cast<uint8_t *>(memory) + bytes : nullptr;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        auto floats = [&](int64_t count) { return reinterpret_cast<float *>(take(4 * count)); };
        auto activations = [&](int64_t columns) {
            return take(tritllm_linear_activations_size(n, columns, b.exact));
        };
        rows = floats(n * std::max({s.hidden, s.queries, s.wide}));
        result = floats(n * std::max({s.queries + 2 * s.keys, s.hidden, 2 * s.wide}));
        residual = floats(n * s.hidden);
        q = floats(n * s.queries);
        parts = floats(splits_of(tokens) * n * b.heads * partial_size(b.head_dim));
        of_hidden = activations(s.hidden);
        of_queries = activations(s.queries);
        of_wide = activations(s.wide);
    }
};

// How threads share a product's tiles: half of them in a large part for each thread, so that memory
// is read in long runs, the others in small ones, so that all are done at about the same time.
struct TileParts {
    static constexpr int64_t kTogether = 4;  // tiles that some kernels take at a time

    int64_t tiles, large, n_large, small;

    TileParts(int64_t all, int threads) : tiles(all) {
        large = threads > 1 ? all / (2 * threads) / kTogether * kTogether : all;
        n_large = large ? threads : 0;
        small = (all / (32 * threads) + kTogether) / kTogether * kTogether;
    }
    int64_t count() const { return n_large + (tiles - n_large * large + small - 1) / small; }
    int64_t begin(int64_t part) const {
        const int64_t at = std::min(part, n_large) * large;
        return std::min(tiles, at + std::max<int64_t>(part - n_large, 0) * small);
    }
};

// What the threads of a call share.
struct Call {
    const tritllm_block *blocks;
    const int64_t n_blocks;
    const tritllm_step &step;
    const int threads;
    const int64_t rows;
    const Shape shape;
    const Scratch scratch;
    const StepKernels *kernel;
    PhaseCounters counters;
    ProductSet products;  // those that run now
    std::atomic<int> status{TRITLLM_OK};

    Call(int n, const tritllm_block *b, int64_t count, const tritllm_step &s, void *memory)
        : blocks(b),
          n_blocks(count),
          step(s),
          threads(std::max(n, 1)),
          rows(s.batch * s.new_tokens),
          shape(b[0]),
          scratch(b[0], rows, s.tokens, memory) {}

    // Which instruction set's functions run between the products: that of the first one.
    int begin() {
        const tritllm_weight &w = blocks[0].q;
        tritllm_product first = {};
        first.prepared = w.prepared;
        first.size = w.size;
        first.rows = shape.queries;
        first.depth = w.depth;
        first.steps = w.steps;
        int result = open_products(&first, 1, shape.hidden, &products);
        if (result != TRITLLM_OK) return result;
        kernel = step_kernels(products.isa);
        if (!kernel) return TRITLLM_UNSUPPORTED;
        const int isa = products.isa;
        auto begin_one = [&](int64_t columns, void *activations) {
            const tritllm_input in = input(columns);
            if (result == TRITLLM_OK) result = tritllm_linear_begin(isa, &in, activations);
        };
        begin_one(shape.hidden, scratch.of_hidden);
        begin_one(shape.queries, scratch.of_queries);
        begin_one(shape.wide, scratch.of_wide);
        return result;
    }

    tritllm_input input(int64_t columns) const {
        return {scratch.rows, columns, rows, columns, TRITLLM_FLOAT32, blocks[0].exact};
    }
};

// A product of a piece, and how many rows its matrix has.
struct Factor {
    const tritllm_weight &weight;
    int64_t rows;
};

// What one thread does.
class Thread {
 public:
    explicit Thread(Call &c)
        : call(c),
          step(c.step),
          shape(c.shape),
          scratch(c.scratch),
          kernel(*c.kernel),
          phases(c.counters) {}

    void run() {
        for (int64_t number = 0; number < call.n_blocks; number++) run_block(number);
        const tritllm_block &last = call.blocks[call.n_blocks - 1];
        phases.run(call.rows, [&](int64_t row) {
            end_row(last, row);
            final_norm(last, row);
        });
    }

 private:
    void run_block(int64_t number) {
        const tritllm_block &block = call.blocks[number];
        make_rows(shape.hidden, scratch.of_hidden,
                  {{block.q, shape.queries}, {block.k, shape.keys}, {block.v, shape.keys}},
                  [&](int64_t row) {
                      float *x = scratch.rows + row * shape.hidden;
                      if (number) end_row(call.blocks[number - 1], row);
                      kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
                      kernel.rms_norm(x, shape.hidden, block.input_norm, block.epsilon, x);
                  });
        multiply(scratch.of_hidden, shape.queries, shape.keys, shape.keys);
        phases.run(call.rows * block.kv_heads, [&](int64_t part) {
            rotate(block, number, part / block.kv_heads, int(part % block.kv_heads));
        });
        attend(block, number);
        make_rows(shape.queries, scratch.of_queries, {{block.o, shape.hidden}}, [](int64_t) {});
        multiply(scratch.of_queries, shape.hidden);
        make_rows(shape.hidden, scratch.of_hidden,
                  {{block.gate, shape.wide}, {block.up, shape.wide}}, [&](int64_t row) {
                      float *sum = scratch.residual + row * shape.hidden;
                      kernel.add(scratch.result + row * shape.hidden,
                                 {hidden_row(block, row), block.dtype}, shape.hidden, sum);
                      kernel.rms_norm(sum, shape.hidden, block.post_norm, block.epsilon,
                                      scratch.rows + row * shape.hidden);
                  });
        multiply_gates();
        make_rows(shape.wide, scratch.of_wide, {{block.down, shape.hidden}}, [](int64_t) {});
        multiply(scratch.of_wide, shape.hidden);
    }

    // --- Products: input rows, then their activations, then the products of them ---------------

    // make_row(row) fills a float32 row of the input. One part opens the products meanwhile, whose
    // results lie one after the other, [rows][N] each.
    template <class MakeRow>
    void make_rows(int64_t columns, void *activations, std::initializer_list<Factor> factors,
                   MakeRow make_row) {
        phases.run(call.rows + 1, [&](int64_t part) {
            if (part == 0) return open(columns, factors);
            make_row(part - 1);
            const tritllm_input input = call.input(columns);
            tritllm_linear_quantize(&input, part - 1, part, activations);
        });
    }

    void open(int64_t columns, std::initializer_list<Factor> factors) {
        tritllm_product product[3];
        int count = 0;
        float *result = scratch.result;
        int status = TRITLLM_OK;
        for (const Factor &f : factors) {
            if (!f.weight.prepared || !valid_vector(f.weight.bias, true))
                status = TRITLLM_BAD_ARGUMENT;
            tritllm_product &p = product[count++];
            p.prepared = f.weight.prepared;
            p.size = f.weight.size;
            p.rows = f.rows;
            p.layout = 0;
            p.depth = f.weight.depth;
            p.steps = f.weight.steps;
            p.bias = f.weight.bias.data;
            p.bias_dtype = f.weight.bias.dtype;
            p.y = result;
            p.stride = f.rows;
            p.dtype = TRITLLM_FLOAT32;
            result += call.rows * f.rows;
        }
        if (status == TRITLLM_OK) status = open_products(product, count, columns, &call.products);
        if (status == TRITLLM_OK) return;
        call.status.store(status);
        call.products.count = 0;  // the others go on with nothing to multiply
    }

    // The products that are open, whose matrices have so many rows.
    template <class... Rows>
    void multiply(const void *activations, Rows... rows) {
        const TileParts parts((tiles_of(rows) + ...), call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            multiply_tiles(call.products, activations, parts.begin(part), parts.begin(part + 1));
        });
    }

    // Of both, the same rows, and then silu(gate) * up of these.
    void multiply_gates() {
        const int64_t wide = shape.wide, tiles = tiles_of(wide);
        const TileParts parts(tiles, call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            const int64_t begin = parts.begin(part), end = parts.begin(part + 1);
            multiply_tiles(call.products, scratch.of_hidden, begin, end);
            multiply_tiles(call.products, scratch.of_hidden, tiles + begin, tiles + end);
            const int64_t first = begin * kTileRows, n = std::min(end * kTileRows, wide) - first;
            for (int64_t row = 0; row < call.rows; row++) {
                const float *gate = scratch.result + row * wide + first;
                kernel.gate(gate, gate + call.rows * wide, n, scratch.rows + row * wide + first);
            }
        });
    }

    // --- Attention ------------------------------------------------------------------------------

    // Of a row, the queries that share a head of keys, and that head's key and value.
    void rotate(const tritllm_block &block, int64_t number, int64_t row, int head) {
        const int width = block.head_dim, share = block.heads / block.kv_heads;
        const int64_t b = row / step.new_tokens, *stride = step.key_stride;
        const int64_t token = step.tokens - step.new_tokens + row % step.new_tokens;
        const int64_t slot = b * stride[0] + head * stride[1] + token * stride[2];
        float *q = scratch.result + row * shape.queries + head * share * width;
        float *k = scratch.result + call.rows * shape.queries + row * shape.keys + head * width;
        float *to = scratch.q + row * shape.queries + head * share * width;
        alignas(64) float rounded[kMostHeadDim];
        for (int h = 0; h < share; h++, q += width, to += width) {
            rotate_head(block, row, q, block.q_norm, rounded);
            kernel.widen(rounded, block.dtype, width, to);
            kernel.multiply(to, width, block.scaling);
        }
        rotate_head(block, row, k, block.k_norm, element_at(step.key[number], block.dtype, slot));
        kernel.narrow(k + call.rows * shape.keys, width, block.dtype,
                      element_at(step.value[number], block.dtype, slot));
    }

    void rotate_head(const tritllm_block &block, int64_t row, float *x, const tritllm_vector &norm,
                     void *out) {
        const int64_t at =
            row / step.new_tokens * step.rotary_stride + row % step.new_tokens * block.head_dim;
        if (norm.data) kernel.rms_norm(x, block.head_dim, norm, block.epsilon, x);
        kernel.apply_rotary(x, block.head_dim, element_at(step.cos, block.dtype, at),
                            element_at(step.sin, block.dtype, at), block.dtype, out);
    }

    // Rows of what all heads attend to. Long sequences are cut into parts at the same tokens
    // whatever their length, so that results do not depend on what comes later.
    void attend(const tritllm_block &block, int64_t number) {
        const int64_t splits = splits_of(step.tokens);
        phases.run(step.batch * block.kv_heads * splits, [&](int64_t part) {
            const int64_t sequence = part / splits / block.kv_heads;
            const int head = int(part / splits % block.kv_heads);
            attend_part(block, number, sequence, head, part % splits);
            if (splits == 1)
                for (int64_t t = 0; t < step.new_tokens; t++)
                    combine(block, sequence * step.new_tokens + t, head);
        });
        if (splits > 1)
            phases.run(call.rows * block.kv_heads, [&](int64_t part) {
                combine(block, part / block.kv_heads, int(part % block.kv_heads));
            });
    }

    void attend_part(const tritllm_block &block, int64_t number, int64_t sequence, int head,
                     int64_t split) {
        const int share = block.heads / block.kv_heads;
        const int64_t first = split * kKeysAPart, *stride = step.key_stride;
        const int64_t at = sequence * stride[0] + head * stride[1] + first * stride[2];
        const int64_t row = sequence * step.new_tokens, size = partial_size(block.head_dim);
        AttentionPart work;
        work.q = scratch.q + row * shape.queries + head * share * block.head_dim;
        work.q_stride = shape.queries;
        work.key = element_at(step.key[number], block.dtype, at);
        work.value = element_at(step.value[number], block.dtype, at);
        work.stride = stride[2];
        work.mask = step.mask ? step.mask + sequence * step.mask_stride + first : nullptr;
        work.tokens = std::min(kKeysAPart, step.tokens - first);
        work.seen = step.tokens - step.new_tokens + 1 - first;
        work.new_tokens = step.new_tokens;
        work.heads = share;
        work.head_dim = block.head_dim;
        work.dtype = block.dtype;
        work.out = scratch.parts + ((split * call.rows + row) * block.heads + head * share) * size;
        work.out_stride = block.heads * size;
        kernel.attend(work);
    }

    // Of a row, the heads that share keys.
    void combine(const tritllm_block &block, int64_t row, int head) {
        const int share = block.heads / block.kv_heads, width = block.head_dim;
        const int64_t size = partial_size(width), splits = splits_of(step.tokens);
        for (int64_t h = head * share; h < (head + 1) * share; h++)
            kernel.combine(scratch.parts + (row * block.heads + h) * size, splits,
                           call.rows * block.heads * size, width,
                           scratch.rows + row * shape.queries + h * width);
    }

    // --- Hidden states ---------------------------------------------------------------------------

    void *hidden_row(const tritllm_block &block, int64_t row) const {
        return element_at(step.hidden, block.dtype, row * shape.hidden);
    }

    void end_row(const tritllm_block &block, int64_t row) {
        float *sum = scratch.residual + row * shape.hidden;
        kernel.add(sum, {scratch.result + row * shape.hidden, TRITLLM_FLOAT32}, shape.hidden, sum);
        kernel.narrow(sum, shape.hidden, block.dtype, hidden_row(block, row));
    }

    void final_norm(const tritllm_block &block, int64_t row) {
        if (!step.final_norm.data) return;
        float *x = scratch.rows + row * shape.hidden;
        kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
        kernel.rms_norm(x, shape.hidden, step.final_norm, step.final_epsilon, x);
        kernel.narrow(x, shape.hidden, block.dtype, hidden_row(block, row));
    }

    Call &call;
    const tritllm_step &step;
    const Shape &shape;
    const Scratch &scratch;
    const StepKernels &kernel;
    Phases phases;
};

}  // namespace

int64_t tritllm_llama_step_scratch(const tritllm_block *block, int64_t batch, int64_t new_tokens,
                                   int64_t tokens) {
    if (!valid_block(*block) || batch < 1 || new_tokens < 1 || tokens < new_tokens) return -1;
    return Scratch(*block, batch * new_tokens, tokens, nullptr).bytes;
}

int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                       const tritllm_step *step, void *memory) {
    if (n_blocks < 1 || step->batch < 1 || step->new_tokens < 1 ||
        step->tokens < step->new_tokens || !valid_vector(step->final_norm, true))
        return TRITLLM_BAD_ARGUMENT;
    for (int64_t i = 0; i < n_blocks; i++)
        if (!valid_block(blocks[i]) || !same_shape(blocks[i], blocks[0]))
            return TRITLLM_BAD_ARGUMENT;
    Call call(threads, blocks, n_blocks, *step, memory);
    const int status = call.begin();
    if (status != TRITLLM_OK) return status;
    run_team(call.threads, [](void *data) { Thread(*static_cast<Call *>(data)).run(); }, &call);
    return call.status.load();
}
