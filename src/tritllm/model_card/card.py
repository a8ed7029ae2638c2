"""The model card (README.md) of a quantized model: the source's licence, and what was done."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from tritllm.codec import to_decibel
from tritllm.errors import FormatError
from tritllm.format.manifest import read_manifest
from tritllm.format.names import CONFIG
from tritllm.format.safetensors_header import ITEM_BYTES
from tritllm.storage.shard_writer import write_atomically

TAGS = ["quantization", "ternary", "balanced-ternary", "tritllm"]
_LLAMA = {
    "llama2": ("Llama 2", "https://ai.meta.com/llama/license/"),
    "llama3": ("Meta Llama 3", "https://www.llama.com/llama3/license/"),
    "llama3.1": ("Llama 3.1", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": ("Llama 3.2", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": ("Llama 3.3", "https://www.llama.com/llama3_3/license/"),
}
_KEPT_IN_WORDS = {
    "lm_head": "`lm_head`",
    "embedding": "token embeddings",
    "norm": "all `*_norm` layers",
    "bias": "biases",
    "MoE router": "MoE routers",
}


@dataclass(frozen=True)
class Licence:
    """The licence as a card's front matter states it; "unknown" where it states none."""

    id: str = "unknown"
    name: str | None = None
    link: str | None = None

    @property
    def is_llama(self) -> bool:
        """Whether one of Meta's community licences applies, with their naming rules."""
        return self.id in _LLAMA


def licence_of_card(text: str | None) -> Licence:
    """The licence in a README.md; unknown where there is no card, no front matter or no licence."""
    data = _front_matter(text)
    identifier, link = data.get("license"), data.get("license_link")
    if not isinstance(identifier, str) or not identifier:
        return Licence()
    if identifier in _LLAMA and not str(link).startswith("http"):
        link = _LLAMA[identifier][1]
    return Licence(identifier, data.get("license_name"), link)


def base_model_of_card(text: str | None) -> str | None:
    """The base model(s) a README.md names, or None."""
    base = _front_matter(text).get("base_model")
    if isinstance(base, list):
        return ", ".join(map(str, base))
    return None if base is None else str(base)


def architectures_of(config: dict[str, Any]) -> list[str]:
    """The architectures that a config.json names; none where it holds anything else."""
    names = config.get("architectures")
    return [str(name) for name in names if name] if isinstance(names, list) else []


def _front_matter(text: str | None) -> dict[str, Any]:
    if not text or not text.startswith("---"):
        return {}
    try:
        data: dict[str, Any] = ModelCard(text, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, YAMLError):
        return {}
    return data


def licence_notice(licence: Licence) -> str | None:
    """The attribution notice Meta's licences ask to pass on, or None."""
    if not licence.is_llama:
        return None
    name = _LLAMA[licence.id][0]
    return (
        f"{name} is licensed under the {name} Community License, "
        "Copyright (c) Meta Platforms, Inc. All Rights Reserved.\n"
    )


def title_of(source: str, config: str, licence: Licence) -> str:
    """Name of the quantized model; Meta's licences want it to begin with Llama."""
    title = f"{source.split('/')[-1]}-trit-{config}"
    return title if not licence.is_llama or title.startswith("Llama") else f"Llama-{title}"


def write_card(folder: str | Path) -> Path:
    """Write README.md of a packed folder anew from its manifest; the licence it states stays.

    Returns the file. Raises FormatError for a folder that is not packed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        raise FormatError(f"{folder / CONFIG}: missing, or not valid JSON") from None
    card = model_card(manifest, config, read_licence(folder), "packed")
    write_atomically(folder / "README.md", card.encode())
    return folder / "README.md"


def read_licence(folder: Path) -> Licence:
    """The licence that a folder's README.md states."""
    readme = folder / "README.md"
    return licence_of_card(readme.read_text("utf-8", "replace") if readme.is_file() else None)


def model_card(
    manifest: dict[str, Any],
    config: dict[str, Any],
    licence: Licence,
    kind: str,
    planes: int | None = None,
) -> str:
    """The README.md of a folder.

    manifest: the content of tritllm.json. config: that of config.json.
    kind: "packed" or "model" (dequantized).
    planes: how many planes were read of deeper matrices, if not all.
    """
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
        *(_load_model(title, causal) if kind == "model" else _load_packed(title)),
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
        "| Method | Uniform PTQ, no calibration |"
        if len(depths) == 1
        else "| Method | PTQ with a depth for each layer, no calibration |",
        f"| Quantized layers | {facts.quantized} 2D linear matrices, "
        f"{facts.coverage_percent:.1f} % of the parameters |",
        f"| {_kept_label(manifest, kind)} | {_kept(facts.kept)} |",
        f"| Codec | tritllm {manifest['codec']} |",
        f"| SQNR | {_sqnr(facts)} |",
        f"| Size | {_megabytes(facts.packed_bytes)} packed, "
        f"{_megabytes(facts.model_bytes)} dequantized |",
        "",
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


@dataclass(frozen=True)
class Measures:
    """Figures that follow from a manifest. depths: weights at each depth."""

    depths: dict[int, int]
    quantized: int
    kept: dict[str, int]
    parameters: int
    packed_bytes: int
    model_bytes: int
    file_bits: float
    sqnr_mean_db: float | None
    sqnr_lowest_db: float | None

    @property
    def coverage_percent(self) -> float:
        """Quantized share of the parameters."""
        return 100 * sum(self.depths.values()) / self.parameters

    @property
    def information_bits(self) -> float:
        """(d + 3/16) log2 3, over the quantized weights."""
        total = sum(self.depths.values())
        return sum(n * (d + 3 / 16) * math.log2(3) for d, n in self.depths.items()) / total


def measure(manifest: dict[str, Any]) -> Measures:
    """Sizes, bits a weight and mean SQNR of a packed checkpoint."""
    depths: Counter[int] = Counter()
    kept: Counter[str] = Counter()
    decibels: list[float] = []
    quantized_bytes = kept_bytes = kept_parameters = kept_model_bytes = 0
    floats = ("F16", "BF16", "F32")
    for tensor in manifest["tensors"].values():
        size = math.prod(tensor["shape"])
        nbytes = size * ITEM_BYTES[tensor["dtype"]]
        if "kept" in tensor:
            kept[tensor["kept"]] += 1
            kept_bytes += nbytes
            kept_parameters += size
            kept_model_bytes += 2 * size if tensor["dtype"] in floats else nbytes
        else:
            quantized_bytes += nbytes
        if "depth" in tensor:
            depths[tensor["depth"]] += tensor["shape"][1] * tensor["in_features"]
            if tensor["nmse"]:
                decibels.append(to_decibel(tensor["nmse"]))
    weights = sum(depths.values())
    return Measures(
        depths=dict(depths),
        quantized=sum("depth" in tensor for tensor in manifest["tensors"].values()),
        kept=dict(kept),
        parameters=weights + kept_parameters,
        packed_bytes=quantized_bytes + kept_bytes,
        model_bytes=2 * weights + kept_model_bytes,
        file_bits=8 * quantized_bytes / weights,
        sqnr_mean_db=sum(decibels) / len(decibels) if decibels else None,
        sqnr_lowest_db=min(decibels, default=None),
    )


def _load_model(title: str, causal: bool) -> list[str]:
    auto_class = "AutoModelForCausalLM" if causal else "AutoModel"
    return [
        "```python",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f'model = {auto_class}.from_pretrained("{title}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
        "```",
        "",
        "The weights are dequantized for stock `transformers`: the size on disk is that of a "
        "16-bit model. The packed folder beside it holds the same weights as trits.",
    ]


def _load_packed(title: str) -> list[str]:
    return [
        "```bash",
        "pip install tritllm",
        f"tritllm verify {title}",
        f'tritllm dequantize {title} model   # then from_pretrained("model") in stock transformers',
        "```",
        "",
        "or one matrix at a time, reading as many planes as wanted:",
        "",
        "```python",
        "from tritllm import PackedCheckpoint",
        "",
        f'checkpoint = PackedCheckpoint("{title}")',
        "name = checkpoint.quantized[0]",
        "weight = checkpoint.tensor(name).decode()  # float32 [out_features, in_features]",
        "```",
    ]


def _built_with(licence: Licence) -> str:
    return "Meta Llama 3" if licence.id == "llama3" else "Llama"


def _revision(manifest: dict[str, Any]) -> str:
    revision = manifest["source"]["revision"]
    return f" at `{revision[:12]}`" if revision else ""


def _kept_label(manifest: dict[str, Any], kind: str) -> str:
    if kind == "packed":
        return "Kept as in the source"
    return "Kept BF16" if manifest["dequantized_dtype"] == "bfloat16" else "Kept FP16"


def _kept(reasons: dict[str, int]) -> str:
    return ", ".join(_KEPT_IN_WORDS.get(r, f"{r} ({n})") for r, n in sorted(reasons.items())) or "-"


def _sqnr(facts: Measures) -> str:
    if facts.sqnr_mean_db is None or facts.sqnr_lowest_db is None:
        return "exact"
    return f"{facts.sqnr_mean_db:.2f} dB mean over matrices, {facts.sqnr_lowest_db:.2f} dB lowest"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


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
