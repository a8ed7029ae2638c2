"""What int8 activations and a packed output layer cost in perplexity.

    python benchmarks/activations.py [--model FOLDER] [--text FILE] [--depths 1 2 3 4] [--threads 1]

Quantizes a model (by default the demo's, on its held-out text) and scores it at each depth by the
protocol of docs/evaluation.md, in float32: dequantized, packed with float32 activations, packed
with int8 activations by groups and by superblocks, and by groups with lm_head at depth 4.
Divergence is from the dequantized model.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers

from tritllm import native, quantize
from tritllm.evaluation.divergence import Scores, compare
from tritllm.integrations.transformers import load_model
from tritllm.ops.backends import cpu
from tritllm.ops.trit_linear import TritLinear

DATA = Path(str(files("tritllm") / "demo_data"))
COLUMNS = ("packed, exact", "int8 by groups", "int8 by superblocks", "groups, lm_head at depth 4")
HEAD_DEPTH = 4


class InMode:
    """A packed model whose kernels run in one mode of TRITLLM_LINEAR, and of TRITLLM_PREFILL."""

    def __init__(self, mode: str, model: Any, prefill: str = "groups") -> None:
        self.mode, self.model, self.prefill = mode, model, prefill

    def __call__(self, **inputs: Any) -> Any:
        os.environ["TRITLLM_PREFILL"] = self.prefill
        cpu.superblock_rows.cache_clear()
        for layer in self.model.modules():
            if isinstance(layer, TritLinear):
                layer.mode = self.mode
        return self.model(**inputs)


def scores(folder: Path, ids: list[int]) -> dict[str, Scores]:
    """Of the model/ and packed/ in `folder`: dequantized under "float", and COLUMNS."""
    how = {"dtype": torch.float32}
    dequantized = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", **how)
    packed = load_model(folder / "packed", **how)
    with_head = load_model(folder / "packed", lm_head_depth=HEAD_DEPTH, **how)
    candidates = (
        InMode("exact", packed),
        InMode("int8", packed),
        InMode("int8", packed, "superblocks"),
        InMode("int8", with_head),
    )
    return compare(dequantized, dict(zip(COLUMNS, candidates, strict=True)), ids)


def row(depth: int, found: dict[str, Scores]) -> str:
    base = found["float"].perplexity
    cells = [f"{depth}", f"{base:.3f}"]
    for score in (found[name] for name in COLUMNS):
        change = round(100 * (score.perplexity / base - 1), 2) + 0.0  # no negative zero
        cells.append(f"{score.perplexity:.3f} ({change:+.2f} %), {score.mean_kl:.0e}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DATA / "model", help="a float model's folder")
    parser.add_argument("--text", type=Path, default=DATA / "heldout.txt")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not native.available():
        sys.exit(f"no native kernels to measure: {cpu.describe()}")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    text = arguments.text.read_text("utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    print(f"{native.isa('products')}, {len(ids)} tokens; perplexity and divergence in nats\n")
    print(f"| depth | dequantized | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}")
    with tempfile.TemporaryDirectory() as out:
        configs = [f"uniform-d{depth}" for depth in arguments.depths]
        quantize(str(arguments.model), configs, out, threads=arguments.threads)
        for depth, config in zip(arguments.depths, configs, strict=True):
            print(row(depth, scores(Path(out) / config, ids)), flush=True)


if __name__ == "__main__":
    main()
