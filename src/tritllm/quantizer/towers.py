"""Parts of models for pictures and sounds, and how their linear weights are named."""

from __future__ import annotations

from dataclasses import dataclass

UNIT = r"(gate|up|down)_proj"
ENCODER = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"  # CLIP's, SigLIP's


@dataclass(frozen=True)
class Tower:
    """A part for pictures or sounds, which is kept unless `--include` means it.

    glob: of the tower's modules. linear: regular expression of those to quantize on request.
    """

    glob: str
    linear: str


QWEN_VISION = Tower(
    "*visual*",
    r"(model\.)?visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.((linear_)?fc[12]|(gate|up|down)_proj))"
    r"|merger\.(mlp\.[02]|(gate_|up_|down_)?proj)|(deepstack_merger_list\.\d+|merger)\.linear_fc[12])",
)
PROJECTOR = Tower(
    "*multi_modal_projector*", r"(model\.)?multi_modal_projector(\.(linear|linear_[12]))?"
)
CLIP_TOWER = Tower(
    "*vision_tower*", rf"(model\.)?vision_tower\.(vision_model\.)?({ENCODER}|head\.mlp\.fc[12])"
)
PIXTRAL_TOWER = Tower(
    "*vision_tower*",
    rf"(model\.)?vision_tower\.transformer\.layers\.\d+"
    rf"\.(attention\.[qkvo]_proj|feed_forward\.{UNIT})",
)
LLAMA4_TOWER = Tower(
    "*vision_model*",
    r"vision_model\.(model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.fc[12])"
    r"|vision_adapter\.mlp\.fc[12])",
)
INTERN_TOWER = Tower(
    "*vision_tower*",
    r"(model\.)?vision_tower\.encoder\.layer\.\d+"
    r"\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
)
SMOL_TOWERS = (
    Tower("*vision_model*", rf"(model\.)?vision_model\.{ENCODER}"),
    Tower("*connector*", r"(model\.)?connector\.modality_projection\.proj"),
)
MLLAMA_TOWER = Tower(
    "*vision_model*",
    r"(model\.)?vision_model\.(global_)?transformer\.layers\.\d+"
    r"\.(self_attn\.[qkvo]_proj|mlp\.fc[12])",
)
GEMMA4_TOWERS = (
    Tower(
        "*vision_tower*",
        rf"(model\.)?vision_tower\.encoder\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.{UNIT})\.linear",
    ),
    Tower(
        "*audio_tower*",
        r"(model\.)?audio_tower\.layers\.\d+\.(feed_forward[12]\.ffw_layer_[12]"
        r"|self_attn\.([qkv]_proj|post)|lconv1d\.linear_(start|end))\.linear",
    ),
)
# Of Qwen's and Mistral's models that hear: Whisper's encoder.
AUDIO_TOWER = Tower(
    "*audio_tower*",
    r"(model\.)?audio_tower\.(layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc[12])|conv_out|proj[12])",
)
GOT_TOWERS = (
    Tower(
        "*vision_tower*",
        r"(model\.)?vision_tower\.layers\.\d+\.(attn\.(qkv|proj)|mlp\.lin[12])",
    ),
    Tower(PROJECTOR.glob, r"(model\.)?multi_modal_projector\.multimodal_projector"),
)
PADDLE_TOWERS = (
    Tower("*visual*", rf"(model\.)?visual\.(vision_model\.)?{ENCODER}"),
    Tower("*linear_?", r"mlp_AR\.linear_[12]|model\.projector\.linear_[12]"),
)
LIGHTON_TOWERS = (
    Tower(
        "*vision_encoder*",
        rf"(model\.)?vision_encoder\.transformer\.layers\.\d+"
        rf"\.(attention\.[qkvo]_proj|feed_forward\.{UNIT})",
    ),
    Tower(
        "*vision_projection*",
        r"(model\.)?vision_projection\.(patch_merger\.merging_layer|linear_[12])",
    ),
)
IDEFICS_CONNECTOR = Tower(
    "*connector*",
    rf"(model\.)?connector\.(modality_projection\.{UNIT}|perceiver_resampler\.layers\.\d+"
    rf"\.(self_attn\.[qkvo]_proj|mlp\.{UNIT}))",
)
MUSE_TOWERS = (
    Tower(
        "*vision*",
        r"(model\.)?(vision_tower\.layers\.\d+\.(mlp\.fc[12]|attn\.([qkv]_proj|proj))"
        r"|vision_adapter\.fc[12]|vision_projection)",
    ),
    Tower("*audio_tower*", r"(model\.)?audio_tower\.layers\.\d+\.conv_blocks\.\d+\.mlp\.fc[12]"),
)
MINIMAX_TOWERS = (
    Tower(
        "*vision_tower*",
        rf"(model\.)?vision_tower\.((vision_model\.)?{ENCODER}"
        r"|layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12]))",
    ),
    PROJECTOR,
)
STEP_TOWERS = (
    Tower(
        "*vision_model*",
        r"(model\.)?vision_model\.(transformer\.resblocks|layers)\.\d+\.((self_)?attn\.out_proj"
        r"|mlp\.(c_fc|c_proj|fc[12]))",
    ),
    Tower("*projector*", r"vit_large_projector|(model\.)?multi_modal_projector"),
)
