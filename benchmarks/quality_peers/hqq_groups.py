"""HQQ: half-quadratic quantization, scales and zero points in float16.

Group sizes are those in use; groups run along the input (axis 1), as HQQ's kernels need them. Where
a group does not divide a row, it runs on into the next one, as HQQ does.
"""

from __future__ import annotations

from functools import partial

import torch

from quality_peers.recipe import Encoded, Job, Recipe, matrices

SHAPES = ((2, 16), (2, 32), (2, 64), (3, 64), (4, 64), (4, 128), (8, 64))  # bits, group


def encode(job: Job, bits: int, group: int) -> Encoded:
    from hqq.core.quantize import Quantizer

    weights, stored = {}, 0
    for name, weight in matrices(job).items():
        codes, meta = Quantizer.quantize(
            weight, nbits=bits, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32
        )
        for part in ("scale", "zero"):  # as a saved file has them
            meta[part] = meta[part].half()
        stored += sum(p.numel() * p.element_size() for p in (codes, meta["scale"], meta["zero"]))
        meta |= {part: meta[part].float() for part in ("scale", "zero")}
        weights[name] = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    return Encoded(weights, stored)


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(f"HQQ int{bits} g{group}", "", partial(encode, job, bits, group))
        for bits, group in SHAPES
    ]
