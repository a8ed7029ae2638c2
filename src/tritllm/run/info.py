"""What a model page shows, and what serving the model takes, also from its config alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritllm import native, products
from tritllm.errors import SourceError, TritError, first_line
from tritllm.extras import require
from tritllm.format.dtypes import SAFETENSORS_OF_NAME
from tritllm.format.names import CONFIG, INDEX, MANIFEST
from tritllm.format.quantization_config import is_packed_config
from tritllm.format.safetensors_header import TensorEntry
from tritllm.format.trits import DEPTHS
from tritllm.publish.info import ModelInfo, card_of, describe, stored_entries
from tritllm.quantizer.bitnet import bitnet_method, is_bitnet
from tritllm.quantizer.source import text_config_of
from tritllm.run.loading import quiet, shown
from tritllm.serving.need import ServingNeed, serving_need
from tritllm.serving.weights import WeightParts, parts_of_packed, parts_of_source
from tritllm.storage.model_files import WEIGHT_SUFFIXES, LocalFiles, ModelFiles, open_files
from tritllm.storage.model_json import read_json, read_manifest

CONTEXTS = (8192, 32768)
_MOST_TOKENS = 1 << 40  # of all sequences together
_DTYPE = "bfloat16"  # of a config that names none


def info(
    model: str,
    *,
    revision: str | None = None,
    serving: bool = False,
    context: Sequence[int] = CONTEXTS,
    sequences: int = 1,
) -> ModelInfo:
    """Describe a packed folder, any model folder in safetensors, a config.json or a Hub id.

    Of a Hub id only the config, the card and the headers are fetched; the headers of a model that
    is not packed are left out where serving is asked for. A config alone stands for the model that
    transformers builds from it, without weights.

    Args:
        model: a folder, a folder with a config.json alone, such a file, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        serving: also count what serving takes; done unasked where there is a config alone.
        context: tokens of each sequence, for which to count.
        sequences: that are served at a time.

    Raises SourceError where there is no such model, or its config tells too little; FormatError for
    broken files and for packed ones without their manifest.
    """
    _check_load(context, sequences)
    local = os.path.exists(model)
    files, name = _open(model, revision)
    sizes = files.sizes()
    config = read_json(files, sizes, name)
    weights = name == CONFIG and (MANIFEST in sizes or _has_weights(sizes))
    packed = weights and (MANIFEST in sizes or is_packed_config(config))
    manifest = read_manifest(files, sizes) if packed else None
    ternary = bitnet_method(config, files.name) is not None
    built = None
    if weights and (local or packed or not serving):
        entries = stored_entries(files)
    else:
        built, entries = _build(files.name, config)
    facts = describe(files.name, config, entries, card_of(files), manifest)
    if not (serving or built):
        return facts
    text = built or _filled(files.name, config)
    if manifest:
        parts = parts_of_packed(manifest)
    else:
        model_type = str(config.get("model_type", "unknown"))
        if ternary and not built:  # its tensors are no floats: those of the model that they make
            text, entries = _build(files.name, config)
        parts = parts_of_source(entries, model_type, text_config_of(config))
    depths = (1,) if ternary else DEPTHS
    return replace(facts, serving=_need(files.name, parts, text, context, sequences, depths))


def _check_load(context: Sequence[int], sequences: int) -> None:
    if not context or any(type(tokens) is not int or tokens < 1 for tokens in context):
        raise TritError("--context takes one or more numbers of tokens, for example 8192,32768")
    if sequences < 1:
        raise TritError(f"--sequences {shown(sequences)} is not 1 or more")
    if max(context) * sequences > _MOST_TOKENS:
        raise TritError(f"--context {shown(max(context))} is more than can be counted")


def _open(model: str, revision: str | None) -> tuple[ModelFiles, str]:
    """The model's files, and the name of its config among them."""
    if not os.path.isfile(model):
        return open_files(model, revision, stream=not os.path.isdir(model)), CONFIG
    if revision:
        raise SourceError(f"{model} is a local file: --revision is for Hub ids")
    path = Path(model)
    return _Only(path), path.name


class _Only(LocalFiles):
    """One file of a folder, as if it were the only one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, str(path))
        self._path = path

    def sizes(self) -> dict[str, int]:
        """As `ModelFiles.sizes`."""
        return {self._path.name: self._path.stat().st_size}


def _has_weights(sizes: dict[str, int]) -> bool:
    """Whether there are weights, or there should be: then it is an error that they are missing."""
    ends = (".safetensors", *WEIGHT_SUFFIXES)
    return INDEX in sizes or any(name.endswith(ends) and "/" not in name for name in sizes)


def _build(where: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[TensorEntry]]:
    """The text model's config with its defaults, and the tensors of the model's checkpoint."""
    text = _filled(where, config)
    from tritllm.integrations.transformers.empty_model import checkpoint_tensors

    dtype = text.get("dtype") if text.get("dtype") in SAFETENSORS_OF_NAME else _DTYPE
    try:
        return text, checkpoint_tensors(_unquantized(where, config), str(dtype))
    except Exception as error:  # whatever a model's own code raises
        raise SourceError(
            f"{where}: no weights there, and transformers cannot build the model from its config "
            f"alone: {first_line(error)}"
        ) from None


def _filled(where: str, config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config with the defaults of its family."""
    require("counting what serving takes", "transformers", "torch", "transformers")
    from tritllm.integrations.transformers.empty_model import filled_config

    quiet()
    try:
        text = filled_config(_unquantized(where, config)).get_text_config()
        return {**text.to_dict(), "is_encoder_decoder": config.get("is_encoder_decoder", False)}
    except TritError:
        raise
    except Exception as error:  # whatever transformers says of an unknown family or a bad value
        raise SourceError(
            f"{where}: transformers does not take this config: {first_line(error)}"
        ) from None


def _unquantized(where: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config without tritllm's own quantization, or the one that `quantize` reads.

    Raises SourceError for another's.
    """
    stored = config.get("quantization_config")
    if not (stored is None or is_packed_config(config) or is_bitnet(stored)):
        raise SourceError(
            f"{where}: already quantized, and not by tritllm; give the config of the original model"
        )
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _need(
    where: str,
    parts: WeightParts,
    text: dict[str, Any],
    context: Sequence[int],
    sequences: int,
    depths: Sequence[int],
) -> ServingNeed:
    if not parts.matrices:
        raise SourceError(f"{where}: no linear weight recognised, so nothing would be quantized")
    from tritllm.ops.triton_kernels import layout

    cpu = products.size if native.available() else None
    return serving_need(parts, text, context, sequences, layout.size, cpu, depths)
