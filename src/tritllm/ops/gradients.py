"""Gradients of the operators on packed weights, for x and bias; W itself is frozen.

y = x W^T + b: dx = dy W and db = sum(dy), W decoded a block of rows at a time (weight_blocks.py)
and rounded to dy's dtype, as a dequantized layer has it; the blocks' products are summed in at
least float32. `linear_prepared` rounds its activations in int8 mode; its gradient is that of the
exact product (straight-through).

These are the operators' kernels for torch's Autograd key rather than what
`torch.library.register_autograd` makes, because that loses the tangent in forward mode without a
word, and fails in `torch.func.grad`. Here both are right, as are double backward and, by the
batching rules below, `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.library import register_vmap

from tritllm.ops.backends import cpu
from tritllm.ops.definitions import (
    LIBRARY,
    LinearArguments,
    PreparedArguments,
    check_packed,
    dequantize,
    linear,
    linear_prepared,
)
from tritllm.ops.weight_blocks import Weights

# torch has no public names for these.
below_autograd = torch._C._AutoDispatchBelowAutograd
_in_torch_func: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_autocasting: Callable[[], bool] = torch._C._is_any_autocast_enabled
_traced: Callable[[], Any] = torch._C._get_tracing_state
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled


def is_differentiating(*tensors: torch.Tensor | None) -> bool:
    """Whether a result of these tensors is to have a gradient, in any of torch's modes."""
    if forward_ad._current_level >= 0 or _in_torch_func():
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def goes_straight(
    x: torch.Tensor, bias: torch.Tensor | None, steps: torch.Tensor | None = None
) -> bool:
    """Whether the product with prepared memory is the CPU kernel's result and nothing else.

    Torch's dispatcher would find the same with every call, but for more than the product of a small
    layer takes; so at batch 1 it is gone past, unless anyone looks at operators: gradients,
    torch.func, autocast, modes (fake tensors, counters), tracing, the profiler; or x is of a kind
    that the dispatcher would prepare. Callers ask `torch.compiler.is_compiling` themselves.
    """
    return (
        _is_plain(x)
        and (bias is None or (bias.is_cpu and not bias.is_neg()))
        and (steps is None or _is_plain(steps))
        and not (
            _dispatch_modes()
            or _function_modes()
            or _autocasting()
            or _traced() is not None
            or _profiled()
            or is_differentiating(x, bias, steps)
        )
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )


Compute = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """compute(x, bias) -> y, with the gradients of x W^T + bias."""

    @staticmethod
    def forward(
        x: torch.Tensor, bias: torch.Tensor | None, weights: Weights, compute: Compute
    ) -> torch.Tensor:
        with below_autograd():
            return compute(x, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, bias, weights, _ = inputs
        tensors = {k: v for k, v in weights._asdict().items() if isinstance(v, torch.Tensor)}
        ctx.names = tuple(tensors)
        ctx.weights = weights._replace(**dict.fromkeys(tensors))
        ctx.save_for_backward(*tensors.values())
        ctx.save_for_forward(*tensors.values())
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtype, bias_dtype = ctx.dtypes
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            weights = _weights(ctx)
            dx = _times_weight(rows, weights)
            dx = dx.view(*dy.shape[:-1], weights.in_features).to(dtype)
        if ctx.needs_input_grad[1]:
            dbias = rows.sum(0).to(bias_dtype)
        return dx, dbias, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dbias: Any, *_: Any) -> torch.Tensor:
        if dx is None:
            raise NotImplementedError("a packed layer has no tangent of its bias alone")
        return _exact_product(dx, dbias, _weights(ctx))


def _times_weight(rows: torch.Tensor, weights: Weights) -> torch.Tensor:
    """rows [B, N] W -> [B, K], in float32 where a sum of blocks would be rounded after each.

    On processors without instructions for 16-bit products the whole product is float32: torch has
    a slow one there, some 0.7 GFLOP/s of 130 for a row-major W.
    """
    narrow = rows.dtype.itemsize == 2
    wide = narrow and rows.is_cpu and not _multiplies(rows.dtype)
    dx = None
    for span, weight in weights.blocks(rows.dtype):
        part = rows[:, span]
        if wide:
            part, weight = part.float(), weight.float()
        part = part @ weight
        if narrow and span.stop - span.start < rows.shape[1]:
            part = part.float()
        dx = part if dx is None else dx + part
    assert dx is not None
    return dx


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies 16-bit floats by instructions made for them."""
    asked = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    try:
        return bool(getattr(torch.ops.mkldnn, asked[dtype])())
    except (AttributeError, KeyError):  # torch is built without oneDNN
        return False


def _weights(ctx: Any) -> Weights:
    saved: Weights = ctx.weights._replace(**dict(zip(ctx.names, ctx.saved_tensors, strict=True)))
    return saved


def _exact_product(x: torch.Tensor, bias: torch.Tensor | None, weights: Weights) -> torch.Tensor:
    """X W^T + bias without rounded activations, W decoded whole."""
    weight = torch.cat([block for _, block in weights.blocks(x.dtype)])
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _differentiate(
    x: torch.Tensor, bias: torch.Tensor | None, weights: Weights, compute: Compute
) -> torch.Tensor:
    _refuse_frozen(weights.steps)
    if weights.packed is not None:
        check_packed(weights.packed)
    if _in_torch_func():  # autograd.Function cannot be entered from here
        return _exact_product(x, bias, weights)
    found: torch.Tensor = _Product.apply(x, bias, weights, compute)
    return found


def _refuse_frozen(steps: torch.Tensor) -> None:
    if steps.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "packed weights are frozen: steps have no gradient; pass steps.detach()"
        )


# --- Kernels of the Autograd key ------------------------------------------------------------------


def _dequantize(
    planes: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, *rest: Any
) -> torch.Tensor:
    _refuse_frozen(steps)
    with below_autograd():
        return dequantize(planes, scale, steps, *rest)


def _linear(*arguments: Any) -> torch.Tensor:
    call = LinearArguments(*arguments)

    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(*call._replace(x=x, bias=bias))

    if is_differentiating(call.x, call.bias, call.steps):
        packed = call.packed
        weights = Weights(*packed[:4], packed.planes.shape[1], packed.part_rows)
        return _differentiate(call.x, call.bias, weights, compute)
    with below_autograd():
        return linear(*arguments)


def _linear_prepared(
    x: torch.Tensor, prepared: torch.Tensor, steps: torch.Tensor, *rest: Any
) -> torch.Tensor:
    bias = rest[_BIAS] if len(rest) > _BIAS else None
    if goes_straight(x, bias, steps) and _is_plain(prepared):
        return cpu.linear_prepared(x, prepared, steps, *rest)
    if not is_differentiating(x, bias, steps):
        with below_autograd():
            return linear_prepared(x, prepared, steps, *rest)
    call = PreparedArguments(x, prepared, steps, *rest)

    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear_prepared(*call._replace(x=x, bias=bias, planes=None, scale=None))

    weights = Weights(
        call.planes, call.scale, call.steps, call.in_features, call.out_features, call.part_rows,
        call.prepared, call.layout, call.depth,
    )  # fmt: skip
    return _differentiate(x, bias, weights, compute)


_BIAS = PreparedArguments._fields.index("bias") - 3  # in the rest above


# --- autocast -------------------------------------------------------------------------------------


def _autocast(device: str, operator: Any) -> Callable[..., torch.Tensor]:
    """The operator on x of autocast's dtype, as torch's own linear layers take it."""

    def kernel(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        with torch.autocast(device, enabled=False):
            wide = x.dtype is torch.float64 or not x.dtype.is_floating_point
            return operator(x if wide else x.to(torch.get_autocast_dtype(device)), *arguments)

    return kernel


# --- torch.vmap -----------------------------------------------------------------------------------


def _batched(operator: Any) -> Callable[..., tuple[torch.Tensor, int]]:
    """The batching rule: x [B, ..., K] is an x as any other."""

    def rule(_: Any, in_dims: tuple[Any, ...], x: torch.Tensor, *rest: Any) -> Any:
        if any(dim is not None for dim in in_dims[1:]):
            raise NotImplementedError("packed layers can be mapped over x only")
        return operator(x.movedim(in_dims[0], 0), *rest), 0

    return rule


for _name, _operator, _kernel in (
    ("linear", linear, _linear),
    ("linear_prepared", linear_prepared, _linear_prepared),
):
    LIBRARY.impl(_name, _kernel, "Autograd")
    LIBRARY.impl(_name, _autocast("cpu", _operator), "AutocastCPU")
    LIBRARY.impl(_name, _autocast("cuda", _operator), "AutocastCUDA")
    register_vmap(f"tritllm::{_name}", _batched(_operator), lib=LIBRARY)
LIBRARY.impl("dequantize", _dequantize, "Autograd")
