"""Write a sharded checkpoint of random weights with the shape of a published model.

    python benchmarks/make_random_checkpoint.py qwen2.5-0.5b OUT [--dtype bfloat16] [--shard-gb 0.4]

The names, shapes and config are the model's; the weights are normal with the usual deviation. A
tensor at a time is in memory. `--layers` cuts the model short, `--vocabulary` makes it smaller,
`--untied` gives it an output matrix of its own, `--intermediate` other linear layers. `--experts 64
--layout gpt_oss` makes a mixture of it, each expert with such layers, whose experts are one tensor.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from tritllm.storage.model_folder import shard_header

# hidden, layers, heads, key-value heads, intermediate, vocabulary, tied embeddings, context
SHAPES = {
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True, 32768),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151936, True, 32768),
    "qwen2.5-3b": (2048, 36, 16, 2, 11008, 151936, True, 32768),
    "qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064, False, 32768),
}
# Of a mixture: names of the two tensors of experts, and whether they are [experts, in, out].
LAYOUTS = {
    "gpt_oss": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", True),
    "llama4_text": ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", True),
    "granitemoe": (
        "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight", False,
    ),
}  # fmt: skip
DTYPES = {
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


def config_of(name: str, dtype: str, layers: int | None, vocabulary: int | None) -> dict:
    hidden, depth, heads, kv_heads, intermediate, words, tied, context = SHAPES[name]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary or words,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
    }


def tensors(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order transformers saves them."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, out in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{prefix}self_attn.{name}_proj.weight", (out, hidden)
            yield f"{prefix}self_attn.{name}_proj.bias", (out,)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        if experts := config.get("num_local_experts"):
            gate_up, down, transposed = LAYOUTS[config["model_type"]]
            for name, out, width in (
                (gate_up, 2 * intermediate, hidden),
                (down, hidden, intermediate),
            ):
                yield prefix + name, (experts, *((width, out) if transposed else (out, width)))
            continue
        yield prefix + "mlp.gate_proj.weight", (intermediate, hidden)
        yield prefix + "mlp.up_proj.weight", (intermediate, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, intermediate)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def partition(
    names: Iterator[tuple[str, tuple[int, ...]]], limit: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in names:
        nbytes = 2 * math.prod(shape)
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += nbytes
    return shards


def write_rows(file, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Random rows, a bounded block at a time; norms are ones."""
    if len(shape) == 1:
        file.write(np.ones(shape, dtype).tobytes())
        return
    count = math.prod(shape[:-1])
    block = max(1, (1 << 22) // shape[-1])
    for start in range(0, count, block):
        rows = (min(block, count - start), shape[-1])
        values = rng.standard_normal(rows, np.float32) * np.float32(0.02)
        file.write(values.astype(dtype).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shard-gb", type=float, default=0.4)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--intermediate", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--layout", choices=LAYOUTS, default="gpt_oss")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    config = config_of(arguments.shape, arguments.dtype, arguments.layers, arguments.vocabulary)
    config["tie_word_embeddings"] &= not arguments.untied
    config["intermediate_size"] = arguments.intermediate or config["intermediate_size"]
    if arguments.experts:
        config |= {"model_type": arguments.layout, "num_local_experts": arguments.experts}
        del config["architectures"]
    arguments.out.mkdir(parents=True)
    label, dtype = DTYPES[arguments.dtype]
    rng = np.random.default_rng(arguments.seed)
    shards = partition(tensors(config), int(arguments.shard_gb * 1e9))
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = shard_header([(tensor, label, shape) for tensor, shape in shard])
        with open(arguments.out / name, "wb") as file:
            file.write(header.raw)
            for tensor, shape in shard:
                write_rows(file, rng, shape, dtype)
                weight_map[tensor] = name
        total += sum(entry.nbytes for entry in header.entries.values())
        print(f"{name}: {len(shard)} tensors", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (arguments.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{arguments.out}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
