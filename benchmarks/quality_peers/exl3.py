"""EXL3: exllamav3's trellis code. Its quantizer runs on CUDA alone."""

from __future__ import annotations

from functools import partial

from quality_peers.recipe import Encoded, Job, MissingError, Recipe

BITS = (2, 3, 4, 5, 6)


def encode(job: Job, bits: int) -> Encoded:
    import torch

    if not torch.cuda.is_available():
        raise MissingError("exllamav3 quantizes on CUDA alone, and there is no CUDA device here")
    raise MissingError("not yet wired up: it was written where there is no CUDA device to try it")


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(f"EXL3 {bits} bits", "second order", partial(encode, job, bits)) for bits in BITS
    ]
