"""tritllm's codec v3, without calibration."""

from quality_peers.recipe import Job, Recipe
from quality_peers.tritllm_command import UNIFORM, quantize


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(f"v3 d={d}", "", lambda c=c: quantize(job, UNIFORM)[c])
        for d, c in enumerate(UNIFORM, 1)
    ]
