"""report.json: what a run did to each tensor, and what it cost."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritllm.codec import to_decibel
from tritllm.errors import OutputError
from tritllm.format.layout import part_names
from tritllm.format.records import TRAINED
from tritllm.format.safetensors_header import ITEM_BYTES
from tritllm.quantizer.configs import Config
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.plan import Plan
from tritllm.storage.model_folder import model_dtype

REPORT = "report.json"
Report = dict[str, Any]


def make_report(
    plan: Plan,
    config: Config,
    results: dict[str, dict[str, Any]],
    seconds: float,
    peak_memory: int | None,
    encoder: dict[str, Any],
    notes: dict[str, Any],
) -> Report:
    """Assemble the report.

    results: of each matrix and of each tensor that is kept, what the journal holds of it under this
    config: depth and nmse of a matrix, whether a kept tensor was trained. seconds: of the last,
    uninterrupted stretch of the run, over all its configs. peak_memory: bytes, the most that a
    process of the run took; None where the system does not say. encoder, notes: what a calibrator
    says of its work; empty without one.
    """
    quantized = {
        matrix.name: {
            "shape": list(matrix.shape),
            "depth": results[matrix.name]["depth"],
            "nmse": results[matrix.name]["nmse"],
            "sqnr_db": decibel_or_none(results[matrix.name]["nmse"]),
        }
        for matrix in plan.quantized
    }
    kept = {
        tensor.entry.name: kept_reason(tensor, results)
        for tensor in plan.all_tensors
        if not tensor.decision.quantize
    }
    weights = sum(matrix.size for matrix in plan.quantized)
    header_entries = [
        entry
        for header in plan.headers(config, "packed").values()
        for entry in header.entries.values()
    ]
    every_byte = sum(entry.nbytes for entry in header_entries)
    names = {part for name in quantized for part in part_names(name)}
    packed_bytes = sum(entry.nbytes for entry in header_entries if entry.name in names)
    decibels = [t["sqnr_db"] for t in quantized.values() if t["sqnr_db"] is not None]
    return {
        "config": config.name,
        "source": plan.source.files.name,
        "revision": plan.source.files.revision,
        "codec": plan.codec,
        "parameters": plan.parameters,
        "quantized_parameters": weights,
        "coverage_percent": 100 * plan.coverage,
        "bits_per_weight": {
            "quantized": 8 * packed_bytes / weights,
            "whole_file": 8 * every_byte / plan.parameters,
        },
        "sqnr_db": {
            "mean": sum(decibels) / len(decibels) if decibels else None,
            "lowest": min(decibels, default=None),
        },
        "packed_bytes": every_byte,
        "model_bytes": sum(
            t.size * ITEM_BYTES[model_dtype(t.model_entry[0], plan.dtype)]
            for t in plan.all_tensors
            if not t.tied_to
        ),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory,
        "quantized": quantized,
        "kept": kept,
        "not_copied": plan.source.not_copied,
        **({"allocation": dict(config.notes)} if config.notes else {}),
        **({"encoder": encoder} if encoder else {}),
        **({"calibration": notes} if notes else {}),
        "fingerprint": plan.fingerprint,
    }


def kept_reason(tensor: PlannedTensor, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a tensor is not quantized, and whether its values are others than the source's."""
    trained = results.get(tensor.entry.name, {}).get("trained", False)
    return tensor.decision.reason + (TRAINED if trained else "")


def read_report(path: Path) -> Report:
    """Read a report.json. Raises OutputError for one not written by tritllm."""
    try:
        report: Report = json.loads(path.read_bytes())
        report["fingerprint"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise OutputError(f"{path}: not a report of tritllm; choose another folder") from None
    return report


def decibel_or_none(nmse: float) -> float | None:
    """SQNR in dB; None for an exact tensor, whose SQNR JSON cannot hold."""
    return to_decibel(nmse) if nmse else None


def peak_memory_bytes() -> int | None:
    """Peak resident memory of this process; None where the system does not say."""
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss may be that of the process which started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
