"""A model that is evaluated: found, described and loaded, whatever wrote its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritllm.errors import TritError
from tritllm.evaluation.sizes import GGUF
from tritllm.format.names import CONFIG, MANIFEST
from tritllm.run.loading import load, one_line
from tritllm.storage.model_files import WEIGHT_SUFFIXES, LocalFiles, open_files

# Neither rounds activations: what is measured is the file.
DECODED = "torch"  # packed layers compute as the dequantized model does, decoded at every call
EXACT = "exact"  # by the device's own kernels, activations in float32
_KINDS = ("packed", "model")  # folders that quantize writes for each config


@dataclass(frozen=True)
class EvaluatedModel:
    """Where a model lies and how it is read.

    name: for tables. path: a local folder, or a GGUF file. planes: so many of a packed folder's
    trit planes are read; None: all. kind: "packed", "GGUF" or "transformers". made: how its digits
    were chosen, for the series of a plot: "data-free", "calibrated", "trained" or "other".
    """

    name: str
    path: Path
    planes: int | None
    kind: str
    made: str

    def config(self) -> Any:
        """The model's config, as transformers reads it. Raises TritError where there is none."""
        from transformers import AutoConfig

        with one_line(self.path):
            return AutoConfig.from_pretrained(**self._where())

    def load(self, dtype: str, device: str, mode: str = DECODED) -> Any:
        """The model, ready to be evaluated. Raises TritError where it does not load whole.

        mode: what packed layers compute with, unless TRITLLM_LINEAR says: `DECODED` for whole
        windows, `EXACT` where text is generated token by token.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from tritllm.integrations.transformers.widened_linear import widen_linears

        if self.kind == "packed":
            model = load(self.path, planes=self.planes, dtype=dtype)
            _set_mode(model, mode)
        else:
            wanted = dtype if dtype == "auto" else getattr(torch, dtype)
            with one_line(self.path):
                model, found = AutoModelForCausalLM.from_pretrained(
                    **self._where(), dtype=wanted, output_loading_info=True
                )
            lost = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])])
            if lost:  # transformers would fill them with random numbers
                raise TritError(f"{self.path}: {len(lost)} tensors missing, such as {lost[0]}")
            widen_linears(model)
        with one_line(self.path):
            return model.to(device).eval() if device != "cpu" else model.eval()

    def identity(self) -> dict[str, Any]:
        """What changes when the model does: its config, sizes and times of its weight files."""
        files = LocalFiles(self.path if self.path.is_dir() else self.path.parent)
        sizes = files.sizes()
        names = [
            name
            for name in sizes
            if name in (CONFIG, MANIFEST, self.path.name)
            or (self.path.is_dir() and name.endswith((".safetensors", *WEIGHT_SUFFIXES)))
        ]
        return {
            "path": str(self.path.resolve()),
            "planes": self.planes,
            "files": {name: [sizes[name], files.stamp(name)] for name in names},
        }

    def _where(self) -> dict[str, Any]:
        if self.kind == "GGUF":
            return {
                "pretrained_model_name_or_path": self.path.parent,
                "gguf_file": self.path.name,
            }
        return {"pretrained_model_name_or_path": self.path}


def find_models(folders: Sequence[str | Path], planes: Sequence[int]) -> list[EvaluatedModel]:
    """The models at these places, packed ones once for each number of planes.

    folders: model folders, GGUF files or Hub ids. Raises TritError where there is none, and for
    planes that a packed folder does not have, or where no folder is packed.
    """
    paths = [_local(folder) for folder in folders]
    names = _short_names(paths)
    found = []
    for path, name in zip(paths, names, strict=True):
        kind, made, depth = _kind(path)
        if kind != "packed" or not planes:
            found.append(EvaluatedModel(name, path, None, kind, made))
            continue
        for number in planes:
            if not 1 <= number <= depth:
                raise TritError(
                    f"{path}: holds {depth} planes, --planes {number} is not 1..{depth}"
                )
            found.append(EvaluatedModel(f"{name} r={number}", path, number, kind, made))
    if planes and all(model.kind != "packed" for model in found):
        raise TritError("--planes is for packed folders, and none of these is one")
    return found


def _local(place: str | Path) -> Path:
    path = Path(place)
    if path.suffix == GGUF:
        if not path.is_file():
            raise TritError(f"{path}: no such file")
        return path
    files = open_files(str(place))
    if not isinstance(files, LocalFiles):
        raise TritError(f"{place}: cannot be read in place; download it first")
    if not (files.folder / CONFIG).is_file():
        raise TritError(f"{place}: no {CONFIG} there; not a model's folder")
    return files.folder


def _short_names(paths: Sequence[Path]) -> list[str]:
    """As few parts of each path as tell it from the others; a last part that all share goes."""
    parts = [path.resolve().parts for path in paths]
    if len({p[-1] for p in parts}) == 1 and parts[0][-1] in _KINDS and min(map(len, parts)) > 2:
        parts = [p[:-1] for p in parts]
    length = 1
    while len({p[-length:] for p in parts}) < len(set(parts)):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _kind(path: Path) -> tuple[str, str, int]:
    """What wrote a folder, how its digits were chosen, and its deepest matrix."""
    if path.suffix == GGUF:
        return "GGUF", "other", 0
    try:
        config = json.loads((path / CONFIG).read_bytes())
        stored = config.get("quantization_config") or {}
    except (OSError, ValueError, AttributeError):
        raise TritError(f"{path / CONFIG}: not a config that can be read") from None
    if stored.get("quant_method") != "tritllm":
        return "transformers", "other", 0
    depth = stored.get("depth")
    depths = depth.values() if isinstance(depth, dict) else [depth]
    deepest = max((d for d in depths if isinstance(d, int)), default=0)
    encoder = stored.get("encoder") or {}
    made = "trained" if "trained" in encoder else "calibrated" if encoder else "data-free"
    return "packed", made, deepest


def _set_mode(model: Any, mode: str) -> None:
    if "TRITLLM_LINEAR" in os.environ:
        return
    from tritllm.ops.trit_linear import TritLinear

    for module in model.modules():
        if isinstance(module, TritLinear):
            module.mode = mode


def activations() -> str:
    """What packed layers compute with: TRITLLM_LINEAR where that is set, else `DECODED`."""
    from tritllm.ops.mode import requested

    return requested() if "TRITLLM_LINEAR" in os.environ else DECODED
