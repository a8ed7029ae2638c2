"""Which modules a user means: shell globs over module names, the same rule wherever they stand.

Used by `--include`, `--exclude`, `--depth`, `modules_to_convert` and `modules_to_not_convert`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

_WILDCARDS = frozenset("*?[")


def matches(module: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs means the module.

    A glob is compared with the module's whole name (`model.layers.0.mlp.up_proj`), and with that of
    its weight (`....up_proj.weight`), so that a tensor's name can be given as well; `*` crosses
    dots. A name without wildcards stands for every module below it too.
    """
    return any(_matches(module, glob) for glob in globs)


def unmatched(globs: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The globs that mean none of the modules: each is probably a typo."""
    names = list(modules)
    return [glob for glob in globs if not any(_matches(name, glob) for name in names)]


def _matches(module: str, glob: str) -> bool:
    if not _WILDCARDS.isdisjoint(glob):
        return fnmatchcase(module, glob) or fnmatchcase(f"{module}.weight", glob)
    return f"{module}.weight" == glob or f"{module}.".startswith(f"{glob}.")
