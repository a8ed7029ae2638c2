"""Which tensors of a checkpoint are linear weights, told by their names alone.

The model is never built: what a tensor is follows from its family's naming. A family is one row
of FAMILIES. A model type that is not there is read with the names most decoders share; what no
name recognises is kept, and listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.safetensors_header import TensorEntry

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_MLP = r"mlp\.(gate|up|down)_proj"
_EXPERTS = r"mlp\.(experts\.\d+|shared_experts?)\.(gate|up|down)_proj"
_MIXTRAL = r"block_sparse_moe\.experts\.\d+\.w[123]"
_PHI3 = r"(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
_DECODER = r"((language_)?model\.)*layers\.\d+\."


@dataclass(frozen=True)
class Family:
    """How a family names its linear weights (a module's whole name) and stores them."""

    linear: str
    transposed: bool = False  # stored as [in_features, out_features]


_COMMON = Family(rf"{_DECODER}({_ATTENTION}|{_MLP}|{_EXPERTS}|{_MIXTRAL}|{_PHI3})")
_BERT = Family(
    r"(\w+\.)?encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)|(\w+\.)?pooler\.dense|cls\.predictions\.transform\.dense"
    r"|lm_head\.dense"
)
_GPT2 = Family(r"(transformer\.)?h\.\d+\.(attn\.c_(attn|proj)|mlp\.c_(fc|proj))", transposed=True)
_LLAMA = Family(rf"{_DECODER}({_ATTENTION}|{_MLP})")

FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": _LLAMA,
    "gemma3_text": _LLAMA,
    "qwen2_moe": Family(rf"{_DECODER}({_ATTENTION}|{_MLP}|{_EXPERTS})"),
    "qwen3_moe": Family(rf"{_DECODER}({_ATTENTION}|{_MLP}|{_EXPERTS})"),
    "mixtral": Family(rf"{_DECODER}({_ATTENTION}|{_MIXTRAL})"),
    "phi3": Family(rf"{_DECODER}{_PHI3}"),
    "bert": _BERT,
    "roberta": _BERT,
    "gpt2": _GPT2,
}

_KEPT_NAMES = (
    (r"(.*\.)?(lm_head|output_layer|embed_out)", "lm_head"),
    (r"(.*\.)?(\w*embed\w*|wte|wpe)(\..*)?", "embedding"),
    (r"(.*\.)?(\w*norm\w*|ln_\w+|LayerNorm)", "norm"),
    (r"(.*\.)?(gate|router|shared_expert_gate)", "MoE router"),
)


@dataclass(frozen=True)
class Decision:
    """What happens to a tensor: quantized, or kept for `reason`."""

    quantize: bool
    reason: str
    transposed: bool = False


def is_known(model_type: str) -> bool:
    """Whether the family's own names are known."""
    return model_type in FAMILIES


def decide(
    tensor: TensorEntry, model_type: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Decision:
    """Decide on one tensor.

    include, exclude: shell globs on the tensor's name; include adds what names do not recognise
    (and overrides `kept`), exclude wins over both.

    Raises SourceError for a tensor named as a linear weight that cannot be one.
    """
    module, _, leaf = tensor.name.rpartition(".")
    family = FAMILIES.get(model_type, _COMMON)
    included = _matches(tensor.name, include)
    linear = leaf == "weight" and re.fullmatch(family.linear, module) is not None
    if _matches(tensor.name, exclude):
        return Decision(False, "excluded on request")
    if not linear and not included:
        return Decision(False, _why_kept(tensor, module, leaf))
    remedy = f"leave it out with --exclude '{tensor.name}'"
    if leaf != "weight":
        raise SourceError(f"tensor {tensor.name}: only X.weight can be quantized; {remedy}")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise SourceError(
            f"tensor {tensor.name}: shape {list(tensor.shape)} is not a 2-D linear weight; {remedy}"
        )
    if tensor.dtype not in NUMPY_OF_SAFETENSORS:
        raise SourceError(
            f"tensor {tensor.name}: dtype {tensor.dtype} cannot be quantized (F16, BF16 or F32 "
            f"can); quantize from the unquantized source, or {remedy}"
        )
    if linear:
        return Decision(True, "linear weight", family.transposed)
    return Decision(True, "included on request")


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _why_kept(tensor: TensorEntry, module: str, leaf: str) -> str:
    if leaf.endswith("bias"):
        return "bias"
    for pattern, reason in _KEPT_NAMES:
        if re.fullmatch(pattern, module):
            return reason
    if len(tensor.shape) != 2:
        return f"{len(tensor.shape)}-D, not recognised"
    return "name not recognised"
