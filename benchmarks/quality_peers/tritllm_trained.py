"""tritllm's trained rows: calibrated, then trained end to end on the calibration text."""

from __future__ import annotations

from quality_peers.recipe import Encoded, Job, Recipe
from quality_peers.tritllm_command import UNIFORM, calibrate, quantize

STEPS = 160


def recipes(job: Job) -> list[Recipe]:
    def make(config: str) -> Encoded:
        training = ["--tune", "--steps", str(STEPS)]
        return quantize(job, UNIFORM[:2], *calibrate(job), *training)[config]

    return [
        Recipe(f"trained d={d}", "training", lambda c=c: make(c))
        for d, c in enumerate(UNIFORM[:2], 1)
    ]
