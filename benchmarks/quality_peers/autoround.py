"""AutoRound: rounding and clipping learnt block by block.

200 steps a block are its default, 50 its light recipe. The rows are asymmetric below 4 bits, as it
advises.
"""

from __future__ import annotations

from functools import partial

import torch

from quality_peers.padding import cut_back, padded_folder
from quality_peers.recipe import Encoded, Job, Recipe, linear_layers, load_model

ROWS = ((2, 32, 50), (3, 32, 50), (4, 32, 50), (2, 32, 200), (4, 32, 200))  # bits, group, steps
TOKENS = 2048  # a step


def encode(job: Job, bits: int, group: int, steps: int) -> Encoded:
    import transformers
    from auto_round import AutoRound

    folder = padded_folder(job, group)
    windows = job.token_windows()
    rounder = AutoRound(
        load_model(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
        bits=bits,
        group_size=group,
        sym=bits >= 4,
        iters=steps,
        lr=5e-3 if steps < 200 else None,  # the light recipe's
        dataset=[{"input_ids": ids[None]} for ids in windows],
        nsamples=len(windows),
        seqlen=windows.shape[1],
        batch_size=max(1, TOKENS // windows.shape[1]),
        device_map="cpu",
        amp=False,
    )
    done, _ = rounder.quantize()
    weights, stored = {}, 0
    for name, layer in linear_layers(done).items():
        weights[name] = layer.weight.detach().float()
        stored += stored_bytes(layer, bits)
    return cut_back(job, Encoded(weights, stored))


def stored_bytes(layer: torch.nn.Linear, bits: int) -> int:
    """Of the format auto_round: packed integers, float16 scales, packed zero points."""
    codes = layer.weight.numel() * bits // 8
    groups = layer.scale.numel()
    return codes + 2 * groups + -(-groups * bits // 8)


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(
            f"AutoRound int{bits} g{group}, {steps} steps",
            "training",
            partial(encode, job, bits, group, steps),
        )
        for bits, group, steps in ROWS
    ]
