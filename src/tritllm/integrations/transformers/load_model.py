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
    """AutoModelForCausalLM.from_pretrained of a packed folder or Hub id.

    Args:
        folder: a packed folder, or a Hub id of one.
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        verify: compare every tensor's SHA-256 with the manifest before anything runs.
        activations: "per-token" rounds them to int8 as BitNet's models are trained to have them.
        kwargs: passed to from_pretrained (dtype, device_map, revision, ...).

    Raises TritError where it is not a packed model, or breaks the format.
    """
    from transformers import AutoModelForCausalLM

    from tritllm.integrations.transformers.hub_manifest import with_token

    config = packed_config(folder, **{n: kwargs[n] for n in _WHERE if n in kwargs})
    asked = TritConfig(
        planes=planes, lm_head_depth=lm_head_depth, verify=verify, activations=activations
    )
    config.quantization_config |= asked.get_loading_attributes()
    with with_token(kwargs.get("token")):
        return AutoModelForCausalLM.from_pretrained(folder, config=config, **kwargs)


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
