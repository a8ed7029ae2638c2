"""`quantization_config` of config.json: how it is written, and what a reader asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritllm.errors import FormatError
from tritllm.format.json_object import MOST_DIGITS, leaves, nesting, shortened
from tritllm.format.trits import DEPTHS, GROUP

METHOD = "tritllm"  # quant_method
FORMAT_VERSION = 1
ENCODER_NESTING = 32  # what every JSON library, and a deep copy, can take


def make_quantization_config(
    codec: str,
    depths: Mapping[str, int],
    bits_per_weight: float,
    modules_to_not_convert: Sequence[str],
    encoder: Mapping[str, Any] | None = None,
    input_norm_eps: float | None = None,
) -> dict[str, Any]:
    """The content of `quantization_config`.

    depths: of each quantized module. encoder: whatever the writer says of how the digits were
    chosen; nothing is written where it is empty. input_norm_eps: see docs/format.md; likewise.
    """
    fields = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "codec": codec,
        "depth": uniform_or_map(depths),
        "group_size": GROUP,
        "bits_per_weight": round(bits_per_weight, 4),
        "modules_to_not_convert": list(modules_to_not_convert),
    }
    if input_norm_eps is not None:
        fields["input_norm_eps"] = input_norm_eps
    return fields | ({"encoder": dict(encoder)} if encoder else {})


def uniform_or_map(depths: Mapping[str, int]) -> int | dict[str, int]:
    """The depth that all modules share, or the map from module to depth."""
    values = set(depths.values())
    return values.pop() if len(values) == 1 else dict(depths)


def is_packed_config(config: Any) -> bool:
    """Whether the content of a config.json says that the weights are packed."""
    stored = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(stored, dict) and stored.get("quant_method") == METHOD


def check_quantization_config(fields: Mapping[str, Any], where: str = "") -> None:
    """Raise FormatError for a newer format version, or a value that the format does not have.

    Checked are `format_version`, `codec`, `depth`, `group_size`, `encoder` and `input_norm_eps`,
    where they are there; a map of depths may hold any module. where: the file, for the message.
    """
    where = f"{where}: quantization_config" if where else "quantization_config"
    check_version(fields.get("format_version", FORMAT_VERSION), where)
    if fields.get("group_size", GROUP) != GROUP:
        raise FormatError(f"{where}: group_size {shortened(fields['group_size'])} is not {GROUP}")
    if not isinstance(fields.get("codec", ""), str):
        raise FormatError(f"{where}: codec {shortened(fields['codec'])} is not text")
    depth = fields.get("depth")
    for value in depth.values() if isinstance(depth, Mapping) else (depth,):
        if value is not None and not is_depth(value):
            raise FormatError(
                f"{where}: depth {shortened(repr(value))} is not {DEPTHS[0]}..{DEPTHS[-1]}"
            )
    check_encoder(fields.get("encoder", {}), where)
    epsilon = fields.get("input_norm_eps")
    if epsilon is not None and not (isinstance(epsilon, float) and 0 < epsilon < 1):
        raise FormatError(f"{where}: input_norm_eps {shortened(repr(epsilon))} is not 0..1")


def check_version(version: Any, where: str) -> None:
    """Raise FormatError unless this is a format version that is known here."""
    if type(version) is int and version > FORMAT_VERSION:
        raise FormatError(
            f"{where}: format version {shortened(version)} is newer than {FORMAT_VERSION}; "
            "upgrade tritllm"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(f"{where}: format version {shortened(version)} is not {FORMAT_VERSION}")


def check_encoder(encoder: Any, where: str) -> None:
    """Raise FormatError unless `encoder` is an object, nested at most 32 deep.

    What it says is for people, and carried along; readers do not interpret it.
    """
    if not isinstance(encoder, dict):
        raise FormatError(f"{where}: encoder is not an object")
    if nesting(encoder) > ENCODER_NESTING:
        raise FormatError(f"{where}: encoder is nested more than {ENCODER_NESTING} deep")
    if any(type(leaf) is int and abs(leaf) >= 10**MOST_DIGITS for leaf in leaves(encoder)):
        raise FormatError(f"{where}: encoder holds a number of more than {MOST_DIGITS} digits")


def is_depth(value: Any) -> bool:
    """Whether the value is a depth of the format."""
    return type(value) is int and value in DEPTHS
