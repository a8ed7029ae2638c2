"""The devices' kernels: one file a device, and one line of the table below."""

from __future__ import annotations

from tritllm.ops.backends import cpu, cuda, default
from tritllm.ops.backends.backend import Backend, Prepared
from tritllm.ops.definitions import LIBRARY, Packed

BACKENDS: tuple[Backend, ...] = (default.BACKEND, cpu.BACKEND, cuda.BACKEND)

for _backend in BACKENDS:
    for _operator, _kernel in _backend.kernels.items():
        LIBRARY.impl(_operator, _kernel, _backend.key)

_PREPARING = {backend.device: backend for backend in BACKENDS if backend.device is not None}


def describe(device: str) -> str:
    """What computes packed layers on devices of a type ("cpu", "cuda"), and why, in a line.

    Raises TritError where an environment variable asks for what cannot be.
    """
    backend = _PREPARING.get(device)
    return backend.describe() if backend else "torch, which decodes the weights at every call"


def prepare(packed: Packed, planes_apart: bool = False) -> Prepared | None:
    """Memory in the layout of the tensors' device; None where it has none, or cannot run it.

    planes_apart: on a CPU fewer planes than these can then be read of it, at their cost. By default
    the planes of a weight are together where that is smaller and faster.

    Raises ValueError for bytes that are no trits.
    """
    backend = _PREPARING.get(packed.planes.device.type)
    if backend is None or backend.prepare is None or not backend.available():
        return None
    return backend.prepare(packed, planes_apart)
