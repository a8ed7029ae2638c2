"""The source model, checked before anything is written: config, shards, headers, side files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from tritllm.errors import FormatError, SourceError
from tritllm.format.names import CONFIG, INDEX, MANIFEST, SINGLE
from tritllm.format.safetensors_header import Header, TensorEntry, read_header
from tritllm.quantizer.bitnet import is_bitnet
from tritllm.storage.model_files import WEIGHT_SUFFIXES, ModelFiles
from tritllm.storage.model_json import read_json


@dataclass(frozen=True)
class SourceShard:
    """One safetensors file of the source."""

    name: str
    size: int
    header: Header


@dataclass(frozen=True)
class Source:
    """A model's files, its parsed config.json and the headers of its shards.

    side_files: everything to copy; not_copied: other files with the reason.
    """

    files: ModelFiles
    config: dict[str, Any]
    shards: list[SourceShard]
    side_files: dict[str, int]
    not_copied: dict[str, str]

    @property
    def model_type(self) -> str:
        """The family, as config.json names it."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def text_config(self) -> dict[str, Any]:
        """As `text_config_of`."""
        return text_config_of(self.config)

    @property
    def tensors(self) -> list[TensorEntry]:
        """All tensors in the order they are stored."""
        return [entry for shard in self.shards for entry in shard.header.entries.values()]

    @property
    def stored(self) -> dict[str, tuple[SourceShard, TensorEntry]]:
        """All tensors by name, each with the shard that holds it."""
        return {
            entry.name: (shard, entry)
            for shard in self.shards
            for entry in shard.header.entries.values()
        }

    def read_text(self, name: str) -> str | None:
        """A side file's text, or None where there is none."""
        size = self.files.sizes().get(name)
        return None if size is None else self.files.read(name, 0, size).decode("utf-8", "replace")


def text_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json, with what it says of the language model alone in place of the rest."""
    nested = config.get("text_config")
    return {**config, **(nested if isinstance(nested, dict) else {})}


def open_source(files: ModelFiles) -> Source:
    """Read config, index and headers.

    Raises SourceError (or FormatError for a bad header) for anything that is missing,
    contradictory, pickled or already quantized.
    """
    sizes = files.sizes()
    config = _read_json(files, CONFIG, sizes)
    stored = config.get("quantization_config")
    if MANIFEST in sizes or (stored is not None and not is_bitnet(stored)):
        raise SourceError(
            f"{files.name}: already quantized (config.json or {MANIFEST} says so); "
            f"{_instead(config)}"
        )
    names, weight_map = _shard_names(files, sizes)
    shards = []
    for name in names:
        header = read_header(partial(files.read, name), sizes[name], name)
        shards.append(SourceShard(name, sizes[name], header))
    _check_index(shards, weight_map)

    side_files, not_copied = {}, {}
    for name, size in sizes.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise SourceError(f"{files.name}: file name {name!r} is not a plain relative path")
        if name in names or name in (INDEX, CONFIG):
            continue
        if name.endswith((".safetensors", ".safetensors.index.json", ".bin.index.json")):
            not_copied[name] = "weights or index that the model's own index does not use"
        elif name.endswith(WEIGHT_SUFFIXES):
            not_copied[name] = "weights in another form"
        elif name == "README.md":
            not_copied[name] = "replaced by the new model's card"
        else:
            side_files[name] = size
    return Source(files, config, shards, side_files, not_copied)


def _instead(config: Mapping[str, Any]) -> str:
    """What to quantize instead of a source that is quantized already."""
    stored = config.get("quantization_config")
    if isinstance(stored, dict) and stored.get("quant_method") == "mxfp4":
        return (
            "load it with transformers in bfloat16 (Mxfp4Config(dequantize=True)), write that with "
            "save_pretrained, and quantize what it wrote"
        )
    return "quantize from the original weights"


def _read_json(files: ModelFiles, name: str, sizes: dict[str, int]) -> dict[str, Any]:
    if name not in sizes:
        raise SourceError(f"{files.name}: no {name}; is this a model folder?")
    try:
        return read_json(files, sizes, name)
    except FormatError as error:
        raise SourceError(str(error)) from None


def _shard_names(
    files: ModelFiles, sizes: dict[str, int]
) -> tuple[list[str], dict[str, str] | None]:
    if INDEX in sizes:
        weight_map = _read_json(files, INDEX, sizes).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SourceError(f"{INDEX}: no weight_map")
        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if (
                PurePosixPath(name).name != name
                or "\\" in name
                or not name.endswith(".safetensors")
                or not name.isprintable()
            ):
                raise SourceError(f"{INDEX}: shard name {name!r} is not a plain .safetensors name")
            if name not in sizes:
                raise SourceError(f"{files.name}: shard {name} is missing; fetch it again")
        return names, weight_map
    if SINGLE in sizes:
        return [SINGLE], None
    found = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
    if found:
        raise SourceError(
            f"{files.name}: {len(found)} .safetensors files but neither {SINGLE} nor {INDEX}; "
            "save the model again with save_pretrained"
        )
    pickled = [name for name in sizes if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise SourceError(
            f"{files.name}: {pickled[0]} is a pickle, which can run code when loaded, and is "
            "refused; where you trust it, load it with transformers and save_pretrained, which "
            "writes safetensors"
        )
    raise SourceError(f"{files.name}: no safetensors weights")


def _check_index(shards: list[SourceShard], weight_map: dict[str, str] | None) -> None:
    where: dict[str, str] = {}
    for shard in shards:
        for name in shard.header.entries:
            if name in where:
                raise SourceError(f"tensor {name} is in both {where[name]} and {shard.name}")
            where[name] = shard.name
    for name, shard_name in (weight_map or {}).items():
        if where.get(name) != shard_name:
            raise SourceError(f"{INDEX} names tensor {name!r} in {shard_name!r}, which has none")
    if not where:
        raise SourceError("the source's shards hold no tensors")
