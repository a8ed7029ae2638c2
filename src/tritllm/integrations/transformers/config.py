"""TritConfig: the quantization_config of config.json, and what a user may ask for at load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tritllm.errors import TritError
from tritllm.format.quantization_config import (
    FORMAT_VERSION,
    METHOD,
    check_quantization_config,
    is_depth,
)
from tritllm.format.trits import DEPTHS, GROUP
from tritllm.ops.mode import PER_TOKEN

AT_LOAD = (
    "planes",
    "lm_head_depth",
    "verify",
    "activations",
)  # what concerns one load, not the file
_READING: ContextVar[Mapping[str, Any]] = ContextVar("reading", default=MappingProxyType({}))
_LOADED: ContextVar[Callable[[Any], None] | None] = ContextVar("loaded", default=None)


class TritConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How a model's linear weights are stored, and how they are to be read.

    Stored (docs/format.md):
        depth: trits a weight, 1..4, for every linear weight, or a map from module to depth.
            Required to quantize a float checkpoint on the fly, where the map's keys may be module
            globs (the last that matches holds); a packed one brings its own.
        codec: which rule chose the digits. Any text is read; on the fly, "v3" or "v2".
        encoder: what the encoder says of its work, an object that is carried along and not read.
        modules_to_not_convert: modules kept as they are, by module globs; on the fly, in addition
            to embeddings, `lm_head`, norms and routers. A name stands for the modules below it too.
        modules_to_convert: on the fly alone, modules quantized besides those that the family's row
            names, by module globs, as `--include` has them: a vision tower, for instance.
        bits_per_weight: file bits of a quantized weight, for people to read.
        input_norm_eps: of the norms that packed layers have before them; None where they have none.
        format_version, group_size: of the file.

    At load:
        planes: read only so many of the trit planes of deeper matrices.
        lm_head_depth: quantize `lm_head` too, at this depth, whether the file keeps it in 16 bits
            or ties it to the embeddings (then it is untied; the embeddings stay).
        verify: compare every tensor's SHA-256 with the manifest before anything runs. Without it
            the headers' hashes are compared, where there is a manifest.
        activations: "per-token" rounds what packed layers take to int8 with one scale for each
            token, as BitNet's models are trained to have it; None leaves it to TRITLLM_LINEAR.

    Raises TritError for an invalid value or a field that is not listed here, FormatError for a
    newer format version.
    """

    def __init__(
        self,
        depth: int | Mapping[str, int] | None = None,
        *,
        codec: str = "v3",
        encoder: Mapping[str, Any] | None = None,
        planes: int | None = None,
        lm_head_depth: int | None = None,
        verify: bool = False,
        modules_to_not_convert: Sequence[str] | None = None,
        modules_to_convert: Sequence[str] | None = None,
        bits_per_weight: float | None = None,
        input_norm_eps: float | None = None,
        activations: str | None = None,
        format_version: int = FORMAT_VERSION,
        group_size: int = GROUP,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        check_quantization_config({
            "format_version": format_version, "group_size": group_size, "codec": codec,
            "depth": depth, "encoder": {} if encoder is None else encoder,
            "input_norm_eps": input_norm_eps,
        })  # fmt: skip
        for name in unknown:
            _refuse_unknown(name)
        if quant_method != METHOD:
            raise TritError(f"TritConfig: quant_method {quant_method!r} is not {METHOD!r}")
        if not isinstance(verify, bool):
            raise TritError(f"TritConfig: verify {verify!r:.40} is neither True nor False")
        if activations not in (None, PER_TOKEN):
            raise TritError(f"TritConfig: activations {activations!r:.40} is not {PER_TOKEN!r}")
        self.quant_method = METHOD
        self.format_version = format_version
        self.codec = codec
        self.encoder = None if encoder is None else dict(encoder)
        self.depth = dict(depth) if isinstance(depth, Mapping) else depth
        self.group_size = group_size
        self.bits_per_weight = bits_per_weight
        self.modules_to_not_convert = _names("modules_to_not_convert", modules_to_not_convert)
        self.modules_to_convert = _names("modules_to_convert", modules_to_convert)
        self.planes = _planes("planes", planes)
        self.lm_head_depth = _planes("lm_head_depth", lm_head_depth)
        self.verify = verify
        self.input_norm_eps = input_norm_eps
        self.activations = activations

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """From config.json, and what `reading` asks for."""
        return super().from_dict({**config_dict, **_READING.get()}, *args, **kwargs)

    def get_loading_attributes(self) -> dict[str, Any]:
        """What overrides the checkpoint's own config when both are given."""
        asked = {name: getattr(self, name) for name in AT_LOAD}
        return {name: value for name, value in asked.items() if value not in (None, False)}

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it: nothing that is not set."""
        return {
            name: value
            for name, value in super().to_dict().items()
            if value is not None and name != "verify"
        }


def _planes(field: str, value: int | None) -> int | None:
    if value is not None and not is_depth(value):
        raise TritError(f"TritConfig: {field} {value!r:.40} is not 1..{DEPTHS[-1]}")
    return value


def _names(field: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TritError(f"TritConfig: {field} {value!r:.40} is not a list of module names")
    return list(value)


def _refuse_unknown(name: str) -> None:
    """Raise TritError for a field that TritConfig has not; what transformers marks stays."""
    if name.startswith("_"):
        return
    known = [n for n in TritConfig.__init__.__annotations__ if n not in ("unknown", "return")]
    near = get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
    raise TritError(f"TritConfig: unknown field {name[:40]!r}{hint}")


@contextmanager
def reading(
    *,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    loaded: Callable[[Any], None] | None = None,
) -> Iterator[None]:
    """Within it every packed checkpoint is read so, whoever calls from_pretrained.

    For the server alone, which calls from_pretrained without arguments of ours. Everyone else
    passes a TritConfig, or calls `load_model`, which does.

    loaded: called with every model when it is loaded.
    """
    asked = {"planes": planes, "lm_head_depth": lm_head_depth}
    token = _READING.set({name: value for name, value in asked.items() if value is not None})
    called = _LOADED.set(loaded)
    try:
        yield
    finally:
        _READING.reset(token)
        _LOADED.reset(called)


def tell_loaded(model: Any) -> None:
    """Tell whoever asked `reading` for it that a model is loaded."""
    loaded = _LOADED.get()
    if loaded is not None:
        loaded(model)
