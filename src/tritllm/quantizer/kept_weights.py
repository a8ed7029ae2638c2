"""Which weights are never packed, or not in some families, told by their names; and why."""

from __future__ import annotations

EMBEDDING, OUTPUT_LAYER, ROUTER = "embedding", "lm_head", "MoE router"
TOWER = "tower, kept unless --include means it"
READ_BY_MODEL = "read by the model's own code"
KEPT_NAMES = (  # regular expression of a module, and why its weight is kept
    (r"(.*\.)?(lm_head|output_layer|embed_out|proj_out)", OUTPUT_LAYER),
    (r"(.*\.)?(\w*embed\w*|wte|wpe)(\..*)?", EMBEDDING),
    (r"(.*\.)?(shared|relative_attention_bias)", EMBEDDING),  # as T5 and BART name them
    (r"(.*\.)?(\w*norm\w*|ln_\w+|LayerNorm)", "norm"),
    (r"(.*\.)?(gate|router|shared_expert_gate|router\.(layer|proj))", ROUTER),
)

# Modules that transformers does not run as linear layers, or whose weight its models read or write
# themselves: packed, they would stop the model, or silently give other results. By what a name is
# kept for, by name in every family, and by name in some (regular expressions of whole names).
NOT_LINEAR_REASONS = {EMBEDDING: "an embedding table", ROUTER: "a router of experts"}
RUN_AS_LINEAR = r"(.*\.)?shared_expert_gate"  # kept as routers are, but linear layers
_DT = r"(.*\.)?dt_proj"  # multiplied by the model or its kernels
_POOLING = r"(.*\.)?head\.attention\.out_proj"  # torch's MultiheadAttention reads it
WEIGHT_READ_BY_MODEL = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), _DT),
    **dict.fromkeys(
        (
            "siglip",
            "siglip2",
            "siglip_vision_model",
            "siglip2_vision_model",
            "gemma3",
            "lfm2_vl",
        ),
        _POOLING,
    ),
    "rwkv": r"(.*\.)?(attention\.output|feed_forward\.value)",  # rescaled in place
}

# Those whose weight models ask for its dtype alone, which becomes that of the activations.
_WO, _HEAD = r"(.*\.)?wo", r"(.*\.)?lm_head"
DTYPE_READ_BY_MODEL = {
    **dict.fromkeys(
        ("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "pix2struct"), _WO
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "hy_v4", "xlstm"), _HEAD),
}
