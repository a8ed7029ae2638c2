// The C interface of the step: a block's work in order, each piece shared between threads. A row is
// a new token; those of a sequence lie together.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>

#include "cpu/int8.h"
#include "cpu/isa.h"
#include "cpu/phase.h"
#include "cpu/team.h"
#include "expert_choice.h"
#include "products/product_set.h"
#include "step_kernels.h"

namespace {

constexpr int64_t kKeysAPart = 256;  // of one sequence and head of keys, that one thread takes

bool valid_vector(const tritllm_vector &v, bool optional) {
    return v.data ? valid_type(v.dtype) : optional;
}

bool valid_width(int64_t n) { return n > 0 && n % TRITLLM_WIDTH_MULTIPLE == 0; }

bool has_own_unit(const tritllm_block &b) { return !b.experts || b.experts->shared_gate.data; }

bool valid_unit(const tritllm_block &b) {
    if (b.activation < TRITLLM_SILU || b.activation > TRITLLM_RELU_SQUARED) return false;
    if (!valid_vector(b.unit_sub_norm, true) || (b.experts && b.unit_sub_norm.data)) return false;
    if (has_own_unit(b) && !valid_width(b.intermediate)) return false;
    if (!b.experts) return true;
    const tritllm_experts &e = *b.experts;
    return e.chosen > 0 && e.chosen <= TRITLLM_MOST_CHOSEN && e.chosen <= e.count &&
           valid_width(e.intermediate) && valid_vector(e.router, false) &&
           valid_vector(e.shared_gate, true) && e.expert;
}

bool valid_block(const tritllm_block &b) {
    return valid_width(b.hidden) && b.kv_heads > 0 && b.heads > 0 && b.heads % b.kv_heads == 0 &&
           b.head_dim > 0 && b.head_dim % TRITLLM_HEAD_MULTIPLE == 0 &&
           b.head_dim <= kMostHeadDim && b.rotary_dim > 0 && b.rotary_dim <= b.head_dim &&
           b.rotary_dim % TRITLLM_HEAD_MULTIPLE == 0 && valid_type(b.dtype) && b.window >= 0 &&
           (b.rotary == 0 || b.rotary == 1) && valid_vector(b.input_norm, false) &&
           valid_vector(b.post_norm, false) && valid_vector(b.q_norm, true) &&
           valid_vector(b.k_norm, true) && valid_vector(b.attention_norm, true) &&
           valid_vector(b.feedforward_norm, true) && valid_vector(b.attention_sub_norm, true) &&
           !b.k.prepared == !b.v.prepared && (!b.per_token || (b.exact && !b.experts)) &&
           valid_unit(b);
}

bool same_shape(const tritllm_block &a, const tritllm_block &b) {
    return a.hidden == b.hidden && a.heads == b.heads && a.kv_heads == b.kv_heads &&
           a.head_dim == b.head_dim && a.rotary_dim == b.rotary_dim && a.dtype == b.dtype &&
           a.exact == b.exact && a.per_token == b.per_token;
}

bool valid_blocks(const tritllm_block *blocks, int64_t n_blocks) {
    for (int64_t i = 0; i < n_blocks; i++)
        if (!valid_block(blocks[i]) || !same_shape(blocks[i], blocks[0])) return false;
    return n_blocks > 0;
}

const void *element_at(const void *p, int dtype, int64_t i) {
    return static_cast<const uint8_t *>(p) + i * element_size(dtype);
}
void *element_at(void *p, int dtype, int64_t i) {
    return static_cast<uint8_t *>(p) + i * element_size(dtype);
}

// Elements of a row. wide: of the widest block's unit. expert, experts, chosen: an expert's width,
// how many there are and how many a token has, the most of any block.
struct Shape {
    int64_t hidden, queries, keys, projected, wide = 0, expert = 0, experts = 0, chosen = 0;

    Shape(const tritllm_block *blocks, int64_t n_blocks)
        : hidden(blocks[0].hidden),
          queries(int64_t(blocks[0].heads) * blocks[0].head_dim),
          keys(int64_t(blocks[0].kv_heads) * blocks[0].head_dim),
          projected(queries + 2 * keys) {
        for (int64_t i = 0; i < n_blocks; i++) {
            if (has_own_unit(blocks[i])) wide = std::max(wide, blocks[i].intermediate);
            const tritllm_experts *e = blocks[i].experts;
            if (!e) continue;
            expert = std::max(expert, e->intermediate);
            experts = std::max<int64_t>(experts, e->count);
            chosen = std::max<int64_t>(chosen, e->chosen);
        }
    }
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
    float *logits;          // [rows][experts + 1]: the router's, and the shared gate's
    float *expert_gates;    // [chosen][2][expert]: of one token
    float *expert_rows;     // [chosen][expert]
    float *expert_results;  // [chosen][hidden]
    uint8_t *of_token;      // [rows]: activations of one token each, of hidden columns
    uint8_t *of_expert;     // [chosen]: the same of an expert's columns
    int64_t token_bytes, expert_bytes;
    int64_t bytes = 0;

    Scratch(const tritllm_block &b, const Shape &s, int64_t n, int64_t tokens, void *memory) {
        auto take = [&](int64_t size) {
            uint8_t *at = memory ? static_cast<uint8_t *>(memory) + bytes : nullptr;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        auto floats = [&](int64_t count) { return reinterpret_cast<float *>(take(4 * count)); };
        auto activations = [&](int64_t columns) {
            return take(tritllm_linear_activations_size(n, columns, b.exact));
        };
        auto one = [&](int64_t columns) {
            return (tritllm_linear_activations_size(1, columns, b.exact) + 63) / 64 * 64;
        };
        rows = floats(n * std::max({s.hidden, s.queries, s.wide}));
        result = floats(n * std::max({s.projected, s.hidden, 2 * s.wide}));
        residual = floats(n * s.hidden);
        q = floats(n * s.queries);
        parts = floats(splits_of(tokens) * n * b.heads * partial_size(b.head_dim));
        of_hidden = activations(s.hidden);
        of_queries = activations(s.queries);
        of_wide = s.wide ? activations(s.wide) : nullptr;
        if (!s.experts) return;
        logits = floats(n * (s.experts + 1));
        expert_gates = floats(2 * s.chosen * s.expert);
        expert_rows = floats(s.chosen * s.expert);
        expert_results = floats(s.chosen * s.hidden);
        token_bytes = one(s.hidden);
        of_token = take(n * token_bytes);
        expert_bytes = one(s.expert);
        of_expert = take(s.chosen * expert_bytes);
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
    int isa;
    PhaseCounters counters;
    ProductSet products;  // those that run now
    ExpertChoice choice;  // of the token that runs now
    std::atomic<int> status{TRITLLM_OK};

    Call(int n, const tritllm_block *b, int64_t count, const tritllm_step &s, void *memory)
        : blocks(b),
          n_blocks(count),
          step(s),
          threads(std::max(n, 1)),
          rows(s.batch * s.new_tokens),
          shape(b, count),
          scratch(b[0], shape, rows, s.tokens, memory) {}

    // Which instruction set's functions run between the products: that of the first one.
    int begin() {
        const tritllm_weight &w = blocks[0].q;
        tritllm_product first = {};
        first.prepared = w.prepared;
        first.size = w.size;
        first.rows = blocks[0].k.prepared ? shape.queries : shape.projected;
        first.depth = w.depth;
        first.steps = w.steps;
        int result = open_products(&first, 1, shape.hidden, &products);
        if (result != TRITLLM_OK) return result;
        kernel = step_kernels(products.isa);
        if (!kernel) return TRITLLM_UNSUPPORTED;
        isa = products.isa;
        result = begin_activations(input(shape.hidden), scratch.of_hidden);
        if (result == TRITLLM_OK)
            result = begin_activations(input(shape.queries), scratch.of_queries);
        for (int64_t row = 0; shape.experts && row < rows && result == TRITLLM_OK; row++)
            result = begin_activations(one(scratch.rows, shape.hidden),
                                       scratch.of_token + row * scratch.token_bytes);
        return result;
    }

    int begin_activations(const tritllm_input &in, void *activations) const {
        return tritllm_linear_begin(isa, &in, activations);
    }

    tritllm_input input(int64_t columns) const {
        return {scratch.rows, columns, rows, columns, TRITLLM_FLOAT32, blocks[0].exact};
    }
    tritllm_input one(const float *row, int64_t columns) const {
        return {row, columns, 1, columns, TRITLLM_FLOAT32, blocks[0].exact};
    }
};

// A product of a piece, and how many rows its matrix has.
struct Factor {
    const tritllm_weight &weight;
    int64_t rows;
};

// Products that are opened together.
struct ProductList {
    tritllm_product product[kMostProducts];
    int count = 0;
    int status = TRITLLM_OK;

    // y: of the first row; the others' follow `stride` elements apart.
    void add(const tritllm_weight &weight, int64_t rows, float *y, int64_t stride) {
        if (!weight.prepared || !valid_vector(weight.bias, true)) status = TRITLLM_BAD_ARGUMENT;
        tritllm_product &p = product[count++];
        p.prepared = weight.prepared;
        p.size = weight.size;
        p.rows = rows;
        p.layout = 0;
        p.depth = weight.depth;
        p.steps = weight.steps;
        p.bias = weight.bias.data;
        p.bias_dtype = weight.bias.dtype;
        p.y = y;
        p.stride = stride;
        p.dtype = TRITLLM_FLOAT32;
    }
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
        auto make_first = [&](int64_t row) {
            float *x = scratch.rows + row * shape.hidden;
            if (number) end_row(call.blocks[number - 1], row);
            kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
            norm(block, x, shape.hidden, block.input_norm, x);
        };
        if (block.k.prepared) {
            make_rows(shape.hidden, scratch.of_hidden,
                      {{block.q, shape.queries}, {block.k, shape.keys}, {block.v, shape.keys}},
                      make_first);
            multiply(scratch.of_hidden, shape.queries, shape.keys, shape.keys);
        } else {
            make_rows(shape.hidden, scratch.of_hidden, {{block.q, shape.projected}}, make_first);
            multiply(scratch.of_hidden, shape.projected);
        }
        phases.run(call.rows * block.kv_heads, [&](int64_t part) {
            rotate(block, number, part / block.kv_heads, int(part % block.kv_heads));
        });
        attend(block, number);
        make_rows(shape.queries, scratch.of_queries, {{block.o, shape.hidden}}, [&](int64_t row) {
            sub_norm(block, row, shape.queries, block.attention_sub_norm);
        });
        multiply(scratch.of_queries, shape.hidden);
        auto make_second = [&](int64_t row) {
            float *sum = scratch.residual + row * shape.hidden, *z = z_row(row);
            float *attended = scratch.result + row * shape.hidden;
            if (block.attention_norm.data)
                norm(block, attended, shape.hidden, block.attention_norm, attended);
            kernel.add(attended, {hidden_row(block, row), block.dtype}, shape.hidden, sum);
            norm(block, sum, shape.hidden, block.post_norm, z);
            if (!block.experts) return;
            const tritllm_input one = call.one(z, shape.hidden);
            tritllm_linear_quantize(&one, 0, 1, scratch.of_token + row * scratch.token_bytes);
        };
        const int64_t wide = block.intermediate;
        if (!has_own_unit(block))
            phases.run(call.rows, make_second);
        else if (block.up.prepared)
            make_rows(shape.hidden, scratch.of_hidden, {{block.gate, wide}, {block.up, wide}},
                      make_second);
        else
            make_rows(shape.hidden, scratch.of_hidden, {{block.gate, 2 * wide}}, make_second);
        if (block.experts) route(block);
        if (has_own_unit(block)) {
            multiply_gates(block);
            make_rows(wide, scratch.of_wide, {{block.down, shape.hidden}},
                      [&](int64_t row) { sub_norm(block, row, wide, block.unit_sub_norm); });
            multiply(scratch.of_wide, shape.hidden);
        }
        if (block.experts)
            for (int64_t row = 0; row < call.rows; row++) run_experts(block, row);
    }

    // --- Experts: a token's after the other's, for each token has its own ------------------------

    static constexpr int64_t kLogitsAPart = 16;

    // How much a token wants each expert, and the one of all tokens.
    void route(const tritllm_block &block) {
        const tritllm_experts &e = *block.experts;
        const int64_t chunks = (e.count + kLogitsAPart) / kLogitsAPart;  // with the shared gate
        phases.run(call.rows * chunks, [&](int64_t part) {
            const int64_t row = part / chunks, first = part % chunks * kLogitsAPart;
            for (int64_t i = first; i < std::min<int64_t>(first + kLogitsAPart, e.count + 1); i++) {
                float *logit = scratch.logits + row * (shape.experts + 1) + i;
                if (i < e.count)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.router, i * shape.hidden);
                else if (e.shared_gate.data)
                    *logit = kernel.dot(z_row(row), shape.hidden, e.shared_gate, 0);
            }
        });
    }

    void run_experts(const tritllm_block &block, int64_t row) {
        const tritllm_experts &e = *block.experts;
        const int64_t hidden = shape.hidden, inner = e.intermediate;
        float *logits = scratch.logits + row * (shape.experts + 1);
        phases.run(1, [&](int64_t) {
            call.choice.choose(logits, e.count, e.chosen, e.normalized != 0);
            ProductList list;
            for (int i = 0; i < e.chosen; i++) {
                const tritllm_expert &expert = e.expert[call.choice.expert[i]];
                float *gates = scratch.expert_gates + 2 * i * inner;
                list.add(expert.gate, inner, gates, inner);
                list.add(expert.up, inner, gates + inner, inner);
            }
            open(list, hidden);
        });
        const TileParts gates(2 * e.chosen * tiles_of(inner), call.threads);
        phases.run(gates.count(), [&](int64_t part) {
            multiply_tiles(call.products, scratch.of_token + row * scratch.token_bytes,
                           gates.begin(part), gates.begin(part + 1));
        });
        phases.run(e.chosen + 1, [&](int64_t part) {
            if (part == e.chosen) return open_downs(e);
            float *out = scratch.expert_rows + part * inner;
            const float *gate = scratch.expert_gates + 2 * part * inner;
            kernel.gate(gate, gate + inner, inner, block.activation, out);
            uint8_t *activations = scratch.of_expert + part * scratch.expert_bytes;
            const tritllm_input in = call.one(out, inner);
            begin_activations(in, activations);
            tritllm_linear_quantize(&in, 0, 1, activations);
        });
        const TileParts down(tiles_of(hidden), call.threads);
        phases.run(e.chosen * down.count(), [&](int64_t part) {
            const int64_t number = part / down.count(), before = number * tiles_of(hidden);
            part %= down.count();
            multiply_tiles(call.products, scratch.of_expert + number * scratch.expert_bytes,
                           before + down.begin(part), before + down.begin(part + 1));
        });
        phases.run(1, [&](int64_t) { mix(e, row, logits[e.count]); });
    }

    void open_downs(const tritllm_experts &e) {
        ProductList list;
        for (int i = 0; i < e.chosen; i++)
            list.add(e.expert[call.choice.expert[i]].down, shape.hidden,
                     scratch.expert_results + i * shape.hidden, shape.hidden);
        open(list, e.intermediate);
    }

    // The row of the block's result: what the token's experts and that of all tokens give.
    void mix(const tritllm_experts &e, int64_t row, float shared_logit) {
        float *sum = scratch.result + row * shape.hidden;
        if (e.shared_gate.data)
            kernel.multiply(sum, shape.hidden, 1 / (1 + std::exp(-shared_logit)));
        else
            std::fill(sum, sum + shape.hidden, 0.0f);
        for (int i = 0; i < e.chosen; i++) {
            float *result = scratch.expert_results + i * shape.hidden;
            kernel.multiply(result, shape.hidden, call.choice.weight[i]);
            kernel.add(sum, {result, TRITLLM_FLOAT32}, shape.hidden, sum);
        }
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
            if (call.blocks[0].per_token)
                kernel.round_token(scratch.rows + (part - 1) * columns, columns);
            const tritllm_input input = call.input(columns);
            tritllm_linear_quantize(&input, part - 1, part, activations);
        });
    }

    // Results lie one after the other in a row.
    void open(int64_t columns, std::initializer_list<Factor> factors) {
        ProductList list;
        int64_t width = 0, at = 0;
        for (const Factor &f : factors) width += f.rows;
        for (const Factor &f : factors) {
            list.add(f.weight, f.rows, scratch.result + at, width);
            at += f.rows;
        }
        open(list, columns);
    }

    void open(const ProductList &list, int64_t columns) {
        int status = list.status;
        if (status == TRITLLM_OK)
            status = open_products(list.product, list.count, columns, &call.products);
        if (status == TRITLLM_OK) return;
        call.status.store(status);
        call.products.count = 0;  // the others go on with nothing to multiply
    }

    // Of blocks whose units differ in width; call.begin makes the others.
    void begin_activations(const tritllm_input &input, void *activations) {
        const int status = call.begin_activations(input, activations);
        if (status != TRITLLM_OK) call.status.store(status);
    }

    // The products that are open, whose matrices have so many rows.
    template <class... Rows>
    void multiply(const void *activations, Rows... rows) {
        const TileParts parts((tiles_of(rows) + ...), call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            multiply_tiles(call.products, activations, parts.begin(part), parts.begin(part + 1));
        });
    }

    // Of both, the same rows, and then act(gate) * up of these.
    void multiply_gates(const tritllm_block &block) {
        static_assert(TRITLLM_WIDTH_MULTIPLE % kTileRows == 0, "up begins with a tile");
        const int64_t wide = block.intermediate, tiles = tiles_of(wide);
        const TileParts parts(tiles, call.threads);
        phases.run(parts.count(), [&](int64_t part) {
            const int64_t begin = parts.begin(part), end = parts.begin(part + 1);
            if (part == 0) begin_activations(call.input(wide), scratch.of_wide);
            multiply_tiles(call.products, scratch.of_hidden, begin, end);
            multiply_tiles(call.products, scratch.of_hidden, tiles + begin, tiles + end);
            const int64_t first = begin * kTileRows, n = std::min(end * kTileRows, wide) - first;
            for (int64_t row = 0; row < call.rows; row++) {
                const float *gate = scratch.result + 2 * row * wide + first;
                kernel.gate(gate, gate + wide, n, block.activation,
                            scratch.rows + row * wide + first);
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
        float *projected = scratch.result + row * shape.projected;
        float *q = projected + head * share * width;
        float *k = projected + shape.queries + head * width;
        float *to = scratch.q + row * shape.queries + head * share * width;
        alignas(64) float rounded[kMostHeadDim];
        for (int h = 0; h < share; h++, q += width, to += width) {
            rotate_head(block, row, q, block.q_norm, rounded);
            kernel.widen(rounded, block.dtype, width, to);
            kernel.multiply(to, width, block.scaling);
        }
        if (!step.key_scale) {
            rotate_head(block, row, k, block.k_norm,
                        element_at(step.key[number], block.dtype, slot));
            kernel.narrow(k + shape.keys, width, block.dtype,
                          element_at(step.value[number], block.dtype, slot));
            return;
        }
        rotate_head(block, row, k, block.k_norm, rounded);
        store_int8(block, rounded, step.key[number], step.key_scale[number], slot);
        kernel.narrow(k + shape.keys, width, block.dtype, rounded);
        store_int8(block, rounded, step.value[number], step.value_scale[number], slot);
    }

    // x: a head's elements, of the block's dtype.
    void store_int8(const tritllm_block &block, const void *x, void *to, float *scale,
                    int64_t at) const {
        alignas(64) float wide[kMostHeadDim];
        kernel.widen(x, block.dtype, block.head_dim, wide);
        for (int i = 0; i < block.head_dim; i += TRITLLM_CACHE_GROUP)
            scale[(at + i) / TRITLLM_CACHE_GROUP] =
                round_to_int8<TRITLLM_CACHE_GROUP>(wide + i, static_cast<int8_t *>(to) + at + i)
                    .scale;
    }

    void rotate_head(const tritllm_block &block, int64_t row, float *x,
                     const tritllm_vector &head_norm, void *out) {
        const int64_t at =
            row / step.new_tokens * step.rotary_stride + row % step.new_tokens * block.rotary_dim;
        if (head_norm.data) norm(block, x, block.head_dim, head_norm, x);
        kernel.apply_rotary(x, block.rotary_dim,
                            element_at(step.cos[block.rotary], block.dtype, at),
                            element_at(step.sin[block.rotary], block.dtype, at), block.dtype, out);
        kernel.narrow(x + block.rotary_dim, block.head_dim - block.rotary_dim, block.dtype,
                      element_at(out, block.dtype, block.rotary_dim));
    }

    // Rows of what all heads attend to. Long sequences are cut into parts at the same tokens
    // whatever their length, so that results do not depend on what comes later.
    void attend(const tritllm_block &block, int64_t number) {
        const int64_t before = splits_before(block), splits = splits_of(step.tokens) - before;
        phases.run(step.batch * block.kv_heads * splits, [&](int64_t part) {
            const int64_t sequence = part / splits / block.kv_heads;
            const int head = int(part / splits % block.kv_heads);
            attend_part(block, number, sequence, head, before + part % splits);
            if (splits == 1)
                for (int64_t t = 0; t < step.new_tokens; t++)
                    combine(block, sequence * step.new_tokens + t, head);
        });
        if (splits > 1)
            phases.run(call.rows * block.kv_heads, [&](int64_t part) {
                combine(block, part / block.kv_heads, int(part % block.kv_heads));
            });
    }

    // Parts of the keys that are before every window.
    int64_t splits_before(const tritllm_block &block) const {
        const int64_t seen = step.tokens - step.new_tokens + 1;  // by the first new token
        return block.window ? std::max<int64_t>(seen - block.window, 0) / kKeysAPart : 0;
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
        if (step.key_scale) {
            work.key = static_cast<const int8_t *>(step.key[number]) + at;
            work.value = static_cast<const int8_t *>(step.value[number]) + at;
            work.key_scale = step.key_scale[number] + at / TRITLLM_CACHE_GROUP;
            work.value_scale = step.value_scale[number] + at / TRITLLM_CACHE_GROUP;
        } else {
            work.key = element_at(step.key[number], block.dtype, at);
            work.value = element_at(step.value[number], block.dtype, at);
            work.key_scale = work.value_scale = nullptr;
        }
        work.stride = stride[2];
        work.mask = step.mask ? step.mask + sequence * step.mask_stride + first : nullptr;
        work.tokens = std::min(kKeysAPart, step.tokens - first);
        work.seen = step.tokens - step.new_tokens + 1 - first;
        work.window = block.window;
        work.softcap = block.softcap;
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
        const int64_t size = partial_size(width), stride = call.rows * block.heads * size;
        const int64_t before = splits_before(block), splits = splits_of(step.tokens) - before;
        for (int64_t h = head * share; h < (head + 1) * share; h++)
            kernel.combine(scratch.parts + before * stride + (row * block.heads + h) * size, splits,
                           stride, width, scratch.rows + row * shape.queries + h * width);
    }

    // --- Hidden states ---------------------------------------------------------------------------

    void *hidden_row(const tritllm_block &block, int64_t row) const {
        return element_at(step.hidden, block.dtype, row * shape.hidden);
    }

    float *z_row(int64_t row) const { return scratch.rows + row * shape.hidden; }

    void norm(const tritllm_block &block, const float *x, int64_t n, const tritllm_vector &weight,
              float *out) const {
        kernel.rms_norm(x, n, weight, block.epsilon, block.norm_offset, out);
    }

    // Of a row of n elements that a product is to take, where it stands.
    void sub_norm(const tritllm_block &block, int64_t row, int64_t n,
                  const tritllm_vector &weight) const {
        float *x = scratch.rows + row * n;
        if (weight.data) norm(block, x, n, weight, x);
    }

    void end_row(const tritllm_block &block, int64_t row) {
        float *sum = scratch.residual + row * shape.hidden;
        float *result = scratch.result + row * shape.hidden;
        if (block.feedforward_norm.data)
            norm(block, result, shape.hidden, block.feedforward_norm, result);
        kernel.add(sum, {result, TRITLLM_FLOAT32}, shape.hidden, sum);
        kernel.narrow(sum, shape.hidden, block.dtype, hidden_row(block, row));
    }

    void final_norm(const tritllm_block &block, int64_t row) {
        if (!step.final_norm.data) return;
        float *x = scratch.rows + row * shape.hidden;
        kernel.widen(hidden_row(block, row), block.dtype, shape.hidden, x);
        kernel.rms_norm(x, shape.hidden, step.final_norm, step.final_epsilon, block.norm_offset, x);
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

int64_t tritllm_llama_step_scratch(const tritllm_block *blocks, int64_t n_blocks, int64_t batch,
                                   int64_t new_tokens, int64_t tokens) {
    if (!valid_blocks(blocks, n_blocks) || batch < 1 || new_tokens < 1 || tokens < new_tokens)
        return -1;
    const Shape shape(blocks, n_blocks);
    return Scratch(blocks[0], shape, batch * new_tokens, tokens, nullptr).bytes;
}

int tritllm_llama_step(int threads, const tritllm_block *blocks, int64_t n_blocks,
                       const tritllm_step *step, void *memory) {
    if (!valid_blocks(blocks, n_blocks) || step->batch < 1 || step->new_tokens < 1 ||
        step->tokens < step->new_tokens || !valid_vector(step->final_norm, true))
        return TRITLLM_BAD_ARGUMENT;
    Call call(threads, blocks, n_blocks, *step, memory);
    const int status = call.begin();
    if (status != TRITLLM_OK) return status;
    run_team(call.threads, [](void *data) { Thread(*static_cast<Call *>(data)).run(); }, &call);
    return call.status.load();
}
