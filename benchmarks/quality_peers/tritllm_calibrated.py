"""tritllm's calibrated encoding at one depth for all."""

from quality_peers.recipe import Job, Recipe
from quality_peers.tritllm_command import UNIFORM, calibrate, quantize


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(
            f"calibrated d={d}",
            "second order",
            lambda c=c: quantize(job, UNIFORM, *calibrate(job))[c],
        )
        for d, c in enumerate(UNIFORM, 1)
    ]
