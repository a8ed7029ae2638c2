"""tritllm's mixed depths: chosen by measured divergence, encoded without and with calibration.

Without, the calibration text decides the depths and nothing else.
"""

from __future__ import annotations

from quality_peers.recipe import Encoded, Job, Recipe
from quality_peers.tritllm_command import calibrate, quantize

TARGETS = ("2.5", "3", "4.25")
CONFIGS = {target: f"target-{target}bpw" for target in TARGETS}


def recipes(job: Job) -> list[Recipe]:
    def plain(target: str) -> Encoded:
        _, text, *_ = calibrate(job)
        return quantize(job, (*CONFIGS.values(),), "--sensitivity-text", text)[CONFIGS[target]]

    def calibrated(target: str) -> Encoded:
        return quantize(job, (*CONFIGS.values(),), *calibrate(job))[CONFIGS[target]]

    return [
        *(Recipe(f"v3 mixed {t}", "depths", lambda t=t: plain(t)) for t in TARGETS),
        *(
            Recipe(f"calibrated mixed {t}", "second order", lambda t=t: calibrated(t))
            for t in TARGETS
        ),
    ]
