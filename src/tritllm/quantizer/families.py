"""How model families name and store their linear weights: a row of FAMILIES each.

The model is never built: what a tensor is follows from its name. A model type that is not here is
read with the names most decoders share, and said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_MLP = r"mlp\.(gate|up|down)_proj"
_EXPERTS = r"mlp\.(experts\.\d+|shared_experts?)\.(gate|up|down)_proj"
_MIXTRAL = r"block_sparse_moe\.experts\.\d+\.w[123]"
_PHI3 = r"(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
_DECODER = r"((language_)?model\.)*layers\.\d+\."


@dataclass(frozen=True)
class FusedExperts:
    """A tensor with a matrix, or two, of every expert of a block: [experts, out, in].

    tensor: regular expression of its whole name; group 1 is what the experts' names begin with.
    leaves: what each expert's matrices are called: GROUP_1.EXPERT.LEAF.weight. Of two, the rows of
        the first come first.
    transposed: whether it is [experts, in, out].
    interleaved: whether the rows of two matrices alternate instead.
    flat: whether the two first dimensions are one, so that only the config tells the experts.
    """

    tensor: str
    leaves: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False
    flat: bool = False


@dataclass(frozen=True)
class Family:
    """How a family names its linear weights (a module's whole name) and stores them.

    linear: regular expression of the modules to quantize.
    transposed: whether they are stored as [in_features, out_features].
    fused: how it stores the experts of a block in one tensor, where it does.
    """

    linear: str
    transposed: bool = False
    fused: tuple[FusedExperts, ...] = ()


_BERT = Family(
    r"(\w+\.)?encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)|(\w+\.)?pooler\.dense|cls\.predictions\.transform\.dense"
    r"|lm_head\.dense"
)
_GPT2 = Family(r"(transformer\.)?h\.\d+\.(attn\.c_(attn|proj)|mlp\.c_(fc|proj))", transposed=True)
_LLAMA = Family(rf"{_DECODER}({_ATTENTION}|{_MLP})")

FAMILIES = {
    "llama": _LLAMA,
    "bitnet": _LLAMA,
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

UNKNOWN_FAMILY = Family(rf"{_DECODER}({_ATTENTION}|{_MLP}|{_EXPERTS}|{_MIXTRAL}|{_PHI3})")

EMBEDDING, OUTPUT_LAYER, ROUTER = "embedding", "lm_head", "MoE router"
KEPT_NAMES = (  # regular expression of a module, and why its weight is kept
    (r"(.*\.)?(lm_head|output_layer|embed_out)", OUTPUT_LAYER),
    (r"(.*\.)?(\w*embed\w*|wte|wpe)(\..*)?", EMBEDDING),
    (r"(.*\.)?(\w*norm\w*|ln_\w+|LayerNorm)", "norm"),
    (r"(.*\.)?(gate|router|shared_expert_gate)", ROUTER),
)

# Modules that transformers does not run as linear layers, or whose weight its models read or write
# themselves: packed, they would stop the model, or silently give other results. By what a name is
# kept for, by name in every family, and by name in some (regular expressions of whole names).
NOT_LINEAR_REASONS = {EMBEDDING: "an embedding table", ROUTER: "a router of experts"}
RUN_AS_LINEAR = r"(.*\.)?shared_expert_gate"  # kept as routers are, but linear layers
NOT_LINEAR = r"(.*\.)?(shared|relative_attention_bias)"  # embedding tables as T5 and BART name them
_T5 = r"(.*\.)?wo"  # its weight's dtype becomes that of the activations
_OUTPUT_LAYER = r"(.*\.)?lm_head"  # as T5's wo
_MAMBA = r"(.*\.)?(x_proj|dt_proj|lm_head)"  # multiplied by the model or its kernels; as T5's wo
WEIGHT_READ_BY_MODEL = {
    **dict.fromkeys(
        ("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "pix2struct"), _T5
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _MAMBA),
    **dict.fromkeys(("hy_v4", "xlstm"), _OUTPUT_LAYER),
    "jamba": r"(.*\.)?(x_proj|dt_proj)",
    "rwkv": r"(.*\.)?(attention\.output|feed_forward\.value)",  # rescaled in place
}
