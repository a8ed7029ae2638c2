"""torch's three floats, from the format's table of them."""

from __future__ import annotations

import torch

from tritllm.format.dtypes import FLOATS

NUMPY_OF_TORCH = {getattr(torch, kind.name): kind.numpy for kind in FLOATS}
NUMBER_OF_TORCH = {getattr(torch, kind.name): kind.number for kind in FLOATS}  # in native calls
