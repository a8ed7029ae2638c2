"""Environment variables: TRITLLM_LINEAR, what computes packed layers, and TRITLLM_PREFILL.

* `int8` (the default): the device's own kernels, activations rounded to int8 in groups of 16 where
  the kernels do so;
* `exact`: the device's own kernels, float32 activations, slower;
* `per-token`: the device's own kernels, activations rounded to int8 with one scale for each token,
  as models of BitNet's kind are trained to have them;
* `torch`: plain torch, which decodes the weights at every call; also what happens where there are
  no kernels for a device, or they cannot be loaded.

It is what a TritLinear takes when it is made; `TritLinear.mode` changes it for a layer.

TRITLLM_PREFILL says what int8 products of many rows do on a CPU, from the first of them on:

* `auto` (the default): superblocks where those are faster (AVX2, AVX-VNNI, AVX-512 and AMX, from 48
  rows on), else groups;
* `groups`: activations have a scale every 16 columns and weights are what the file says, as for few
  rows: more accurate;
* `superblocks`: activations are rounded to int8 with one scale for each row and 192 columns; so are
  weights with AVX-VNNI, AVX-512 and AMX, elsewhere they keep their levels and the scales of 192
  columns are rounded to 12 bits.
"""

from __future__ import annotations

import os

from tritllm.errors import TritError
from tritllm.native import structures

PER_TOKEN = "per-token"
# What kernels do with activations; torch keeps them as they are.
ARITHMETIC = {"int8": structures.GROUPS, "exact": structures.EXACT, PER_TOKEN: structures.PER_TOKEN}
MODES = (*ARITHMETIC, "torch")
PREFILLS = ("auto", "groups", "superblocks")


def requested() -> str:
    """What `TRITLLM_LINEAR` asks for. Raises TritError for an unknown value."""
    return checked(os.environ.get("TRITLLM_LINEAR") or MODES[0], "TRITLLM_LINEAR")


def prefill() -> str:
    """What `TRITLLM_PREFILL` asks for. Raises TritError for an unknown value."""
    return checked(os.environ.get("TRITLLM_PREFILL") or PREFILLS[0], "TRITLLM_PREFILL", PREFILLS)


def checked(mode: str, name: str, known: tuple[str, ...] = MODES) -> str:
    """The mode itself. Raises TritError, which begins with `name`, for an unknown one."""
    if mode not in known:
        raise TritError(f"{name}={mode} is not one of {', '.join(known)}")
    return mode
