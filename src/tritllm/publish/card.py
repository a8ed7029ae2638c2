"""Writing a packed folder's README.md anew."""

from __future__ import annotations

from pathlib import Path

from tritllm.errors import FormatError
from tritllm.format.names import CARD, CONFIG, PICTURE
from tritllm.model_card.card import model_card
from tritllm.model_card.licence import read_licence
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_json import read_json, read_manifest
from tritllm.storage.shard_writer import write_atomically


def card(folder: str | Path) -> Path:
    """Write README.md of a packed folder anew from its manifest; the licence it states stays.

    It shows layers.png where that is in the folder: what `tritllm report --png` draws.

    Returns the file. Raises FormatError for a folder that is not packed.
    """
    folder = Path(folder)
    files = LocalFiles(folder, name=str(folder), fault=FormatError)
    sizes = files.sizes()
    manifest = read_manifest(files, sizes)
    config = read_json(files, sizes, CONFIG)
    picture = PICTURE if PICTURE in sizes else None
    text = model_card(manifest, config, read_licence(folder), "packed", picture=picture)
    write_atomically(folder / CARD, text.encode())
    return folder / CARD
