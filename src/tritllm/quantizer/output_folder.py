"""What the output folder holds before a run: nothing, a run to continue, or a finished one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tritllm.errors import OutputError
from tritllm.quantizer import journal
from tritllm.quantizer.fingerprint import differences
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.report import REPORT, Report, read_report
from tritllm.quantizer.run_lock import FOLDER
from tritllm.storage.output_errors import output_errors

SENSITIVITIES = "sensitivities.json"  # in OUT: what depths cost; it outlives the run


def finished_reports(plan: Plan, out: Path) -> list[Report]:
    """The reports of a run of the same settings that is complete; empty if there is none.

    Raises OutputError where a finished run of other settings is there, or a part of it is gone.
    """
    if _is_unfinished(out):
        return []
    reports = []
    for config in plan.configs:
        path = out / config.name / REPORT
        if not path.is_file():
            return []
        report = read_report(path)
        if differing := differences(report["fingerprint"], plan.fingerprint):
            raise OutputError(
                f"{out / config.name}: already holds a finished result of other settings "
                f"({differing}); choose another folder, or delete it"
            )
        for kind in plan.kinds:
            if not (out / config.name / kind).is_dir():
                raise OutputError(
                    f"{out / config.name / kind}: is gone, though the run was finished; "
                    f"delete {out / config.name} and start again"
                )
        reports.append(report)
    return reports


def check_folder(plan: Plan, out: Path) -> None:
    """Raise OutputError if `out` holds anything but this tool's own folders, or lies in the source.

    What is written into the source would be taken for its side files when the run is resumed.
    """
    if os.path.isdir(plan.source.files.name) and Path(plan.source.files.name) in (
        out.resolve(),
        *out.resolve().parents,
    ):
        raise OutputError(f"{out}: lies in the source's own folder; choose another")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is not a folder")
    if _is_unfinished(out):
        return  # the journal tells of what run it is
    wanted = {config.name for config in plan.configs}
    for path in sorted(out.iterdir()):
        if path.name in (FOLDER, SENSITIVITIES) or (
            (path / REPORT).is_file() and path.name not in wanted
        ):
            continue
        raise OutputError(
            f"{out}: holds {path.name}, which is not of this run; choose another folder"
        )


def calibration_folder(out: Path) -> Path:
    """Where a calibrator keeps its results until the run has ended."""
    return out / FOLDER / "calibration"


def remove_calibration(out: Path) -> None:
    """Remove a calibrator's results; only while holding the `RunLock`, after the journal."""
    folder = calibration_folder(out)
    with output_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)


def _is_unfinished(out: Path) -> bool:
    return (out / FOLDER / journal.NAME).exists()


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
