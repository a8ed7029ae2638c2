"""A config's stream through a part: statistics, encodings, and the part as it is with them.

The part is run step by step, each time up to the step, with everything before it encoded. The
encoder's target is asymmetric and residual-aware (section 2 of docs/quality.md): with y the float
stream's and z the quantized stream's side of a step, z computed with the step's float weights, it
gets the sum of (y - z) x^T over the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tritllm.calibration.activations import Activations, ActivationStore
from tritllm.calibration.encode import Outcome, encode_stage
from tritllm.calibration.float_pass import kind_of
from tritllm.calibration.moments import Moments
from tritllm.calibration.observe import Kind, Taken, observe
from tritllm.calibration.part import Batches, Part
from tritllm.calibration.routing import Routes, joined
from tritllm.calibration.stages import Experts, Stage, is_below
from tritllm.quantizer.configs import Config

_ROWS = 8192  # tokens of an expert that are summed at once


@dataclass
class _Closed:
    """The output of a child that is finished, a row a token; `nones` follow it in a tuple."""

    output: Activations
    nones: int
    batches: int = 0


class QuantizedPass:
    """One config's pass through one part, which begins with the float weights.

    Args:
        part: filled; its matrices become what they are encoded to.
        batches: how the stream is cut.
        stream: before the part; it stays as it is.
        compared: what `run_float` returned.
        store: for activations.
        device: of the part.
        config: says the depths.
        threads: of the encoder.
        on_outcome: called with each matrix's outcome, in order.
    """

    def __init__(
        self,
        part: Part,
        batches: Batches,
        stream: Activations,
        compared: Sequence[Activations],
        store: ActivationStore,
        device: torch.device,
        config: Config,
        threads: int,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._part = part
        self._batches = batches
        self._stream = stream
        self._compared = compared
        self._store = store
        self._device = device
        self._config = config
        self._threads = threads
        self._on_outcome = on_outcome
        self._encoded: set[str] = set()
        self._closed: dict[str, _Closed] = {}

    def run(
        self, *, is_last: bool, before_advancing: Callable[[], None] | None = None
    ) -> Activations | None:
        """Encode every matrix; returns the stream behind the part, or None where it `is_last`.

        before_advancing: called when all are encoded; may change the part's weights.
        """
        for name, reason in self._part.structure.skipped.items():
            self._encode((name,), None, Kind.INPUT, reason)
        for step, compared in zip(self._part.structure.steps, self._compared, strict=True):
            if isinstance(step, Experts):
                self._experts(step, compared)
            else:
                self._stage(step, compared)
        if before_advancing:
            self._forget_outputs()
            before_advancing()
        after = None if is_last else self._store.new(*self._stream.shape)
        if after:
            for first, _, _, out in self._runs([], to_the_end=True):
                after.put(first, out.reshape(-1, out.shape[-1]))
        self._forget_outputs()
        return after

    def _forget_outputs(self) -> None:
        for closed in self._closed.values():
            closed.output.release()
        self._closed.clear()

    def _stage(self, step: Stage, compared: Activations) -> None:
        kind = kind_of(self._part, step)
        moments = None
        for first, behind, (taken,), _ in self._runs([(step, kind)]):
            assert taken.x is not None
            assert taken.y is not None
            wanted = compared.get(first, behind, self._device)
            if moments is None:
                moments = Moments(taken.x.shape[1], wanted.shape[1], self._device)
            moments.add(taken.x, wanted.sub_(taken.y))
        self._encode(step.modules, moments, kind)

    def _experts(self, step: Experts, compared: Activations) -> None:
        """Every expert by the tokens that the quantized router sends it."""
        inputs = self._store.new(*compared.shape)
        batches = []
        for first, _, (taken,), _ in self._runs([(step, Kind.INPUT)]):
            assert taken.x is not None
            assert taken.routes is not None
            inputs.put(first, taken.x)
            batches.append((first, taken.routes))
        routes = joined(batches)
        mixture: Any = self._part.root.get_submodule(step.module)
        for number in range(mixture.num_experts):
            self._expert(step.module, number, mixture, routes, inputs, compared)
        inputs.release()

    def _expert(
        self,
        module: str,
        number: int,
        mixture: Any,
        routes: Routes,
        inputs: Activations,
        compared: Activations,
    ) -> None:
        """gate and up of an expert (or up alone), then down, whose float input is of their float
        results.
        """
        names, name = mixture.names, f"{module}.{number}"
        rows, shares = routes.of(number)
        expert: Any = self._part.root.get_submodule(name)
        first = [expert.get_submodule(leaf) for leaf in names.first]
        weights = [layer.weight.detach().clone() for layer in first]
        for leaves in (names.first, (names.down,)):
            modules = [f"{name}.{leaf}" for leaf in leaves if f"{name}.{leaf}" in self._planned]
            if not modules:
                continue
            moments = None
            for begin in range(0, len(rows), _ROWS):
                some = rows[begin : begin + _ROWS]
                x, wanted = inputs.take(some, self._device), compared.take(some, self._device)
                if shares is not None:
                    share = torch.from_numpy(shares[begin : begin + _ROWS, None]).to(self._device)
                    x, wanted = x * share, wanted * share
                if leaves == (names.down,):
                    with torch.no_grad():
                        x = mixture.gated(number, *(layer(x) for layer in first))
                        wanted = mixture.gated(number, *(wanted @ weight.T for weight in weights))
                if moments is None:
                    moments = Moments(x.shape[1], x.shape[1], self._device)
                moments.add(x, wanted - x)
            self._encode(modules, moments, Kind.INPUT, None if moments else "no token reached it")

    @property
    def _planned(self) -> dict[str, Any]:
        return self._part.matrices

    def _encode(
        self,
        modules: Sequence[str],
        moments: Moments | None,
        kind: Kind,
        data_free: str | None = None,
    ) -> None:
        for outcome in encode_stage(
            self._part, modules, moments, kind, self._config, self._threads, data_free
        ):
            self._on_outcome(outcome)
        self._encoded.update(modules)

    def _runs(
        self, wanted: list[tuple[Stage | Experts, Kind]], *, to_the_end: bool = False
    ) -> Iterator[tuple[int, int, list[Taken], Any]]:
        """Run the part on each batch: (first row, the row behind the last, taken, output).

        Children that are finished do not run again: what they return is kept when they first run.
        """
        fresh: dict[str, _Closed] = {}
        finished = [
            child
            for child in self._part.structure.closed
            if child not in self._closed and not to_the_end and self._is_encoded(child)
        ]
        for start, windows in self._batches:
            first, behind = self._batches.rows(start, windows)
            hidden = self._batches.hidden(self._stream, start, windows, self._device)

            taken, out = observe(
                self._part.root,
                partial(self._part.call, start),
                hidden,
                wanted,
                to_the_end=to_the_end,
                replayed={
                    child: partial(self._replay, closed, first, behind, hidden.shape)
                    for child, closed in self._closed.items()
                },
                recorded={child: partial(self._record, fresh, child, first) for child in finished},
            )
            yield first, behind, taken, out
        whole = len(list(self._batches))
        for child, closed in fresh.items():
            if closed.batches == whole:
                self._closed[child] = closed
            else:
                closed.output.release()

    def _replay(self, closed: _Closed, first: int, behind: int, shape: torch.Size) -> Any:
        """What a finished child returned."""
        value = closed.output.get(first, behind, self._device).reshape(shape)
        return (value, *[None] * closed.nones) if closed.nones else value

    def _record(self, fresh: dict[str, _Closed], child: str, first: int, output: Any) -> None:
        """Keep what a finished child returns."""
        value = output[0] if isinstance(output, tuple) else output
        if child not in fresh:
            nones = len(output) - 1 if isinstance(output, tuple) else 0
            fresh[child] = _Closed(self._store.new(*self._stream.shape), nones)
        fresh[child].output.put(first, value.reshape(-1, value.shape[-1]))
        fresh[child].batches += 1

    def _is_encoded(self, child: str) -> bool:
        return all(name in self._encoded for name in self._planned if is_below(name, [child]))
