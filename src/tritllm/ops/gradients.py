"""Gradients of the operators on packed weights, for x and bias; W itself is frozen.

y = x W^T + b: dx = dy W and db = sum(dy), W decoded from the planes a block of rows at a time and
rounded to dy's dtype, as a dequantized layer has it. `linear_prepared` rounds its activations in
int8 mode; its gradient is that of the exact product (straight-through).

These are the operators' kernels for torch's Autograd key rather than what
`torch.library.register_autograd` makes, because that loses the tangent in forward mode without a
word, and fails in `torch.func.grad`. Here both are right, as are double backward and, by the
batching rules below, `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.library import register_vmap

from tritllm.ops.backends.default import row_blocks
from tritllm.ops.definitions import LIBRARY, check_packed, dequantize, linear, linear_prepared

# torch has no public names for these two.
below_autograd = torch._C._AutoDispatchBelowAutograd
_in_torch_func: Callable[[], bool] = torch._C._are_functorch_transforms_active


def is_differentiating(*tensors: torch.Tensor | None) -> bool:
    """Whether a result of these tensors is to have a gradient, in any of torch's modes."""
    if forward_ad._current_level >= 0 or _in_torch_func():
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """compute() -> y, with the gradients of x W^T + bias."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        bias: torch.Tensor | None,
        planes: torch.Tensor | None,
        scale: torch.Tensor | None,
        steps: torch.Tensor,
        part_rows: Sequence[int] | None,
        compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        with below_autograd():
            return compute(x, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, bias, planes, scale, steps, part_rows, _ = inputs
        ctx.save_for_backward(planes, scale, steps)
        ctx.save_for_forward(planes, scale, steps)
        ctx.part_rows, ctx.in_features = part_rows, x.shape[-1]
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtype, bias_dtype = ctx.dtypes
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            planes, scale, steps = _weights(ctx)
            width, parts = ctx.in_features, ctx.part_rows
            for span, own in row_blocks(planes.shape[1], width, steps, parts):
                # By the operator, which torch.compile does not look into.
                weight = dequantize(planes[:, span], scale[span], own, width, dy.dtype)
                part = rows[:, span] @ weight
                dx = part if dx is None else dx + part
            assert dx is not None
            dx = dx.view(*dy.shape[:-1], ctx.in_features).to(dtype)
        if ctx.needs_input_grad[1]:
            dbias = rows.sum(0).to(bias_dtype)
        return dx, dbias, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dbias: Any, *_: Any) -> torch.Tensor:
        planes, scale, steps = _weights(ctx)
        if dx is None:
            raise NotImplementedError("a packed layer has no tangent of its bias alone")
        return linear(dx, planes, scale, steps, dbias, ctx.part_rows)


def _weights(ctx: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    planes, scale, steps = ctx.saved_tensors
    if planes is None or scale is None:
        raise RuntimeError(
            "tritllm::linear_prepared: the gradient of x needs the arguments planes and scale"
        )
    return planes, scale, steps


def _differentiate(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    planes: torch.Tensor | None,
    scale: torch.Tensor | None,
    steps: torch.Tensor,
    part_rows: Sequence[int] | None,
    compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> torch.Tensor:
    _refuse_frozen(steps)
    if planes is not None and scale is not None:
        check_packed(planes, scale, steps, x.shape[-1], part_rows)
    if _in_torch_func():
        # autograd.Function cannot be entered from here, so the exact product stands in for it.
        if planes is None or scale is None:
            raise RuntimeError(
                "tritllm::linear_prepared: torch.func needs the arguments planes and scale"
            )
        weight = dequantize(planes, scale, steps, x.shape[-1], x.dtype, part_rows)
        return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    found: torch.Tensor = _Product.apply(x, bias, planes, scale, steps, part_rows, compute)
    return found


def _refuse_frozen(steps: torch.Tensor) -> None:
    if steps.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "packed weights are frozen: steps have no gradient; pass steps.detach()"
        )


# --- Kernels of the Autograd key ------------------------------------------------------------------


def _dequantize(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    _refuse_frozen(steps)
    with below_autograd():
        return dequantize(planes, scale, steps, in_features, dtype, part_rows)


def _linear(
    x: torch.Tensor,
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    bias: torch.Tensor | None = None,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(x, planes, scale, steps, bias, part_rows)

    if is_differentiating(x, bias, steps):
        return _differentiate(x, bias, planes, scale, steps, part_rows, compute)
    with below_autograd():
        return compute(x, bias)


def _linear_prepared(
    x: torch.Tensor,
    prepared: torch.Tensor,
    steps: torch.Tensor,
    layout: int,
    depth: int,
    in_features: int,
    out_features: int,
    exact: bool,
    bias: torch.Tensor | None = None,
    part_rows: Sequence[int] | None = None,
    planes: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear_prepared(
            x, prepared, steps, layout, depth, in_features, out_features, exact, bias, part_rows
        )

    if is_differentiating(x, bias, steps):
        return _differentiate(x, bias, planes, scale, steps, part_rows, compute)
    with below_autograd():
        return compute(x, bias)


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
