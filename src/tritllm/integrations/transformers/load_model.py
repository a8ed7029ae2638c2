"""Loading a packed model for generation, with the options that only concern reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritllm.errors import TritError
from tritllm.format.names import CONFIG
from tritllm.format.quantization_config import METHOD
from tritllm.integrations.registration import register_with_libraries
from tritllm.integrations.transformers.config import TritConfig
from tritllm.storage.hub_errors import hub_says

# Arguments of from_pretrained that say where a model comes from.
_WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")


def load_model(
    folder: str | Path,
    *,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    verify: bool = False,
    activations: str | None = None,
    **kwargs: Any,
) -> Any:
    """from_pretrained of a packed folder or Hub id that generates text: of AutoModelForCausalLM, or
    of AutoModelForImageTextToText where a model sees pictures, too.

    Args:
        folder: a packed folder, or a Hub id of one.
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        verify: compare every tensor's SHA-256 with the manifest before anything runs.
        activations: "per-token" rounds them to int8 as BitNet's models are trained to have them.
        kwargs: passed to from_pretrained (dtype, device_map, revision, ...).

    Raises TritError where it is not a packed model, breaks the format, or goes on with no text.
    """
    from tritllm.integrations.transformers.hub_manifest import with_token

    config = packed_config(folder, **{n: kwargs[n] for n in _WHERE if n in kwargs})
    asked = TritConfig(
        planes=planes, lm_head_depth=lm_head_depth, verify=verify, activations=activations
    )
    config.quantization_config |= asked.get_loading_attributes()
    with with_token(kwargs.get("token")):
        return class_that_generates(folder, config).from_pretrained(folder, config=config, **kwargs)


def class_that_generates(folder: str | Path, config: Any) -> Any:
    """transformers' automatic class for a config. Raises TritError for a model that does not go on
    with a text: encoders, and those that read one text and write another.
    """
    import transformers

    architecture = (config.architectures or ["a model of this kind"])[0]
    known = getattr(transformers, architecture, None)
    if known is None or known.can_generate():
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM
        if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return transformers.AutoModelForImageTextToText
    raise TritError(
        f"{folder}: {architecture} does not go on with a text; run it in transformers by its class"
    )


def packed_config(folder: str | Path, **where: Any) -> Any:
    """config.json of a packed model, as transformers reads it.

    where: passed to transformers (revision, token, cache_dir, ...).

    Raises TritError for anything but a packed model.
    """
    from transformers import AutoConfig

    register_with_libraries()
    is_path = Path(folder).exists() or str(folder).startswith((".", "/", "~"))
    if is_path and not (Path(folder) / CONFIG).is_file():
        raise TritError(f"{folder}: no {CONFIG} there; not a model's folder")
    try:
        config = AutoConfig.from_pretrained(folder, **where)
    except (OSError, ValueError) as error:
        raise TritError(f"{folder}: {hub_says(error)}") from None
    stored = getattr(config, "quantization_config", None)
    if not isinstance(stored, dict) or stored.get("quant_method") != METHOD:
        raise TritError(f"{folder}: is not a packed model; quantize it with tritllm quantize")
    return config
