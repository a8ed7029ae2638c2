"""What --draft asks for, as generate, bench and serve take it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritllm.errors import TritError
from tritllm.run.loading import check_packed, load, load_tokenizer

if TYPE_CHECKING:
    from tritllm.integrations.transformers import Draft


def drafting(
    asked: str | None, folder: str | Path, *, compiled: bool = False, **options: Any
) -> Callable[[Any], Draft | None]:
    """Check what can be checked before the model is loaded, and load a second one.

    Returns what makes the `Draft` of the loaded model; it gives None where none is asked for.

    Args:
        asked: "auto", "planes=N", or a packed folder or Hub id.
        folder: the model's own.
        compiled: whether the decode step is to be compiled, which drafts cannot go with.
        options: as `run.loading.load` takes them, of the model itself.

    Raises TritError for another tokenizer or vocabulary, and as `Draft` and `load` do.
    """
    from tritllm.integrations.transformers import Draft
    from tritllm.integrations.transformers.drafting.draft import AUTO, PLANES

    if asked is not None and compiled:
        raise TritError("--draft needs a cache that can be shortened; leave out --compiled")
    if asked is None:
        return lambda model: None
    source: Any = asked
    if asked != AUTO and not asked.startswith(PLANES):
        check_packed(asked, None)
        ours, its = (load_tokenizer(place).get_vocab() for place in (folder, asked))
        if ours != its:
            raise TritError(f"--draft {asked}: its tokenizer is not that of {folder}")
        source = load(asked, **options)
    return lambda model: Draft(model, source)
