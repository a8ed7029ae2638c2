"""One run of a block in which wanted tensors are taken, and which ends when the last is there."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tritllm.calibration.routing import Routes, routed
from tritllm.calibration.stages import Experts, Stage, Sums


class Kind(enum.Enum):
    """What the target of a stage is compared with, beside its input."""

    INPUT = "the input"
    OUTPUT = "the outputs of its matrices, side by side"
    SUM = "the sum of the residual stream and its output"


@dataclass
class Taken:
    """What a run showed of a step: a row a token.

    x: the input [tokens, K]. y: what `Kind` says, [tokens, width]; the input itself for INPUT.
    routes: of a mixture, which experts get which tokens.
    """

    x: torch.Tensor | None = None
    y: torch.Tensor | None = None
    routes: Routes | None = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


class _AllTakenError(Exception):
    """Nothing more is wanted of this run."""


def observe(
    root: nn.Module,
    run: Callable[[torch.Tensor], Any],
    hidden: torch.Tensor,
    wanted: Sequence[tuple[Stage | Experts, Kind]],
    *,
    to_the_end: bool,
    replayed: Mapping[str, Callable[[], Any]] | None = None,
    recorded: Mapping[str, Callable[[Any], None]] | None = None,
) -> tuple[list[Taken], Any]:
    """Run a block and take what is wanted.

    Args:
        root: the block.
        run: calls it on hidden states.
        hidden: [windows, tokens, width].
        wanted: steps, each with the kind of its target.
        to_the_end: whether the block's own output is wanted, too.
        replayed: children of the block that do not run, and what they return instead.
        recorded: children of the block, and what is called with their output.

    Returns what was taken of each step, and the block's output or None.
    """
    taken = [Taken() for _ in wanted]
    left = set(range(len(wanted)))

    def done(place: int) -> None:
        left.discard(place)
        if not left and not to_the_end:
            raise _AllTakenError

    with ExitStack() as stack:
        sums: dict[str, int] = {}

        def found(name: str, value: torch.Tensor) -> None:
            place = sums[name]
            taken[place].y = _rows(value)
            done(place)

        mode = Sums(hidden.shape, found)
        for place, (step, kind) in enumerate(wanted):
            first = step.module if isinstance(step, Experts) else step.modules[0]
            if isinstance(step, Stage) and kind is Kind.SUM:
                sums[first] = place
            handle = root.get_submodule(first).register_forward_pre_hook(
                _take_input(taken[place], step, kind, place, done)
            )
            stack.callback(handle.remove)
            if isinstance(step, Stage) and kind is not Kind.INPUT:
                for name in step.modules:
                    hook = _take_output(taken[place], step, kind, place, done, name, mode)
                    stack.callback(root.get_submodule(name).register_forward_hook(hook).remove)
        for child, record in (recorded or {}).items():
            hook = _record(record)
            stack.callback(root.get_submodule(child).register_forward_hook(hook).remove)
        for child, replay in (replayed or {}).items():
            module: Any = root.get_submodule(child)
            module.forward = _replay(replay)
            stack.callback(delattr, module, "forward")
        stack.enter_context(torch.no_grad())
        if sums:
            stack.enter_context(mode)
        try:
            out = run(hidden)
        except _AllTakenError:
            out = None
    return taken, out


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, value.shape[-1])


def _take_input(
    taken: Taken, step: Stage | Experts, kind: Kind, place: int, done: Callable[[int], None]
) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if taken.x is not None:
            return
        if isinstance(step, Experts):
            taken.x, taken.routes = routed(module, args)
        else:
            taken.x = _rows(args[0])
        if kind is Kind.INPUT:
            taken.y = taken.x
            done(place)

    return hook


def _take_output(
    taken: Taken,
    step: Stage,
    kind: Kind,
    place: int,
    done: Callable[[int], None],
    name: str,
    mode: Sums,
) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        if kind is Kind.SUM:
            mode.watch(name, output)
            return
        taken.outputs[name] = _rows(output)
        if len(taken.outputs) == len(step.modules):
            taken.y = torch.cat([taken.outputs[module] for module in step.modules], dim=1)
            done(place)

    return hook


def _replay(replay: Callable[[], Any]) -> Callable[..., Any]:
    return lambda *_, **__: replay()


def _record(record: Callable[[Any], None]) -> Callable[..., None]:
    return lambda _module, _args, output: record(output)
