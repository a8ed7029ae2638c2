"""A reference's logits on disk, a file a window, for models that do not fit beside it.

DIR/<first 16 digits of the description's SHA-256>/ holds `reference.json`, which says what was
computed (model, text, windows, dtype, versions), and `window-000000.npz`, ... with the logits as
`coded_logits` rounds them: 2 bytes a token of the vocabulary and prediction. A window's file
appears whole or not at all, so a run that was stopped goes on after the last of them. Another
model, text, protocol, dtype or version has another folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.errors import OutputError, TritError
from tritllm.evaluation.coded_logits import CodedLogits, code
from tritllm.evaluation.corpus import Window
from tritllm.evaluation.divergence import batches
from tritllm.quantizer.run_lock import RunLock
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import replacing, write_atomically

DESCRIPTION = "reference.json"
_PARTS = ("codes", "step", "nll", "top")


class ReferenceCache:
    """A `KnownReference` whose windows are read when they are asked for."""

    def __init__(self, directory: Path, description: Mapping[str, Any], windows: int) -> None:
        text = (
            json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        ).encode()
        self.folder = directory / hashlib.sha256(text).hexdigest()[:16]
        self._text = text
        self._windows = windows

    def __len__(self) -> int:
        """As `KnownReference.__len__`."""
        return self._windows

    def __getitem__(self, index: int) -> CodedLogits:
        """As `KnownReference.__getitem__`. Raises TritError for a damaged file."""
        path = self._path(index)
        try:
            with open(path, "rb") as file, np.load(file) as parts:
                return CodedLogits(*(parts[name] for name in _PARTS))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise TritError(
                f"{path}: damaged or gone; delete it and run the same command again"
            ) from None

    def missing(self) -> list[int]:
        """Numbers of the windows that are still to be computed."""
        return [n for n in range(self._windows) if not self._path(n).is_file()]

    def fill(
        self,
        load: Callable[[], Any],
        cut: Sequence[Window],
        vocabulary: int,
        *,
        batch: int | None = None,
        on_windows: Callable[[int], None] | None = None,
    ) -> None:
        """Compute and write the windows that are missing; the model is loaded only if any is.

        Args:
            load: loads the reference.
            cut: all windows, in order.
            vocabulary: logits a prediction, to tell the space that is needed.
            batch: as `divergence.measure` takes it.
            on_windows: called with the number of windows that are there.

        Raises OutputError where there is no room, another run writes into the folder, or it holds
        something else; TritError for logits that are no numbers.
        """
        if not self.missing():
            return
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self.folder) as lock:
            self._describe()
            missing = self.missing()
            self._check_room(sum(cut[n].predictions for n in missing) * (2 * vocabulary + 16))
            there = self._windows - len(missing)
            model = load()
            todo = [cut[n] for n in missing]
            for places, computed in batches(model, todo, batch):
                for place, logits in zip(places, computed or (), strict=True):
                    self._write(missing[place], code(logits, todo[place]))
                del computed, logits
                if on_windows:
                    on_windows(there + places[-1] + 1)
            lock.remove()

    def _path(self, index: int) -> Path:
        return self.folder / f"window-{index:06}.npz"

    def _describe(self) -> None:
        path = self.folder / DESCRIPTION
        if not path.is_file():
            write_atomically(path, self._text)
        elif path.read_bytes() != self._text:
            raise OutputError(f"{path}: describes another reference; delete {self.folder}")

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"{self.folder}: the reference's logits take {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; give another --cache, or fewer --windows"
            )

    def _write(self, index: int, coded: CodedLogits) -> None:
        if not np.isfinite(coded.nll).all():
            raise TritError(
                f"the reference: NaN or infinite logits in window {index}; "
                "the model is broken, or overflows in this --dtype"
            )
        with replacing(self._path(index)) as file:
            np.savez(file, **{name: getattr(coded, name) for name in _PARTS})
