"""A report of packed folders: what each layer got, and what it cost, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritllm.errors import FormatError, TritError
from tritllm.format.json_object import parse_object
from tritllm.pictures.evaluations import EvaluationFile, read_evaluation
from tritllm.pictures.layer_map import ModelMap, map_of
from tritllm.pictures.page import report_page
from tritllm.quantizer.output_folder import SENSITIVITIES
from tritllm.storage.model_files import LocalFiles, ModelFiles, open_files
from tritllm.storage.model_json import read_manifest
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import write_atomically

EVALUATION = "eval.json"


def report(
    folders: Sequence[str],
    *,
    out: str | Path = Path("report.html"),
    png: str | Path | None = None,
    evaluation: Sequence[str | Path] = (),
    sensitivities: str | Path | None = None,
) -> Path:
    """Write a page, in one file without outside resources, that shows packed folders side by side.

    Args:
        folders: packed folders, or Hub ids of such; only their manifests are read.
        out: the page.
        png: also write the layers of all folders there, as a picture.
        evaluation: what `tritllm eval --json` wrote; without any, an eval.json in one of the two
            folders above a local one, as OUT/CONFIG/packed has them, is taken.
        sensitivities: what `tritllm quantize` measured to choose depths; without it, a
            sensitivities.json there is taken.

    Returns the page's path. Raises TritError: FormatError for a folder that is not packed or is
    damaged and for a file that is none of these; also where a package is missing or a file cannot
    be written.
    """
    if not folders:
        raise TritError("nothing to report on; name a packed folder")
    opened = [_open(folder) for folder in folders]
    costs: dict[str, tuple[float, ...]] = {}
    if sensitivities is not None:
        costs = _sensitivities(Path(sensitivities))
    maps = []
    for name, files in zip(_names(folders), opened, strict=True):
        beside = [] if sensitivities is not None else _beside(files, SENSITIVITIES)
        own = _sensitivities(beside[0]) if beside else costs
        maps.append(map_of(name, read_manifest(files, files.sizes()), own))
    if costs and not any(cell.sensitivity is not None for each in maps for cell in each.cells()):
        raise TritError(f"{sensitivities}: names none of these folders' layers")
    paths = [Path(path) for path in evaluation]
    if not paths:
        paths = list(dict.fromkeys(p for files in opened for p in _beside(files, EVALUATION)[:1]))
    found = [_evaluation(path) for path in paths]
    if png is not None:
        _draw(Path(png), maps)
    write_atomically(Path(out), report_page(maps, found).encode())
    return Path(out)


def _open(folder: str) -> ModelFiles:
    files = open_files(folder)
    if isinstance(files, LocalFiles):
        return LocalFiles(files.folder, name=folder, fault=FormatError)
    return files


def _names(folders: Sequence[str]) -> list[str]:
    """Of each folder the last parts of its path, as many as tell them apart."""
    parts = [
        Path(folder).resolve().parts if Path(folder).exists() else (folder,) for folder in folders
    ]
    for length in range(2, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return ["/".join(each) for each in parts]


def _beside(files: ModelFiles, name: str) -> list[Path]:
    """Such files in the two folders above, the nearest first."""
    if not isinstance(files, LocalFiles):
        return []
    above = files.folder.resolve().parents[:2]
    return [folder / name for folder in above if (folder / name).is_file()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from None


def _evaluation(path: Path) -> EvaluationFile:
    return read_evaluation(_read(path), str(path))


def _sensitivities(path: Path) -> dict[str, tuple[float, ...]]:
    """Of modules, at depths 1 to 4: what their group costs, from a file that quantize wrote."""
    content: Any = parse_object(_read(path), str(path))
    try:
        return {
            str(module): tuple(float(group["kl"][place]) for place in range(4))
            for group in content["groups"].values()
            for module in group["modules"]
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise FormatError(f"{path}: not sensitivities that tritllm quantize wrote") from None


def _draw(path: Path, maps: Sequence[ModelMap]) -> None:
    from tritllm.extras import require

    require("--png", "demo", "matplotlib")
    from tritllm.pictures.png import draw_maps

    with output_errors(path):
        draw_maps(path, maps)
