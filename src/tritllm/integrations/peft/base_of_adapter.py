"""The packed base that an adapter was trained on, as its adapter_config.json records it.

Under `tritllm_base` the file holds
    sha256: of the packed weights as the model reads them (`identity_of`), whatever file, dtype and
        device they came from;
    depths: the planes that packed layers read, each number once;
    layers, weights: how many packed layers and weights there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tritllm.errors import TritError
from tritllm.ops.tensor_versions import seen_of
from tritllm.ops.trit_linear import TritLinear
from tritllm.storage.mapped_pages import release_pages

BASE = "tritllm_base"  # the key in the file, and the attribute of a peft config
_FROM_FILE = "_tritllm_base_is_of_file"
_ADVICE = (
    "load it on that base, or delete its adapter_config.json's "
    f'"{BASE}" to use it on this one all the same'
)

_digests: WeakKeyDictionary[TritLinear, tuple[Any, bytes]] = WeakKeyDictionary()


def identity_of(layers: Sequence[TritLinear]) -> dict[str, Any]:
    """What `tritllm_base` holds for a model of these packed layers.

    The SHA-256 is that of the layers' own in ascending order, so the modules' names, which differ
    between classes of a model, do not count. A layer's is of N, K and the planes read as decimal
    numbers, their bytes, the scale indices and the steps of that depth.
    """
    digests = sorted(map(_digest, layers))
    return {
        "sha256": hashlib.sha256(b"".join(digests)).hexdigest(),
        "depths": sorted({layer.planes for layer in layers}),
        "layers": len(layers),
        "weights": sum(layer.out_features * layer.in_features for layer in layers),
    }


def attach_base_of_file(config: Any, base: Any) -> None:
    """Have a peft config hold, and say where it is saved again, what its file says of the base."""
    config.__dict__.update({BASE: base, _FROM_FILE: True})


def check_base(config: Any, layers: Sequence[TritLinear]) -> None:
    """Note the base of a new adapter; compare that of one that comes from a file.

    Raises TritError, in one line, for an adapter that was trained on another base.
    """
    here = identity_of(layers)
    if not config.__dict__.get(_FROM_FILE):  # a config may be used for several models
        config.__dict__[BASE] = here
        return
    recorded = config.__dict__[BASE]
    if not isinstance(recorded, dict):
        raise TritError(f'adapter_config.json: "{BASE}" {recorded!r:.40} is not an object')
    if recorded.get("sha256") == here["sha256"]:
        return
    for name in ("layers", "weights", "depths", "sha256"):
        if recorded.get(name) != here[name]:
            raise TritError(
                "the adapter was trained on another packed base: its "
                f"{name} {_said(recorded, name)}, here {_said(here, name)}; {_ADVICE}"
            )


def _said(base: dict[str, Any], name: str) -> str:
    value = base.get(name)
    if name == "sha256":
        return f"{value!s:.12}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digest(layer: TritLinear) -> bytes:
    planes = layer.weight[: layer.planes]
    steps = layer.weight_codebook[layer.planes - 1]
    parts = (planes, layer.weight_scale, steps)
    seen = (layer.planes, seen_of(*parts))
    known = _digests.get(layer)
    if known is not None and known[0] == seen:
        return known[1]
    shape = f"{layer.out_features} {layer.in_features} {layer.planes}\n"
    digest = hashlib.sha256(shape.encode())
    for part in parts:
        digest.update(part.detach().cpu().contiguous().numpy())
    if layer.weight.device.type == "cpu":  # a file's pages, not needed again but for gradients
        release_pages((part.data_ptr(), part.nbytes) for part in parts)
    found = digest.digest()
    _digests[layer] = seen, found
    return found
