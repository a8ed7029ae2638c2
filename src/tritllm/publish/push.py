"""Publishing a finished folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from tritllm.checkpoint.verify import verify
from tritllm.errors import FormatError, OutputError, TritError, first_line
from tritllm.extras import require
from tritllm.format.names import CONFIG, MANIFEST
from tritllm.format.quantization_config import is_packed_config
from tritllm.model_card.licence import read_licence
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_json import read_json


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a packed or dequantized folder; a packed one is verified first.

    Args:
        folder: the folder, complete.
        repository: Hub id, owner/name; made if it does not exist.
        private: for a repository that is made.

    Returns the URL of the commit. Raises TritError: FormatError if the folder does not verify,
    OutputError if the Hub refuses; also where a package is missing.
    """
    require("push", "quantize", "huggingface_hub", "yaml")
    from huggingface_hub import HfApi

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
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Upload {folder.name} made with tritllm",
        )
    except Exception as error:  # the network, the Hub, a missing token: all end the same way
        raise OutputError(f"{repository}: not uploaded: {first_line(error)}") from None
    return str(commit.commit_url)
