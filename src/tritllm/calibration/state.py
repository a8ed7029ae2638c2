"""What a calibration depends on, and how far it has come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritllm.calibration.part_trainer import PartTrainer
from tritllm.evaluation.corpus import Text
from tritllm.storage.output_errors import damaged
from tritllm.storage.shard_writer import write_atomically

_FILE = "state.json"


@dataclass(frozen=True)
class RunSettings:
    """What a calibration depends on besides the plan.

    Attributes:
        text: to calibrate on; not one that is measured on.
        tokens: how many, rounded down to windows; None: 262,144, or what the text has.
        context: tokens a window; None: 2,048, or as many as the model takes.
        seed: of the choice of windows.
        device: of torch, that products run on: "cpu" or "cuda". Encoding is the CPU's.
        in_memory: bytes of activations that are held in memory; what is beyond lies in files.
        trainer: trains each block when it is encoded; None trains nothing.
    """

    text: Text
    tokens: int | None = None
    context: int | None = None
    seed: int = 0
    device: str = "cpu"
    in_memory: int = 2 << 30
    trainer: PartTrainer | None = None


@dataclass
class State:
    """What is durable, state.json. parts: in all; done: of them; seconds: they took."""

    parts: int
    done: int
    about: dict[str, Any]
    absent: dict[str, str]
    seconds: float = 0.0


def save_state(folder: Path, state: State) -> None:
    """Make it durable."""
    write_atomically(folder / _FILE, json.dumps(vars(state)).encode())


def load_state(folder: Path) -> State | None:
    """What was saved last; None in a new folder. Raises OutputError where it is damaged."""
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        return State(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise damaged(path) from None
