"""tritllm's codec v2, without calibration."""

from functools import partial

from quality_peers.recipe import Job, Recipe
from quality_peers.tritllm_command import quantize


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(f"v2 d={d}", "", partial(quantize, job, f"uniform-d{d}", "--codec", "v2"))
        for d in range(1, 5)
    ]
