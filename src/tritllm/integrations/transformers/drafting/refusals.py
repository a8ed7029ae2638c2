"""What transformers' assisted generation cannot do, said before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def refuses_drafts(arguments: Sequence[Any], named: Mapping[str, Any], defaults: Any) -> str | None:
    """Why a call of generate can have no drafts, in a few words; None where it can.

    arguments, named: of generate. defaults: the model's own generation config.
    """
    config = named.get("generation_config") or (arguments[1] if len(arguments) > 1 else None)

    def asked(name: str) -> Any:
        found = named.get(name)
        if found is None and config is not None:
            found = getattr(config, name, None)
        return getattr(defaults, name, None) if found is None else found

    inputs = arguments[0] if arguments else named.get("inputs")
    inputs = named.get("input_ids") if inputs is None else inputs
    if inputs is None:
        return "they need input_ids"
    if inputs.ndim == 2 and inputs.shape[0] > 1:
        return f"{inputs.shape[0]} sequences at once; drafts are for one"
    for name in ("num_beams", "num_return_sequences"):
        if (asked(name) or 1) > 1:
            return f"{name}={asked(name)}; drafts are for one sequence"
    if named.get("assistant_model") is not None:
        return "assistant_model is given, too; give one of both"
    if asked("use_cache") is False:
        return "they need the cache (use_cache=True)"
    if asked("cache_implementation") not in (None, "dynamic", "dynamic_full"):
        return f"they need the default cache, not {asked('cache_implementation')!r}"
    if named.get("custom_generate") is not None:
        return "custom_generate has a loop of its own"
    return None
