"""Quantities as a person reads them: bytes, numbers of parameters, times."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Bytes as a person reads them, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def count(number: float) -> str:
    """A number of parameters: 494.0 M, 7.62 B."""
    if number >= 1e9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A time as a person reads it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
