"""AutoRound: rounding and clipping learnt block by block, 200 steps each, as it comes.

The rows are asymmetric below 4 bits, as AutoRound advises. Groups that do not divide a layer's
inputs make the row fail.
"""

from __future__ import annotations

from functools import partial

import torch

from quality_peers.recipe import Encoded, Job, MissingError, Recipe, linear_layers

SHAPES = ((2, 32), (2, 64), (3, 32), (4, 32), (4, 128))


def encode(job: Job, bits: int, group: int) -> Encoded:
    import transformers
    from auto_round import AutoRound

    model = job.load()
    layers = linear_layers(model)
    odd = [name for name, layer in layers.items() if layer.in_features % group]
    if odd:
        raise MissingError(
            f"{odd[0]} has {layers[odd[0]].in_features} inputs: no groups of {group}"
        )
    windows = job.token_windows()
    rounder = AutoRound(
        model, transformers.AutoTokenizer.from_pretrained(job.model), bits=bits, group_size=group,
        sym=bits >= 4, dataset=[{"input_ids": ids[None]} for ids in windows], device_map="cpu",
        nsamples=len(windows), seqlen=windows.shape[1],
        batch_size=max(1, 2048 // windows.shape[1]), amp=False,
    )  # fmt: skip
    done, _ = rounder.quantize()
    weights, stored = {}, 0
    for name, layer in linear_layers(done).items():
        weights[name] = layer.weight.detach().float()
        stored += stored_bytes(layer, bits)
    return Encoded(weights, stored)


def stored_bytes(layer: torch.nn.Linear, bits: int) -> int:
    """Of the format auto_round: packed integers, float16 scales, packed zero points."""
    codes = layer.weight.numel() * bits // 8
    groups = layer.scale.numel()
    return codes + 2 * groups + -(-groups * bits // 8)


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(f"AutoRound int{bits} g{group}", "training", partial(encode, job, bits, group))
        for bits, group in SHAPES
    ]
