"""Which matrices of a block share an input, and whose output is added to the residual stream.

Both are seen in one run of the block, so that no family has to be described. Matrices that receive
the very same tensor make a stage. An output counts as added where the tensor itself is an operand
of an addition whose result has the stream's shape, and a change of it changes that result alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tritllm.integrations.transformers.experts import TritExperts

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_CHANGED_ALIKE = 1e-3  # largest relative error of a sum's change against its operand's


@dataclass(frozen=True)
class Stage:
    """Matrices that share an input, in the order they are called.

    added: their output is added to the residual stream; then it is one matrix.
    """

    modules: tuple[str, ...]
    added: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture's experts: matrices that get a part of the tokens. module: a `TritExperts`."""

    module: str


@dataclass(frozen=True)
class Structure:
    """What a run of a block showed.

    steps: stages and mixtures in the order of their first call.
    closed: children of the block that hold quantized matrices, are called once and return hidden
        states (or a tuple of those and None): once their matrices are encoded, their output need
        not be computed again.
    skipped: matrices that cannot be calibrated, with the reason.
    """

    steps: tuple[Stage | Experts, ...]
    closed: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)


class Sums(TorchDispatchMode):  # type: ignore[misc]
    """Within it, `found(name, sum)` is called where a watched tensor is an operand of an addition.

    shape: of the sums that count.
    """

    def __init__(self, shape: torch.Size, found: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__()
        self._shape = shape
        self._found = found
        self._watched: dict[str, torch.Tensor] = {}

    def watch(self, name: str, output: torch.Tensor) -> None:
        """Wait for the first addition of this tensor, or of a view of all of it."""
        self._watched[name] = output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation of torch and look at it."""
        if func not in _ADDITIONS or kwargs or len(args) != 2 or not self._watched:
            return func(*args, **(kwargs or {}))
        names = [
            name
            for name, tensor in self._watched.items()
            if any(_is_view_of_all(operand, tensor) for operand in args)
        ]
        result = func(*args)
        for name in names:
            del self._watched[name]
            if result.shape == self._shape:
                self._found(name, result)
        return result


def _is_view_of_all(operand: Any, tensor: torch.Tensor) -> bool:
    return (
        isinstance(operand, torch.Tensor)
        and operand.numel() == tensor.numel()
        and operand.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    )


def structure_of(
    root: nn.Module,
    matrices: Iterable[str],
    run: Callable[[torch.Tensor], Any],
    hidden: torch.Tensor,
) -> Structure:
    """Look at one run of a block.

    Args:
        root: the block, filled.
        matrices: names below it of the modules to quantize.
        run: calls the block on hidden states.
        hidden: [windows, tokens, width].
    """
    matrices = list(matrices)
    mixtures = [name for name, m in root.named_modules() if isinstance(m, TritExperts)]
    plain = [name for name in matrices if not is_below(name, mixtures)]
    used = [mixture for mixture in mixtures if any(is_below(m, [mixture]) for m in matrices)]
    seen = _Watcher(root, plain, used)
    sums = seen.run(run, hidden)
    skipped = {name: "not called" for name in plain if name not in seen.calls}
    skipped |= {name: "called more than once" for name, n in seen.calls.items() if n > 1}
    added = {
        name for name in sums if name not in skipped and _changes_alike(root, name, run, hidden)
    }
    steps: list[Stage | Experts] = []
    by_input: dict[int, list[str]] = {}
    for name in seen.order:
        if name in skipped:
            continue
        if name in used:
            steps.append(Experts(name))
        elif name in added:
            steps.append(Stage((name,), True))
        else:
            group = by_input.setdefault(seen.input_of[name], [])
            group.append(name)
            if len(group) == 1:
                steps.append(Stage((name,)))  # completed below, when all are known
    whole = {group[0]: tuple(group) for group in by_input.values()}
    stages = tuple(
        Stage(whole[step.modules[0]]) if isinstance(step, Stage) and not step.added else step
        for step in steps
    )
    closed = tuple(_closed(root, [*plain, *used], run, hidden))
    return Structure(stages, closed, skipped)


class _Watcher:
    """Hooks on the matrices and mixtures of a block during one run."""

    def __init__(self, root: nn.Module, plain: list[str], mixtures: list[str]) -> None:
        self._root = root
        self._names = [*plain, *mixtures]
        self._plain = set(plain)
        self.order: list[str] = []
        self.calls: dict[str, int] = {}
        self.input_of: dict[str, int] = {}
        self._inputs: list[torch.Tensor] = []

    def run(
        self, run: Callable[[torch.Tensor], Any], hidden: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Run; returns the sums in which outputs of matrices were operands."""
        sums: dict[str, torch.Tensor] = {}
        mode = Sums(hidden.shape, lambda name, value: sums.setdefault(name, value))

        def before(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                self.calls[name] = self.calls.get(name, 0) + 1
                if name not in self.order:
                    self.order.append(name)
                if name in self._plain:
                    self._note_input(name, args[0])

            return hook

        def after(name: str) -> Callable[..., None]:
            return lambda _module, _args, output: mode.watch(name, output)

        handles = []
        for name in self._names:
            module = self._root.get_submodule(name)
            handles.append(module.register_forward_pre_hook(before(name)))
            if name in self._plain:
                handles.append(module.register_forward_hook(after(name)))
        try:
            with torch.no_grad(), mode:
                run(hidden)
        finally:
            for handle in handles:
                handle.remove()
            self._inputs.clear()
        return sums

    def _note_input(self, name: str, x: torch.Tensor) -> None:
        for index, known in enumerate(self._inputs):
            if known is x:
                self.input_of.setdefault(name, index)
                return
        self.input_of.setdefault(name, len(self._inputs))
        self._inputs.append(x)


def _changes_alike(
    root: nn.Module, name: str, run: Callable[[torch.Tensor], Any], hidden: torch.Tensor
) -> bool:
    """Whether the sum changes as the module's output does: the other operand does not hold it."""
    changes: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for scale in (0.0, 1.0):
        mode = Sums(hidden.shape, lambda _, value: sums.append(value.clone()))

        def change(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            delta = torch.linspace(-1, 1, output.shape[-1], device=output.device)
            changes.append(scale * delta * output.abs().mean())  # noqa: B023
            changed = output + changes[-1]
            mode.watch(name, changed)  # noqa: B023
            return changed

        handle = root.get_submodule(name).register_forward_hook(change)
        try:
            with torch.no_grad(), mode:
                run(hidden)
        finally:
            handle.remove()
    if len(sums) != 2:
        return False
    wanted = changes[1].expand(sums[0].shape)
    error = (sums[1] - sums[0] - wanted).norm()
    return bool(error <= _CHANGED_ALIKE * (wanted.norm() + sums[0].norm() * 1e-3))


def _closed(
    root: nn.Module,
    names: list[str],
    run: Callable[[torch.Tensor], Any],
    hidden: torch.Tensor,
) -> Iterable[str]:
    """See `Structure.closed`."""
    outputs: dict[str, list[Any]] = {}
    children = [
        child for child, _ in root.named_children() if any(is_below(n, [child]) for n in names)
    ]
    handles = [
        root.get_submodule(child).register_forward_hook(
            lambda _module, _args, output, child=child: outputs.setdefault(child, []).append(output)
        )
        for child in children
    ]
    try:
        with torch.no_grad():
            run(hidden)
    finally:
        for handle in handles:
            handle.remove()
    for child, found in outputs.items():
        if len(found) != 1:
            continue
        first, rest = (found[0][0], found[0][1:]) if isinstance(found[0], tuple) else (found[0], ())
        is_hidden = isinstance(first, torch.Tensor) and first.shape == hidden.shape
        if is_hidden and all(value is None for value in rest):
            yield child


def is_below(name: str, modules: Iterable[str]) -> bool:
    """Whether a module lies below one of these."""
    return any(name.startswith(f"{module}.") for module in modules)
