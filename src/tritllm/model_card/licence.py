"""The licence of a model, as the front matter of its README.md states it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritllm.extras import require

_LLAMA = {
    "llama2": ("Llama 2", "https://ai.meta.com/llama/license/"),
    "llama3": ("Meta Llama 3", "https://www.llama.com/llama3/license/"),
    "llama3.1": ("Llama 3.1", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": ("Llama 3.2", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": ("Llama 3.3", "https://www.llama.com/llama3_3/license/"),
}


@dataclass(frozen=True)
class Licence:
    """The licence as a card's front matter states it; "unknown" where it states none."""

    id: str = "unknown"
    name: str | None = None
    link: str | None = None

    @property
    def is_llama(self) -> bool:
        """Whether one of Meta's community licences applies, with their naming rules."""
        return self.id in _LLAMA


def licence_of_card(text: str | None) -> Licence:
    """The licence in a README.md; unknown where there is no card, no front matter or no licence."""
    data = _front_matter(text)
    identifier, link = data.get("license"), data.get("license_link")
    if not isinstance(identifier, str) or not identifier:
        return Licence()
    if identifier in _LLAMA and not str(link).startswith("http"):
        link = _LLAMA[identifier][1]
    return Licence(identifier, data.get("license_name"), link)


def base_model_of_card(text: str | None) -> str | None:
    """The base model(s) a README.md names, or None."""
    base = _front_matter(text).get("base_model")
    if isinstance(base, list):
        return ", ".join(map(str, base))
    return None if base is None else str(base)


def read_licence(folder: Path) -> Licence:
    """The licence that a folder's README.md states."""
    readme = folder / "README.md"
    return licence_of_card(readme.read_text("utf-8", "replace") if readme.is_file() else None)


def licence_notice(licence: Licence) -> str | None:
    """The attribution notice Meta's licences ask to pass on, or None."""
    if not licence.is_llama:
        return None
    name = _LLAMA[licence.id][0]
    return (
        f"{name} is licensed under the {name} Community License, "
        "Copyright (c) Meta Platforms, Inc. All Rights Reserved.\n"
    )


def _front_matter(text: str | None) -> dict[str, Any]:
    if not text or not text.startswith("---"):
        return {}
    require("reading a model card", "quantize", "huggingface_hub", "yaml")
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        data: dict[str, Any] = ModelCard(text, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, YAMLError):
        return {}
    return data
