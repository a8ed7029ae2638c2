"""Names of mixed-depth configs, and what they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tritllm.errors import TritError

LEAST_BITS, MOST_BITS = 1.9, 6.7
FORMS = "target-<bits>bpw (1.9..6.7), sens-<nats>"
_NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
# The names of the published family. "d3scale" says that a scale index has three trits, as it has in
# every file; 002 and 003 are read as 0.02 and 0.03. See docs/quality.md, "Mixed depth".
_PUBLISHED = {"d3scale-sens002": 0.02, "d3scale-sens003": 0.03}


@dataclass(frozen=True)
class Goal:
    """What a mixed-depth config must reach: one of the two limits is None.

    bits: file bits a quantized weight, not exceeded; the divergence is made small.
    divergence: mean KL(float || quantized) in nats a token, not exceeded; the bits are made few.
    """

    name: str
    bits: float | None = None
    divergence: float | None = None


def is_mixed(name: str) -> bool:
    """Whether a config's name asks for depths chosen by measured sensitivities."""
    return name.startswith(("target-", "sens-")) or name in _PUBLISHED


def parse_goal(name: str) -> Goal:
    """What a name for which `is_mixed` holds asks for.

    Raises TritError for a name without a number, and for a number that no file can reach.
    """
    if name in _PUBLISHED:
        return Goal(name, divergence=_PUBLISHED[name])
    if match := re.fullmatch(rf"target-{_NUMBER}bpw", name):
        bits = float(match[1])
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise TritError(f"config {name!r}: bits a weight must be {LEAST_BITS}..{MOST_BITS}")
        return Goal(name, bits=bits)
    if match := re.fullmatch(rf"sens-{_NUMBER}", name):
        if not 0 < float(match[1]) < float("inf"):
            raise TritError(f"config {name!r}: the divergence must be above 0")
        return Goal(name, divergence=float(match[1]))
    raise TritError(f"unknown config {name!r}; mixed depths are {FORMS}")
