"""The core of the quantizer: source shards in, packed and dequantized folders out.

One source tensor with its results, and what is read ahead of it, are in memory at a time, whatever
the model's size. Outputs grow in `*.partial` folders and take their names only when they are whole.
A calibrator, if there is one, works first, and the shards' pass takes digits from what it leaves.
The public function is `tritllm.run.quantize.quantize`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tritllm.codec import ENCODERS, engine
from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.machine import processors
from tritllm.quantizer.attempts import remove_attempts, take_over_attempts
from tritllm.quantizer.configs import Config, parse_config, parse_overrides
from tritllm.quantizer.coverage import check_coverage
from tritllm.quantizer.encodings import CalibrationProgress, Calibrator, Encodings
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.journal import Journal
from tritllm.quantizer.output_folder import (
    bytes_below,
    calibration_folder,
    check_folder,
    finished_reports,
    remove_calibration,
)
from tritllm.quantizer.plan import KINDS, Plan, make_plan
from tritllm.quantizer.report import Report, peak_memory_bytes
from tritllm.quantizer.resources import check_disk, check_memory, resource_errors
from tritllm.quantizer.run_lock import FOLDER, RunLock
from tritllm.quantizer.shard_pass import Progress, ShardPass
from tritllm.quantizer.shard_workers import ShardWorkers
from tritllm.quantizer.source import open_source
from tritllm.quantizer.write_folder import finish_config
from tritllm.storage.model_files import open_files
from tritllm.storage.output_errors import output_errors


def quantize(
    model: str,
    configs: Sequence[str | Config],
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
    calibrator: Calibrator | None = None,
    workers: ShardWorkers | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_calibration: Callable[[CalibrationProgress], None] | None = None,
) -> list[Report]:
    """Quantize a model under several configs in one pass; resumes an interrupted run.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2", or configs themselves; each gives OUT/<config>/packed
            and OUT/<config>/model.
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
        calibrator: chooses digits by running the model; default is to encode every matrix alone.
        workers: do the shards elsewhere; default is this process. Only without a calibrator.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.
        on_calibration: called by the calibrator as it goes on.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    require("quantize", "quantize", "huggingface_hub", "yaml", "filelock")  # known beforehand
    started = time.monotonic()
    engine.check_environment()
    if codec not in ENCODERS:
        raise TritError(f"unknown codec {codec!r}; known: {', '.join(ENCODERS)}")
    if calibrator and codec != "v3":
        raise TritError(f"codec {codec} takes no calibration; leave --codec out, which means v3")
    if calibrator and workers:
        raise ValueError("workers do not know what a calibrator has found")
    _check_text(model, str(out), *include, *exclude, *depth)
    out = Path(out)
    parsed = _parse_configs(configs, depth)
    source = open_source(open_files(model, revision, stream))
    kinds = sorted(set(write), key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    settings = Settings(
        tuple(parsed), tuple(kinds), codec, dtype, tuple(include), tuple(exclude),
        calibrator.settings if calibrator else None,
    )  # fmt: skip
    plan = make_plan(source, settings, calibrator)
    if on_plan:
        on_plan(plan)
    with output_errors(out):
        finished = finished_reports(plan, out)
    if not finished and not dry_run:
        if not allow_low_coverage:
            check_coverage(plan)
        with output_errors(out):
            check_folder(plan, out)
        written = [out / FOLDER, *(out / config.name for config in parsed)]
        check_disk(plan.disk_bytes - sum(map(bytes_below, written)), out)
        if not workers:
            check_memory(plan.peak_memory)
        run = _Run(
            plan, out, threads or processors(), calibrator, workers, on_progress, on_calibration
        )
        with resource_errors(), workers or nullcontext():
            return run.to_its_end(started)
    if not finished:
        check_disk(plan.disk_bytes, out)
        check_memory(plan.peak_memory)
    elif (out / FOLDER).exists():  # of a run that was killed in its very last steps
        with RunLock(out) as lock:
            remove_attempts(out)
            remove_calibration(out)
            lock.remove()
    return finished


def _parse_configs(configs: Sequence[str | Config], depth: Sequence[str]) -> list[Config]:
    """Each config once, with the overrides of the command line."""
    overrides = parse_overrides(depth)
    parsed = [parse_config(config) if isinstance(config, str) else config for config in configs]
    by_name = {config.name: config for config in parsed}
    if any(by_name[config.name] != config for config in parsed):
        raise TritError("two configs have the same name and differ; give each a name of its own")
    return [config.overridden(overrides) for config in by_name.values()]


def _check_text(*texts: str) -> None:
    """Raise TritError for what cannot be written into cards and manifests, before any work."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TritError(f"{text!a}: not valid UTF-8; rename it") from None


@dataclass(frozen=True)
class _Run:
    """One run with what it needs: calibration, the pass over the shards, the last steps."""

    plan: Plan
    out: Path
    threads: int
    calibrator: Calibrator | None
    workers: ShardWorkers | None
    on_progress: Callable[[Progress], None] | None
    on_calibration: Callable[[CalibrationProgress], None] | None

    def to_its_end(self, started: float) -> list[Report]:
        """Begin or go on; the reports. started: by time.monotonic()."""
        plan, out = self.plan, self.out
        with RunLock(out) as lock:
            finished = finished_reports(plan, out)  # by another, between the first look and now
            if not finished:
                with Journal(out, plan.fingerprint) as journal:
                    take_over_attempts(plan, out, journal)
                    encodings = self._calibrated()
                    peaks = [self._process_shards(journal, encodings), peak_memory_bytes()]
                    finished = [
                        finish_config(
                            plan, config, out, journal.records, time.monotonic() - started,
                            max((peak for peak in peaks if peak is not None), default=None),
                            encodings,
                        )
                        for config in plan.configs
                    ]  # fmt: skip
                    journal.remove()  # from here on the run is complete
            remove_attempts(out)
            remove_calibration(out)
            lock.remove()
        return finished

    def _process_shards(self, journal: Journal, encodings: Encodings | None) -> int | None:
        """Peak memory in bytes of other processes; None where there is none."""
        if self.workers:
            return self.workers.process(self.plan, self.out, journal, self.on_progress)
        shards = ShardPass(self.plan, self.out, journal, self.threads, encodings)
        with closing(shards.process(self.plan.source.shards)) as steps:
            for step in steps:
                if self.on_progress:
                    self.on_progress(step)
        return None

    def _calibrated(self) -> Encodings | None:
        if self.calibrator is None:
            return None
        folder = calibration_folder(self.out)
        with output_errors(folder):
            folder.mkdir(exist_ok=True)
        return self.calibrator.run(self.plan, folder, self.threads, self.on_calibration)
