"""What a model page shows of a folder or a Hub repository, from its headers alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritllm.errors import SourceError
from tritllm.format.names import CONFIG, INDEX, MANIFEST
from tritllm.format.quantization_config import is_packed_config
from tritllm.format.safetensors_header import TensorEntry, read_header
from tritllm.model_card.figures import architectures_of, measure
from tritllm.model_card.licence import Licence, base_model_of_card, licence_of_card
from tritllm.storage.model_files import ModelFiles, open_files
from tritllm.storage.model_json import read_json, read_manifest


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model; None where they do not apply or nothing states them.

    depths: quantized weights at each depth, empty for a model that is not packed.
    encoder: what the writer says of how the digits were chosen, empty for nothing.
    weight_bytes: of all tensors in the files. float_bytes: the same model in 16-bit floats.
    cache_bytes_per_token: of keys and values in 16 bits, all layers.
    """

    name: str
    architecture: str
    parameters: int
    dtypes: dict[str, int]
    context_length: int | None
    licence: Licence
    base_model: str | None
    depths: dict[int, int]
    information_bits: float | None
    file_bits: float
    sqnr_mean_db: float | None
    codec: str | None
    encoder: dict[str, Any]
    weight_bytes: int
    float_bytes: int
    cache_bytes_per_token: int | None


def info(model: str, *, revision: str | None = None) -> ModelInfo:
    """Describe a packed folder, any model folder in safetensors, or a Hub id.

    Of a Hub id only the config, the card and the headers are fetched.

    Raises SourceError where there is no such model, FormatError for broken files and for packed
    ones without their manifest.
    """
    files = open_files(model, revision, stream=not os.path.isdir(model))
    sizes = files.sizes()
    config = read_json(files, sizes, CONFIG)
    card = _text(files, sizes, "README.md")
    entries = [
        entry
        for name in _shards(files, sizes)
        for entry in read_header(
            partial(files.read, name), sizes[name], f"{files.name}/{name}"
        ).entries.values()
    ]
    weight_bytes = sum(entry.nbytes for entry in entries)
    packed_here = MANIFEST in sizes or is_packed_config(config)
    manifest = read_manifest(files, sizes) if packed_here else None
    packed = measure(manifest) if manifest else None
    parameters = packed.parameters if packed else sum(entry.size for entry in entries)
    text_config = config.get("text_config") if isinstance(config.get("text_config"), dict) else None
    shape = text_config or config
    return ModelInfo(
        name=files.name,
        architecture=", ".join(architectures_of(config))
        or str(config.get("model_type", "unknown")),
        parameters=parameters,
        dtypes=_weights_by_dtype(entries),
        context_length=_number(shape, "max_position_embeddings", "n_positions"),
        licence=licence_of_card(card),
        base_model=base_model_of_card(card),
        depths=packed.depths if packed else {},
        information_bits=packed.information_bits if packed else None,
        file_bits=packed.file_bits if packed else 8 * weight_bytes / max(parameters, 1),
        sqnr_mean_db=packed.sqnr_mean_db if packed else None,
        codec=manifest["codec"] if manifest else None,
        encoder=manifest.get("encoder", {}) if manifest else {},
        weight_bytes=weight_bytes,
        float_bytes=2 * parameters,
        cache_bytes_per_token=_cache_bytes(shape),
    )


def _shards(files: ModelFiles, sizes: dict[str, int]) -> list[str]:
    if INDEX in sizes:
        weight_map = read_json(files, sizes, INDEX).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    else:
        names = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
    missing = [name for name in names if name not in sizes]
    if missing or not names:
        raise SourceError(
            f"{files.name}: {missing[0] if missing else 'safetensors weights'} missing"
        )
    return names


def _text(files: ModelFiles, sizes: dict[str, int], name: str) -> str | None:
    return files.read(name, 0, sizes[name]).decode("utf-8", "replace") if name in sizes else None


def _weights_by_dtype(entries: list[TensorEntry]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[entry.dtype] += entry.size
    return dict(counts.most_common())


def _cache_bytes(shape: dict[str, Any]) -> int | None:
    layers = _number(shape, "num_hidden_layers", "n_layer")
    heads = _number(shape, "num_attention_heads", "n_head")
    hidden = _number(shape, "hidden_size", "n_embd")
    if not (layers and heads and hidden):
        return None
    head_dim = _number(shape, "head_dim") or hidden // heads
    numbers = (2, layers, _number(shape, "num_key_value_heads") or heads, head_dim, 2)
    return math.prod(numbers)


def _number(shape: dict[str, Any], *keys: str) -> int | None:
    """The first of these fields that is a positive integer."""
    values = (shape.get(key) for key in keys)
    return next((value for value in values if type(value) is int and value > 0), None)
