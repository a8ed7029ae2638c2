"""What calibration leaves: encodings in the run's folder, read by the quantizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.calibration.encode import Outcome
from tritllm.codec import TritTensor
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.matrices import SourceMatrix
from tritllm.storage.output_errors import damaged
from tritllm.storage.shard_writer import replacing

_RECORDS = "records"
_ARRAYS = ("weight", "scale", "codebook")


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes of one part under one config, durably; arrays as they are."""
    arrays: dict[str, np.ndarray] = {}
    records = []
    for number, outcome in enumerate(outcomes):
        record: dict[str, Any] = {"tensor": outcome.matrix.name, "tokens": outcome.tokens}
        record["seconds"] = round(outcome.seconds, 3)
        if outcome.data_free is not None:
            record["data_free"] = outcome.data_free
        else:
            encoded = outcome.encoded
            record |= {"loss_before": outcome.loss_before, "loss_after": outcome.loss_after}
            record |= {"error": encoded.error, "energy": encoded.energy, "array": number}
            record["in_features"] = encoded.in_features
            if outcome.trained is not None:
                record["trained"] = dict(outcome.trained)
            for part in _ARRAYS:
                arrays[f"{number}.{part}"] = getattr(encoded, part)
        records.append(record)
    arrays[_RECORDS] = np.frombuffer(json.dumps(records).encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class StoredEncodings:
    """The `Encodings` of a complete calibration.

    files: by config name, the files of `save_outcomes` in the order of the parts.
    about: what `encoder` says of every config. absent: tensors that the model does not run, with
    the reason. costs: what `notes` says of the whole run.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[Path]],
        about: Mapping[str, Any],
        absent: Mapping[str, str],
        costs: Mapping[str, Any],
    ) -> None:
        self._about = dict(about)
        self._costs = dict(costs)
        self._absent = dict(absent)
        self._records: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}
        for config, paths in files.items():
            found = self._records[config] = {}
            for path in paths:
                for record in _records_of(path):
                    found[record["tensor"]] = path, record

    def encoded(self, matrix: SourceMatrix, config: Config) -> TritTensor | None:
        """As `Encodings.encoded`."""
        path, record = self._records[config.name].get(matrix.name, (None, {}))
        if path is None or "array" not in record:
            return None
        try:
            with np.load(path) as file:
                weight, scale, codebook = (file[f"{record['array']}.{part}"] for part in _ARRAYS)
            measured = record["in_features"], record["error"], record["energy"]
            return TritTensor(weight, scale, codebook, *measured)
        except Exception as error:  # a damaged archive raises many kinds
            raise damaged(path) from error

    def replaced(self, tensor: PlannedTensor, config: Config) -> np.ndarray | None:
        """As `Encodings.replaced`: calibration changes no kept tensor."""
        return None

    def encoder(self, config: Config) -> dict[str, Any]:
        """As `Encodings.encoder`."""
        records = [record for _, record in self._records[config.name].values()]
        reasons = Counter(_kind_of_reason(r["data_free"]) for r in records if "data_free" in r)
        reasons.update(_kind_of_reason(reason) for reason in self._absent.values())
        calibrated = sum("data_free" not in record for record in records)
        about = {
            **self._about,
            "calibrated": calibrated,
            "data_free": dict(sorted(reasons.items())),
        }
        trained = [record["trained"] for record in records if "trained" in record]
        if trained:
            about["trained"] = {
                "objective": "the output of each block",
                "steps": trained[0]["steps"],
                "matrices": len(trained),
                "improved": sum(record["kept_step"] > 0 for record in trained),
            }
        return about

    def notes(self, config: Config) -> dict[str, Any]:
        """As `Encodings.notes`."""
        matrices = {}
        for name, (_, record) in self._records[config.name].items():
            matrices[name] = {k: v for k, v in record.items() if k in _NOTED}
        data_free = {n: r["data_free"] for n, (_, r) in self._records[config.name].items()
                     if "data_free" in r}  # fmt: skip
        return {
            **self._about,
            **self._costs,
            "matrices": matrices,
            "data_free": {**data_free, **self._absent},
        }


_NOTED = ("tokens", "seconds", "loss_before", "loss_after", "data_free", "trained")


def _kind_of_reason(reason: str) -> str:
    """A reason without the numbers of one matrix."""
    return "".join("N" if c.isdigit() else c for c in reason).replace("NN", "N")


def _records_of(path: Path) -> list[dict[str, Any]]:
    try:
        with np.load(path) as file:
            records: list[dict[str, Any]] = json.loads(file[_RECORDS].tobytes())
    except Exception as error:  # a damaged archive raises many kinds
        raise damaged(path) from error
    return records
