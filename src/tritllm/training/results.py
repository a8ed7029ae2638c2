"""What a training of the whole model leaves in the run's folder, read by the quantizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritllm.codec import TritTensor
from tritllm.errors import OutputError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.encodings import Encodings
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.storage.output_errors import damaged
from tritllm.storage.shard_writer import replacing

_RECORD = "record"
_ARRAYS = ("weight", "scale", "codebook")
_IN_ENCODER = ("text_tokens", "held_back_tokens", "kept_step", "broke_off")


def save_trained(
    path: Path,
    tensors: Mapping[str, TritTensor],
    vectors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
) -> None:
    """Write a finished training durably.

    tensors, vectors: by the source's name. record: JSON object that tells of the training.
    """
    arrays: dict[str, np.ndarray] = {}
    measured = {}
    for name, tensor in tensors.items():
        measured[name] = [tensor.in_features, tensor.error, tensor.energy]
        for part in _ARRAYS:
            arrays[f"{name}/{part}"] = getattr(tensor, part)
    for name, vector in vectors.items():
        arrays[f"{name}/vector"] = vector.contiguous().view(torch.uint8).numpy()
    text = json.dumps({"measured": measured, "training": dict(record)})
    arrays[_RECORD] = np.frombuffer(text.encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class TrainedEncodings:
    """`Encodings` of a training; what it does not hold is that of the calibration before it.

    files: by config name, of `save_trained`. about: what `encoder` says of every config's training.
    """

    def __init__(
        self, before: Encodings, files: Mapping[str, Path], about: Mapping[str, Any]
    ) -> None:
        self._before = before
        self._files = files
        self._about = about
        self._records = {name: _record_of(path) for name, path in files.items()}

    def encoded(self, matrix: SourceMatrix, config: Config) -> TritTensor | None:
        """As `Encodings.encoded`."""
        name = matrix.name
        measured = self._records[config.name]["measured"].get(name)
        if measured is None:
            return self._before.encoded(matrix, config)
        path = self._files[config.name]
        try:
            with np.load(path) as file:
                weight, scale, codebook = (file[f"{name}/{part}"] for part in _ARRAYS)
            return TritTensor(weight, scale, codebook, *measured)
        except Exception as error:  # a damaged archive raises many kinds
            raise damaged(path) from error

    def replaced(self, tensor: PlannedTensor, config: Config) -> np.ndarray | None:
        """As `Encodings.replaced`."""
        path = self._files[config.name]
        try:
            with np.load(path) as file:
                if f"{tensor.entry.name}/vector" not in file:
                    return self._before.replaced(tensor, config)
                stored: np.ndarray = file[f"{tensor.entry.name}/vector"]
            return stored.view(NUMPY_OF_SAFETENSORS[tensor.entry.dtype]).reshape(tensor.entry.shape)
        except OutputError:
            raise
        except Exception as error:  # a damaged archive raises many kinds
            raise damaged(path) from error

    def encoder(self, config: Config) -> dict[str, Any]:
        """As `Encodings.encoder`."""
        training = self._records[config.name]["training"]
        kept = {key: training[key] for key in _IN_ENCODER}
        before = self._before.encoder(config)
        blocks = {"blocks": before["trained"]} if "trained" in before else {}
        return {**before, "trained": {**self._about, **kept, **blocks}}

    def notes(self, config: Config) -> dict[str, Any]:
        """As `Encodings.notes`."""
        training = {**self._about, **self._records[config.name]["training"]}
        return {**self._before.notes(config), "training": training}


def _record_of(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as file:
            record: dict[str, Any] = json.loads(file[_RECORD].tobytes())
        if not isinstance(record["measured"], dict) or not isinstance(record["training"], dict):
            raise ValueError
    except Exception as error:  # a damaged archive raises many kinds
        raise damaged(path) from error
    return record
