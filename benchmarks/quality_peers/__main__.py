"""Runs one peer in this process: `python -m quality_peers NAME JOB.json OUT`.

OUT gets a folder a row: row.json, and weights.safetensors where the row could be made. A peer may
so have an interpreter of its own (`quality.py --python NAME=PATH`); it needs torch, transformers
and safetensors there, and tritllm for our own rows alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path

from quality_peers import PEERS
from quality_peers.recipe import Encoded, Job, MissingError, Recipe


def run_peer(name: str, job: Job, out: Path) -> None:
    """Write every row of a peer to OUT; a row that fails says why and costs no other."""
    recipes = import_module(f"quality_peers.{PEERS[name]}").recipes(job)
    for number, recipe in enumerate(r for r in recipes if re.search(job.rows, r.name)):
        folder = out / f"{number:02d}"
        folder.mkdir(parents=True)
        row = {"peer": name, "name": recipe.name, "calibrated": recipe.calibrated}
        print(f"{name}: {recipe.name}", file=sys.stderr, flush=True)
        row |= make_row(recipe, folder)
        (folder / "row.json").write_text(json.dumps(row))


def make_row(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Make the recipe's weights and write them; what is known of the row then."""
    from safetensors.torch import save_file

    began = time.monotonic()
    try:
        made = recipe.make()
    except (ImportError, MissingError) as error:
        return {"missing": first_line(error)}
    except Exception as error:  # of somebody else's library: whatever it raises
        return {"missing": f"failed: {type(error).__name__}: {first_line(error)}"}
    seconds = time.monotonic() - began if made.seconds is None else made.seconds
    save_file(
        {name: w.float().contiguous() for name, w in made.weights.items()}, weights_of(folder)
    )
    return {"bits": bits_a_weight(made), "bytes": made.stored_bytes, "seconds": seconds}


def bits_a_weight(made: Encoded) -> float:
    """Bits that the file holds for a weight of the linear layers."""
    return 8 * made.stored_bytes / sum(weight.numel() for weight in made.weights.values())


def weights_of(folder: Path) -> Path:
    return folder / "weights.safetensors"


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")[:160]


def main() -> None:
    name, settings, out = sys.argv[1:]
    fields = json.loads(Path(settings).read_text())
    paths = {"model", "scratch", "calibration", "windows", "llama_cpp"}
    job = Job(**{k: Path(v) if k in paths and v is not None else v for k, v in fields.items()})
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    run_peer(name, job, Path(out))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some libraries leave threads that do not end


if __name__ == "__main__":
    main()
