"""One calibration, from where its folder says to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tritllm.calibration.activations import Activations, ActivationStore
from tritllm.calibration.calls import Blocks
from tritllm.calibration.encode import CODEC, Outcome
from tritllm.calibration.float_pass import run_float
from tritllm.calibration.part import Batches, Part
from tritllm.calibration.part_trainer import EncodedPart, PartTrainer
from tritllm.calibration.progress import Meter
from tritllm.calibration.quantized_pass import QuantizedPass
from tritllm.calibration.results import StoredEncodings, save_outcomes
from tritllm.calibration.skeleton import Skeleton
from tritllm.calibration.stages import Structure, structure_of
from tritllm.calibration.state import RunSettings, State, load_state, save_state
from tritllm.calibration.windows import context_of, windows_of
from tritllm.errors import TritError, first_line
from tritllm.quantizer.configs import Config
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.plan import Plan

METHOD = "second-order, layer by layer, with asymmetric and residual-aware targets"
BATCH_TOKENS = 4096  # that run through a block at once
_FLOAT = ""  # the float stream's name, which no config has


class Run:
    """A calibration of a plan in a folder."""

    def __init__(
        self,
        settings: RunSettings,
        plan: Plan,
        folder: Path,
        threads: int,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._folder = folder
        self._threads = threads
        self._on_progress = on_progress
        self._device = torch.device(settings.device)
        self._store = ActivationStore(folder, settings.in_memory)
        self._structures: dict[Any, Structure] = {}

    def encodings(self) -> StoredEncodings:
        """Calibrate what is left, and return all of it."""
        state = load_state(self._folder)
        if state is None or state.done < state.parts:
            state = self._calibrate(state)
        files = {
            config.name: [self._results(part, config.name) for part in range(state.parts)]
            for config in self._plan.configs
        }
        return StoredEncodings(files, state.about, state.absent, {"seconds": state.seconds})

    def _calibrate(self, state: State | None) -> State:
        self._started = time.monotonic()
        for left in self._folder.glob("activations-*.npy"):  # of a run that was killed
            left.unlink()
        settings, source = self._settings, self._plan.source
        context = context_of(source, settings.context)
        ids, has_bos = windows_of(source, settings.text, settings.tokens, context, settings.seed)
        self._skeleton = Skeleton(source, self._plan.quantized)
        self._ids = torch.from_numpy(np.asarray(ids, np.int64)).to(self._device)
        self._batches = Batches(len(ids), context, max(1, BATCH_TOKENS // context))
        self._blocks = Blocks(self._skeleton.model, self._skeleton.blocks, source.files.name)
        self._parts = self._matrices()
        if state is None:
            about = self._about(ids.size, context, has_bos)
            state = State(len(self._parts), 0, about, self._skeleton.absent)
        blocks, configs, trainer = len(self._skeleton.blocks), self._plan.configs, settings.trainer
        self._progress = Meter(
            self._parts, blocks, state.done, configs, self._batches, trainer, self._on_progress
        )
        streams = self._first_streams(state.done)
        for number in range(state.done, len(self._parts)):
            streams = self._pass(number, streams, state)
        return state

    def _matrices(self) -> list[dict[str, SourceMatrix]]:
        """The matrices of each part: of the blocks, then of what is outside them, if any is."""
        planned = self._skeleton.planned
        parts = [
            {name: tensor for name, tensor in planned.items() if name.startswith(f"{block}.")}
            for block in self._skeleton.blocks
        ]
        inside = {name for part in parts for name in part}
        outside = {name: tensor for name, tensor in planned.items() if name not in inside}
        return [*parts, outside] if outside else parts

    def _about(self, tokens: int, context: int, has_bos: bool) -> dict[str, Any]:
        text = self._settings.text
        return {
            "codec": CODEC,
            "method": METHOD,
            "text": {"name": Path(text.name).name, "sha256": text.sha256},
            "tokens": tokens,
            "context": context,
            "bos": has_bos,
            "seed": self._settings.seed,
            "device": self._settings.device,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    # --- Streams: of the float model and of each config, by name ----------------------------------

    def _first_streams(self, done: int) -> dict[str, Activations]:
        """Those before the first part that is not done; has the blocks' calls recorded."""
        sizes = {1, *(windows for _, windows in self._batches)}
        try:
            with self._skeleton.outside(self._device):
                for windows in sorted(sizes):
                    self._blocks.call(0, self._ids[:windows])
                stream = None if done else self._embedded()
        except TritError:
            raise
        except Exception as error:  # whatever a model's own code raises
            raise TritError(
                f"{self._plan.source.files.name}: cannot be calibrated: its model fails "
                f"({first_line(error)}); quantize without calibration"
            ) from error
        names = [_FLOAT, *(config.name for config in self._plan.configs)]
        if stream:
            return dict.fromkeys(names, stream)
        tokens = self._batches.tokens
        return {name: self._store.load(self._stream(done, name), tokens) for name in names}

    def _embedded(self) -> Activations:
        stream: Activations | None = None
        for start, windows in self._batches:
            hidden = self._blocks.hidden(self._ids[start : start + windows])
            if stream is None:
                stream = self._store.new(self._batches.tokens, hidden.shape[-1])
            stream.put(self._batches.rows(start, windows)[0], hidden.reshape(-1, hidden.shape[-1]))
        assert stream
        return stream

    # --- Parts ------------------------------------------------------------------------------------

    def _pass(
        self, number: int, streams: dict[str, Activations], state: State
    ) -> dict[str, Activations]:
        """All streams through one part; returns those behind it, made durable."""
        if number < len(self._skeleton.blocks):
            name = self._skeleton.blocks[number]
            self._skeleton.fill(name, self._device)
            after = self._through(self._block(number, streams[_FLOAT]), number, streams)
            self._skeleton.empty(name)
        else:
            with self._skeleton.outside(self._device):
                after = self._through(self._rest(number, streams[_FLOAT]), number, streams)
        for name, stream in after.items():
            stream.save(self._stream(number + 1, name))
        state.done = number + 1
        now = time.monotonic()
        state.seconds, self._started = round(state.seconds + now - self._started, 1), now
        save_state(self._folder, state)
        for stream in {id(stream): stream for stream in streams.values()}.values():
            stream.release()
        for path in self._folder.glob(f"stream-{number}-*.npy"):
            path.unlink()
        return after

    def _through(
        self, part: Part, number: int, streams: dict[str, Activations]
    ) -> dict[str, Activations]:
        """All streams through a filled part; the last one leaves no streams."""
        is_block = number < len(self._skeleton.blocks)
        trainer = self._settings.trainer if is_block else None  # needs the streams behind
        is_last = number == len(self._parts) - 1 and trainer is None
        after: dict[str, Activations] = {}
        self._progress.at(f"{self._where(number)}, float model")
        compared, stream = run_float(
            part, self._batches, streams[_FLOAT], self._store, self._device, is_last=is_last
        )
        self._progress.float_passed(part.matrices.values())
        if stream:
            after[_FLOAT] = stream
        for config in self._plan.configs:
            if config is not self._plan.configs[0]:  # float weights again
                for name in self._parts[number]:
                    self._skeleton.fill(name, self._device)
            outcomes: list[Outcome] = []
            after |= self._config_through(
                part, number, config, streams, compared, outcomes, stream, trainer, is_last
            )
            save_outcomes(self._results(number, config.name), outcomes)
        for activations in compared:
            activations.release()
        return after

    def _config_through(
        self,
        part: Part,
        number: int,
        config: Config,
        streams: dict[str, Activations],
        compared: list[Activations],
        outcomes: list[Outcome],
        wanted: Activations | None,
        trainer: PartTrainer | None,
        is_last: bool,
    ) -> dict[str, Activations]:
        def on_outcome(outcome: Outcome) -> None:
            outcomes.append(outcome)
            leaf = outcome.matrix.module.removeprefix(f"{part.name}.")
            self._progress.encoded(f"{self._where(number)}, {leaf}", config.name, outcome)

        def train() -> None:
            assert trainer and wanted  # noqa: PT018
            stream, found = streams[config.name], tuple(outcomes)
            weight = partial(self._weight, part)
            encoded = EncodedPart(part, self._batches, stream, wanted, found, weight, self._device)
            told = partial(self._progress.training, number, self._where(number), config.name)
            outcomes[:] = trainer.train(encoded, told)
            self._progress.trained(number)

        trained = trainer is not None and trainer.trains(config)
        stream = QuantizedPass(
            part,
            self._batches,
            streams[config.name],
            compared,
            self._store,
            self._device,
            config,
            self._threads,
            on_outcome,
        ).run(is_last=is_last, before_advancing=train if trained else None)
        self._progress.advanced(part.matrices.values())
        return {config.name: stream} if stream else {}

    def _weight(self, part: Part, name: str) -> torch.Tensor:
        return self._skeleton.weight(f"{part.name}.{name}")

    def _where(self, number: int) -> str:
        blocks = len(self._skeleton.blocks)
        return f"block {number + 1} of {blocks}" if number < blocks else "output"

    def _block(self, number: int, stream: Activations) -> Part:
        name = self._skeleton.blocks[number]
        root = self._skeleton.model.get_submodule(name)

        def call(start: int, hidden: torch.Tensor) -> torch.Tensor:
            ids = self._ids[start : start + len(hidden)]
            return self._blocks.call(number, ids)(root, hidden)

        return self._part(name, root, number, call, stream)

    def _rest(self, number: int, stream: Activations) -> Part:
        """What follows the blocks."""
        for name in self._parts[number]:
            self._skeleton.fill(name, self._device)

        def call(start: int, hidden: torch.Tensor) -> None:
            self._blocks.after(hidden, self._ids[start : start + len(hidden)])

        return self._part("", self._skeleton.model, number, call, stream)

    def _part(
        self,
        name: str,
        root: Any,
        number: int,
        call: Callable[[int, torch.Tensor], Any],
        stream: Activations,
    ) -> Part:
        prefix = f"{name}." if name else ""
        matrices = {n.removeprefix(prefix): tensor for n, tensor in self._parts[number].items()}
        alike = type(root), tuple(matrices)
        if alike not in self._structures:
            hidden = self._batches.hidden(stream, 0, 1, self._device)
            self._structures[alike] = structure_of(root, matrices, partial(call, 0), hidden)
        return Part(name, root, matrices, self._structures[alike], call)

    # --- Files ------------------------------------------------------------------------------------

    def _stream(self, part: int, name: str) -> Path:
        return self._folder / f"stream-{part}-{name}.npy"

    def _results(self, part: int, config: str) -> Path:
        return self._folder / f"encoded-{part}-{config}.npz"
