"""The seam between the streaming quantizer and what chooses digits by running the model.

A `Calibrator` looks at the whole model before the first output byte is written (calibration,
training) and leaves `Encodings`: digits for some matrices under some configs, and new values for
some tensors that are kept. The quantizer asks them matrix by matrix; where they have nothing it
encodes data-free. Nothing here needs torch: what stands behind the two protocols may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tritllm.codec import TritTensor
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.matrices import SourceMatrix

if TYPE_CHECKING:
    from tritllm.quantizer.plan import Plan


@dataclass(frozen=True)
class CalibrationProgress:
    """What a caller may show while a calibrator works.

    activity: what is done, a verb: "calibrating", "training".
    where: the place within it, for people: "block 3 of 24, down_proj".
    done, total: work behind and in all, in one unit (tokens, bytes, steps) of even cost, so that
        the time left follows from the time past; a run that is resumed begins with `done` above 0.
    loss_before, loss_after: by config name, of what was last finished, the loss of the data-free
        encoding and of the new one on one scale; in a training, of its start and of the best so
        far; empty where there is none to tell.
    measure: what these losses are, for people.
    """

    activity: str
    where: str
    done: float
    total: float
    loss_before: Mapping[str, float] = field(default_factory=dict)
    loss_after: Mapping[str, float] = field(default_factory=dict)
    measure: str = "loss"


class Encodings(Protocol):
    """Results of a calibrator, complete and durable; read by the quantizer's main thread alone."""

    def encoded(self, matrix: SourceMatrix, config: Config) -> TritTensor | None:
        """The digits of a matrix under a config; None encodes it data-free.

        The result has `matrix.shape`, the depth `config.depth_of(matrix.module)`, and its
        `error` and `energy` are those of the source's weights, every column counting alike.

        Raises OutputError where a stored result is damaged.
        """
        ...

    def replaced(self, tensor: PlannedTensor, config: Config) -> np.ndarray | None:
        """New values of a tensor that is kept, in the source's dtype and shape; None keeps its own.

        Raises OutputError where a stored result is damaged.
        """
        ...

    def encoder(self, config: Config) -> dict[str, Any]:
        """What `encoder` of the manifest and of `quantization_config` says, in JSON's types.

        The same for every run that writes the same bytes: no times, no paths. Fields that the model
        card puts into words: `method` (text), `text` ({"name", "sha256"}), `tokens`, `context`,
        `seed`, `calibrated` (the number of matrices), `data_free` (by reason, the number of
        matrices that stayed so), `trained` ({"steps", ...}).
        """
        ...

    def notes(self, config: Config) -> dict[str, Any]:
        """What `calibration` of report.json says, in JSON's types: per matrix the loss before and
        after, what fell back to data-free and why, seconds, tokens.
        """
        ...


class Calibrator(Protocol):
    """Works out `Encodings` for a plan. One may wrap another (training begins where calibration
    ended): then it passes on what that one says, too.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that its results depend on besides the plan, in JSON's types: `calibration` of the
        run's fingerprint. A text is known by name and SHA-256. A run is not resumed under others.
        """
        ...

    @property
    def command_options(self) -> Sequence[str]:
        """The words on the command line of `tritllm quantize` that give these settings again."""
        ...

    def memory_bytes(self, plan: Plan) -> int:
        """Estimate of the process's peak memory while `run` works."""
        ...

    def disk_bytes(self, plan: Plan) -> int:
        """Estimate of the most that `run` keeps in its folder."""
        ...

    def run(
        self,
        plan: Plan,
        folder: Path,
        threads: int,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> Encodings:
        """Work out the results, or go on with them after an interruption, to the same bytes.

        folder: OUT/.tritllm-run/calibration, for this calibrator alone; it is there, empty in a new
        run, and it stays until every output folder has its name. What has been finished in it is
        never done again: after a run that was complete this returns within seconds.

        Raises TritError in one line; what is finished stays.
        """
        ...
