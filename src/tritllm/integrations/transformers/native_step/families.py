"""The model families that have a native step, and what their decoder layers are made of.

Most of a layer is seen from the names of its modules, which families share. What is not is in the
family's row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from transformers.modeling_outputs import BaseModelOutputWithPast, MoeModelOutputWithPast

from tritllm.integrations.transformers import attention as tritllm_attention
from tritllm.integrations.transformers.native_step.watch import kind_of

# Whose keys a layer of a family sees: all; those in config.sliding_window, where there is one; or
# these in the layers that config.layer_types names.
ALL, IN_WINDOW, BY_LAYER = "all", "in a window", "by layer"
_SDPA = ("sdpa", tritllm_attention.NAME)


class Family(NamedTuple):
    """What a decoder's class does not tell.

    source: transformers' file. keys: see ALL. output: what its forward returns. attentions: by
    their name in transformers, those that compute what the step computes. norm_offset: what is
    added to norms' weights. softcap: whether scores are bounded by attn_logit_softcapping.
    """

    source: str
    keys: str
    output: type = BaseModelOutputWithPast
    attentions: tuple[str, ...] = _SDPA
    norm_offset: float = 0.0
    softcap: bool = False


def _file(name: str) -> str:
    return f"transformers.models.{name}.modeling_{name}"


# By the class of the decoder inside the model.
MODELS = {
    "LlamaModel": Family(_file("llama"), ALL),
    "BitNetModel": Family(_file("bitnet"), ALL),
    "MistralModel": Family(_file("mistral"), IN_WINDOW),
    "Qwen2Model": Family(_file("qwen2"), BY_LAYER),
    "Qwen3Model": Family(_file("qwen3"), BY_LAYER),
    "Phi3Model": Family(_file("phi3"), IN_WINDOW),
    "MixtralModel": Family(_file("mixtral"), IN_WINDOW, MoeModelOutputWithPast),
    "Qwen2MoeModel": Family(_file("qwen2_moe"), BY_LAYER, MoeModelOutputWithPast),
    "Qwen3MoeModel": Family(_file("qwen3_moe"), IN_WINDOW, MoeModelOutputWithPast),
    # transformers' sdpa cannot bound scores.
    "Gemma2Model": Family(
        _file("gemma2"), BY_LAYER, attentions=("eager",), norm_offset=1.0, softcap=True
    ),
    "Gemma3TextModel": Family(_file("gemma3"), BY_LAYER, norm_offset=1.0),
}


def family_of(model: Any) -> Family | None:
    """The row of a decoder; None where it has none."""
    kind = kind_of(model)
    family = MODELS.get(kind.__name__)
    return family if family is not None and family.source == kind.__module__ else None


class Unit(NamedTuple):
    """The packed layers of down(act(gate(z)) * up(z)); up is None where gate holds both."""

    gate: Any
    up: Any
    down: Any


class Mixture(NamedTuple):
    """Experts: the module that chooses, their units, whether a token's weights sum to one, and the
    linear layer that weighs the unit of all tokens, or None.
    """

    router: Any
    units: tuple[Unit, ...]
    normalized: bool
    shared_gate: Any


class Norms(NamedTuple):
    """The RMS norms of a block, None where it has none: before attention and before the unit, of a
    head's queries and keys, of what attention and the unit give, and of what the last linear layer
    of either multiplies.
    """

    input: Any
    post: Any
    q: Any
    k: Any
    attention: Any
    feedforward: Any
    attention_sub: Any
    unit_sub: Any


class Block(NamedTuple):
    """One of transformers' decoder layers, taken apart.

    k and v are None where q holds all three. unit is None where there are experts alone. parts:
    modules without layers of their own. act_fns: of the unit and the experts. window: how many keys
    a token sees, 0 for all. kind: of the layer, where positions are rotated by kinds.
    """

    layer: Any
    attention: Any
    q: Any
    k: Any
    v: Any
    o: Any
    unit: Unit | None
    mixture: Mixture | None
    norms: Norms
    parts: tuple[Any, ...]
    act_fns: tuple[Any, ...]
    window: int
    kind: str | None
    softcap: float

    def named_linears(self) -> Iterator[tuple[str, Any]]:
        """Its packed layers but the experts', by their names in the native block."""
        names = ("q", "k", "v", "o")
        found = [*zip(names, (self.q, self.k, self.v, self.o), strict=True)]
        if self.unit is not None:
            found += self.unit._asdict().items()
        return ((name, linear) for name, linear in found if linear is not None)

    def linears(self) -> Iterator[Any]:
        """All its packed layers."""
        yield from (linear for _, linear in self.named_linears())
        if self.mixture is not None:
            for unit in self.mixture.units:
                yield from unit


def blocks_of(model: Any, family: Family) -> list[Block]:
    """The blocks of a decoder. Raises AttributeError for one whose modules have other names, and
    ValueError for layers of other kinds.
    """
    kinds = getattr(model.config, "layer_types", None)
    return [
        _block(model, layer, family, None if kinds is None else kinds[index])
        for index, layer in enumerate(model.layers)
    ]


def _block(model: Any, layer: Any, family: Family, kind: str | None) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    fused = getattr(attention, "qkv_proj", None)
    q, k, v = (fused, None, None) if fused is not None else (
        attention.q_proj, attention.k_proj, attention.v_proj
    )  # fmt: skip
    between = getattr(layer, "pre_feedforward_layernorm", None)
    after = layer.post_attention_layernorm
    norms = Norms(
        layer.input_layernorm, after if between is None else between,
        getattr(attention, "q_norm", None), getattr(attention, "k_norm", None),
        None if between is None else after,
        None if between is None else layer.post_feedforward_layernorm,
        getattr(attention, "attn_sub_norm", None), getattr(mlp, "ffn_sub_norm", None),
    )  # fmt: skip
    mixture, own = None, mlp
    if hasattr(mlp, "experts"):
        own = getattr(mlp, "shared_expert", None)
        mixture = _mixture(mlp)
    parts = [attention, mlp] + ([] if mixture is None else [mixture.router])
    parts += [] if own in (None, mlp) else [own]
    cap = attention.attn_logit_softcapping if family.softcap else None
    return Block(
        layer, attention, q, k, v, attention.o_proj, None if own is None else _unit(own), mixture,
        norms, tuple(parts), _activations(own, mlp), _window(model.config, family, kind), kind,
        0.0 if cap is None else float(cap),
    )  # fmt: skip


def _unit(mlp: Any) -> Unit:
    both = getattr(mlp, "gate_up_proj", None)
    if both is not None:
        return Unit(both, None, mlp.down_proj)
    return Unit(mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _activations(own: Any, mlp: Any) -> tuple[Any, ...]:
    found = [mlp.experts.act_fn] if hasattr(mlp, "experts") else []
    if own is not None:
        found.append(own.activation_fn if hasattr(own, "activation_fn") else own.act_fn)
    return tuple(found)


def _mixture(mlp: Any) -> Mixture:
    experts, router = mlp.experts, mlp.gate
    names = experts.names
    units = tuple(
        Unit(*(getattr(experts.get_submodule(str(i)), leaf)
               for leaf in (*names.first, names.down)))
        for i in range(experts.num_experts)
    )  # fmt: skip
    # Mixtral's router always normalizes.
    normalized = bool(getattr(router, "norm_topk_prob", True))
    return Mixture(router, units, normalized, getattr(mlp, "shared_expert_gate", None))


def _window(config: Any, family: Family, kind: str | None) -> int:
    window = getattr(config, "sliding_window", None)
    if family.keys == BY_LAYER and kind is not None:
        if kind == "full_attention":
            return 0
        if kind != "sliding_attention" or not window:
            raise ValueError(f"a layer of kind {kind}")
        return int(window)
    return int(window or 0) if family.keys == IN_WINDOW else 0
