"""bitsandbytes: NF4 in blocks of 64, with float32 and with quantized scales."""

from __future__ import annotations

from functools import partial

from quality_peers.recipe import Encoded, Job, Recipe, matrices


def encode(job: Job, nested: bool) -> Encoded:
    from bitsandbytes import functional

    weights, stored = {}, 0
    for name, weight in matrices(job).items():
        codes, state = functional.quantize_4bit(
            weight, blocksize=64, quant_type="nf4", compress_statistics=nested
        )
        weights[name] = functional.dequantize_4bit(codes, state).reshape(weight.shape)
        parts = [codes, state.absmax]
        if nested:
            parts += [state.state2.absmax, state.offset]
        stored += sum(part.numel() * part.element_size() for part in parts)
    return Encoded(weights, stored)


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe("NF4", "", partial(encode, job, False)),
        Recipe("NF4, nested scales", "", partial(encode, job, True)),
    ]
