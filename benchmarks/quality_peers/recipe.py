"""What a peer is asked for, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers


@dataclass(frozen=True)
class Job:
    """What every peer gets.

    model: folder of the float model. calibration: a text, or None; windows: a file of NumPy with
    token ids of that text, int64 [windows, context], for tools that take tokens. tokens: how many
    those are; context: of a window. scratch: an empty folder. llama_cpp: folder of a build of
    llama.cpp, or None. rows: a regular expression in the names of the rows that are wanted.
    """

    model: Path
    scratch: Path
    threads: int
    calibration: Path | None = None
    windows: Path | None = None
    tokens: int = 0
    context: int = 0
    llama_cpp: Path | None = None
    rows: str = ""

    def load(self) -> torch.nn.Module:
        """The float model, in float32."""
        return load_model(self.model)

    def token_windows(self) -> torch.Tensor:
        """Token ids of the calibration text, int64 [windows, context]."""
        if self.windows is None:
            raise MissingError("needs a calibration text: --calibration TEXT")
        return torch.from_numpy(np.load(self.windows))


@dataclass(frozen=True)
class Encoded:
    """A quantized model's linear layers.

    weights: what the file gives for each, float [N, K], by the module's name. stored_bytes: what
    the file holds for them: codes, scales, zero points, codebooks; nothing of the other tensors.
    seconds: that it took, where it was made together with others; else None.
    """

    weights: dict[str, torch.Tensor]
    stored_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A row of the table. calibrated: what of the calibration text is used, "" for nothing."""

    name: str
    calibrated: str
    make: Callable[[], Encoded]


class MissingError(Exception):
    """A row that cannot be had here; the message says why."""


def load_model(folder: Path) -> torch.nn.Module:
    """A causal language model of transformers, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers of the blocks, by module name: all but the output embeddings."""
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    }


def matrices(job: Job) -> dict[str, torch.Tensor]:
    """The float weights of the linear layers, float32 [N, K]."""
    return {name: layer.weight.detach() for name, layer in linear_layers(job.load()).items()}
