"""Whether the native step computes what a model's blocks compute, and the blocks by address."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn

from tritllm.integrations.transformers.experts import TritExperts
from tritllm.integrations.transformers.native_step.families import Block, Family, Mixture, Unit
from tritllm.integrations.transformers.native_step.watch import kind_of
from tritllm.ops.dtypes import NUMBER_OF_TORCH
from tritllm.ops.trit_linear import TritLinear
from tritllm.step import native_step as block_step


def can_be_native(model: Any, blocks: list[Block], family: Family) -> bool:
    """Whether the native step computes what these blocks compute."""
    if not blocks or model.norm.weight.dtype not in NUMBER_OF_TORCH:
        return False
    if kind_of(model.norm).__module__ != family.source:
        return False
    return all(
        _is_native_block(block, type(model.config), family)
        and block.attention.layer_idx == index
        and _shape_of(block) == _shape_of(blocks[0])  # the step has one for all
        for index, block in enumerate(blocks)
    ) and all(
        tensor.dtype in NUMBER_OF_TORCH and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in (model.norm.weight, *(v for block in blocks for v in vectors_of(block)))
    )


def _shape_of(block: Block) -> tuple[Any, ...]:
    q = block.q
    return q.in_features, block.o.in_features, _keys_of(block), block.attention.head_dim, q.mode


def _keys_of(block: Block) -> int:
    """Rows of a block's matrix of keys."""
    if block.k is not None:
        return int(block.k.out_features)
    return int(block.q.out_features - block.o.in_features) // 2


def _is_native_block(block: Block, config: type, family: Family) -> bool:
    """Whether a block's modules are those of the family's file, around packed layers that all run
    in one mode.
    """
    norms = [norm for norm in block.norms if norm is not None]
    for module in (block.layer, *block.parts, *norms):
        if kind_of(module).__module__ != family.source:  # somebody's own, or a parametrized one
            return False
    attention = block.attention
    if type(attention.config) is not config or not attention.is_causal:
        return False
    if attention.training and _is_random(block):
        return False
    if attention.head_dim % block_step.HEAD_MULTIPLE:
        return False
    if attention.head_dim > block_step.MOST_HEAD_DIM:
        return False
    for linear in block.linears():
        if kind_of(linear) is not TritLinear or linear.prepared is None:
            return False
        if linear.prepared.device.type != "cpu" or linear.mode != block.q.mode:
            return False
        if not linear.weight_codebook.is_contiguous():
            return False
    if _activation_of(block) is None or block.q.in_features % block_step.WIDTH_MULTIPLE:
        return False
    if block.unit is not None and not _is_native_unit(block.unit):
        return False
    if block.mixture is not None and not _is_native_mixture(block, block.mixture):
        return False
    epsilon = epsilon_of(block.norms.input)
    return all(epsilon_of(norm) == epsilon for norm in norms)


def _is_random(block: Block) -> bool:
    """Whether a block in training draws numbers."""
    dropouts = [m.p for m in block.layer.children() if isinstance(m, nn.Dropout)]
    jitter = getattr(block.layer.mlp, "jitter_noise", 0)
    return any((block.attention.attention_dropout, jitter, *dropouts))


def _activation_of(block: Block) -> int | None:
    """The native number of the activation that all of a block's units have; None for others."""
    names = {kind_of(act_fn).__name__.lower() for act_fn in block.act_fns}
    for part, number in (
        ("silu", block_step.SILU),
        ("gelutanh", block_step.GELU_TANH),
        ("relusquared", block_step.RELU_SQUARED),
    ):
        if all(part in name for name in names):
            return number
    return None


def _is_native_unit(unit: Unit) -> bool:
    rows = unit.gate.out_features // (2 if unit.up is None else 1)
    inner = unit.down.in_features
    return bool(rows == inner and inner % block_step.WIDTH_MULTIPLE == 0)


def _is_native_mixture(block: Block, mixture: Mixture) -> bool:
    experts, router = block.layer.mlp.experts, mixture.router
    inner = mixture.units[0].down.in_features
    if kind_of(experts) is not TritExperts or router.weight.shape[0] != len(mixture.units):
        return False
    if not 0 < router.top_k <= min(block_step.MOST_CHOSEN, len(mixture.units)):
        return False
    if any(not _is_native_unit(u) or u.down.in_features != inner for u in mixture.units):
        return False
    gate = mixture.shared_gate
    if gate is None or block.unit is None:
        return gate is None and block.unit is None
    return kind_of(gate) is nn.Linear and gate.out_features == 1 and gate.bias is None


def epsilon_of(norm: Any) -> float:
    """What an RMS norm adds to the mean of squares."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def vectors_of(block: Block) -> list[torch.Tensor]:
    """A block's norm weights, biases and weights of routers, whose addresses the step holds."""
    tensors = [norm.weight for norm in block.norms if norm is not None]
    tensors += [linear.bias for linear in block.linears() if linear.bias is not None]
    if block.mixture is not None:
        gates = (block.mixture.router, block.mixture.shared_gate)
        tensors += [gate.weight for gate in gates if gate is not None]
    return tensors


def native_blocks(
    blocks: list[Block],
    family: Family,
    dtype: torch.dtype,
    tables: list[str | None],
    turned: int,
    arithmetic: int,
) -> ctypes.Array[block_step.Block]:
    """The blocks by address; valid as long as the tensors stay where they are.

    dtype: of the model's activations and cache. tables: kinds of layers, as many as there are
    tables of cosines, or [None]. turned: the elements of a head that are rotated. arithmetic: of
    the products.
    """
    found = []
    for block in blocks:
        head_dim = block.attention.head_dim
        norms = block.norms._asdict().items()
        found.append(
            block_step.Block(
                hidden=block.q.in_features,
                intermediate=0 if block.unit is None else block.unit.down.in_features,
                heads=block.o.in_features // head_dim,
                kv_heads=_keys_of(block) // head_dim,
                head_dim=head_dim,
                rotary_dim=turned,
                dtype=NUMBER_OF_TORCH[dtype],
                arithmetic=arithmetic,
                epsilon=epsilon_of(block.norms.input),
                norm_offset=family.norm_offset,
                scaling=block.attention.scaling,
                softcap=block.softcap,
                window=block.window,
                rotary=tables.index(block.kind) if len(tables) > 1 else 0,
                activation=_activation_of(block),
                **{f"{n}_norm": vector(None if norm is None else norm.weight) for n, norm in norms},
                **{name: weight(linear) for name, linear in block.named_linears()},
                experts=None if block.mixture is None else _experts(block.mixture),
            )
        )
    return (block_step.Block * len(found))(*found)


def _experts(mixture: Mixture) -> Any:
    """A pointer, which keeps what it points at."""
    units, gate = mixture.units, mixture.shared_gate
    array = (block_step.Expert * len(units))(
        *(block_step.Expert(*(weight(linear) for linear in unit)) for unit in units)
    )
    return ctypes.pointer(
        block_step.Experts(
            count=len(units),
            chosen=mixture.router.top_k,
            normalized=mixture.normalized,
            intermediate=units[0].down.in_features,
            router=vector(mixture.router.weight),
            shared_gate=vector(None if gate is None else gate.weight),
            expert=array,
        )
    )


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
