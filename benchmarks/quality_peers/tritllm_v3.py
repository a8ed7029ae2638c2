"""tritllm's codec v3, without calibration."""

from functools import partial

from quality_peers.recipe import Job, Recipe
from quality_peers.tritllm_command import quantize


def recipes(job: Job) -> list[Recipe]:
    return [Recipe(f"v3 d={d}", "", partial(quantize, job, f"uniform-d{d}")) for d in range(1, 5)]
