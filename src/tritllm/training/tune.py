"""`--tune`: training the whole model to predict what the float model predicts.

A `Calibrator` around another: it begins where that one ends. First the steps, norms and biases
move, then the levels, too; the state with the least KL divergence on windows that are never trained
on is kept, and that may be the start. The whole model is in memory: see `Tuner.memory_bytes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritllm.calibration.skeleton import Skeleton
from tritllm.calibration.windows import context_of, corpus_of
from tritllm.codec import TritTensor, encode
from tritllm.errors import TritError
from tritllm.evaluation.corpus import Text
from tritllm.quantizer.configs import Config
from tritllm.quantizer.encodings import CalibrationProgress, Calibrator, Encodings
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.quantizer.plan import Plan
from tritllm.training.end_to_end import LOGIT_BYTES, Divergence, student_of
from tritllm.training.install import Installed
from tritllm.training.optimise import SAVE_SECONDS, Rates, TrainingProgress, optimise
from tritllm.training.results import TrainedEncodings, save_trained
from tritllm.training.straight_through import TrainedMatrix, TrainedVector
from tritllm.training.windows import TrainingWindows

STEPS = 600
CONTEXT = 512  # tokens a window, or as many as the model takes
BATCH_TOKENS = 1024  # a step
RATES = Rates({1: 0.005, 2: 0.001, 3: 0.0005, 4: 0.0002}, log_steps=0.002, vectors=0.002)
WITHOUT_LEVELS = 0.05  # of the steps
JUDGED = 50  # steps between two looks at the windows held back, or fewer
_WEIGHT_BYTES = 4 + 4 + 8 + 4 + 2  # latent, gradient, Adam, weight, levels: a quantized weight
_TORCH_OF = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Tuner:
    """Trains what another calibrator leaves, on a text.

    Attributes:
        before: the calibrator whose results training begins with.
        text: to train on, all of it; not one that is measured on.
        steps: of the optimizer.
        context: tokens a window; None: 512, or as many as the model takes.
        seed: of the choice of windows.
        device: of torch, "cpu" or "cuda".
    """

    before: Calibrator
    text: Text
    steps: int = STEPS
    context: int | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def settings(self) -> Mapping[str, Any]:
        """As `Calibrator.settings`."""
        text = {"name": self.text.name, "sha256": self.text.sha256}
        own = {"text": text, "context": self.context, "device": self.device, **self._about()}
        return {**self.before.settings, "tune": own}

    @property
    def command_options(self) -> Sequence[str]:
        """As `Calibrator.command_options`."""
        return [*self.before.command_options, "--tune", "--steps", str(self.steps)]

    def memory_bytes(self, plan: Plan) -> int:
        """As `Calibrator.memory_bytes`: both models share what is kept."""
        quantized = sum(matrix.size for matrix in plan.quantized)
        through = sum(sum(matrix.shape) for matrix in plan.quantized)
        activations = 8 * BATCH_TOKENS * through
        own = 4 * plan.parameters + _WEIGHT_BYTES * quantized + activations + 5 * LOGIT_BYTES
        return max(own, self.before.memory_bytes(plan))

    def disk_bytes(self, plan: Plan) -> int:
        """As `Calibrator.disk_bytes`."""
        quantized = sum(matrix.size for matrix in plan.quantized)
        results = sum(plan.output_bytes(config, "packed") for config in plan.configs)
        return self.before.disk_bytes(plan) + results + 13 * quantized

    def run(
        self,
        plan: Plan,
        folder: Path,
        threads: int,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> Encodings:
        """As `Calibrator.run`."""
        if self.steps < 1:
            raise TritError(f"--steps {self.steps} trains nothing; give 1 or more")
        files = {config.name: folder / f"tuned-{config.name}.npz" for config in plan.configs}
        left = [config for config in plan.configs if not files[config.name].exists()]
        # What cannot be trained is refused here, before calibration takes its time.
        course = _Course(self, plan, folder) if left else None
        encodings = self.before.run(plan, folder, threads, on_progress)
        if course:
            threads_before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                course.fill()
                for config in left:
                    course.train(config, encodings, files[config.name], on_progress)
            finally:
                torch.set_num_threads(threads_before)
        return TrainedEncodings(encodings, files, self._about())

    def _about(self) -> dict[str, Any]:
        rates = asdict(RATES)
        rates["latent"] = {str(depth): rate for depth, rate in RATES.latent.items()}
        return {
            "objective": "the KL divergence of the model's predictions",
            "steps": self.steps,
            "tokens_a_step": BATCH_TOKENS,
            "seed": self.seed,
            "rates": rates,
        }


class _Course:
    """The float model, the text's windows, and one training a config."""

    def __init__(self, tuner: Tuner, plan: Plan, folder: Path) -> None:
        self.tuner, self.plan, self.folder = tuner, plan, folder
        self.device = torch.device(tuner.device)
        context = min(context_of(plan.source, tuner.context), tuner.context or CONTEXT)
        corpus, bos = corpus_of(plan.source, tuner.text)
        self.bos, self.tokens = bos, len(corpus.ids)
        self.windows = TrainingWindows(corpus.ids, context - (bos is not None), tuner.seed)
        self.count = max(1, BATCH_TOKENS // context)
        self.skeleton = Skeleton(plan.source, plan.quantized)
        self.teacher = self.skeleton.model
        if self.teacher.get_output_embeddings() is None:
            raise TritError(
                f"{plan.source.files.name}: cannot be tuned: a {type(self.teacher).__name__} "
                "predicts no tokens; leave --tune out"
            )

    def fill(self) -> None:
        """Give the float model its weights."""
        self.skeleton.fill_all(self.device)

    def train(
        self,
        config: Config,
        encodings: Encodings,
        path: Path,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> None:
        """Train a config's encodings, and write what is read off."""
        began = time.monotonic()
        matrices = self._matrices(config, encodings)
        vectors = self._vectors(config, encodings)
        student = student_of(self.teacher)
        self._fill_tables(student, config, encodings)
        transposed = [
            name for name in matrices if self.skeleton.is_transposed(name.removesuffix(".weight"))
        ]
        installed = Installed(student, matrices, vectors, frozenset(transposed)).to(self.device)
        divergence = Divergence(self.teacher, student, self.device)
        held_back = self._tensor(self.windows.held_back)
        steps, state = self.tuner.steps, self.folder / f"tuning-{config.name}.state"
        outcome = optimise(
            installed,
            RATES,
            lambda step: divergence.add_gradients(
                self._tensor(self.windows.drawn(step, self.count))
            ),
            lambda: divergence.measure(held_back),
            steps=steps,
            steps_without_levels=int(steps * WITHOUT_LEVELS),
            judge_every=max(1, min(JUDGED, steps // 4)),
            state=state,
            fingerprint={"config": config.name, **self.tuner.settings},
            save_seconds=SAVE_SECONDS,
            on_progress=self._reporter(config, on_progress),
        )
        moved = outcome.best_step > 0  # else the calibrated encodings stay as they are
        save_trained(
            path,
            {
                self._planned(name).name: matrix.read_off(self._weight(name))
                for name, matrix in matrices.items()
                if moved
            },
            {
                self.skeleton.entry(name).name: vector.read_off()
                for name, vector in vectors.items()
                if moved
            },
            {
                "text_tokens": self.tokens,
                "held_back_tokens": held_back.numel(),
                "kept_step": outcome.best_step,
                "broke_off": outcome.broke_off,
                "loss_before": outcome.start,
                "loss_after": outcome.best,
                "matrices": len(matrices),
                "vectors": len(vectors),
                "seconds": round(time.monotonic() - began, 1),
            },
        )
        state.unlink(missing_ok=True)

    def _matrices(self, config: Config, encodings: Encodings) -> dict[str, TrainedMatrix]:
        """By the parameter's name in the model; what was not calibrated starts data-free."""
        found = {}
        for module, tensor in self.skeleton.planned.items():
            weight = self._weight(f"{module}.weight")
            start = self._encoded(tensor, weight, config, encodings)
            found[f"{module}.weight"] = TrainedMatrix(start, weight)
        return found

    def _fill_tables(self, student: Any, config: Config, encodings: Encodings) -> None:
        """Embedding tables that are quantized are not trained, but used as the file has them."""
        for name, tensor in self.skeleton.tables.items():
            encoded = self._encoded(tensor, self._weight(f"{name}.weight"), config, encodings)
            decoded = torch.from_numpy(encoded.decode()).to(self.device)
            table = torch.nn.Parameter(decoded, requires_grad=False)
            shared = self.teacher.get_parameter(f"{name}.weight")
            for module in student.modules():  # also where it is tied
                for leaf, parameter in module._parameters.items():
                    if parameter is shared:
                        module._parameters[leaf] = table

    def _encoded(
        self, matrix: SourceMatrix, weight: np.ndarray, config: Config, encodings: Encodings
    ) -> TritTensor:
        start = encodings.encoded(matrix, config)
        return encode(weight, config.depth_of(matrix.module)) if start is None else start

    def _vectors(self, config: Config, encodings: Encodings) -> dict[str, TrainedVector]:
        """Norms and biases that the source stores as such and the model uses once."""
        kept = {tensor.entry.name: tensor for tensor in self.plan.all_tensors}
        uses: dict[int, int] = {}
        for _, parameter in self.teacher.named_parameters(remove_duplicate=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
        found = {}
        for name, parameter in self.teacher.named_parameters():
            entry = self.skeleton.entry(name)
            if parameter.ndim != 1 or uses[id(parameter)] > 1 or entry.dtype not in _TORCH_OF:
                continue
            before = encodings.replaced(kept[entry.name], config)
            value = parameter if before is None else torch.from_numpy(before.astype(np.float32))
            found[name] = TrainedVector(value, _TORCH_OF[entry.dtype])
        return found

    def _planned(self, name: str) -> Any:
        return self.skeleton.planned[name.removesuffix(".weight")]

    def _weight(self, name: str) -> np.ndarray:
        return self.skeleton.weight(name.removesuffix(".weight")).numpy()

    def _tensor(self, windows: np.ndarray) -> torch.Tensor:
        """int64 [n, context], each behind the BOS token where the tokenizer puts one."""
        if self.bos is not None:
            windows = np.pad(windows, ((0, 0), (1, 0)), constant_values=self.bos)
        return torch.from_numpy(np.asarray(windows, np.int64))

    def _reporter(
        self, config: Config, on_progress: Callable[[CalibrationProgress], None] | None
    ) -> Callable[[TrainingProgress], None] | None:
        if on_progress is None:
            return None
        report = on_progress
        number = [each.name for each in self.plan.configs].index(config.name)
        total = self.tuner.steps * len(self.plan.configs)

        def tell(step: TrainingProgress) -> None:
            where = f"{config.name}, step {step.step} of {step.steps}"
            done = number * self.tuner.steps + step.step
            report(
                CalibrationProgress(
                    "training",
                    where,
                    done,
                    total,
                    {config.name: step.start},
                    {config.name: step.best},
                    "KL on windows held back",
                )
            )

        return tell
