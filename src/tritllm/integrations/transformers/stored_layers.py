"""Packed layers in place of those whose packed weights a checkpoint's files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritllm.checkpoint.packed_headers import StoredMatrix
from tritllm.errors import FormatError
from tritllm.integrations.transformers.compat import WeightRenaming, name_in_model
from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.transformers.layers import packed_like
from tritllm.quantizer.decisions import is_read_by_model


def swap_stored_layers(
    model: Any,
    stored: Mapping[str, StoredMatrix],
    conversions: Sequence[Any],
    input_norm_eps: float | None = None,
) -> dict[str, str]:
    """Swap them in a model on meta; returns the file and tensor of each module, for messages.

    stored: the matrices by the checkpoint's name of their weight.
    conversions: transformers' weight conversions of the model, which may rename tensors.
    input_norm_eps: of the norms before the layers, where they have any.

    Raises FormatError where a shape does not fit the model, a weight is no linear layer's, or the
    model's own code reads it.
    """
    renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
    names = model.state_dict()
    where: dict[str, str] = {}
    for name, matrix in stored.items():
        key = name_in_model(name, renamings, model, names)
        if key not in names:
            _check_not_joined(name, matrix.file, conversions, model, names)
            continue  # a head that this class of model has not
        module = key.removesuffix(".weight")
        where[module] = f"{matrix.file}: tensor {name}"
        if is_read_by_model(module, model.config.model_type):
            raise FormatError(
                f"{where[module]}: a weight that {model.config.model_type} models do not use as a "
                "linear layer alone, which cannot run packed; quantize the model without it"
            )
        layer = packed_like(
            model.get_submodule(module), matrix.depth, where[module], input_norm_eps
        )
        matrix.check(layer.out_features, layer.in_features)
        model.set_submodule(module, layer)
    return where


def _check_not_joined(
    name: str, file: str, conversions: Sequence[Any], model: Any, names: Mapping[str, Any]
) -> None:
    """Raise FormatError for a matrix that transformers would make another weight of."""
    if (key := name_in_model(name, conversions, model, names)) in names:
        raise FormatError(
            f"{file}: tensor {name}: transformers makes {key} of it while it loads, and cannot of "
            f"packed weights; quantize with --exclude '{name.removesuffix('.weight')}'"
        )


def check_depths_stored(
    config: TritConfig, stored: Mapping[str, StoredMatrix], files: Sequence[str]
) -> None:
    """Raise FormatError where config.json has a depth for a module that no file has packed."""
    for module in config.depth if isinstance(config.depth, dict) else ():
        if f"{module}.weight" not in stored:
            raise FormatError(
                f"{files[0]}: tensor {module}.weight_codebook is missing; "
                "config.json has a depth for it"
            )
