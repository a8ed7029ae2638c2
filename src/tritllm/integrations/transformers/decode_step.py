"""Models whose decode step is one native call.

For every token a block of the Llama family runs some thirty small torch operators around its packed
products. `use_native_step` gives such a model a forward that lets native code do the whole stack of
blocks, when one token a sequence comes, on a CPU, with prepared weights and transformers' usual
growing cache. Everything else (prefill, gradients, torch.compile, hooks, sliding windows, other
caches) takes transformers' own forward.

Numbers: inside a block everything is float32, where transformers rounds to the model's dtype after
every operator.
"""

from __future__ import annotations

import ctypes
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.modules import module as torch_module
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from tritllm.integrations.transformers import attention
from tritllm.ops import cpu_kernels
from tritllm.ops.trit_linear import TritLinear
from tritllm.step import native_step as decoder

# Models whose blocks are what native/include/tritllm_step.h says.
MODELS = {
    "LlamaModel": "transformers.models.llama.modeling_llama",
    "MistralModel": "transformers.models.mistral.modeling_mistral",
    "Qwen2Model": "transformers.models.qwen2.modeling_qwen2",
    "Qwen3Model": "transformers.models.qwen3.modeling_qwen3",
}
_ATTENTIONS = ("sdpa", attention.NAME)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("q_norm", "k_norm")
_WATCHED = "_tritllm_native_step"


def use_native_step(model: torch.nn.Module) -> bool:
    """Give the model, or the one inside it, the native decode step; whether there is one for it."""
    if not cpu_kernels.available():
        return False
    for module in model.modules():
        kind = type(module)
        if MODELS.get(kind.__name__) == kind.__module__:
            if not issubclass(kind, NativeStepModel):
                module.__class__ = _with_native_step(kind)
            return True
    return False


def _with_native_step(kind: type) -> type:
    """A subclass under the same name, which is what transformers and accelerate look at."""
    body = {"__module__": kind.__module__, "stock": kind}
    return type(kind.__name__, (NativeStepModel, kind), body)


class NativeStepModel(torch.nn.Module):  # type: ignore[misc]
    """A decoder with a native step. Copies and pickles are of the stock class."""

    stock: type

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers defines it."""
        if not torch.compiler.is_compiling() and type(past_key_values) is DynamicCache:
            hidden = self._native(
                input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                kwargs,
            )  # fmt: skip
            if hidden is not None:
                return BaseModelOutputWithPast(
                    last_hidden_state=hidden, past_key_values=past_key_values
                )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _native(
        self,
        input_ids: torch.Tensor | None,
        mask: Any,
        position_ids: torch.Tensor | None,
        past: DynamicCache,
        embeds: torch.Tensor | None,
        use_cache: bool | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """Hidden states [B, 1, H] after the final norm; None where the call is not a step."""
        tokens = input_ids if embeds is None else embeds
        if tokens is None or (input_ids is None) == (embeds is None) or tokens.shape[1] != 1:
            return None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if not use_cache or torch.is_autocast_enabled("cpu") or _global_hooks():
            return None
        if any(kwargs.get(name) is not None for name in _UNUSUAL):
            return None
        parts = self.__dict__.get(_WATCHED)
        if parts is None or not parts.unchanged():
            parts = self.__dict__[_WATCHED] = _Parts(self)
        blocks = parts.blocks
        if blocks is None or not parts.may_be_bypassed():
            return None
        room = _room_of(past, blocks, parts.dtype)
        if room is None or not _fits(mask, tokens.shape[0], room.tokens + 1):
            return None
        hidden = self.embed_tokens(input_ids) if embeds is None else embeds.clone()
        if type(hidden) is not torch.Tensor or hidden.requires_grad or not room.takes(hidden):
            return None
        if position_ids is None:
            position_ids = torch.tensor([[room.tokens]])
        cos, sin = self.rotary_emb(hidden, position_ids)
        if not _rotary_fits(cos, sin, hidden, parts.head_dim):
            return None
        hidden = hidden.contiguous()
        room.step(past, blocks, parts.final_norm(), hidden, cos, sin, mask)
        return hidden

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Of the stock class, without addresses."""
        state = {name: value for name, value in self.__dict__.items() if name != _WATCHED}
        return torch.nn.Module.__new__, (self.stock,), state


# What a caller may ask for that only transformers' own forward gives.
_UNUSUAL = ("output_hidden_states", "output_attentions", "return_dict")


def _global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _fits(mask: Any, batch: int, tokens: int) -> bool:
    """Whether a mask is none, or the usual one: [B, T], nonzero for a token that is seen."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.shape == (batch, tokens))


def _rotary_fits(cos: torch.Tensor, sin: torch.Tensor, hidden: torch.Tensor, width: int) -> bool:
    return bool(
        cos.dtype is sin.dtype is hidden.dtype
        and cos.shape == sin.shape
        and cos.shape[1:] == (1, width)
        and cos.shape[0] in (1, hidden.shape[0])
        and cos.is_contiguous()
        and sin.is_contiguous()
    )


class _Parts:
    """What a model is made of, to notice when any of it is replaced, moved, cast or listened to,
    and its addresses for the native code.

    `unchanged` and `may_be_bypassed` are asked once a token, hence the care about time.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.config
        modules = [model.embed_tokens, model.norm, model.rotary_emb]
        owners = [(model._modules, name) for name in ("embed_tokens", "layers", "norm")]
        layers: list[Any] = list(model.layers)
        self._layers = []
        for i, layer in enumerate(layers):
            attending, mlp = layer.self_attn, layer.mlp
            linears = [getattr(attending, name) for name in _PROJECTIONS]
            linears += [getattr(mlp, name) for name in _MLP]
            norms = [getattr(layer, name) for name in _BLOCK_NORMS]
            norms += [getattr(attending, name, None) for name in _HEAD_NORMS]
            self._layers.append((layer, linears, norms))
            modules += [layer, attending, mlp, *linears, *(n for n in norms if n is not None)]
            owners += [(model.layers._modules, str(i))]
            owners += [(layer._modules, name) for name in ("self_attn", "mlp", *_BLOCK_NORMS)]
            owners += [(attending._modules, name) for name in (*_PROJECTIONS, *_HEAD_NORMS)]
            owners += [(mlp._modules, name) for name in _MLP]
            owners += [(linear._buffers, "prepared") for linear in linears]
        owners += [(m._parameters, name) for m in modules for name in ("weight", "bias")]
        self._owners = [(owner, name) for owner, name in owners if name in owner]
        self._held = [owner[name] for owner, name in self._owners]
        self._tensors = [held for held in self._held if isinstance(held, torch.Tensor)]
        # A cast or a move gives a parameter other memory; prepared memory is replaced as a whole.
        self._parameters = [held for held in self._tensors if isinstance(held, torch.nn.Parameter)]
        self._where = [parameter.data_ptr() for parameter in self._parameters]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._dicts = [m.__dict__ for m in modules]
        self._norm = model.norm
        self.head_dim = layers[0].self_attn.head_dim if layers else 0
        self.dtype = model.norm.weight.dtype
        self.blocks = self._native_blocks() if self._can_be_native(model) else None

    def unchanged(self) -> bool:
        """Whether every module and tensor is what and where it was."""
        now = [owner.get(name) for owner, name in self._owners]
        return all(map(is_, now, self._held)) and self._where == list(
            map(_ADDRESS, self._parameters)
        )

    def may_be_bypassed(self) -> bool:
        """Whether calling each module does what its class says, and nobody listens."""
        if any(self._hooks) or any("forward" in own for own in self._dicts):
            return False
        config = self.config
        return not (config.output_attentions or config.output_hidden_states) and (
            config._attn_implementation in _ATTENTIONS
        )

    def final_norm(self) -> tuple[decoder.Vector, float]:
        """Of the step's last fields."""
        return _vector(self._norm.weight), self._norm.variance_epsilon

    def _can_be_native(self, model: Any) -> bool:
        kinds = getattr(self.config, "layer_types", None)
        sliding = getattr(self.config, "sliding_window", None) is not None
        if any(kind != "full_attention" for kind in kinds) if kinds else sliding:
            return False
        if self.dtype not in cpu_kernels.DTYPES or self.config.hidden_act not in ("silu", "swish"):
            return False
        if not self._layers or self.head_dim % decoder.HEAD_MULTIPLE:
            return False
        if self.head_dim > decoder.MOST_HEAD_DIM:
            return False
        for tensor in self._tensors:
            if tensor.dtype not in (*cpu_kernels.DTYPES, torch.uint8):
                return False
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                return False
        for layer, linears, norms in self._layers:
            if type(layer.self_attn.config) is not type(self.config):
                return False
            for linear in linears:
                if type(linear) is not TritLinear or linear.prepared is None:
                    return False
            if linears[0].in_features % decoder.WIDTH_MULTIPLE:
                return False
            if linears[4].out_features % decoder.WIDTH_MULTIPLE:
                return False
            epsilon = norms[0].variance_epsilon
            if any(norm is not None and norm.variance_epsilon != epsilon for norm in norms):
                return False
        return True

    def _native_blocks(self) -> ctypes.Array[decoder.Block]:
        blocks = []
        for layer, linears, norms in self._layers:
            head_dim = layer.self_attn.head_dim
            blocks.append(
                decoder.Block(
                    linears[0].in_features,
                    linears[4].out_features,
                    linears[0].out_features // head_dim,
                    linears[1].out_features // head_dim,
                    head_dim,
                    cpu_kernels.DTYPES[self.dtype],
                    cpu_kernels.mode() == "exact",
                    norms[0].variance_epsilon,
                    layer.self_attn.scaling,
                    *(_vector(None if norm is None else norm.weight) for norm in norms),
                    *(
                        decoder.Weight(linear.prepared.data_ptr(), _vector(linear.bias))
                        for linear in linears
                    ),
                )
            )
        return (decoder.Block * len(blocks))(*blocks)


_ADDRESS = torch.Tensor.data_ptr


def _vector(tensor: torch.Tensor | None) -> decoder.Vector:
    if tensor is None:
        return decoder.Vector(None, 0)
    return decoder.Vector(tensor.data_ptr(), cpu_kernels.DTYPES[tensor.dtype])


# --- The cache ------------------------------------------------------------------------------------

_LEAST_ROOM = 64  # tokens


class _Room:
    """A cache's keys and values in memory that has room for tokens to come.

    transformers' layer copies all keys and values for every token; here the layer's tensors are
    views of the part that is filled, and the next token is written behind it. Whoever replaces
    them, by whatever the cache offers, is noticed, and what they put there is copied.
    """

    def __init__(self, past: DynamicCache, block: decoder.Block) -> None:
        layers = past.layers
        batch, heads, self.tokens, width = layers[0].keys.shape
        self.capacity = -(-(self.tokens + max(_LEAST_ROOM, self.tokens // 4)) // 16) * 16
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in layers:  # one at a time, so that the old memory can go
            memory = layer.keys.new_empty((2, batch, heads, self.capacity, width))
            memory[0, :, :, : self.tokens] = layer.keys
            memory[1, :, :, : self.tokens] = layer.values
            self._held.append((memory[0], memory[1]))
            self._show(layer, self._held[-1])
        self._seen = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        self._stride = memory.stride()[1:4]
        self._like = (batch, width * heads, memory.dtype)
        pointers = ctypes.c_void_p * len(layers)
        self._keys = pointers(*(keys.data_ptr() for keys, _ in self._held))
        self._values = pointers(*(values.data_ptr() for _, values in self._held))
        self._scratch = decoder.scratch_size(block, batch, self.capacity)

    def _show(self, layer: DynamicLayer, held: tuple[torch.Tensor, torch.Tensor]) -> None:
        layer.keys = held[0].narrow(2, 0, self.tokens)
        layer.values = held[1].narrow(2, 0, self.tokens)

    def is_of(self, past: DynamicCache) -> bool:
        """Whether the cache holds what it was given here last, and one more token has room."""
        if self.tokens == self.capacity or len(past.layers) != len(self._held):
            return False
        now = [tensor for layer in past.layers for tensor in (layer.keys, layer.values)]
        return all(map(is_, now, self._seen))

    def takes(self, hidden: torch.Tensor) -> bool:
        """Whether hidden states [B, 1, H] are of the cache's batch and dtype, on the CPU."""
        batch, _, dtype = self._like
        return bool(
            hidden.shape[0] == batch and hidden.dtype is dtype and hidden.device.type == "cpu"
        )

    def step(
        self,
        past: DynamicCache,
        blocks: ctypes.Array[decoder.Block],
        final_norm: tuple[decoder.Vector, float],
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        """Run the blocks and the final norm on hidden [B, 1, H], in place."""
        tokens, seen = self.tokens + 1, None
        if mask is not None:
            seen = mask.ne(0).contiguous()
        scratch = cpu_kernels.scratch_memory(self._scratch)
        call = decoder.Step(
            hidden.shape[0], tokens, hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            cos.stride(0) if cos.shape[0] > 1 else 0,
            ctypes.addressof(self._keys), ctypes.addressof(self._values), self._stride,
            None if seen is None else seen.data_ptr(), tokens,
            *final_norm,
        )  # fmt: skip
        decoder.decoder_step(torch.get_num_threads(), blocks, call, scratch.data_ptr())
        self.tokens = tokens
        for layer, held in zip(past.layers, self._held, strict=True):
            self._show(layer, held)
        self._seen = [tensor for layer in past.layers for tensor in (layer.keys, layer.values)]


_rooms: WeakKeyDictionary[DynamicCache, _Room] = WeakKeyDictionary()


def _room_of(
    past: DynamicCache, blocks: ctypes.Array[decoder.Block], dtype: torch.dtype
) -> _Room | None:
    """The room of a cache, made if need be; None for one with other layers, or an empty one."""
    room = _rooms.get(past)
    if room is not None and room.is_of(past):
        return room
    if past.offloading or len(past.layers) != len(blocks):
        return None
    first = past.layers[0]
    for layer in past.layers:
        if type(layer) is not DynamicLayer or not layer.is_initialized or not layer.keys.numel():
            return None
        if layer.keys.shape != first.keys.shape or layer.values.shape != first.keys.shape:
            return None
        for x in (layer.keys, layer.values):
            if type(x) is not torch.Tensor or x.dtype is not dtype or x.device.type != "cpu":
                return None
    room = _rooms[past] = _Room(past, blocks[0])
    return room
