"""tritllm's calibrated encoding at one depth for all."""

from quality_peers.recipe import Encoded, Job, Recipe
from quality_peers.tritllm_command import calibrate, quantize


def recipes(job: Job) -> list[Recipe]:
    def make(depth: int) -> Encoded:
        return quantize(job, f"uniform-d{depth}", *calibrate(job))

    return [Recipe(f"calibrated d={d}", "second order", lambda d=d: make(d)) for d in range(1, 5)]
