"""Sensitivities: what each group of matrices costs at each depth, measured once and kept as JSON.

The file says what was measured on what; it is used again only where all of that agrees. It is
written anew after each group, so a run that is killed loses one group at most.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tritllm.allocation.groups import Group
from tritllm.errors import FormatError, TritError
from tritllm.format.json_object import parse_object
from tritllm.format.trits import DEPTHS
from tritllm.quantizer.source import Source
from tritllm.storage.model_folder import CHUNK_BYTES
from tritllm.storage.shard_writer import write_atomically

VERSION = 1


@dataclass(frozen=True)
class Basis:
    """What sensitivities were measured on. Two that are equal may share a file.

    model_sha256: of config.json and every weight shard. text_sha256: of the text's UTF-8, or None
    for whatever text it was. tokens, context, seed: of the measured windows. codec: the data-free
    encoder, such as "v3".
    """

    model: str
    model_sha256: str
    text_sha256: str | None
    tokens: int
    context: int
    seed: int
    codec: str

    def difference(self, stored: Mapping[str, Any]) -> str | None:
        """The first field in which a file's basis differs; where the model came from is none."""
        mine = asdict(self)
        skipped = {"model"}
        if self.text_sha256 is None:
            skipped |= {"text_sha256", "tokens", "context", "seed"}
        return next((k for k, v in mine.items() if k not in skipped and stored.get(k) != v), None)


@dataclass
class Sensitivities:
    """Mean divergence by group's name and depth: `kl[name][depth - 1]` in nats a token.

    modules: of each group, whose matrices were replaced. choices: depths that were chosen from
    these figures, by what was asked for, so that a resumed run takes the same.
    """

    basis: Basis
    kl: dict[str, list[float]] = field(default_factory=dict)
    modules: dict[str, list[str]] = field(default_factory=dict)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def of(self, group: Group) -> list[float] | None:
        """Of one group, or None where it was not measured, or with other matrices."""
        if self.modules.get(group.name) != group.modules:
            return None
        return self.kl.get(group.name)

    def add(self, group: Group, kl: list[float]) -> None:
        """Keep what was measured of a group."""
        self.kl[group.name] = kl
        self.modules[group.name] = group.modules

    def save(self, path: Path) -> None:
        """Write the file so that it is either as before or whole."""
        content = {
            "tritllm_sensitivities": VERSION,
            "basis": asdict(self.basis),
            "versions": self.versions,
            "groups": {
                name: {"kl": kl, "modules": self.modules[name]} for name, kl in self.kl.items()
            },
            "choices": self.choices,
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def load(path: Path, basis: Basis) -> Sensitivities:
    """Read a file that was measured on the same; an absent one is empty.

    Raises FormatError for anything but such a file, TritError for one measured on something else.
    """
    if not path.exists():
        return Sensitivities(basis)
    try:
        content = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from None
    if content.get("tritllm_sensitivities") != VERSION:
        raise FormatError(f"{path}: not a file of sensitivities of this version of tritllm")
    try:
        differing = basis.difference(content["basis"])
        found = Sensitivities(Basis(**content["basis"]), versions=dict(content["versions"]))
        for name, group in content["groups"].items():
            kl = [float(value) for value in group["kl"]]
            if len(kl) != len(DEPTHS) or not all(0 <= value < float("inf") for value in kl):
                raise ValueError
            found.kl[name], found.modules[name] = kl, [str(m) for m in group["modules"]]
        found.choices = {str(key): dict(value) for key, value in content["choices"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FormatError(f"{path}: damaged; delete it, and it is measured again") from None
    if differing:
        raise TritError(
            f"{path}: measured with another {differing}; give another --sensitivities file, or "
            "delete it, and it is measured again"
        )
    return found


def model_hash(source: Source) -> str:
    """SHA-256 over config.json and every byte of the weight shards, with their names."""
    digest = hashlib.sha256(json.dumps(source.config, sort_keys=True).encode())
    for shard in source.shards:
        digest.update(f"{shard.name}\0{shard.size}\0".encode())
        for offset in range(0, shard.size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, shard.size - offset)
            digest.update(source.files.read(shard.name, offset, length))
    return digest.hexdigest()
