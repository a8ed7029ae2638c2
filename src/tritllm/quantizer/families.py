"""How model families name and store their linear weights: a row of FAMILIES each.

The model is never built: what a tensor is follows from its name. A row holds the names of the
files on the Hub and, where they differ, those that transformers has in memory, with and without
the prefix of a base model. A model type that is not here is read with the names most decoders
share, and said to be unknown.
"""

from __future__ import annotations

from tritllm.quantizer.encoder_families import ENCODER_FAMILIES
from tritllm.quantizer.family import Family
from tritllm.quantizer.towers import (
    AUDIO_TOWER,
    CLIP_TOWER,
    GEMMA4_TOWERS,
    GOT_TOWERS,
    IDEFICS_CONNECTOR,
    INTERN_TOWER,
    LIGHTON_TOWERS,
    LLAMA4_TOWER,
    MINIMAX_TOWERS,
    MLLAMA_TOWER,
    MUSE_TOWERS,
    PADDLE_TOWERS,
    PIXTRAL_TOWER,
    PROJECTOR,
    QWEN_VISION,
    SMOL_TOWERS,
    STEP_TOWERS,
    UNIT,
    Tower,
)

_DECODER = r"((language_|text_)?model\.)*layers\.\d+\."
_H = r"(transformer\.)?h\.\d+\."

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_MLA = (
    r"self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj"
    r"|indexer\.(wq_b|wk))"
)
_GATED_DELTA = r"linear_attn\.(in_proj_(qkvz|ba|qkv|z|b|a)|out_proj)"
_SSM = r"(mixer|mamba)\.(in_proj|x_proj|out_proj)"
_OUT_PROJ = r"self_attn\.(q|k|v|out)_proj"
_FUSED_QKV = r"\.(query_key_value|dense)"
_MLP = rf"mlp\.{UNIT}"
_EXPERTS = rf"mlp\.(experts\.\d+|shared_experts?)\.{UNIT}"
_MIXTRAL = r"block_sparse_moe\.experts\.\d+\.w[123]"
_PHI3 = r"(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
_4H = r"mlp\.dense_(h_to_4h|4h_to_h)"


def _decoder(*parts: str) -> str:
    """Of the modules in the layers of a decoder named as Llama's."""
    return f"{_DECODER}({'|'.join(parts)})"


_GPT2 = Family(rf"{_H}(attn\.c_(attn|proj)|mlp\.c_(fc|proj))", transposed=True)
_LLAMA = Family(_decoder(_ATTENTION, _MLP))
_MOE = Family(_decoder(_ATTENTION, _MLP, _EXPERTS))
_DEEPSEEK = Family(_decoder(_MLA, _MLP, _EXPERTS))
_SPARSE = Family(_decoder(_ATTENTION, _MIXTRAL))
_GLM = Family(_decoder(_ATTENTION, r"mlp\.(gate_up|down)_proj"))
_BLOOM = Family(rf"{_H}(self_attention{_FUSED_QKV}|{_4H})")
_MAMBA = Family(rf"(\w+\.)?layers\.\d+\.{_SSM}")
_QWEN_VL = Family(_LLAMA.linear, towers=(QWEN_VISION,))
_QWEN3_NEXT = _decoder(_ATTENTION, _GATED_DELTA, _MLP, _EXPERTS)
_FEED_FORWARD = rf"feed_forward\.((experts\.\d+|shared_expert)\.)?{UNIT}"
_JAMBA = Family(_decoder(_ATTENTION, _SSM, _FEED_FORWARD))
_LFM2 = Family(
    _decoder(_OUT_PROJ, r"conv\.(in|out)_proj", r"feed_forward\.(experts\.\d+\.)?w[123]")
)
_GRANITE_MOE = Family(_decoder(_ATTENTION, _SSM, r"shared_mlp\.(input|output)_linear"))
_LLAVA = Family(_LLAMA.linear, towers=(CLIP_TOWER, PROJECTOR))
_GEMMA4 = (
    _decoder(_ATTENTION, _MLP, r"per_layer_(input_gate|projection)")
    + r"|((language_)?model\.)*per_layer_model_projection"
)
_GEMMA3N = (
    f"{_GEMMA4}|{_decoder(r'laurel[.]linear_(left|right)')}"
    r"|((language_)?model\.)*altup_projections\.\d+"
)
_KIMI_LINEAR = _decoder(
    _MLA,
    r"self_attn\.((forget_gate\.)?[fg]_[ab]|[bkv])_proj",
    rf"(mlp|block_sparse_moe)\.(shared_experts\.)?{UNIT}",
    _MIXTRAL,
)

FAMILIES = {
    **dict.fromkeys(
        (
            "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2",
            "gemma3_text", "cohere", "cohere2", "olmo", "olmo2", "olmo3", "granite", "smollm3",
            "exaone4", "ernie4_5", "seed_oss", "hunyuan_v1_dense", "stablelm", "nemotron",
            "bitnet", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "gpt_oss", "arcee",
            "apertus", "cwm", "vaultgemma", "helium", "diffllama", "jais2", "granite_swa",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(
        (
            "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "ernie4_5_moe", "dots1", "exaone_moe",
            "flex_olmo", "mimo_v2_flash", "solar_open", "aria_text",
        ),
        _MOE,
    ),
    **dict.fromkeys(
        (
            "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite",
            "mistral4", "minicpm3", "youtu",
        ),
        _DEEPSEEK,
    ),
    **dict.fromkeys(("mixtral", "phimoe", "minimax_m2"), _SPARSE),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), Family(_QWEN3_NEXT)),
    **dict.fromkeys(("glm", "glm4"), _GLM),
    **dict.fromkeys(("falcon", "bloom"), _BLOOM),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _MAMBA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _QWEN_VL),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), Family(_QWEN3_NEXT, towers=(QWEN_VISION,))),
    "gemma3": Family(_LLAMA.linear, towers=(CLIP_TOWER,)),
    **dict.fromkeys(
        (
            "llava", "llava_next", "llava_onevision", "paligemma", "llava_next_video", "vipllava",
            "aya_vision", "cohere2_vision",
        ),
        _LLAVA,
    ),
    "internvl": Family(_LLAMA.linear, towers=(INTERN_TOWER, PROJECTOR)),
    **dict.fromkeys(("smolvlm", "idefics3"), Family(_LLAMA.linear, towers=SMOL_TOWERS)),
    "idefics2": Family(_LLAMA.linear, towers=(SMOL_TOWERS[0], IDEFICS_CONNECTOR)),
    **dict.fromkeys(
        ("qwen2_audio", "voxtral", "qwen3_asr"),
        Family(_LLAMA.linear, towers=(AUDIO_TOWER, PROJECTOR)),
    ),
    "got_ocr2": Family(_LLAMA.linear, towers=GOT_TOWERS),
    "paddleocr_vl": Family(_LLAMA.linear, towers=PADDLE_TOWERS),
    "lighton_ocr": Family(_LLAMA.linear, towers=LIGHTON_TOWERS),
    "mllama": Family(
        _decoder(_ATTENTION, r"cross_attn\.[qkvo]_proj", _MLP), towers=(MLLAMA_TOWER, PROJECTOR)
    ),
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm_ocr"), Family(_GLM.linear, towers=(QWEN_VISION,))
    ),
    "glm4v_moe": Family(_MOE.linear, towers=(QWEN_VISION,)),
    "gemma4": Family(_GEMMA4, towers=GEMMA4_TOWERS),
    "gemma4_text": Family(_GEMMA4),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), Family(_GEMMA3N)),
    "lfm2_vl": Family(_LFM2.linear, towers=(CLIP_TOWER, PROJECTOR)),
    "aria": Family(
        _MOE.linear,
        towers=(
            CLIP_TOWER,
            Tower(
                PROJECTOR.glob,
                r"(model\.)?multi_modal_projector"
                r"\.(cross_attn\.([qkv]_proj|linear)|feed_forward\.linear_(in|out))",
            ),
        ),
    ),
    "mistral3": Family(
        _LLAMA.linear,
        towers=(
            PIXTRAL_TOWER,
            Tower(
                "*multi_modal_projector*",
                rf"{PROJECTOR.linear}|(model\.)?multi_modal_projector\.patch_merger\.merging_layer",
            ),
        ),
    ),
    "llama4": Family(
        _decoder(_ATTENTION, _FEED_FORWARD),
        towers=(LLAMA4_TOWER, Tower(PROJECTOR.glob, r"multi_modal_projector\.linear_1")),
    ),
    "llama4_text": Family(_decoder(_ATTENTION, _FEED_FORWARD)),
    **dict.fromkeys(("jamba", "bamba", "falcon_h1"), _JAMBA),
    **dict.fromkeys(
        ("granitemoe", "granitemoeshared", "granitemoe_swa", "granitemoehybrid"), _GRANITE_MOE
    ),
    "hy_v4": Family(
        _decoder(
            rf"{_MLA}|self_attn\.(linear_gate|gate_proj)",  # as a file has it, and transformers
            rf"mlp\.(shared_experts\.)?(linear_gate|{UNIT})",
            _EXPERTS,
        )
    ),
    "kimi_linear": Family(_KIMI_LINEAR),
    "nemotron_h": Family(
        r"(\w+\.)?layers\.\d+\.mixer\.(in_proj|out_proj|[qkvo]_proj"
        r"|(experts\.\d+\.|shared_experts\.)?(up|down)_proj|fc[12]_latent_proj)"
    ),
    "zaya": Family(
        _decoder(r"self_attn\.(qkv_proj\.(q_proj|k_proj|v_proj_(current|delayed))|o_proj)")
    ),
    "muse_spark": Family(
        _decoder(_ATTENTION, r"self_attn\.gate_proj", r"mlp\.(pre|post)_expert_proj", _MLP),
        towers=MUSE_TOWERS,
    ),
    # transformers joins the gates and ups of dense layers and shared experts while it loads.
    "minimax_m3_vl": Family(
        _decoder(
            _ATTENTION,
            r"self_attn\.index(_|er\.)[qk]_proj",
            r"(mlp|block_sparse_moe)\.((shared_experts\.)?down_proj|experts\.\d+\.w[123])",
        ),
        towers=MINIMAX_TOWERS,
    ),
    "step3p7": Family(
        _decoder(
            _ATTENTION, r"self_attn\.g_proj", rf"(mlp|share_expert|mlp\.shared_experts)\.{UNIT}"
        ),
        towers=STEP_TOWERS,
    ),
    "olmo_hybrid": Family(_decoder(_ATTENTION, _MLP, r"linear_attn\.[qkvogab]_proj")),
    "hy_v3": Family(_decoder(_ATTENTION, _MLP, _EXPERTS, rf"mlp\.shared_mlp\.{UNIT}")),
    "afmoe": Family(_decoder(_ATTENTION, r"self_attn\.gate_proj", _MLP, _EXPERTS)),
    "minimax": Family(
        _decoder(_ATTENTION, r"self_attn\.(qkv_proj|out_proj|output_gate)", _MIXTRAL)
    ),
    "modernbert-decoder": Family(
        r"(model\.)?layers\.\d+\.(attn\.([qkv]_proj|Wo)|mlp\.W[io])|lm_head\.dense"
    ),
    **dict.fromkeys(
        ("xglm", "biogpt"),
        Family(rf"((model|biogpt)\.)?layers\.\d+\.({_OUT_PROJ}|fc[12])"),
    ),
    "nanochat": Family(_decoder(_ATTENTION, r"mlp\.fc[12]")),
    "phi": Family(_decoder(r"self_attn\.([qkv]_proj|dense)", r"mlp\.fc[12]")),
    "phi3": Family(_decoder(_PHI3)),
    "starcoder2": Family(_decoder(_ATTENTION, r"mlp\.c_(fc|proj)")),
    "gpt_neox": Family(rf"(gpt_neox\.)?layers\.\d+\.(attention{_FUSED_QKV}|{_4H})"),
    "opt": Family(
        rf"(model\.)?decoder\.(project_(in|out)|layers\.\d+\.({_OUT_PROJ}|fc[12]))"
    ),
    **dict.fromkeys(("gpt2", "openai-gpt"), _GPT2),
    "codegen": Family(rf"{_H}(attn\.(qkv|out)_proj|mlp\.fc_(in|out))"),
    "gpt_bigcode": Family(_GPT2.linear),
    "gpt_neo": Family(rf"{_H}(attn\.attention\.(q|k|v|out)_proj|mlp\.c_(fc|proj))"),
    "gptj": Family(rf"{_H}(attn\.(q|k|v|out)_proj|mlp\.fc_(in|out))"),
    "mpt": Family(
        r"(transformer\.)?blocks\.\d+\.(attn\.(Wqkv|out_proj)|ffn\.(up|down)_proj)"
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _LFM2),
    **ENCODER_FAMILIES,
}  # fmt: skip

UNKNOWN_FAMILY = Family(_decoder(_ATTENTION, _MLP, _EXPERTS, _MIXTRAL, _PHI3))
