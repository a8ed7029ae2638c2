"""The environment variable TRITLLM_LINEAR: what computes packed layers.

* `int8` (the default): the device's own kernels, activations rounded to int8 in groups of 16 where
  the kernels do so;
* `exact`: the device's own kernels, float32 activations, slower;
* `torch`: plain torch, which decodes the weights at every call; also what happens where there are
  no kernels for a device, or they cannot be loaded.

It is what a TritLinear takes when it is made; `TritLinear.mode` changes it for a layer.
"""

from __future__ import annotations

import os

from tritllm.errors import TritError

MODES = ("int8", "exact", "torch")


def requested() -> str:
    """What `TRITLLM_LINEAR` asks for. Raises TritError for an unknown value."""
    return checked(os.environ.get("TRITLLM_LINEAR") or MODES[0], "TRITLLM_LINEAR")


def checked(mode: str, name: str) -> str:
    """The mode itself. Raises TritError, which begins with `name`, for an unknown one."""
    if mode not in MODES:
        raise TritError(f"{name}={mode} is not one of {', '.join(MODES)}")
    return mode
