"""What is checked and prepared before peft attaches an adapter to a model with packed layers."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType

from tritllm.errors import TritError
from tritllm.integrations.peft.base_of_adapter import check_base
from tritllm.integrations.peft.lora_layer import TritLoraLinear
from tritllm.ops.trit_linear import TritLinear

_ALL_LINEAR = "all-linear"
# Ways to begin that read no base weight. The others decompose it and change it.
_INITS = (True, False, "gaussian", "orthogonal", "eva")


def prepare_adapter(tuner: Any, model: Any, config: Any) -> None:
    """Have an adapter of layers find packed ones; nothing for a model without any.

    tuner: peft's BaseTuner; config: that of the adapter, in which "all-linear" becomes names.

    Raises TritError, before anything has changed, for what cannot be done on packed layers, and for
    an adapter that was trained on another base.
    """
    packed = _packed(model)
    if not packed:
        return
    _refuse_copies(config, packed)
    check_base(config, list(packed.values()))
    target = getattr(config, "target_modules", None)
    if isinstance(target, str) and target.lower() == _ALL_LINEAR:
        config.target_modules = _all_linear(model)
    if config.peft_type == PeftType.LORA:
        _refuse_unknown_lora(config)
        config._register_custom_module({TritLinear: TritLoraLinear})
        return
    for name in packed:
        if target is not None and tuner._check_target_module_exists(config, name):
            raise TritError(
                f"{config.peft_type.value}: {name} is packed, which peft can adapt by LORA alone; "
                "use LoraConfig, or adapt the dequantized model"
            )


def prepare_prompt(model: Any, config: Any) -> None:
    """The same for prompts and prefixes, which touch no layer. Raises as `prepare_adapter`."""
    packed = _packed(model)
    if packed:
        _refuse_copies(config, packed)
        check_base(config, list(packed.values()))


def _packed(model: Any) -> dict[str, TritLinear]:
    """Packed layers by the names that they have without adapters."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, TritLinear):
            found[name.removesuffix(".base_layer")] = module
    return found


def _all_linear(model: Any) -> set[str]:
    """Names of the linear layers but the output layer's, as peft's "all-linear" means them."""
    found: set[str] = set()
    inside: set[str] = set()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head = getattr(head, "base_layer", head)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            inside.update(f"{name}.{part}" for part, _ in module.named_modules() if part)
            base = module.get_base_layer()
        else:
            base = module
        if isinstance(base, TritLinear | torch.nn.Linear) and base is not head:
            found.add(name)
    return found - inside


def _refuse_unknown_lora(config: Any) -> None:
    if config.init_lora_weights not in _INITS:
        raise TritError(
            f"init_lora_weights={config.init_lora_weights!r} changes the base's weights, which are "
            "packed and frozen; use True, gaussian, orthogonal or eva"
        )
    if getattr(config, "layer_replication", None):
        raise TritError("layer_replication: packed layers cannot be replicated")


def _refuse_copies(config: Any, packed: dict[str, TritLinear]) -> None:
    """modules_to_save trains a copy of a whole module, of which a packed one has no parameters."""
    for asked in getattr(config, "modules_to_save", None) or ():
        for name in packed:
            if name == asked or name.endswith(f".{asked}"):
                raise TritError(
                    f"modules_to_save={asked!r}: {name} is packed, and packed weights are frozen; "
                    "adapt it by target_modules"
                )
