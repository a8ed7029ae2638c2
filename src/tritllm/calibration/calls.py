"""How a model calls its blocks, taken from the model itself with the blocks bypassed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tritllm.errors import TritError, first_line

_HIDDEN = "hidden_states"


class _LastBlockReachedError(Exception):
    """All that is wanted has been seen; the rest of the model need not run."""


@dataclass(frozen=True)
class Call:
    """The arguments of one block but the hidden states, for batches of one size."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_by_name: bool

    def __call__(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run a block on hidden states [windows, tokens, width]; returns what comes out."""
        if self.hidden_by_name:
            out = block(*self.args, **{**self.kwargs, _HIDDEN: hidden})
        else:
            out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Call]:
    if args and isinstance(args[0], torch.Tensor):
        return args[0], Call(args[1:], dict(kwargs), False)
    rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
    return kwargs[_HIDDEN], Call(args, rest, True)


@contextmanager
def _forwards(
    modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Within it the modules run these functions instead of their own."""
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward


class Blocks:
    """The blocks of a model in their places: what they are given, and what follows them.

    model: filled but for its blocks. names: of the blocks, in order.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], where: str) -> None:
        self.model = model
        self.modules = [model.get_submodule(name) for name in names]
        self._where = where
        self._wrap: Callable[[torch.Tensor], Any] | None = None
        self._calls: dict[int, list[Call]] = {}

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first block is given for token ids [windows, tokens]."""
        taken = []

        def take(*args: Any, **kwargs: Any) -> Any:
            taken.append(_split(args, kwargs)[0])
            raise _LastBlockReachedError

        with _forwards(self.modules[:1], [take]), torch.no_grad(), suppress(_LastBlockReachedError):
            self.model(input_ids=ids)
        return taken[0]

    def call(self, block: int, ids: torch.Tensor) -> Call:
        """The call of a block for ids [windows, tokens]; it must not depend on which ids."""
        windows = len(ids)
        if windows not in self._calls:
            calls = self._record(ids)
            others = self._record(ids.flip(1))
            for one, other in zip(calls, others, strict=True):
                if not _equal((one.args, one.kwargs), (other.args, other.kwargs)):
                    raise self._error("its blocks are given what depends on the text")
            self._calls[windows] = calls
        return self._calls[windows][block]

    def after(self, hidden: torch.Tensor, ids: torch.Tensor) -> None:
        """Run what the model does with the last block's output."""
        wrap = self._wrap or (lambda h: h)

        def bypass(*args: Any, **kwargs: Any) -> Any:
            return wrap(_split(args, kwargs)[0])

        forwards = [lambda *_, **__: wrap(hidden), *[bypass] * (len(self.modules) - 1)]
        with _forwards(self.modules, forwards), torch.no_grad():
            self.model(input_ids=ids)

    def _record(self, ids: torch.Tensor) -> list[Call]:
        """One forward with all blocks returning their input, as a tensor or in a tuple."""
        forms = [self._wrap] if self._wrap else [lambda h: h, lambda h: (h,)]
        fault = "the model does something between its blocks"
        for wrap in forms:
            calls: list[Call] = []
            hiddens: list[torch.Tensor] = []

            def bypass(*args: Any, **kwargs: Any) -> Any:
                hidden, call = _split(args, kwargs)
                hiddens.append(hidden)  # noqa: B023
                calls.append(call)  # noqa: B023
                if len(calls) == len(self.modules):  # noqa: B023
                    raise _LastBlockReachedError
                return wrap(hidden)  # noqa: B023

            try:
                with _forwards(self.modules, [bypass] * len(self.modules)), torch.no_grad():
                    self.model(input_ids=ids)
            except _LastBlockReachedError:
                pass
            except Exception as error:  # whatever a model's own code raises
                fault = first_line(error)
                continue
            if len(calls) == len(self.modules) and all(h is hiddens[0] for h in hiddens):
                self._wrap = wrap
                return calls
        raise self._error(fault)

    def _error(self, fault: str) -> TritError:
        return TritError(
            f"{self._where}: cannot be calibrated: {fault} ({type(self.model).__name__}); "
            "quantize without calibration"
        )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return type(one) is type(other)
