"""Publishing a finished folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.checkpoint.verify import verify
from tritllm.errors import FormatError, OutputError, TritError
from tritllm.extras import require
from tritllm.format.names import CONFIG, INDEX, MANIFEST
from tritllm.format.quantization_config import is_packed_config
from tritllm.model_card.licence import read_licence
from tritllm.storage.hub_errors import hub_says
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_json import read_json

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a packed or dequantized folder; a packed one is verified first.

    One commit holds all files, after their contents were uploaded: a push that is interrupted
    leaves the repository as it was, and the next one uploads what is missing. Weights, index and
    manifest that an earlier push left there and the folder does not have are removed.

    Args:
        folder: the folder, complete.
        repository: Hub id, owner/name; made if it does not exist.
        private: make it private; one that exists must be private already.

    Returns the URL of the commit. Raises TritError: FormatError if the folder does not verify,
    OutputError if the Hub refuses; also where a package is missing.
    """
    require("push", "quantize", "huggingface_hub", "yaml")
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or folder.name.endswith(".partial"):
        raise TritError(f"{folder}: not a finished model folder")
    files = LocalFiles(folder, name=str(folder), fault=FormatError)
    sizes = files.sizes()
    if MANIFEST in sizes or is_packed_config(read_json(files, sizes, CONFIG)):
        verify(folder)
    licence = read_licence(folder)
    if licence.is_llama and not repository.split("/")[-1].startswith("Llama"):
        raise TritError(
            f"{repository}: the {licence.id} licence wants the name of a derived model to begin "
            "with Llama; rename the repository"
        )
    try:
        commit = _commit(folder, list(sizes), repository, private)
    except TritError:
        raise
    except Exception as error:  # the network, the Hub, a missing token: all end the same way
        raise OutputError(f"{repository}: not uploaded: {hub_says(error)}") from None
    return str(commit.commit_url)


def _commit(folder: Path, names: list[str], repository: str, private: bool) -> CommitInfo:
    """All files in one commit on the head that was there before. Raises what the client raises."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(repository, private=private or None, exist_ok=True)
    there = api.model_info(repository)
    if private and not there.private:
        raise OutputError(
            f"{repository}: is there and public; make it private on its page, or push to another"
        )
    stale = [
        file.rfilename
        for file in there.siblings or []
        if file.rfilename not in names and _belongs_to_weights(file.rfilename)
    ]
    # Not upload_folder: it divides a large folder into several commits.
    return api.create_commit(
        repository,
        [CommitOperationAdd(name, folder / name) for name in names]
        + [CommitOperationDelete(name) for name in stale],
        commit_message=f"Upload {folder.name} made with tritllm",
        parent_commit=there.sha,
    )


def _belongs_to_weights(name: str) -> bool:
    """Whether a file is read together with shards, which must then be those it was made with."""
    return name in (INDEX, MANIFEST) or (name.endswith(".safetensors") and "/" not in name)
