"""The streaming quantizer: source shards in, packed and dequantized folders out.

One source tensor with its results, and what is read ahead of it, are in memory at a time, whatever
the model's size. Outputs grow in `*.partial` folders and take their names only when they are whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tritllm.codec import ENCODERS, engine
from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.machine import processors
from tritllm.quantizer.configs import parse_config
from tritllm.quantizer.coverage import check_coverage
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.journal import Journal
from tritllm.quantizer.output_folder import bytes_below, check_folder, finished_reports
from tritllm.quantizer.plan import KINDS, Plan, make_plan
from tritllm.quantizer.report import Report
from tritllm.quantizer.resources import check_disk, check_memory, resource_errors
from tritllm.quantizer.run_lock import FOLDER, RunLock
from tritllm.quantizer.shard_pass import Progress, ShardPass
from tritllm.quantizer.source import open_source
from tritllm.quantizer.write_folder import finish_config
from tritllm.storage.model_files import open_files
from tritllm.storage.output_errors import output_errors


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
    allow_low_coverage: bool = False,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Report]:
    """Quantize a model at several depths in one pass; resumes an interrupted run.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2"; each gives OUT/<config>/packed and OUT/<config>/model.
        out: the output folder.
        revision: branch, tag or commit of a Hub id.
        stream: read a Hub id in place by byte ranges, store nothing of it.
        codec: "v3" (least error) or "v2" (the published rule).
        write: "packed", "model" (dequantized, for stock transformers), or both.
        dtype: of the dequantized model, "float16" or "bfloat16".
        include: module globs to quantize although their names are not recognised.
        exclude: module globs to keep.
        depth: overrides GLOB=DEPTH, module globs.
        threads: for the codec; default is the number of processors granted.
        allow_low_coverage: go on where the family is unknown, or fewer than half of the parameters
            (without embeddings and output layer) are quantized.
        dry_run: stop after the plan.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    require("quantize", "quantize", "huggingface_hub", "yaml", "filelock")  # known beforehand
    started = time.monotonic()
    engine.check_environment()
    if codec not in ENCODERS:
        raise TritError(f"unknown codec {codec!r}; known: {', '.join(ENCODERS)}")
    _check_text(model, str(out), *include, *exclude, *depth)
    out = Path(out)
    parsed = [parse_config(name, depth) for name in dict.fromkeys(configs)]
    source = open_source(open_files(model, revision, stream))
    kinds = sorted(set(write), key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    settings = Settings(tuple(parsed), tuple(kinds), codec, dtype, tuple(include), tuple(exclude))
    plan = make_plan(source, settings)
    if on_plan:
        on_plan(plan)
    with output_errors(out):
        finished = finished_reports(plan, out)
    if not finished and not dry_run:
        if not allow_low_coverage:
            check_coverage(plan)
        with output_errors(out):
            check_folder(plan, out)
        check_disk(plan.disk_bytes - sum(bytes_below(out / config.name) for config in parsed), out)
        check_memory(plan.memory.peak)
        with resource_errors():
            return _run(plan, out, threads or processors(), on_progress, started)
    if not finished:
        check_disk(plan.disk_bytes, out)
        check_memory(plan.memory.peak)
    elif (out / FOLDER).exists():  # of a run that was killed in its very last step
        with RunLock(out) as lock:
            lock.remove()
    return finished


def _check_text(*texts: str) -> None:
    """Raise TritError for what cannot be written into cards and manifests, before any work."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TritError(f"{text!a}: not valid UTF-8; rename it") from None


def _run(
    plan: Plan,
    out: Path,
    threads: int,
    on_progress: Callable[[Progress], None] | None,
    started: float,
) -> list[Report]:
    with RunLock(out) as lock:
        finished = finished_reports(plan, out)  # by another, between the first look and the lock
        if not finished:
            with Journal(out, plan.fingerprint) as journal:
                shards = ShardPass(plan, out, journal, threads, on_progress)
                for shard in plan.source.shards:
                    shards.process(shard)
                finished = [
                    finish_config(plan, config, out, journal.records, time.monotonic() - started)
                    for config in plan.configs
                ]
                journal.remove()
        lock.remove()
    return finished
