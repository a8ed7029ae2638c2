"""One try at one shard in a folder of its own, by a process that may die, or live too long.

Where shards are done in other processes, perhaps on other machines, no lock has to reach them: each
attempt has a folder that no other knows, OUT/.tritllm-run/attempts/<shard>.<random>, laid out as
an output folder is, with a journal of its own. The process that holds the `RunLock` makes that
folder before it hands the shard out, and it alone moves what is finished to its place in OUT. So
whatever an attempt does that was given up, or that belongs to a run which is long dead, ends in a
folder that nobody will look at, or that is gone.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritllm.errors import OutputError, SourceError
from tritllm.format.safetensors_header import read_header
from tritllm.quantizer.fingerprint import differences, fingerprint_of_shard
from tritllm.quantizer.journal import NAME, Journal, is_finished, read_journal
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.run_lock import FOLDER
from tritllm.quantizer.shard_pass import Progress, ShardPass
from tritllm.quantizer.source import SourceShard
from tritllm.quantizer.write_folder import partial_folder
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import sync_folder

ATTEMPTS = "attempts"


@dataclass(frozen=True)
class Attempt:
    """A try at a shard; only for the holder of the `RunLock` of `out`."""

    out: Path
    shard: str
    folder: Path

    @classmethod
    def begin(cls, plan: Plan, out: Path, shard: str) -> Attempt:
        """Make the folder in which a worker will call `quantize_shard`."""
        attempt = cls(out, shard, out / FOLDER / ATTEMPTS / f"{shard}.{uuid.uuid4().hex}")
        with output_errors(attempt.folder):
            for config in plan.configs:
                for kind in plan.kinds:
                    partial_folder(attempt.folder, config, kind).mkdir(parents=True)
            (attempt.folder / FOLDER).mkdir()
        with Journal(attempt.folder, plan.fingerprint):
            pass
        return attempt

    def is_finished(self, plan: Plan) -> bool:
        """Whether the shard is whole, under this plan, and only has to be moved."""
        try:
            records, _ = read_journal(self.folder / FOLDER / NAME)
        except (OSError, ValueError):
            return False
        return (
            is_finished(records)
            and records[-1]["shard"] == self.shard
            and not differences(records[0], plan.fingerprint)
        )

    def adopt(self, plan: Plan, journal: Journal) -> None:
        """Move a finished shard to its place and note it in the run's journal; again, after a kill
        in the middle, as often as need be.

        Raises OutputError where it is not finished or not there.
        """
        if not self.is_finished(plan):
            raise OutputError(
                f"{self.folder}: a worker says that {self.shard} is finished here, and it is not "
                "to be seen; either the machines do not share this folder, or another run has "
                "begun in it"
            )
        for config in plan.configs:
            for kind in plan.kinds:
                made = partial_folder(self.folder, config, kind) / self.shard
                place = partial_folder(self.out, config, kind) / self.shard
                with output_errors(place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if made.exists():  # else it was moved before the kill
                        os.replace(made, place)
                    size = place.stat().st_size
                    sync_folder(place.parent)
                if size != plan.headers(config, kind)[self.shard].file_bytes:
                    raise OutputError(
                        f"{place}: {size} bytes, which is not what was written; delete {self.out} "
                        "and start again"
                    )
        records, _ = read_journal(self.folder / FOLDER / NAME)
        journal.add(records[1:])
        self.discard()

    def discard(self) -> None:
        """Remove what was done; somebody may be writing there still, and will find nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_over_attempts(plan: Plan, out: Path, journal: Journal) -> None:
    """Adopt what attempts have finished whose run did not get to it; remove the others."""
    folder = out / FOLDER / ATTEMPTS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        attempt = Attempt(out, path.name.rpartition(".")[0], path)
        done = is_finished(journal.of_shard(attempt.shard))
        if not done and attempt.shard in plan.tensors and attempt.is_finished(plan):
            attempt.adopt(plan, journal)
        else:
            attempt.discard()


def remove_attempts(out: Path) -> None:
    """Remove all attempts; only while holding the `RunLock`, when the run has ended."""
    shutil.rmtree(out / FOLDER / ATTEMPTS, ignore_errors=True)


def quantize_shard(plan: Plan, shard: str, folder: Path, threads: int) -> Iterator[Progress]:
    """Do a shard of a plan in the folder of an `Attempt`, from a process that holds no lock.

    Progress is yielded after each tensor; its bytes are of this shard.

    Raises OutputError where the folder is not the one that the run made, or cannot be written;
    SourceError where the source is not what the plan was made of, or damaged.
    """
    if not (folder / FOLDER / NAME).is_file():
        raise OutputError(
            f"{folder}: not seen here; the output must be in a folder that every machine has "
            "at this path"
        )
    source = next(each for each in plan.source.shards if each.name == shard)
    _check_shard(plan, source)
    with Journal(folder, plan.fingerprint) as journal:
        yield from ShardPass(plan, folder, journal, threads).process([source])


def _check_shard(plan: Plan, shard: SourceShard) -> None:
    """Raise SourceError unless the shard is seen here as the plan has it."""
    files = plan.source.files
    where = f"{files.name}/{shard.name}"
    size = files.sizes().get(shard.name)
    if size is None:
        raise SourceError(
            f"{where}: not seen here; the source must be in a folder that every machine has at "
            "this path, or be read from the Hub with --stream"
        )
    header = read_header(partial(files.read, shard.name), size, shard.name)
    seen = fingerprint_of_shard(files, SourceShard(shard.name, size, header))
    if differing := differences(plan.fingerprint["shards"][shard.name], seen):
        raise SourceError(
            f"{where}: not the file that the run began with ({differing}); all machines must see "
            "the same source"
        )
