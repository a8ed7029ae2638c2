"""Tiny source checkpoints of many families, written without the code under test."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPE_NAMES = {
    np.dtype(np.float16): "F16",
    BF16: "BF16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.int64): "I64",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}

QUANTIZE = "linear weight"
Shapes = dict[str, tuple[tuple[int, ...], str]]  # name: shape, what must become of it

SIDE_FILES = {
    "tokenizer.json": b'{"version": "1.0"}\n',
    "generation_config.json": b'{"eos_token_id": 2}',
    "chat_template.jinja": "{{ messages }} äß\r\n".encode(),
    "sub/folder/extra.txt": b"kept as it is\n",
    "empty.txt": b"",
}


def llama(hidden: int = 40, inner: int = 72, layers: int = 2, tied: bool = False) -> Shapes:
    return _decoder(hidden, inner, layers, lm_head=not tied)


def qwen2(layers: int = 2) -> Shapes:
    shapes = _decoder(32, 48, layers, lm_head=False)
    for layer in range(layers):
        for name in "qkv":
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = ((32,), "bias")
    return shapes


def qwen3_moe(experts: int = 3) -> Shapes:
    shapes = {n: s for n, s in _decoder(32, 48, 2).items() if ".mlp." not in n}
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        shapes[f"{mlp}.gate.weight"] = ((experts, 32), "MoE router")
        for expert in range(experts):
            for name, shape in (("gate", (20, 32)), ("up", (20, 32)), ("down", (32, 20))):
                shapes[f"{mlp}.experts.{expert}.{name}_proj.weight"] = (shape, QUANTIZE)
        for name in ("q_norm", "k_norm"):
            shapes[f"model.layers.{layer}.self_attn.{name}.weight"] = ((8,), "norm")
    return shapes


def mixtral(experts: int = 2) -> Shapes:
    shapes = {n: s for n, s in _decoder(32, 48, 1).items() if ".mlp." not in n}
    moe = "model.layers.0.block_sparse_moe"
    shapes[f"{moe}.gate.weight"] = ((experts, 32), "MoE router")
    for expert in range(experts):
        for name, shape in (("w1", (24, 32)), ("w2", (32, 24)), ("w3", (24, 32))):
            shapes[f"{moe}.experts.{expert}.{name}.weight"] = (shape, QUANTIZE)
    return shapes


def gemma() -> Shapes:
    shapes = _decoder(32, 64, 1, lm_head=False)
    for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
        shapes[f"model.layers.0.{name}.weight"] = ((32,), "norm")
    return shapes


def phi3() -> Shapes:
    shapes = {n: s for n, s in _decoder(32, 48, 1).items() if ".layers." not in n}
    layer = "model.layers.0"
    shapes |= {
        f"{layer}.input_layernorm.weight": ((32,), "norm"),
        f"{layer}.self_attn.qkv_proj.weight": ((96, 32), QUANTIZE),
        f"{layer}.self_attn.o_proj.weight": ((32, 32), QUANTIZE),
        f"{layer}.post_attention_layernorm.weight": ((32,), "norm"),
        f"{layer}.mlp.gate_up_proj.weight": ((96, 32), QUANTIZE),
        f"{layer}.mlp.down_proj.weight": ((32, 48), QUANTIZE),
    }
    return shapes


def bert() -> Shapes:
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": ((50, 32), "embedding"),
        "bert.embeddings.position_embeddings.weight": ((16, 32), "embedding"),
        "bert.embeddings.position_ids": ((1, 16), "embedding"),
        "bert.embeddings.LayerNorm.weight": ((32,), "embedding"),
        "bert.embeddings.LayerNorm.bias": ((32,), "bias"),
        "bert.pooler.dense.weight": ((32, 32), QUANTIZE),
        "bert.pooler.dense.bias": ((32,), "bias"),
        "classifier.weight": ((2, 32), "name not recognised"),
    }
    layer = "bert.encoder.layer.0"
    for name, shape in (
        ("attention.self.query", (32, 32)),
        ("attention.self.key", (32, 32)),
        ("attention.self.value", (32, 32)),
        ("attention.output.dense", (32, 32)),
        ("intermediate.dense", (64, 32)),
        ("output.dense", (32, 64)),
    ):
        shapes[f"{layer}.{name}.weight"] = (shape, QUANTIZE)
        shapes[f"{layer}.{name}.bias"] = ((shape[0],), "bias")
    shapes[f"{layer}.output.LayerNorm.weight"] = ((32,), "norm")
    return shapes


def gpt2(hidden: int = 24) -> Shapes:
    shapes: Shapes = {
        "transformer.wte.weight": ((50, hidden), "embedding"),
        "transformer.wpe.weight": ((16, hidden), "embedding"),
        "transformer.ln_f.weight": ((hidden,), "norm"),
        "transformer.ln_f.bias": ((hidden,), "bias"),
    }
    block = "transformer.h.0"
    shapes[f"{block}.ln_1.weight"] = ((hidden,), "norm")
    shapes[f"{block}.attn.bias"] = ((1, 1, 4, 4), "bias")
    for name, shape in (  # stored [in_features, out_features]
        ("attn.c_attn", (hidden, 3 * hidden)),
        ("attn.c_proj", (hidden, hidden)),
        ("mlp.c_fc", (hidden, 4 * hidden)),
        ("mlp.c_proj", (4 * hidden, hidden)),
    ):
        shapes[f"{block}.{name}.weight"] = (shape, QUANTIZE)
        shapes[f"{block}.{name}.bias"] = ((shape[1],), "bias")
    return shapes


def _decoder(hidden: int, inner: int, layers: int, lm_head: bool = True) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": ((50, hidden), "embedding")}
    for index in range(layers):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = ((hidden,), "norm")
        for name in "qkvo":
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = ((hidden, hidden), QUANTIZE)
        shapes[f"{layer}.post_attention_layernorm.weight"] = ((hidden,), "norm")
        shapes[f"{layer}.mlp.gate_proj.weight"] = ((inner, hidden), QUANTIZE)
        shapes[f"{layer}.mlp.up_proj.weight"] = ((inner, hidden), QUANTIZE)
        shapes[f"{layer}.mlp.down_proj.weight"] = ((hidden, inner), QUANTIZE)
    shapes["model.norm.weight"] = ((hidden,), "norm")
    if lm_head:
        shapes["lm_head.weight"] = ((50, hidden), "lm_head")
    return shapes


FAMILIES = {
    "llama": llama(),
    "mistral": llama(),
    "qwen2": qwen2(),
    "qwen3": llama(),
    "qwen3_moe": qwen3_moe(),
    "mixtral": mixtral(),
    "gemma": gemma(),
    "phi3": phi3(),
    "bert": bert(),
    "gpt2": gpt2(),
}


def random_tensors(shapes: Shapes, dtype: Any = np.float16, seed: int = 0) -> dict[str, np.ndarray]:
    """Gaussian weights of a usual size; position_ids are int64."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, _) in shapes.items():
        if name.endswith("position_ids"):
            tensors[name] = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        else:
            tensors[name] = (rng.standard_normal(shape) * 0.05).astype(np.float32).astype(dtype)
    return tensors


def safetensors_bytes(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file as its specification says."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    position = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values())


def split(tensors: Mapping[str, np.ndarray], shards: int) -> list[dict[str, np.ndarray]]:
    """Consecutive runs of tensors, at least one in each shard."""
    names = list(tensors)
    cuts = [len(names) * i // shards for i in range(shards + 1)]
    return [{n: tensors[n] for n in names[a:b]} for a, b in pairwise(cuts)]


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    shards: Sequence[Mapping[str, np.ndarray]],
    side_files: Mapping[str, bytes] = SIDE_FILES,
) -> Path:
    """Write a source checkpoint; one shard is model.safetensors, more have an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weight_map = {}
    for name, tensors in zip(shard_names(len(shards)), shards, strict=True):
        (folder / name).write_bytes(safetensors_bytes(tensors))
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in side_files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_family(
    folder: Path,
    model_type: str = "llama",
    shards: int = 1,
    dtype: Any = np.float16,
    **config: Any,
) -> Path:
    """A source checkpoint of a known family."""
    tensors = random_tensors(FAMILIES.get(model_type, FAMILIES["llama"]), dtype)
    full = {"architectures": ["LlamaForCausalLM"], "model_type": model_type} | config
    return write_model(folder, full, split(tensors, shards))


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def result_hashes(out: Path) -> dict[str, str]:
    """Of every file of packed/ and model/; report.json holds times and is left out."""
    return {name: h for name, h in hashes(out).items() if not name.endswith("report.json")}


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read with the reference library; bfloat16 included."""
    from safetensors import safe_open

    tensors = {}
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            tensors[name] = file.get_tensor(name)
    return tensors
