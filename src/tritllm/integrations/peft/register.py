"""What of peft is wrapped so that it knows packed layers. Called once peft has been imported.

peft documents one seam, `LoraConfig._register_custom_module`, which says what adapts a class of
layers. Everything else that is touched stands here by its name; with a peft that has renamed one of
them registering fails, and says so. Tried with peft 0.21.2.

* `BaseTuner.inject_adapter`, through which every adapter of layers passes: checks, and that seam.
* `BaseTuner.merge_adapter` and `_unload_and_optionally_merge`, which tell what merging has cost.
* `PeftModel._setup_prompt_encoder`, the same for prompts and prefixes.
* `PeftConfigMixin.to_dict` and `from_peft_type`: an adapter's file says what it was trained on.
* `prepare_model_for_kbit_training`, which knows its methods by name.
* `convert_peft_config_for_transformers` and `convert_peft_adapter_state_dict_for_transformers`,
  which expect a mixture's experts to be fused, as they are not in a packed model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def register() -> None:
    """Wrap what the file's first lines name; nothing twice."""
    # Here, because importing peft is what calls this.
    import peft
    from peft import config, peft_model
    from peft.tuners import tuners_utils
    from peft.utils import other
    from peft.utils import transformers_weight_conversion as conversion

    from tritllm.integrations.peft.kbit_training import told_of_packed_weights

    _wrap(tuners_utils.BaseTuner, "inject_adapter", _inject_adapter)
    for name in ("merge_adapter", "_unload_and_optionally_merge"):
        _wrap(tuners_utils.BaseTuner, name, _merge)
    _wrap(peft_model.PeftModel, "_setup_prompt_encoder", _setup_prompt_encoder)
    _wrap(config.PeftConfigMixin, "to_dict", _to_dict)
    _wrap(config.PeftConfigMixin, "from_peft_type", _from_peft_type)
    prepare = _wrap(other, "prepare_model_for_kbit_training", told_of_packed_weights)
    for module in (peft.utils, peft):
        setattr(module, prepare.__name__, prepare)
    _wrap(conversion, "convert_peft_config_for_transformers", _convert_config)
    _wrap(conversion, "convert_peft_adapter_state_dict_for_transformers", _convert_state)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> Any:
    """Put around(original, ...) in the place of owner.name, which must be there."""
    original = vars(owner)[name]
    is_classmethod = isinstance(original, classmethod)
    function = original.__func__ if is_classmethod else original
    if hasattr(function, "wrapped_by_tritllm"):
        return function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    wrapper.wrapped_by_tritllm = True  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(wrapper) if is_classmethod else wrapper)
    return wrapper


def _inject_adapter(
    original: Any, tuner: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any
) -> Any:
    from tritllm.integrations.peft.check_adapter import prepare_adapter

    prepare_adapter(tuner, model, tuner.peft_config[adapter_name])
    return original(tuner, model, adapter_name, *args, **kwargs)


def _merge(original: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
    from tritllm.integrations.peft.merging import telling_losses

    with telling_losses(getattr(tuner.model, "config", None)):
        return original(tuner, *args, **kwargs)


def _setup_prompt_encoder(original: Any, model: Any, adapter_name: str) -> Any:
    from tritllm.integrations.peft.check_adapter import prepare_prompt

    prepare_prompt(model.base_model, model.peft_config[adapter_name])
    return original(model, adapter_name)


def _to_dict(original: Any, own: Any) -> dict[str, Any]:
    from tritllm.integrations.peft.base_of_adapter import BASE

    found: dict[str, Any] = original(own)
    base = own.__dict__.get(BASE)
    return found if base is None else {**found, BASE: base}


def _from_peft_type(original: Any, kind: Any, **kwargs: Any) -> Any:
    from tritllm.integrations.peft.base_of_adapter import BASE, attach_base_of_file

    base = kwargs.pop(BASE, None)
    made = original(kind, **kwargs)
    if base is not None:
        attach_base_of_file(made, base)
    return made


def _convert_config(original: Any, peft_config: Any, model: Any, conversions: Any) -> None:
    if not _experts_are_apart(model):
        original(peft_config, model, conversions)


def _convert_state(
    original: Any, model: Any, peft_config: Any, adapter_state_dict: Any, adapter_name: str
) -> Any:
    if _experts_are_apart(model):
        return adapter_state_dict
    return original(model, peft_config, adapter_state_dict, adapter_name)


def _experts_are_apart(model: Any) -> bool:
    from tritllm.integrations.transformers.experts import TritExperts

    return any(isinstance(module, TritExperts) for module in model.modules())
