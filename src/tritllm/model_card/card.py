"""The model card (README.md) of a quantized model: the source's licence, and what was done."""

from __future__ import annotations

import re
from typing import Any

from tritllm.extras import require
from tritllm.format.records import TRAINED
from tritllm.model_card.encoder import lines_of_encoder
from tritllm.model_card.figures import Measures, architectures_of, measure
from tritllm.model_card.licence import Licence, licence_notice
from tritllm.quantities import size

TAGS = ["quantization", "ternary", "balanced-ternary", "tritllm"]
_KEPT_IN_WORDS = {
    "lm_head": "`lm_head`",
    "embedding": "token embeddings",
    "norm": "all `*_norm` layers",
    "bias": "biases",
    "MoE router": "MoE routers",
}


def title_of(source: str, config: str, licence: Licence) -> str:
    """Name of the quantized model; Meta's licences want it to begin with Llama."""
    title = f"{source.split('/')[-1]}-trit-{config}"
    return title if not licence.is_llama or title.startswith("Llama") else f"Llama-{title}"


def model_card(
    manifest: dict[str, Any],
    config: dict[str, Any],
    licence: Licence,
    kind: str,
    planes: int | None = None,
    picture: str | None = None,
) -> str:
    """The README.md of a folder.

    manifest: the content of tritllm.json. config: that of config.json.
    kind: "packed" or "model" (dequantized).
    planes: how many planes were read of deeper matrices, if not all.
    picture: name of a picture of the layers in the folder.
    """
    require("writing a model card", "quantize", "huggingface_hub", "yaml")
    from huggingface_hub import ModelCardData

    source = manifest["source"]["model"]
    on_hub = manifest["source"]["revision"] is not None
    title = title_of(source, manifest["config"], licence)
    architecture = next(iter(architectures_of(config)), "")
    causal = architecture.endswith("ForCausalLM") or "LMHead" in architecture
    link = f"[`{source}`](https://huggingface.co/{source})" if on_hub else f"`{source}`"
    facts = measure(manifest)
    depths = sorted(facts.depths)
    depth = " and ".join(f"d={d}" for d in depths)
    levels = " and ".join(str(3**d) for d in depths)
    data = ModelCardData(
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        base_model=source if on_hub else None,
        base_model_relation="quantized" if on_hub else None,
        tags=TAGS,
        library_name="transformers" if kind == "model" else "tritllm",
        pipeline_tag="text-generation" if causal else None,
    )
    lines = ["---", data.to_yaml().strip(), "---", "", f"# {title}", ""]
    if licence.is_llama:
        lines += [f"**Built with {_built_with(licence)}**", ""]
    lines += [
        f"Balanced ternary quantization of {link} at depth **{depth}** "
        f"({levels} levels per weight, **{facts.information_bits:.2f} bits per weight**).",
        "",
        "## Quick load",
        "",
        *(_load_model(title, causal) if kind == "model" else _load_packed(title, causal)),
        "",
        "## Quantization details",
        "",
        "| Field | Value |",
        "|---|---|",
        f"| Source model | {link}{_revision(manifest)} |",
        f"| Depth | {depth} ({levels} levels) |",
        *([f"| Planes read | the {planes} most significant |"] if planes else []),
        f"| Bits per weight | {facts.information_bits:.2f} (information), "
        f"{facts.file_bits:.2f} (in the packed file) |",
        "| Group size | 16 |",
        "| Scale codebook | 27-entry log-spaced (scale_depth=3) |",
        f"| Method | {_method(facts, manifest)} |",
        f"| Quantized layers | {facts.quantized} 2D linear matrices, "
        f"{facts.coverage_percent:.1f} % of the parameters |",
        *_kept_rows(manifest, kind, facts.kept),
        f"| Codec | tritllm {manifest['codec']} |",
        *_encoder_rows(manifest),
        f"| SQNR | {_sqnr(facts)} |",
        f"| Size | {size(facts.packed_bytes)} packed, {size(facts.model_bytes)} dequantized |",
        "",
        *([f"![Depth and error of each layer]({picture})", ""] if picture else []),
        "## Licence",
        "",
        _licence_text(licence),
        "",
        "## Citation",
        "",
        "The codec follows",
        "",
        "```",
        "@article{stentzel2026ternaryptq,",
        "  title  = {Balanced Ternary Post-Training Quantization for Large Language Models},",
        "  author = {Stentzel, Eric},",
        "  year   = 2026,",
        "  note   = {Entrit Systems}",
        "}",
        "```",
        "",
        "## Reproducibility",
        "",
        "```bash",
        manifest["command"],
        "```",
    ]
    return "\n".join(lines) + "\n"


def _from_pretrained(title: str, causal: bool) -> list[str]:
    auto_class = "AutoModelForCausalLM" if causal else "AutoModel"
    return [
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f'model = {auto_class}.from_pretrained("{title}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
    ]


def _load_model(title: str, causal: bool) -> list[str]:
    return [
        "```python",
        *_from_pretrained(title, causal),
        "```",
        "",
        "The weights are dequantized for stock `transformers`: the size on disk is that of a "
        "16-bit model. The packed folder beside it holds the same weights as trits.",
    ]


def _load_packed(title: str, causal: bool) -> list[str]:
    commands = [
        "",
        "```bash",
        f'tritllm generate {title} --prompt "Once upon a time"',
        f"tritllm serve {title}   # OpenAI-compatible; needs 'tritllm[serve]'",
        "```",
    ]
    return [
        "The packed weights run as they are, on CPUs inside `transformers`. After "
        "`pip install 'tritllm[transformers]'`:",
        "",
        "```python",
        "import tritllm  # lets transformers load packed weights",
        *_from_pretrained(title, causal),
        "```",
        *(commands if causal else []),
        "",
        "Or prove the folder, and dequantize it to 16 bits for stock `transformers`:",
        "",
        "```bash",
        f"tritllm verify {title}",
        f"tritllm dequantize {title} model",
        "```",
    ]


def _built_with(licence: Licence) -> str:
    return "Meta Llama 3" if licence.id == "llama3" else "Llama"


def _revision(manifest: dict[str, Any]) -> str:
    revision = manifest["source"]["revision"]
    return f" at `{revision[:12]}`" if revision else ""


def _method(facts: Measures, manifest: dict[str, Any]) -> str:
    depths = "Uniform PTQ" if len(facts.depths) == 1 else "PTQ with a depth for each layer"
    chosen = ", calibrated" if lines_of_encoder(manifest.get("encoder", {})) else ", no calibration"
    return depths + chosen


def _kept_rows(manifest: dict[str, Any], kind: str, reasons: dict[str, int]) -> list[str]:
    trained = {r.removesuffix(TRAINED): n for r, n in reasons.items() if r.endswith(TRAINED)}
    rest = {r: n for r, n in reasons.items() if not r.endswith(TRAINED)}
    rows = [f"| {_kept_label(manifest, kind)} | {_kept(rest)} |"]
    return rows + ([f"| Not quantized, but trained | {_kept(trained)} |"] if trained else [])


def _kept_label(manifest: dict[str, Any], kind: str) -> str:
    if kind == "packed":
        return "Kept as in the source"
    return "Kept BF16" if manifest["dequantized_dtype"] == "bfloat16" else "Kept FP16"


def _kept(reasons: dict[str, int]) -> str:
    return ", ".join(_KEPT_IN_WORDS.get(r, f"{r} ({n})") for r, n in sorted(reasons.items())) or "-"


def _encoder_rows(manifest: dict[str, Any]) -> list[str]:
    lines = lines_of_encoder(manifest.get("encoder", {}))
    return [f"| Digits chosen | {'; '.join(lines)} |"] if lines else []


def _sqnr(facts: Measures) -> str:
    if facts.sqnr_mean_db is None or facts.sqnr_lowest_db is None:
        return "exact"
    return f"{facts.sqnr_mean_db:.2f} dB mean over matrices, {facts.sqnr_lowest_db:.2f} dB lowest"


def _licence_text(licence: Licence) -> str:
    if licence.is_llama:
        notice = (licence_notice(licence) or "").strip()
        return f"{notice} Licence: [{licence.id}]({licence.link})."
    if licence.id == "unknown":
        return (
            "Unknown: the source states none. Ask its authors before you use or share this model."
        )
    name = re.sub(r"\s+", " ", licence.name or licence.id)
    return f"That of the source: {f'[{name}]({licence.link})' if licence.link else name}."
