"""A model's blocks as the native step wants them: which modules they are, and their addresses."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from tritllm.integrations.transformers.native_step.watch import kind_of
from tritllm.ops.dtypes import NUMBER_OF_TORCH
from tritllm.ops.trit_linear import TritLinear
from tritllm.step import native_step as block_step


class Linears(NamedTuple):
    """The linear layers of a block."""

    q: Any
    k: Any
    v: Any
    o: Any
    gate: Any
    up: Any
    down: Any


class Norms(NamedTuple):
    """The RMS norms of a block; those of the heads are None where a model has none."""

    input: Any
    post_attention: Any
    q: Any
    k: Any


class Block(NamedTuple):
    """One of transformers' decoder layers, taken apart."""

    layer: Any
    attention: Any
    mlp: Any
    linears: Linears
    norms: Norms


def blocks_of(model: Any) -> list[Block]:
    """The blocks of a model of the Llama family (`model.layers`)."""
    found = []
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linears = Linears(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        )  # fmt: skip
        norms = Norms(
            layer.input_layernorm, layer.post_attention_layernorm,
            getattr(attention, "q_norm", None), getattr(attention, "k_norm", None),
        )  # fmt: skip
        found.append(Block(layer, attention, mlp, linears, norms))
    return found


def can_be_native(model: Any, blocks: list[Block]) -> bool:
    """Whether the native step computes what these blocks compute."""
    config, dtype = model.config, model.norm.weight.dtype
    kinds = getattr(config, "layer_types", None)
    sliding = getattr(config, "sliding_window", None) is not None
    if any(kind != "full_attention" for kind in kinds) if kinds else sliding:
        return False
    if dtype not in NUMBER_OF_TORCH or config.hidden_act not in ("silu", "swish"):
        return False
    if not blocks or kind_of(model.norm).__module__ != kind_of(model).__module__:
        return False
    source = kind_of(model).__module__
    return all(
        _is_native_block(block, config, source)
        and block.attention.layer_idx == index
        and block.linears.q.mode == blocks[0].linears.q.mode  # the step has one for all
        for index, block in enumerate(blocks)
    ) and all(
        tensor.dtype in NUMBER_OF_TORCH and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in (model.norm.weight, *(v for block in blocks for v in vectors_of(block)))
    )


def _is_native_block(block: Block, config: Any, source: str) -> bool:
    """Whether a block's modules are those of transformers' file `source`, around packed layers that
    all run in one mode.
    """
    norms = [norm for norm in block.norms if norm is not None]
    for module in (block.layer, block.attention, block.mlp, *norms):
        if kind_of(module).__module__ != source:  # somebody's own, or a parametrized one
            return False
    if "silu" not in kind_of(block.mlp.act_fn).__name__.lower():
        return False
    if block.attention.training and block.attention.attention_dropout:
        return False
    head_dim = block.attention.head_dim
    if head_dim % block_step.HEAD_MULTIPLE or head_dim > block_step.MOST_HEAD_DIM:
        return False
    if type(block.attention.config) is not type(config):
        return False
    for linear in block.linears:
        if kind_of(linear) is not TritLinear or linear.prepared is None:
            return False
        if linear.prepared.device.type != "cpu" or linear.mode != block.linears.q.mode:
            return False
        if not linear.weight_codebook.is_contiguous():
            return False
    linears = block.linears
    if linears.q.in_features % block_step.WIDTH_MULTIPLE:
        return False
    if linears.gate.out_features % block_step.WIDTH_MULTIPLE:
        return False
    epsilon = block.norms.input.variance_epsilon
    return all(norm.variance_epsilon == epsilon for norm in norms)


def vectors_of(block: Block) -> list[torch.Tensor]:
    """The norm weights and biases of a block, whose addresses the native step holds."""
    tensors = [norm.weight for norm in block.norms if norm is not None]
    return tensors + [linear.bias for linear in block.linears if linear.bias is not None]


def native_blocks(blocks: list[Block], dtype: torch.dtype) -> ctypes.Array[block_step.Block]:
    """The blocks by address; valid as long as the tensors stay where they are.

    dtype: of the model's activations and cache.
    """
    found = []
    for block in blocks:
        linears, head_dim = block.linears, block.attention.head_dim
        found.append(
            block_step.Block(
                hidden=linears.q.in_features,
                intermediate=linears.gate.out_features,
                heads=linears.q.out_features // head_dim,
                kv_heads=linears.k.out_features // head_dim,
                head_dim=head_dim,
                rotary_dim=head_dim,
                dtype=NUMBER_OF_TORCH[dtype],
                exact=linears.q.mode == "exact",
                epsilon=block.norms.input.variance_epsilon,
                scaling=block.attention.scaling,
                input_norm=norm_vector(block.norms.input),
                post_norm=norm_vector(block.norms.post_attention),
                q_norm=norm_vector(block.norms.q),
                k_norm=norm_vector(block.norms.k),
                **{name: weight(linear) for name, linear in linears._asdict().items()},
            )
        )
    return (block_step.Block * len(found))(*found)


def weight(linear: Any) -> block_step.Weight:
    """A packed layer's prepared memory, and the planes that it reads now with their steps."""
    memory, planes = linear.prepared, linear.planes
    steps = None if planes == linear.depth else linear.weight_codebook[planes - 1].data_ptr()
    return block_step.Weight(
        memory.data_ptr(),
        memory.numel(),
        vector(linear.bias),
        steps,
        0 if steps is None else planes,
    )


def vector(tensor: torch.Tensor | None) -> block_step.Vector:
    """A tensor's address and element type, or no vector."""
    if tensor is None:
        return block_step.Vector(None, 0)
    return block_step.Vector(tensor.data_ptr(), NUMBER_OF_TORCH[tensor.dtype])


def norm_vector(norm: Any) -> block_step.Vector:
    """A norm's weight, or no vector where there is no norm."""
    return vector(None if norm is None else norm.weight)
