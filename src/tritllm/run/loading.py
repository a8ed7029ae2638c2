"""What generate, bench, serve and the demo check and load in the same way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritllm.errors import TritError, first_line
from tritllm.machine import processors

DTYPES = ("auto", "bfloat16", "float16", "float32")
_MOST_THREADS = 256  # or as many as there are processors: torch dies of threads it cannot start


def check_dtype(name: str) -> None:
    """Raise TritError for a dtype that a model does not run in."""
    if name not in DTYPES:
        raise TritError(f"--dtype {name} is not one of {', '.join(DTYPES)}")


def check_kv_cache(kind: str | None, *, compiled: bool = False) -> None:
    """Raise TritError for a cache that there is not, or that a compiled decode step cannot use."""
    if kind not in (None, "int8"):
        raise TritError(f"--kv-cache {kind:.40} is not int8")
    if kind and compiled:
        raise TritError("--kv-cache int8 grows, and --compiled needs a static cache; leave out one")


def check_device(name: str) -> None:
    """Raise TritError for a device that torch does not know, or does not find here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise TritError(f"--device {name}: {first_line(error)}") from None


def check_text(text: str, what: str) -> None:
    """Raise TritError, which begins with `what`, for bytes of a command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TritError(f"{what} is not text: it holds bytes that are not UTF-8") from None


def set_threads(threads: int | None) -> None:
    """Set torch's threads; None leaves torch its choice. Raises TritError for an absurd number."""
    if threads is None:
        return
    import torch

    most = max(_MOST_THREADS, processors())
    if not 1 <= threads <= most:
        raise TritError(f"--threads {shown(threads)} is not 1..{most}")
    torch.set_num_threads(threads)


def shown(number: int) -> str:
    """A number from the command line in an error message, which must not take a page."""
    try:
        text = str(number)
    except ValueError:  # Python's own limit of digits
        return "..."
    return text if len(text) <= 24 else f"{text[:12]}... ({len(text)} digits)"


def quiet() -> None:
    """Keep other libraries' warnings and progress off standard error: errors are ours to say."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def check_packed(folder: str | Path, planes: int | None) -> None:
    """Raise TritError for anything but a packed model with so many planes; reads config.json."""
    from tritllm.integrations.transformers.load_model import packed_config

    if not os.path.lexists(folder) and str(folder).count("/") != 1:
        raise TritError(f"{folder}: no such folder, and not a Hub id (owner/name)")
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # which the libraries that read it cannot open
        raise TritError(f"{str(folder)!a}: not valid UTF-8; rename it") from None
    with one_line(folder):
        depth = packed_config(folder).quantization_config.get("depth")
    depths = depth.values() if isinstance(depth, dict) else [depth]
    deepest = max((d for d in depths if isinstance(d, int)), default=0)
    if planes is not None and not 1 <= planes <= deepest:
        raise TritError(
            f"{folder}: holds {deepest} planes, --planes {shown(planes)} is not 1..{deepest}"
        )


def load(folder: str | Path, device: str = "cpu", **options: Any) -> Any:
    """A packed model, ready to run on a device.

    options: as `load_model` takes them.

    Raises TritError where it breaks the format or does not load.
    """
    from tritllm.integrations.transformers.load_model import load_model

    if device != "cpu":
        options["device_map"] = device
    with one_line(folder):
        return load_model(folder, **options)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model. Raises TritError where there is none that works."""
    import transformers

    with one_line(folder, "no tokenizer can be loaded: "):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not known:  # transformers makes an empty one of some families where there are no files
        raise TritError(f"{folder}: no tokenizer there; fetch its files again")
    return tokenizer


def context_length(model: Any) -> int | None:
    """The number of tokens that a model's config says it was made for; None where it says none."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def one_line(folder: str | Path, what: str = "") -> Iterator[None]:
    """Whatever other libraries raise over a damaged folder becomes TritError, named after it."""
    try:
        yield
    except (TritError, MemoryError):
        raise
    except Exception as error:
        raise TritError(f"{folder}: {what}{first_line(error)}") from error
