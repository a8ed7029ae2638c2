"""GPTQ, by GPTQModel: as it comes, and in the order of activations (desc_act).

The table of group indices (g_idx) is counted only for desc_act: without, it says nothing.
"""

from __future__ import annotations

import os
from functools import partial

import torch

from quality_peers.padding import cut_back, padded_folder
from quality_peers.recipe import Encoded, Job, Recipe, linear_layers

ROWS = (  # bits, group, desc_act
    (2, 32, False), (4, 32, False), (3, 32, False), (2, 128, False), (3, 128, False),
    (4, 128, False), (2, 32, True), (3, 32, True), (4, 32, True), (8, 32, False),
)  # fmt: skip


def encode(job: Job, bits: int, group: int, by_activation: bool) -> Encoded:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # 7.7 fails where it counts one by itself
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=bits, group_size=group, desc_act=by_activation, sym=False, format="gptq_v2",
        act_group_aware=not by_activation, offload_to_disk=False,
    )  # fmt: skip
    model = GPTQModel.load(
        str(padded_folder(job, group)), config, device="cpu", dtype=torch.float32
    )
    windows = job.token_windows()
    model.quantize([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                    for ids in windows], batch_size=8, backend=BACKEND.TORCH)  # fmt: skip
    return cut_back(job, read_back(job, model.model, by_activation))


def read_back(job: Job, model: torch.nn.Module, by_activation: bool) -> Encoded:
    """Weights and bytes of the packed layers, as they are saved."""
    parts = ["qweight", "qzeros", "scales"] + ["g_idx"] * by_activation
    weights, stored = {}, 0
    for name in linear_layers(job.load()):
        layer = model.get_submodule(name)
        stored += sum(getattr(layer, part).nbytes for part in parts)
        weights[name] = layer.dequantize_weight().T.float()
    return Encoded(weights, stored)


def recipes(job: Job) -> list[Recipe]:
    return [
        Recipe(
            f"GPTQ int{bits} g{group}{', desc_act' if by_activation else ''}",
            "second order",
            partial(encode, job, bits, group, by_activation),
        )
        for bits, group, by_activation in ROWS
    ]
