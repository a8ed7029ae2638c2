"""A model of odd width for libraries whose groups must divide the inputs of every layer.

The MLP's width is rounded up with neurons that are zero: the model computes the same. The weights
are cut back afterwards, and bytes are counted in proportion, so that nobody is charged for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

from quality_peers.recipe import Encoded, Job, MissingError, linear_layers


def padded_folder(job: Job, group: int) -> Path:
    """The model's folder, or one of a model as good whose layers have whole groups of inputs."""
    model = job.load()
    inputs = {name: layer.in_features for name, layer in linear_layers(model).items()}
    if not any(count % group for count in inputs.values()):
        return job.model
    width = model.config.intermediate_size
    odd = [name for name, count in inputs.items() if count % group and count != width]
    if odd:
        raise MissingError(f"{odd[0]} has {inputs[odd[0]]} inputs: not whole groups of {group}")
    config = transformers.AutoConfig.from_pretrained(job.model)
    config.intermediate_size = -(-width // group) * group
    wide = transformers.AutoModelForCausalLM.from_config(config)
    state = {name: torch.zeros_like(tensor) for name, tensor in wide.state_dict().items()}
    for name, tensor in model.state_dict().items():
        state[name][tuple(map(slice, tensor.shape))] = tensor
    wide.load_state_dict(state)
    folder = job.scratch / "padded"
    shutil.rmtree(folder, ignore_errors=True)
    wide.save_pretrained(folder)
    for path in job.model.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def cut_back(job: Job, made: Encoded) -> Encoded:
    """The weights in the model's own shapes, the bytes in proportion."""
    shapes = {name: layer.weight.shape for name, layer in linear_layers(job.load()).items()}
    cut = {name: weight[tuple(map(slice, shapes[name]))] for name, weight in made.weights.items()}
    share = sum(w.numel() for w in cut.values()) / sum(w.numel() for w in made.weights.values())
    return Encoded(cut, round(made.stored_bytes * share))
