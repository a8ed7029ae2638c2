"""tritllm's trained rows: calibrated, then trained end to end on the calibration text."""

from quality_peers.recipe import Encoded, Job, Recipe
from quality_peers.tritllm_command import calibrate, quantize

STEPS = 160


def recipes(job: Job) -> list[Recipe]:
    def make(depth: int) -> Encoded:
        options = ["--tune", str(job.calibration), "--steps", str(STEPS)]
        return quantize(job, f"uniform-d{depth}", *calibrate(job), *options)

    return [Recipe(f"trained d={d}", "training", lambda d=d: make(d)) for d in (1, 2)]
