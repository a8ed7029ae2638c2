"""The manifest beside the shards of a model from the Hub.

transformers fetches the config and the weights of a model and no other file. tritllm.json belongs
to the shards, so it is fetched into the same snapshot of the same cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tritllm.format.names import MANIFEST
from tritllm.storage.hub_errors import hub_says

_REPOSITORY = "models--"  # of a folder's name in the cache, as in models--owner--name
_TOKEN: ContextVar[str | bool | None] = ContextVar("token", default=None)


@contextmanager
def with_token(token: str | bool | None) -> Iterator[None]:
    """Within it manifests are fetched with this token, which transformers gives no quantizer.

    Without it huggingface_hub takes the token of the environment or of a login.
    """
    reset = _TOKEN.set(token)
    try:
        yield
    finally:
        _TOKEN.reset(reset)


def fetch_manifest(files: Sequence[str]) -> None:
    """Put the manifest next to shards that lie in the Hub's cache, if it is not there.

    A repository without one (saved by transformers) is left as it is. Where it cannot be fetched,
    a warning says that nothing could be compared.
    """
    for snapshot in {Path(file).parent for file in files}:
        if (snapshot / MANIFEST).exists() or snapshot.parent.name != "snapshots":
            continue
        repository = snapshot.parent.parent
        if not repository.name.startswith(_REPOSITORY):
            continue
        name = repository.name.removeprefix(_REPOSITORY).replace("--", "/")
        try:
            hf_hub_download(
                name,
                MANIFEST,
                revision=snapshot.name,
                cache_dir=str(repository.parent),
                token=_TOKEN.get(),
            )
        except LocalEntryNotFoundError as error:  # not reached, or told to stay offline
            _warn(name, error)
        except EntryNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"{name}: {MANIFEST} could not be fetched, so the files' headers are not compared with "
        f"it: {hub_says(error)}",
        UserWarning,
        stacklevel=2,
    )
