"""tritllm's mixed depths: chosen by measured sensitivities, encoded without and with calibration.

Choosing the depths takes a text in both cases; the rows say what else it was used for.
"""

from quality_peers.recipe import Encoded, Job, Recipe
from quality_peers.tritllm_command import calibrate, quantize

TARGETS = ("2.50", "3.00", "4.25")


def recipes(job: Job) -> list[Recipe]:
    def plain(target: str) -> Encoded:
        text = calibrate(job)[1]
        return quantize(job, f"target-{target}bpw", "--sensitivity-text", text)

    def calibrated(target: str) -> Encoded:
        return quantize(job, f"target-{target}bpw", *calibrate(job))

    return [
        *(Recipe(f"v3 mixed {t}", "depths", lambda t=t: plain(t)) for t in TARGETS),
        *(
            Recipe(f"calibrated mixed {t}", "second order", lambda t=t: calibrated(t))
            for t in TARGETS
        ),
    ]
