"""Sources whose experts are one tensor, in every layout that is known, beside single experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.model_folders import split, write_model

HIDDEN, INNER, EXPERTS = 40, 24, 3


class Layout(NamedTuple):
    """names: of the two tensors of a layer. prefix: of its experts. leaves: gate, up, down."""

    model_type: str
    names: tuple[str, str]
    prefix: str
    transposed: bool
    interleaved: bool = False
    leaves: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    count: str = "num_local_experts"


_MLP = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_FEED_FORWARD = ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")
_GRANITE = ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")
_ARIA = ("mlp.experts.fc1.weight", "mlp.experts.fc2.weight")
LAYOUTS = {
    "gpt_oss": Layout("gpt_oss", _MLP, "mlp.experts", True, interleaved=True),
    "llama4": Layout("llama4", _FEED_FORWARD, "feed_forward.experts", True),
    "granitemoe": Layout("granitemoe", _GRANITE, "block_sparse_moe.experts", False),
    "aria": Layout("aria_text", _ARIA, "mlp.experts", True, count="moe_num_experts"),
    "qwen3_moe": Layout("qwen3_moe", _MLP, "mlp.experts", False, count="num_experts"),
    "qwen3_vl": Layout("qwen3_vl_moe", _MLP, "mlp.experts", False, count="num_experts"),
    "qwen3_vl_hub": Layout("qwen3_vl_moe", _MLP, "mlp.experts", True, count="num_experts"),
    "mixtral": Layout("mixtral", _MLP, "mlp.experts", False, leaves=("w1", "w3", "w2")),
}


def matrices(layout: Layout, layers: int = 2, dtype: Any = np.float16) -> dict[str, np.ndarray]:
    """Random weights [N, K] by the name of the expert's X.weight."""
    rng = np.random.default_rng(0)
    shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    return {
        f"model.layers.{layer}.{layout.prefix}.{expert}.{leaf}.weight": (
            rng.standard_normal(shape).astype(dtype)
        )
        for layer in range(layers)
        for expert in range(EXPERTS)
        for leaf, shape in zip(layout.leaves, shapes, strict=True)
    }


def fuse(layout: Layout, weights: dict[str, np.ndarray], layers: int = 2) -> dict[str, np.ndarray]:
    """The tensors that hold these experts, element by element."""
    found = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        gate_up = np.zeros((EXPERTS, 2 * INNER, HIDDEN), np.float16)
        down = np.zeros((EXPERTS, HIDDEN, INNER), np.float16)
        for expert in range(EXPERTS):
            gate, up, last = (
                weights[f"{prefix}.{layout.prefix}.{expert}.{leaf}.weight"]
                for leaf in layout.leaves
            )
            for row in range(INNER):
                gate_up[expert, 2 * row if layout.interleaved else row] = gate[row]
                gate_up[expert, 2 * row + 1 if layout.interleaved else INNER + row] = up[row]
            down[expert] = last
        for name, tensor in zip(layout.names, (gate_up, down), strict=True):
            stored = tensor.transpose(0, 2, 1) if layout.transposed else tensor
            found[f"{prefix}.{name}"] = np.ascontiguousarray(stored)
    return found


def config_of(layout: Layout, **changed: Any) -> dict[str, Any]:
    config = {"model_type": layout.model_type, "hidden_size": HIDDEN, layout.count: EXPERTS}
    return config | changed


def write_fused(folder: Path, kind: str, shards: int = 1, **changed: Any) -> Path:
    """A source of experts alone, two layers; `changed` is of its config."""
    layout = LAYOUTS[kind]
    tensors = fuse(layout, matrices(layout))
    return write_model(folder, config_of(layout, **changed), split(tensors, shards))
