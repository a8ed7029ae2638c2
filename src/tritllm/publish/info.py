"""What a model page shows of a model, from its config and the headers of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritllm.errors import SourceError
from tritllm.format.names import INDEX
from tritllm.format.safetensors_header import TensorEntry, read_header
from tritllm.model_card.figures import architectures_of, measure
from tritllm.model_card.licence import Licence, base_model_of_card, licence_of_card
from tritllm.quantizer.bitnet import PER_BYTE, is_bitnet
from tritllm.serving.cache import cache_rule, number
from tritllm.serving.need import ServingNeed
from tritllm.storage.model_files import ModelFiles
from tritllm.storage.model_json import read_json


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model; None where they do not apply or nothing states them.

    depths: quantized weights at each depth, empty for a model that is not packed.
    encoder: what the writer says of how the digits were chosen, empty for nothing.
    weight_bytes: of all tensors in the files. float_bytes: the same model in 16-bit floats.
    cache_bytes_per_token: of keys and values in 16 bits, all layers.
    born_ternary: whether it is a source that is ternary by transformers' `bitnet` method.
    serving: what serving takes, where that was asked for.
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
    born_ternary: bool = False
    serving: ServingNeed | None = None


def describe(
    name: str,
    config: dict[str, Any],
    entries: Sequence[TensorEntry],
    card: str | None = None,
    manifest: dict[str, Any] | None = None,
) -> ModelInfo:
    """Describe a model by what its files hold.

    config: config.json. entries: every tensor. card: README.md. manifest: of a packed folder.
    """
    weight_bytes = sum(entry.nbytes for entry in entries)
    packed = measure(manifest) if manifest else None
    ternary = is_bitnet(config.get("quantization_config"))
    parameters = packed.parameters if packed else sum(_weights_in(e, ternary) for e in entries)
    nested = config.get("text_config")
    shape = nested if isinstance(nested, dict) and nested else config
    rule = cache_rule(shape)
    return ModelInfo(
        name=name,
        architecture=", ".join(architectures_of(config))
        or str(config.get("model_type", "unknown")),
        parameters=parameters,
        dtypes=_weights_by_dtype(entries),
        context_length=number(shape, "max_position_embeddings", "n_positions") or None,
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
        cache_bytes_per_token=None if isinstance(rule, str) else rule.bytes_per_token,
        born_ternary=ternary,
    )


def stored_entries(files: ModelFiles) -> list[TensorEntry]:
    """Every tensor of a model's safetensors files, from their headers.

    Raises SourceError where weights are missing, FormatError for broken files.
    """
    sizes = files.sizes()
    return [
        entry
        for name in _shards(files, sizes)
        for entry in read_header(
            partial(files.read, name), sizes[name], f"{files.name}/{name}"
        ).entries.values()
    ]


def card_of(files: ModelFiles) -> str | None:
    """The text of README.md, None where there is none."""
    sizes = files.sizes()
    name = "README.md"
    return files.read(name, 0, sizes[name]).decode("utf-8", "replace") if name in sizes else None


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


def _weights_in(entry: TensorEntry, ternary: bool) -> int:
    """Weights that a stored tensor holds; ternary: a byte of it may hold those of two bits."""
    return entry.size * (PER_BYTE if ternary and entry.dtype == "U8" else 1)


def _weights_by_dtype(entries: Sequence[TensorEntry]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[entry.dtype] += entry.size
    return dict(counts.most_common())
