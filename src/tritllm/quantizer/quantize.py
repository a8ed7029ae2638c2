"""The streaming quantizer: source shards in, packed and dequantized folders out.

One source tensor with its results, and what is read ahead of it, are in memory at a time, whatever
the model's size. Outputs grow in `*.partial` folders and take their names only when they are whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tritllm.codec import ENCODERS
from tritllm.errors import OutputError, TritError
from tritllm.machine import processors
from tritllm.quantizer.configs import parse_config
from tritllm.quantizer.journal import FOLDER, Journal, differences, remove_empty
from tritllm.quantizer.plan import Plan, check_resources, make_plan
from tritllm.quantizer.report import REPORT, Report, read_report
from tritllm.quantizer.shard_pass import Progress, ShardPass
from tritllm.quantizer.source import open_source
from tritllm.quantizer.write_folder import finish_config
from tritllm.storage.model_files import open_files
from tritllm.storage.shard_writer import output_errors


def quantize(
    model: str,
    configs: Sequence[str],
    out: str | Path,
    *,
    revision: str | None = None,
    stream: bool = False,
    codec: str = "v3",
    write: Sequence[str] = ("packed", "model"),
    dtype: str = "float16",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: Sequence[str] = (),
    threads: int | None = None,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Report]:
    """Quantize a model at several depths in one pass; resumes an interrupted run of itself.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2"; each gives OUT/<config>/packed and OUT/<config>/model.
        out: the output folder.
        revision: branch, tag or commit of a Hub id.
        stream: read a Hub id in place by byte ranges, store nothing of it.
        codec: "v3" (least error) or "v2" (the published rule).
        write: "packed", "model" (dequantized, for stock transformers), or both.
        dtype: of the dequantized model, "float16" or "bfloat16".
        include: globs on tensor names to quantize although their names are not recognised.
        exclude: globs on tensor names to keep.
        depth: overrides GLOB=DEPTH on module names.
        threads: for the codec; default is the number of processors.
        dry_run: stop after the plan.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    started = time.monotonic()
    if codec not in ENCODERS:
        raise TritError(f"unknown codec {codec!r}; known: {', '.join(ENCODERS)}")
    out = Path(out)
    parsed = [parse_config(name, depth) for name in dict.fromkeys(configs)]
    source = open_source(open_files(model, revision, stream))
    kinds = [kind for kind in ("packed", "model") if kind in write] + [
        kind for kind in write if kind not in ("packed", "model")
    ]
    plan = make_plan(source, parsed, kinds, codec, dtype, include, exclude)
    if on_plan:
        on_plan(plan)
    with output_errors(out):
        finished = _finished_reports(plan, out)
    if finished or dry_run:
        if not finished:
            check_resources(plan, out, 0)
        return finished or []
    with output_errors(out):
        _check_folder(plan, out)
    check_resources(plan, out, sum(_bytes_below(out / config.name) for config in parsed))
    with Journal(out, plan.fingerprint) as journal:
        run = ShardPass(plan, out, journal, threads or processors(), on_progress)
        for shard in source.shards:
            run.carry(shard)
        reports = [
            finish_config(plan, config, out, journal.records, time.monotonic() - started)
            for config in parsed
        ]
        journal.remove()
    return reports


def _finished_reports(plan: Plan, out: Path) -> list[Report]:
    """The reports of a run of the same settings that is complete; empty if there is none."""
    if (out / FOLDER / "journal.jsonl").exists():
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
    remove_empty(out / FOLDER)  # of a run that was killed in its very last step
    return reports


def _check_folder(plan: Plan, out: Path) -> None:
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
    if (out / FOLDER / "journal.jsonl").exists():
        return  # the journal tells of what run it is
    wanted = {config.name for config in plan.configs}
    for path in sorted(out.iterdir()):
        if path.name == FOLDER or ((path / REPORT).is_file() and path.name not in wanted):
            continue
        raise OutputError(
            f"{out}: holds {path.name}, which is not of this run; choose another folder"
        )


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
