"""What config.json says of a model that has been loaded, for when it is saved."""

from __future__ import annotations

from collections.abc import Mapping

from tritllm.integrations.transformers.config import TritConfig
from tritllm.ops.trit_linear import TritLinear


def describe_loaded(config: TritConfig, layers: Mapping[str, TritLinear]) -> None:
    """Bring depth, kept modules and bits up to what the packed layers hold now."""
    if config.planes is not None:
        if isinstance(config.depth, dict):
            config.depth = {name: min(d, config.planes) for name, d in config.depth.items()}
        elif config.depth is not None:
            config.depth = min(config.depth, config.planes)
        config.planes = None
    if config.modules_to_not_convert is not None:
        config.modules_to_not_convert = [
            name for name in config.modules_to_not_convert if name not in layers
        ]
    weights = sum(layer.out_features * layer.in_features for layer in layers.values())
    if weights:
        nbytes = sum(layer.tensor().nbytes for layer in layers.values())
        config.bits_per_weight = round(8 * nbytes / weights, 4)
