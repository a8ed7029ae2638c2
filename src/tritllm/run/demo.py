"""Quantize the demo model at four depths in one pass, prove, measure, and let it speak."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tritllm.checkpoint.verify import verify
from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.quantizer.configs import CONFIG_NAMES
from tritllm.quantizer.quantize import quantize
from tritllm.quantizer.report import peak_memory_bytes
from tritllm.quantizer.shard_pass import Progress

SEED = 2026
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. The float model has no bits, SQNR or verdict of its own."""

    name: str
    bits_per_weight: float
    file_bytes: int
    sqnr_db: float | None
    perplexity: float
    mean_kl: float
    sample: str
    verified: str


@dataclass(frozen=True)
class DemoResult:
    """Rows (the float model first), the plot's path, and what the run cost."""

    rows: list[Row]
    prompt: str
    plot: Path
    seconds: dict[str, float]
    peak_memory_bytes: int | None


def demo(
    out: str | Path = Path("demo-out"),
    *,
    model: str | Path | None = None,
    text: str | Path | None = None,
    prompt: str = "And the LORD said unto",
    on_progress: Callable[[Progress], None] | None = None,
) -> DemoResult:
    """Run the demo; an existing `out` of an earlier demo is written anew.

    Args:
        out: output folder; the plot goes to out/perplexity.png.
        model: a causal model folder; default is the model that ships with tritllm.
        text: held-out text to measure on; default is the one that ships.
        prompt: what each depth continues.
        on_progress: passed to `quantize`.

    Raises TritError where torch, transformers or matplotlib is missing, or `out` is not ours.
    """
    require("the demo", "demo", "matplotlib", "torch", "transformers", "filelock")
    import transformers

    out = Path(out)
    _clear(out)
    data = files("tritllm") / "demo_data"
    with as_file(data) as folder:
        source = Path(model) if model else folder / "model"
        heldout = Path(text) if text else folder / "heldout.txt"
        started = time.monotonic()
        reports = quantize(str(source), CONFIG_NAMES, out / "configs", on_progress=on_progress)
        quantized = time.monotonic()
        for report in reports:
            verify(out / "configs" / report["config"] / "packed")  # raises at the first fault
        verified = time.monotonic()

        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        float_model = _load(transformers, source)
        models = {
            report["config"]: _load(transformers, out / "configs" / report["config"] / "model")
            for report in reports
        }
        ids = tokenizer(heldout.read_text("utf-8"), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        rows = _measure(reports, float_model, models, ids, tokenizer, prompt)
    measured = time.monotonic()
    plot = _plot(out, rows, source.name if model else "demo model")
    seconds = {
        "quantize": quantized - started,
        "verify": verified - quantized,
        "measure": measured - verified,
    }
    return DemoResult(rows, prompt, plot, seconds, peak_memory_bytes())


def _clear(out: Path) -> None:
    """Remove an earlier demo's results, and nothing else."""
    if not out.exists():
        return
    foreign = [
        path.name for path in out.iterdir() if path.name not in ("configs", "perplexity.png")
    ]
    if foreign:
        raise TritError(
            f"{out}: holds {foreign[0]}, not of a demo; choose another folder with --out"
        )
    shutil.rmtree(out)


def _load(transformers: Any, folder: Path) -> Any:
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _measure(
    reports: list[dict[str, Any]],
    float_model: Any,
    models: dict[str, Any],
    ids: list[int],
    tokenizer: Any,
    prompt: str,
) -> list[Row]:
    from tritllm.evaluation.divergence import compare

    scores = compare(float_model, models, ids)
    rows = [
        Row(
            "float16",
            16.0,
            reports[0]["model_bytes"],
            None,
            scores["float"].perplexity,
            0.0,
            sample(float_model, tokenizer, prompt),
            "-",
        )
    ]
    for report in reports:
        name = report["config"]
        rows.append(
            Row(
                name,
                report["bits_per_weight"]["quantized"],
                report["packed_bytes"],
                report["sqnr_db"]["mean"],
                scores[name].perplexity,
                scores[name].mean_kl,
                sample(models[name], tokenizer, prompt),
                "ok",
            )
        )
    return rows


def sample(model: Any, tokenizer: Any, prompt: str) -> str:
    """One line the model continues `prompt` with, sampled with a fixed seed."""
    import torch

    torch.manual_seed(SEED)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=True,
        temperature=0.7,
        top_k=40,
        pad_token_id=tokenizer.eos_token_id,
    )
    continuation = output[0][inputs["input_ids"].shape[1] :]
    text = str(tokenizer.decode(continuation, skip_special_tokens=True))
    return " ".join(text.split())


def _plot(out: Path, rows: list[Row], name: str) -> Path:
    from tritllm.evaluation.plot import plot_perplexity

    path = out / "perplexity.png"
    points = [
        (row.name.removeprefix("uniform-"), row.bits_per_weight, row.perplexity) for row in rows
    ]
    plot_perplexity(path, points[1:], rows[0].perplexity, f"{name}: what a depth costs")
    return path
