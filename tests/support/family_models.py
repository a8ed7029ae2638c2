"""A tiny model of every family that `quantize` knows by name, with inputs that reach all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCABULARY = 96
_IMAGE = 92  # the token that a picture's features replace
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
_WORDS: dict[str, Any] = {**_SIZES, "vocab_size": VOCABULARY}
_TEXT: dict[str, Any] = {
    **_WORDS, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "head_dim": 16,
}  # fmt: skip
_GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
_BERT = {
    **_WORDS, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
_PICTURES = {**_SIZES, "image_size": 32, "patch_size": 16}
_EXPERTS = {**_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LOCAL_EXPERTS = {**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    **_TEXT, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_MLA = {
    **_ROUTED, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
_DENSE_MLA = {name: value for name, value in _MLA.items() if "expert" not in name}
_SPARSE_MLA = {**_MLA, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
_SSM = {"hidden_size": 64, "vocab_size": VOCABULARY, "state_size": 16, "num_hidden_layers": 2}
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
_SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "decoder_start_token_id": 1,
}  # fmt: skip
_PAIR = {
    "text_config": {**_WORDS, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
                    "pad_token_id": 0},
    "vision_config": _PICTURES,
}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
_QWEN_PICTURES = {
    "depth": 2, "hidden_size": 64, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2,
    "intermediate_size": 96, "out_hidden_size": 64,
}  # fmt: skip
_SIGLIP = {**_PICTURES, "model_type": "siglip_vision_model", "vision_use_head": False}
_CLIP = {**_PICTURES, "model_type": "clip_vision_model"}
_LLAMA = {**_TEXT, "model_type": "llama"}
_QWEN2 = {**_TEXT, "model_type": "qwen2"}
_SMOL = {
    "text_config": _LLAMA, "vision_config": _PICTURES, "image_token_id": _IMAGE, "scale_factor": 2,
}  # fmt: skip
_WAVES = {
    **_WORDS, "conv_dim": [16, 16], "conv_kernel": [4, 2], "conv_stride": [4, 2],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_HEARS = {
    "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "num_mel_bins": 16, "max_source_positions": 20,
}  # fmt: skip
_IMAGE_TOKENS = {"boi_token_index": 90, "eoi_token_index": 91, "image_token_index": _IMAGE}


def _qwen_vl(text_config: dict[str, Any], vision_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {**_TEXT, "rope_parameters": dict(_ROPE), **text_config},
        "vision_config": {**_QWEN_PICTURES, **vision_config},
        "image_token_id": _IMAGE, "video_token_id": 93, "vision_start_token_id": 94,
        "vision_end_token_id": 95,
    }  # fmt: skip


Inputs = Callable[[], dict[str, Any]]


def text(length: int = 9) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    return {"input_ids": torch.randint(3, 90, (2, length), generator=generator)}


def pictures(pixels: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    return {"pixel_values": torch.randn(2, 3, pixels, pixels, generator=generator)}


def sounds() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(9)
    return {"input_features": torch.randn(2, 16, 40, generator=generator)}


def waves() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(9)
    return {"input_values": torch.randn(2, 3200, generator=generator)}


def frames() -> dict[str, Any]:
    return {"input_features": sounds()["input_features"].mT}


def spectrogram() -> dict[str, Any]:
    return {"input_values": sounds()["input_features"].mT[:, :32]}


def _with_image_tokens(tokens: int) -> dict[str, Any]:
    ids = text(tokens + 5)["input_ids"]
    ids[:, 2 : 2 + tokens] = _IMAGE
    return {"input_ids": ids}


def words_and_pictures() -> dict[str, Any]:
    return {**text(), **pictures()}


def text_and_picture(tokens: int, pixels: int = 32) -> Inputs:
    return lambda: {**_with_image_tokens(tokens), **pictures(pixels)}


def split_picture() -> dict[str, Any]:
    """A picture each, of one part, as Idefics 3 takes it."""
    inputs = text_and_picture(1)()
    return {**inputs, "pixel_values": inputs["pixel_values"][:, None]}


def tiled_picture() -> dict[str, Any]:
    """A picture each, of one tile, as Llama 3.2 takes it."""
    return {
        **text(),
        "pixel_values": pictures()["pixel_values"][:, None, None],
        "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(2, 9, 1, 1, dtype=torch.long),
    }


def text_and_patches() -> dict[str, Any]:
    """As SigLIP 2's, beside text with a token for each picture."""
    return {**patches(), **_with_image_tokens(1)}


def qwen_picture() -> dict[str, Any]:
    """Two pictures of 4 x 4 patches, which are merged to 2 x 2."""
    generator = torch.Generator().manual_seed(8)
    ids = _with_image_tokens(4)
    return {
        **ids,
        "mm_token_type_ids": (ids["input_ids"] == _IMAGE).int(),
        "pixel_values": torch.randn(32, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }


def patches() -> dict[str, Any]:
    """Two pictures of 2 x 2 patches as SigLIP 2 takes them, and words."""
    generator = torch.Generator().manual_seed(8)
    return {
        **text(),
        "pixel_values": torch.randn(2, 4, 768, generator=generator),
        "pixel_attention_mask": torch.ones(2, 4, dtype=torch.long),
        "spatial_shapes": torch.tensor([[2, 2]] * 2),
    }


@dataclass(frozen=True)
class FamilyModel:
    """A tiny model of a family.

    known_as: models of it that people use. model, config: transformers' classes. sizes: of the
    tiny one. inputs: what it is called with. full: what is changed in transformers' default
    config, which stands for a model of usual size: fewer layers and experts, so that it is laid
    out in no time.
    """

    known_as: str
    model: str
    config: str
    sizes: dict[str, Any]
    inputs: Inputs = text
    full: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """transformers' class of the model."""
        return getattr(transformers, self.model)

    def build(self) -> Any:
        """The tiny model in bfloat16, random, its biases not zero and its logits apart."""
        torch.manual_seed(0)
        model = self.kind(getattr(transformers, self.config)(**self.sizes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.2)
                elif parameter.ndim > 1 and parameter.std() < 0.05:
                    parameter.normal_(std=0.06)  # initialised for longer rows, or to zeros
        # Not `model.to`, which warns of Llama 4's complex rotations.
        model._apply(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t)
        return model.eval()

    def typical(self) -> dict[str, Any]:
        """config.json of a model of usual size."""
        config = getattr(transformers, self.config)(**self.full)
        return {**config.to_dict(), "architectures": [self.model]}


_HEADS = {"head_dim": 128}
_FEW = {"num_hidden_layers": 4}
_FEW_ROUTED = {"n_routed_experts": 32, "first_k_dense_replace": 1}
_FEW_EXPERTS = {"num_experts": 32}
_FEW_LOCAL = {"num_local_experts": 8}


def _causal(
    name: str, known_as: str, sizes: dict[str, Any], full: dict[str, Any] | None = None
) -> FamilyModel:
    full = {**_FEW, **(full or {})}
    return FamilyModel(known_as, f"{name}ForCausalLM", f"{name}Config", sizes, full=full)


def _generation(name: str, known_as: str, sizes: dict[str, Any], **more: Any) -> FamilyModel:
    model = f"{name}ForConditionalGeneration"
    return FamilyModel(known_as, model, f"{name}Config", sizes, **more)


# By the model type of config.json. DeepSeek V3's layers are V2's with another router, and so on:
# every type has a tiny model, so that its names are those of transformers' own class.
MODELS = {
    "llama": _causal("Llama", "Llama 2 and 3, many others", _TEXT),
    "bitnet": _causal("BitNet", "BitNet b1.58 2B4T in bfloat16", _TEXT),
    "mistral": _causal("Mistral", "Mistral 7B, Mistral Nemo", _TEXT),
    "ministral": _causal("Ministral", "Ministral 8B", _TEXT, full=_HEADS),
    "ministral3": _causal("Ministral3", "Ministral 3", _TEXT),
    "mixtral": _causal("Mixtral", "Mixtral 8x7B and 8x22B", _LOCAL_EXPERTS, full=_FEW_LOCAL),
    "qwen2": _causal("Qwen2", "Qwen 2 and 2.5", _TEXT),
    "qwen2_moe": _causal(
        "Qwen2Moe",
        "Qwen1.5-MoE, Qwen2-57B-A14B",
        {**_EXPERTS, "shared_expert_intermediate_size": 48},
        full=_FEW_EXPERTS,
    ),
    "qwen3": _causal("Qwen3", "Qwen 3", _TEXT),
    "qwen3_moe": _causal("Qwen3Moe", "Qwen3-30B-A3B", _EXPERTS, full=_FEW_EXPERTS),
    "qwen3_next": _causal(
        "Qwen3Next",
        "Qwen3-Next-80B-A3B",
        {**_EXPERTS, **_LINEAR_ATTENTION, "shared_expert_intermediate_size": 48},
        full=_FEW_EXPERTS,
    ),
    "gemma": _causal("Gemma", "Gemma", _TEXT),
    "gemma2": _causal("Gemma2", "Gemma 2", _TEXT),
    "gemma3_text": FamilyModel("Gemma 3 1B", "Gemma3ForCausalLM", "Gemma3TextConfig", _TEXT),
    "phi": _causal("Phi", "Phi 1.5 and 2", _TEXT),
    "phi3": _causal("Phi3", "Phi 3 and 4", _TEXT),
    "phimoe": _causal("Phimoe", "Phi-3.5-MoE", _LOCAL_EXPERTS, full=_FEW_LOCAL),
    "deepseek_v2": _causal(
        "DeepseekV2", "DeepSeek V2, Coder V2", {**_MLA, "topk_method": "greedy"}, full=_FEW_ROUTED
    ),
    "deepseek_v3": _causal("DeepseekV3", "DeepSeek V3, R1, Kimi K2", _MLA, full=_FEW_ROUTED),
    "glm": _causal("Glm", "GLM-4-9B (-hf)", _TEXT),
    "glm4": _causal("Glm4", "GLM-4-0414, GLM-Z1", _TEXT),
    "glm4_moe": _causal("Glm4Moe", "GLM-4.5, 4.6, 4.7", _ROUTED, full=_FEW_ROUTED),
    "cohere": _causal("Cohere", "Command R", _TEXT),
    "cohere2": _causal("Cohere2", "Command R7B, Command A", _TEXT),
    "olmo": _causal("Olmo", "OLMo", _TEXT),
    "olmo2": _causal("Olmo2", "OLMo 2", _TEXT),
    "olmo3": _causal("Olmo3", "OLMo 3", _TEXT),
    "gpt_oss": _causal("GptOss", "gpt-oss in bfloat16", _LOCAL_EXPERTS, full=_FEW_LOCAL),
    "granitemoe": _causal("GraniteMoe", "Granite 3 MoE", _LOCAL_EXPERTS),
    "granitemoehybrid": _causal(
        "GraniteMoeHybrid",
        "Granite 4",
        {
            **_LOCAL_EXPERTS,
            "shared_intermediate_size": 96,
            "layer_types": ["mamba", "attention"],
            **_MAMBA2,
        },
        full={
            "num_local_experts": 8,
            "num_hidden_layers": 4,
            "layer_types": ["mamba"] * 3 + ["attention"],
        },
    ),
    "olmoe": _causal(
        "Olmoe", "OLMoE-1B-7B", {**_EXPERTS, "intermediate_size": 48}, full=_FEW_EXPERTS
    ),
    "granite": _causal("Granite", "Granite 3", _TEXT),
    "smollm3": _causal("SmolLM3", "SmolLM3", _TEXT),
    "exaone4": _causal("Exaone4", "EXAONE 4", _TEXT),
    "ernie4_5": _causal("Ernie4_5", "ERNIE 4.5 0.3B", _TEXT),
    "ernie4_5_moe": _causal(
        "Ernie4_5_Moe",
        "ERNIE 4.5 21B-A3B",
        {
            **_TEXT,
            "moe_intermediate_size": 48,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_layer_start_index": 1,
        },
        full={"moe_num_experts": 32},
    ),
    "seed_oss": _causal("SeedOss", "Seed-OSS-36B", _TEXT),
    "hunyuan_v1_dense": _causal("HunYuanDenseV1", "Hunyuan 0.5B to 7B", _TEXT, full=_HEADS),
    "stablelm": _causal("StableLm", "StableLM 2", _TEXT),
    "nemotron": _causal("Nemotron", "Nemotron-4, Minitron", _TEXT, full={"num_key_value_heads": 8}),
    "lfm2": _causal(
        "Lfm2",
        "LFM2",
        {**_TEXT, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "minimax_m2": _causal("MiniMaxM2", "MiniMax-M2", _LOCAL_EXPERTS, full=_FEW_LOCAL),
    "starcoder2": _causal("Starcoder2", "StarCoder2", _TEXT),
    "falcon": _causal("Falcon", "Falcon 7B and 40B", _WORDS),
    "gpt_neox": _causal("GPTNeoX", "Pythia, GPT-NeoX-20B", _WORDS),
    "opt": _causal(
        "OPT",
        "OPT",
        {**_WORDS, "ffn_dim": 96, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    ),
    "bloom": _causal(
        "Bloom",
        "BLOOM, BLOOMZ",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
    "mpt": _causal(
        "Mpt", "MPT-7B", {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4}
    ),
    "gpt_bigcode": _causal("GPTBigCode", "StarCoder, SantaCoder", _GPT),
    "gpt_neo": _causal(
        "GPTNeo",
        "GPT-Neo, TinyStories",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
        },
        full={"attention_types": [[["global", "local"], 2]]},
    ),
    "gptj": _causal("GPTJ", "GPT-J-6B", {**_GPT, "rotary_dim": 8}),
    "mamba": _causal("Mamba", "Mamba", _SSM),
    "mamba2": _causal(
        "Mamba2",
        "Mamba 2, Codestral Mamba",
        {**_SSM, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    ),
    "falcon_mamba": _causal("FalconMamba", "Falcon-Mamba-7B", _SSM),
    "jamba": _causal(
        "Jamba",
        "Jamba 1.5, Jamba 2",
        {
            **_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 16,
        },
        full={"num_hidden_layers": 8},
    ),
    "t5": _generation("T5", "T5, FLAN-T5", _T5),
    "mt5": _generation("MT5", "mT5", _T5),
    "umt5": _generation("UMT5", "UMT5", _T5),
    "bart": _generation("Bart", "BART", {**_SEQ2SEQ, "max_position_embeddings": 64}),
    "whisper": _generation(
        "Whisper",
        "Whisper",
        {**_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64},
        inputs=sounds,
    ),
    "bert": FamilyModel("BERT", "BertForMaskedLM", "BertConfig", _BERT),
    "roberta": FamilyModel("RoBERTa", "RobertaForMaskedLM", "RobertaConfig", _BERT),
    "xlm-roberta": FamilyModel(
        "XLM-R, BGE-M3, E5", "XLMRobertaForMaskedLM", "XLMRobertaConfig", _BERT
    ),
    "distilbert": FamilyModel(
        "DistilBERT",
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    ),
    "modernbert": FamilyModel("ModernBERT", "ModernBertForMaskedLM", "ModernBertConfig", _BERT),
    "vit": FamilyModel("ViT", "ViTModel", "ViTConfig", _PICTURES, pictures),
    "clip": FamilyModel("CLIP", "CLIPModel", "CLIPConfig", _PAIR, words_and_pictures),
    "siglip": FamilyModel("SigLIP", "SiglipModel", "SiglipConfig", _PAIR, words_and_pictures),
    "siglip2": FamilyModel(
        "SigLIP 2 (NaFlex)",
        "Siglip2Model",
        "Siglip2Config",
        {**_PAIR, "vision_config": {**_SIZES, "num_patches": 16, "patch_size": 16}},
        patches,
    ),
    "qwen2_vl": _generation(
        "Qwen2VL", "Qwen2-VL", _qwen_vl({}, {"embed_dim": 64, "mlp_ratio": 2}), inputs=qwen_picture
    ),
    "qwen2_5_vl": _generation(
        "Qwen2_5_VL",
        "Qwen2.5-VL",
        _qwen_vl({}, {"fullatt_block_indexes": [1], "window_size": 16}),
        inputs=qwen_picture,
    ),
    "qwen3_vl": _generation(
        "Qwen3VL",
        "Qwen3-VL",
        _qwen_vl({}, {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
        inputs=qwen_picture,
    ),
    "qwen3_5": _generation(
        "Qwen3_5",
        "Qwen 3.5",
        _qwen_vl(_LINEAR_ATTENTION, {"num_position_embeddings": 16}),
        inputs=qwen_picture,
    ),
    "qwen3_vl_moe": _generation(
        "Qwen3VLMoe",
        "Qwen3-VL-30B-A3B",
        _qwen_vl(_EXPERTS, {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
        inputs=qwen_picture,
        full={"text_config": {**_FEW, **_FEW_EXPERTS}},
    ),
    "qwen3_5_moe": _generation(
        "Qwen3_5Moe",
        "Qwen3.5-35B-A3B",
        _qwen_vl(
            {**_EXPERTS, **_LINEAR_ATTENTION, "shared_expert_intermediate_size": 48},
            {"num_position_embeddings": 16},
        ),
        inputs=qwen_picture,
        full={"text_config": {**_FEW, **_FEW_EXPERTS}},
    ),
    "gemma3": _generation(
        "Gemma3",
        "Gemma 3 4B to 27B",
        {
            "text_config": _TEXT,
            "vision_config": {**_PICTURES, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            **_IMAGE_TOKENS,
        },
        inputs=text_and_picture(4),
    ),
    "llava": _generation(
        "Llava",
        "LLaVA 1.5",
        {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_PICTURES, "model_type": "clip_vision_model"},
            "image_token_index": _IMAGE,
        },
        inputs=text_and_picture(4),
    ),
    "mistral3": _generation(
        "Mistral3",
        "Mistral Small 3.1 and 3.2",
        {
            "text_config": {**_TEXT, "model_type": "mistral"},
            "vision_config": {**_PICTURES, "model_type": "pixtral"},
            "image_token_index": _IMAGE,
        },
        inputs=lambda: {**text_and_picture(1)(), "image_sizes": torch.tensor([[32, 32]] * 2)},
    ),
    "llama4": _generation(
        "Llama4",
        "Llama 4 Scout and Maverick",
        {
            "text_config": {
                **_TEXT,
                "intermediate_size_mlp": 96,
                "num_local_experts": 2,
                "interleave_moe_layer_step": 2,
            },
            "vision_config": {
                **_PICTURES,
                "intermediate_size": 256,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "vision_output_dim": 64,
            },
            **_IMAGE_TOKENS,
        },
        inputs=text_and_picture(1),
    ),
    "gpt2": FamilyModel("GPT-2", "GPT2LMHeadModel", "GPT2Config", _GPT, full=_FEW),
    "deepseek_v32": _causal("DeepseekV32", "DeepSeek V3.2", _SPARSE_MLA, full=_FEW_ROUTED),
    "mistral4": _causal(
        "Mistral4",
        "Mistral Small 4",
        {name: value for name, value in _MLA.items() if name != "head_dim"},
        full=_FEW_ROUTED,
    ),
    "hy_v4": _causal("HYV4", "Hunyuan (hy_v4)", _SPARSE_MLA, full={"n_routed_experts": 32}),
    "kimi_linear": _causal(
        "KimiLinear",
        "Kimi-Linear-48B-A3B",
        {
            **{
                name: value for name, value in _DENSE_MLA.items() if name != "first_k_dense_replace"
            },
            "q_lora_rank": None,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
        },
        full={"num_local_experts": 32},
    ),
    "granitemoe_swa": _causal(
        "GraniteMoeSWA", "Granite MoE with sliding windows", _LOCAL_EXPERTS, full=_FEW_LOCAL
    ),
    "lfm2_moe": _causal(
        "Lfm2Moe",
        "LFM2-8B-A1B",
        {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        full={"num_experts": 16, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    ),
    "deberta-v2": FamilyModel(
        "DeBERTa v2 and v3",
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "gemma4": _generation(
        "Gemma4",
        "Gemma 4",
        {
            "text_config": {
                **_TEXT,
                "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 16,
                "global_head_dim": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                "num_kv_shared_layers": 0,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 48,
            },
            "vision_config": {**_PICTURES, "num_key_value_heads": 4, "head_dim": 16},
            "audio_config": {
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "output_proj_dims": 48,
                "subsampling_conv_channels": [8, 4],
            },
            "image_token_id": _IMAGE,
        },
        full={
            "text_config": {
                **_FEW,
                "enable_moe_block": True,
                "num_experts": 16,
                "top_k_experts": 2,
                "moe_intermediate_size": 704,
            },
            "vision_config": {},
            "audio_config": {},
        },
    ),
    "nemotron_h": _causal(
        "NemotronH",
        "Nemotron Nano 2 and 3",
        {
            **{name: value for name, value in _TEXT.items() if name != "num_hidden_layers"},
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 2,
            "n_routed_experts": 4,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 48,
            "moe_latent_size": 32,
        },
        full={"num_hidden_layers": None},
    ),
    "muse_spark": _generation(
        "MuseSpark",
        "Muse Spark",
        {
            "text_config": {
                **_TEXT,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "moe_hidden_size": 32,
            },
            "vision_config": {**_SIZES, "patch_size": 4},
            "audio_config": {
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "patch_sizes": [4, 4],
                "num_hidden_layers": 2,
                "out_hidden_size": 64,
            },
            "out_hidden_size": 64,
            "projector_hidden_size": 64,
            "image_token_id": _IMAGE,
            "video_token_id": 93,
            "audio_token_id": 94,
        },
        full={"text_config": {**_FEW, "num_local_experts": 32}},
    ),
    "step3p7": _generation(
        "Step3p7",
        "Step 3.5 and 3.7 Flash",
        {
            "text_config": {
                **_TEXT,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "share_expert_dim": 48,
                "sliding_window": 8,
                "mlp_layer_types": ["dense", "sparse"],
            },
            "vision_config": {
                **_PICTURES,
                "hidden_size": 16,
                "num_attention_heads": 1,
                "mlp_ratio": 4.0,
            },
            "image_token_id": _IMAGE,
        },
        full={"text_config": {"num_hidden_layers": 12}},
    ),
    "aria": _generation(
        "Aria",
        "Aria",
        {
            "text_config": {
                **_TEXT,
                "moe_num_experts": 4,
                "moe_topk": 2,
                "moe_num_shared_experts": 1,
            },
            "vision_config": {**_PICTURES, "model_type": "idefics3_vision"},
            "image_token_index": _IMAGE,
            "projector_patch_to_query_dict": {4: 2},
        },
        inputs=text_and_picture(2),
        full={"text_config": _FEW},
    ),
    "smolvlm": _generation("SmolVLM", "SmolVLM, SmolVLM2", _SMOL, inputs=split_picture),
    "mllama": _generation(
        "Mllama",
        "Llama 3.2 Vision",
        {
            "text_config": {
                **_TEXT,
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "vision_config": {
                "hidden_size": 64,
                "attention_heads": 4,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "intermediate_size": 96,
                "image_size": 32,
                "patch_size": 16,
                "vision_output_dim": 128,
                "intermediate_layers_indices": [1],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_index": _IMAGE,
        },
        inputs=tiled_picture,
    ),
    "glm4v": _generation(
        "Glm4v",
        "GLM-4.1V, GLM-4.6V-Flash",
        _qwen_vl({}, {"image_size": 16, "attention_bias": False}),
        inputs=qwen_picture,
    ),
}

# These go the whole way only where docs/families.md is written (scripts/make_families_table.py):
# the tests hold their names and coverage alone, for their layers are named as others' are.
MORE_MODELS = {
    "mpnet": FamilyModel("MPNet, all-mpnet-base-v2", "MPNetForMaskedLM", "MPNetConfig", _BERT),
    "electra": FamilyModel(
        "ELECTRA", "ElectraForMaskedLM", "ElectraConfig", {**_BERT, "embedding_size": 64}
    ),
    "ernie": FamilyModel("ERNIE", "ErnieForMaskedLM", "ErnieConfig", _BERT),
    "layoutlm": FamilyModel("LayoutLM", "LayoutLMForMaskedLM", "LayoutLMConfig", _BERT),
    "layoutlmv3": FamilyModel(
        "LayoutLMv3",
        "LayoutLMv3ForTokenClassification",
        "LayoutLMv3Config",
        {
            **_BERT,
            "input_size": 32,
            "patch_size": 16,
            "coordinate_size": 8,
            "shape_size": 16,
            "max_2d_position_embeddings": 64,
        },
    ),
    "longformer": FamilyModel(
        "Longformer", "LongformerForMaskedLM", "LongformerConfig", {**_BERT, "attention_window": 4}
    ),
    "xlm-roberta-xl": FamilyModel(
        "XLM-R XL", "XLMRobertaXLForMaskedLM", "XLMRobertaXLConfig", _BERT
    ),
    "albert": FamilyModel(
        "ALBERT", "AlbertForMaskedLM", "AlbertConfig", {**_BERT, "embedding_size": 32}
    ),
    "wav2vec2": FamilyModel("Wav2Vec 2.0", "Wav2Vec2ForCTC", "Wav2Vec2Config", _WAVES, waves),
    "hubert": FamilyModel("HuBERT", "HubertForCTC", "HubertConfig", _WAVES, waves),
    "deit": FamilyModel("DeiT", "DeiTModel", "DeiTConfig", _PICTURES, pictures),
    "beit": FamilyModel("BEiT", "BeitModel", "BeitConfig", _PICTURES, pictures),
    "dinov2_with_registers": FamilyModel(
        "DINOv2 with registers",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        _PICTURES,
        pictures,
    ),
    "audio-spectrogram-transformer": FamilyModel(
        "AST",
        "ASTForAudioClassification",
        "ASTConfig",
        {
            **_SIZES,
            "num_mel_bins": 16,
            "max_length": 32,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        spectrogram,
    ),
    "swin": FamilyModel(
        "Swin",
        "SwinModel",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        pictures,
    ),
    "moonshine": _generation(
        "Moonshine",
        "Moonshine",
        {
            **_TEXT,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "encoder_num_key_value_heads": 4,
            "decoder_num_key_value_heads": 4,
            "decoder_start_token_id": 1,
        },
        inputs=waves,
    ),
    "t5gemma": _generation(
        "T5Gemma",
        "T5Gemma",
        {
            "encoder": {**_TEXT, "sliding_window": 8},
            "decoder": {**_TEXT, "sliding_window": 8, "cross_attention_hidden_size": 64},
            "vocab_size": VOCABULARY,
        },
    ),
    "longt5": _generation("LongT5", "LongT5", {**_T5, "local_radius": 4}),
    "blenderbot-small": _generation(
        "BlenderbotSmall", "Blenderbot small", {**_SEQ2SEQ, "max_position_embeddings": 64}
    ),
    "plbart": _generation("PLBart", "PLBART", {**_SEQ2SEQ, "max_position_embeddings": 64}),
    "speech_to_text": _generation(
        "Speech2Text",
        "S2T",
        {
            **_SEQ2SEQ,
            "input_feat_per_channel": 16,
            "conv_channels": 32,
            "max_source_positions": 64,
            "max_target_positions": 64,
        },
        inputs=frames,
    ),
    "codegen": _causal("CodeGen", "CodeGen", {**_GPT, "rotary_dim": 8}),
    "xglm": _causal(
        "XGLM",
        "XGLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "ffn_dim": 96,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
        full={"num_layers": 4},
    ),
    "biogpt": _causal("BioGpt", "BioGPT", {**_WORDS, "max_position_embeddings": 64}),
    "openai-gpt": FamilyModel("GPT", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _GPT),
    "gemma3n_text": FamilyModel(
        "Gemma 3n",
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {
            **_TEXT,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "laurel_rank": 16,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": 96,
        },
    ),
    "modernbert-decoder": FamilyModel(
        "ModernBERT decoders", "ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", _BERT
    ),
    "afmoe": _causal(
        "Afmoe", "Trinity", {**_EXPERTS, "num_dense_layers": 1}, full={"num_experts": 16}
    ),
    "hy_v3": _causal(
        "HYV3", "Hunyuan 3", {**_EXPERTS, "first_k_dense_replace": 1}, full={"num_experts": 16}
    ),
    "minimax": _causal(
        "MiniMax",
        "MiniMax-Text-01",
        {**_LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
        full=_FEW_LOCAL,
    ),
    "cohere2_vision": _generation(
        "Cohere2Vision",
        "Command A Vision",
        {
            "text_config": {**_TEXT, "model_type": "cohere2"},
            "vision_config": _SIGLIP,
            "image_token_id": _IMAGE,
            "alignment_intermediate_size": 64,
        },
    ),
    "aya_vision": _generation(
        "AyaVision",
        "Aya Vision",
        {
            "text_config": {**_TEXT, "model_type": "cohere2"},
            "vision_config": _SIGLIP,
            "image_token_index": _IMAGE,
            "alignment_intermediate_size": 64,
        },
        full={"vision_config": {"model_type": "siglip_vision_model"}},
    ),
    "vipllava": _generation(
        "VipLlava",
        "ViP-LLaVA",
        {
            "text_config": _LLAMA,
            "vision_config": _CLIP,
            "image_token_index": _IMAGE,
            "vision_feature_layers": [0, 1],
        },
    ),
    "llava_next_video": _generation(
        "LlavaNextVideo",
        "LLaVA-NeXT-Video",
        {
            "text_config": _LLAMA,
            "vision_config": _CLIP,
            "image_token_index": _IMAGE,
            "video_token_index": 93,
            "image_grid_pinpoints": [[32, 32]],
        },
    ),
    "idefics2": _generation(
        "Idefics2",
        "Idefics2",
        {
            "text_config": {**_TEXT, "model_type": "mistral"},
            "vision_config": _PICTURES,
            "perceiver_config": {
                "hidden_size": 64,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 16,
                "num_key_value_heads": 2,
            },
            "image_token_id": _IMAGE,
        },
    ),
    "glm46v": _generation(
        "Glm46V",
        "GLM-4.6V-Flash",
        _qwen_vl(
            {"model_type": "glm4v_text"},
            {"image_size": 16, "attention_bias": False, "model_type": "glm4v_vision"},
        ),
        inputs=qwen_picture,
    ),
    "glm_ocr": _generation(
        "GlmOcr", "GLM-OCR", _qwen_vl({}, {"image_size": 16}), inputs=qwen_picture
    ),
    "qwen2_audio": _generation(
        "Qwen2Audio",
        "Qwen2-Audio",
        {"text_config": _QWEN2, "audio_config": _HEARS, "audio_token_index": _IMAGE},
    ),
    "voxtral": _generation(
        "Voxtral",
        "Voxtral",
        {
            "text_config": _LLAMA,
            "audio_config": {**_SIZES, "num_mel_bins": 16, "max_source_positions": 20},
            "audio_token_id": _IMAGE,
        },
    ),
    "qwen3_asr": _generation(
        "Qwen3ASR",
        "Qwen3-ASR",
        {
            "text_config": {**_TEXT, "model_type": "qwen3"},
            "audio_config": {**_HEARS, "output_dim": 64, "downsample_hidden_size": 8},
            "audio_token_id": _IMAGE,
        },
    ),
    "got_ocr2": _generation(
        "GotOcr2",
        "GOT-OCR 2",
        {
            "text_config": _QWEN2,
            "vision_config": {
                **_SIZES,
                "image_size": 32,
                "patch_size": 16,
                "output_channels": 16,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_dim": 96,
            },
            "image_token_index": _IMAGE,
        },
    ),
    "paddleocr_vl": _generation(
        "PaddleOCRVL",
        "PaddleOCR-VL",
        {
            "text_config": {**_TEXT, "rope_parameters": _ROPE},
            "vision_config": {**_SIZES, "image_size": 32, "patch_size": 16},
            "image_token_id": _IMAGE,
        },
    ),
    "lighton_ocr": _generation(
        "LightOnOcr",
        "LightOnOCR",
        {
            "text_config": {**_TEXT, "model_type": "qwen3"},
            "vision_config": {**_PICTURES, "model_type": "pixtral"},
            "image_token_id": _IMAGE,
        },
    ),
    "zaya": _causal(
        "Zaya", "ZAYA1", {**_EXPERTS, "num_experts_per_tok": 1, "router_hidden_size": 32}
    ),
    "minimax_m3_vl": FamilyModel(
        "MiniMax-M3",
        "MiniMaxM3SparseForConditionalGeneration",
        "MiniMaxM3VLConfig",
        {
            "text_config": {
                **_LOCAL_EXPERTS,
                "dense_intermediate_size": 96,
                "shared_intermediate_size": 48,
                "rotary_dim": 16,
                "mlp_layer_types": ["dense", "sparse"],
                "index_n_heads": 2,
                "index_head_dim": 16,
                "index_block_size": 4,
                "index_topk_blocks": 2,
            },
            "vision_config": {**_PICTURES, "patch_size": 4},
            "projector_hidden_size": 64,
            "image_token_index": _IMAGE,
        },
        full={"text_config": {**_FEW, "num_local_experts": 32}},
    ),
    "arcee": _causal("Arcee", "AFM-4.5B", _TEXT),
    "apertus": _causal("Apertus", "Apertus", _TEXT),
    "cwm": _causal("Cwm", "CWM", _TEXT),
    "vaultgemma": _causal("VaultGemma", "VaultGemma", _TEXT),
    "helium": _causal("Helium", "Helium", _TEXT),
    "diffllama": _causal("DiffLlama", "DiffLlama", _TEXT),
    "jais2": _causal("Jais2", "Jais 2", _TEXT),
    "nanochat": _causal("NanoChat", "nanochat", _TEXT),
    "granite_swa": _causal("GraniteSWA", "Granite with sliding windows", _TEXT),
    "granitemoeshared": _causal(
        "GraniteMoeShared",
        "Granite 3 MoE with a shared expert",
        {**_LOCAL_EXPERTS, "shared_intermediate_size": 48},
        full={"shared_intermediate_size": 1024},
    ),
    "dots1": _causal("Dots1", "dots.llm1", _ROUTED, full={**_FEW_ROUTED, "n_shared_experts": 2}),
    "exaone_moe": _causal(
        "ExaoneMoe",
        "K-EXAONE",
        {
            **_EXPERTS,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        full={"num_experts": 16},
    ),
    "flex_olmo": _causal(
        "FlexOlmo", "FlexOlmo", {**_EXPERTS, "intermediate_size": 48}, full=_FEW_EXPERTS
    ),
    "mimo_v2_flash": _causal(
        "MiMoV2Flash", "MiMo-V2-Flash", _ROUTED, full={"n_routed_experts": 32}
    ),
    "solar_open": _causal("SolarOpen", "Solar Open", _ROUTED, full=_FEW_ROUTED),
    "glm_moe_dsa": _causal("GlmMoeDsa", "GLM-5", _SPARSE_MLA, full=_FEW_ROUTED),
    "glm4_moe_lite": _causal("Glm4MoeLite", "GLM-4.7-Flash", _MLA, full=_FEW_ROUTED),
    "minicpm3": _causal("MiniCPM3", "MiniCPM3-4B", _DENSE_MLA),
    "youtu": _causal("Youtu", "Youtu-LLM", _DENSE_MLA),
    "bamba": _causal("Bamba", "Bamba-9B", {**_TEXT, **_MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": _causal("FalconH1", "Falcon-H1", {**_TEXT, **_MAMBA2, "mamba_d_ssm": 128}),
    "olmo_hybrid": _causal(
        "OlmoHybrid",
        "OLMo Hybrid",
        {**_TEXT, **_LINEAR_ATTENTION, "linear_num_key_heads": 4},
    ),
    "m2m_100": _generation(
        "M2M100", "M2M100, NLLB-200", {**_SEQ2SEQ, "max_position_embeddings": 64}
    ),
    "mbart": _generation("MBart", "mBART", {**_SEQ2SEQ, "max_position_embeddings": 64}),
    "marian": FamilyModel(
        "Marian, OPUS-MT",
        "MarianMTModel",
        "MarianConfig",
        {**_SEQ2SEQ, "max_position_embeddings": 64},
    ),
    "pegasus": _generation("Pegasus", "Pegasus", {**_SEQ2SEQ, "max_position_embeddings": 64}),
    "blenderbot": _generation(
        "Blenderbot", "Blenderbot", {**_SEQ2SEQ, "max_position_embeddings": 64}
    ),
    "camembert": FamilyModel("CamemBERT", "CamembertForMaskedLM", "CamembertConfig", _BERT),
    "dinov2": FamilyModel("DINOv2", "Dinov2Model", "Dinov2Config", _PICTURES, pictures),
    "dinov3_vit": FamilyModel("DINOv3", "DINOv3ViTModel", "DINOv3ViTConfig", _PICTURES, pictures),
    "llava_next": _generation(
        "LlavaNext",
        "LLaVA-NeXT",
        {
            "text_config": _LLAMA,
            "vision_config": _CLIP,
            "image_token_index": _IMAGE,
            "image_grid_pinpoints": [[32, 32]],
        },
    ),
    "llava_onevision": _generation(
        "LlavaOnevision",
        "LLaVA-OneVision",
        {
            "text_config": _QWEN2,
            "vision_config": _SIGLIP,
            "image_token_index": _IMAGE,
            "image_grid_pinpoints": [[32, 32]],
        },
    ),
    "paligemma": _generation(
        "PaliGemma",
        "PaliGemma 1 and 2",
        {
            "text_config": {**_TEXT, "model_type": "gemma"},
            "vision_config": _SIGLIP,
            "image_token_index": _IMAGE,
            "projection_dim": 64,
        },
        inputs=text_and_picture(4),
    ),
    "internvl": _generation(
        "InternVL",
        "InternVL 3 (-hf)",
        {
            "text_config": _QWEN2,
            "vision_config": {**_PICTURES, "image_size": [32, 32], "patch_size": [16, 16]},
            "image_token_id": _IMAGE,
            "downsample_ratio": 0.5,
        },
        inputs=text_and_picture(1),
    ),
    "idefics3": _generation("Idefics3", "Idefics3", _SMOL, inputs=split_picture),
    "glm4v_moe": _generation(
        "Glm4vMoe",
        "GLM-4.5V, GLM-4.6V",
        _qwen_vl(
            {**_ROUTED, "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0}},
            {"image_size": 16},
        ),
        inputs=qwen_picture,
        full={"text_config": {**_FEW, **_FEW_ROUTED}},
    ),
    "lfm2_vl": _generation(
        "Lfm2Vl",
        "LFM2-VL",
        {
            "text_config": {
                **_TEXT,
                "layer_types": ["conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
                "model_type": "lfm2",
            },
            "vision_config": {
                **_SIZES,
                "num_patches": 16,
                "patch_size": 16,
                "model_type": "siglip2_vision_model",
                "vision_use_head": False,
            },
            "image_token_id": _IMAGE,
            "downsample_factor": 2,
        },
        inputs=text_and_patches,
    ),
}
ALL_MODELS = {**MODELS, **MORE_MODELS}
