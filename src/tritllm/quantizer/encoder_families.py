"""The rows of FAMILIES that are no decoders alone: encoders, and encoders with decoders."""

from __future__ import annotations

from tritllm.quantizer.family import Family
from tritllm.quantizer.towers import ENCODER, UNIT

_BERT = Family(
    r"(\w+\.)?encoder\.layer\.\d+\.(attention\.self\.((query|key|value)(_proj|_global)?"
    r"|pos_(key|query)_proj|in_proj|pos(_q)?_proj)|attention\.attn\.[qkvo]"
    r"|(attention\.output|intermediate|output)\.dense)"
    r"|(\w+\.)?(pooler|classifier|generator_predictions|lm_head)\.dense"
    r"|cls\.predictions\.transform\.dense"
)
_ALBERT = Family(
    r"(albert\.)?encoder\.(albert_layer_groups\.\d+\.albert_layers\.\d+"
    r"\.(attention\.(query|key|value|dense)|ffn(_output)?))|predictions\.dense"
)
_WAVES = Family(
    r"(\w+\.)?(encoder\.layers\.\d+\.(feed_forward\.(intermediate|output)_dense"
    r"|attention\.(q|k|v|out)_proj)|feature_projection\.projection)"
)
_SWIN = Family(
    r"(\w+\.)?encoder\.layers\.\d+\.(blocks\.\d+\.(attention\.self\.(query|key|value)"
    r"|(attention\.output|intermediate|output)\.dense|attention\.[qkvo]_proj|mlp\.fc[12])"
    r"|downsample\.reduction)"
)
_T5 = Family(
    r"(transformer\.)?(encoder|decoder)\.block\.\d+\.layer\.\d+"
    r"\.((\w*SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
)
_ENCODER_DECODER = Family(
    r"(model\.)?(encoder|decoder)\.layers\.\d+"
    r"\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])"
)
_GATED_ENCODER_DECODER = Family(
    rf"(model\.)?(encoder|decoder)\.layers\.\d+"
    rf"\.((self|encoder|cross)_attn\.[qkvo]_proj|mlp\.(fc[12]|{UNIT}))"
)
_VIT = Family(
    r"(\w+\.)?(encoder\.layer\.\d+\.(attention\.attention\.(query|key|value)"
    r"|attention\.output\.dense|intermediate\.dense|output\.dense|mlp\.(fc[12]|weights_(in|out)))"
    rf"|layers?\.\d+\.(attention\.[qkvo]_proj|mlp\.(fc[12]|{UNIT}))|pooler\.dense)"
)
_TWO_TOWERS = Family(
    rf"((text|vision)_model\.)?({ENCODER}|head\.mlp\.fc[12])|text_model\.head"
    r"|(visual|text)_projection"
)

ENCODER_FAMILIES = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), _T5),
    **dict.fromkeys(
        (
            "whisper", "bart", "mbart", "m2m_100", "marian", "pegasus", "blenderbot",
            "blenderbot-small", "plbart", "speech_to_text",
        ),
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm-roberta", "camembert", "deberta-v2", "mpnet",
            "electra", "ernie", "layoutlm", "layoutlmv3", "longformer", "xlm-roberta-xl",
        ),
        _BERT,
    ),
    "albert": _ALBERT,
    **dict.fromkeys(("wav2vec2", "hubert"), _WAVES),
    "swin": _SWIN,
    **dict.fromkeys(("moonshine", "t5gemma"), _GATED_ENCODER_DECODER),
    **dict.fromkeys(
        (
            "siglip", "siglip_vision_model", "siglip_text_model", "siglip2",
            "siglip2_vision_model", "siglip2_text_model", "clip", "clip_vision_model",
            "clip_text_model",
        ),
        _TWO_TOWERS,
    ),
    **dict.fromkeys(
        (
            "vit", "dinov2", "dinov3_vit", "dinov2_with_registers", "deit", "beit",
            "audio-spectrogram-transformer",
        ),
        _VIT,
    ),
    "distilbert": Family(
        r"(distilbert\.)?transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])"
        r"|vocab_transform"
    ),
    "modernbert": Family(r"(model\.)?layers\.\d+\.(attn|mlp)\.(Wqkv|Wi|Wo)|head\.dense"),
}  # fmt: skip
