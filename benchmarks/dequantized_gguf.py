"""What llama.cpp's own converter makes of a dequantized folder: sizes and divergence.

    pip install -e '.[gguf]' sentencepiece
    python benchmarks/dequantized_gguf.py --llama-cpp LLAMA_CPP --model MODEL --text HELD_OUT \
        --scratch DIR [--depths 2,4] [--pre qwen2]

LLAMA_CPP is a source tree of llama.cpp, for its convert_hf_to_gguf.py and gguf-py, and must have
llama-quantize built in build/bin or below --llama-quantize. The model is quantized at each depth;
the dequantized folder becomes a GGUF in F16 and Q8_0 by the converter, and in Q6_K by
llama-quantize from the F16. `tritllm eval` measures packed folder and GGUFs beside the model.

The converter knows the tokenizers of published models by a hash. --pre names the pre-tokenizer of
another, which its authors would add to the converter's list.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

TYPES = ("F16", "Q8_0", "Q6_K")
CONVERT = """
import sys
folder, pre = sys.argv[1:3]
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[3:]]
sys.path.insert(0, folder)
if pre:
    from conversion import base
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def run(*command: object, **environment: str) -> None:
    """Run a command; its output is shown where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command[:4]} ...: exit code {done.returncode}\n{done.stdout}")


def convert(options: argparse.Namespace, model: Path, out: Path) -> list[Path]:
    """GGUFs of a dequantized folder, in TYPES."""
    made = [out / f"{name}.gguf" for name in TYPES]
    out.mkdir(parents=True, exist_ok=True)
    for path, name in zip(made[:2], ("f16", "q8_0"), strict=True):
        run(sys.executable, "-c", CONVERT, options.llama_cpp, options.pre, model,
            "--outtype", name, "--outfile", path)  # fmt: skip
    program = options.llama_quantize or options.llama_cpp / "build/bin/llama-quantize"
    run(program, made[0], made[2], "Q6_K", "2", LD_LIBRARY_PATH=str(program.parent))
    return made


def show(figures: dict) -> None:
    """The table of docs/gguf.md."""
    print("| | file | bits | mean KL | PPL ratio |\n|---|---|---|---|---|")
    for model in figures["models"]:
        size, found = model["size"], model["statistics"]
        kl = found["kl"]["mean"]
        bits = size["weight_bits"] or size["parameter_bits"]
        print(
            f"| {model['name']} | {size['file_bytes'] / 1e6:.2f} MB | {bits:.2f} "
            f"| {kl['value']:.6f} ± {kl['error']:.6f} "
            f"| {found['ratio']['value']:.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--depths", default="2,4")
    parser.add_argument("--pre", default="")
    parser.add_argument("--context", default="256")
    parser.add_argument("--windows", default="64")
    options = parser.parse_args()
    tritllm = [sys.executable, "-m", "tritllm"]
    configs = [f"uniform-d{depth}" for depth in options.depths.split(",")]
    out, figures = options.scratch / "out", options.scratch / "figures.json"
    run(*tritllm, "quantize", "--model", options.model, "--configs", ",".join(configs),
        "--out", out)  # fmt: skip
    measured: list[Path] = []
    for config in configs:
        ggufs = convert(options, out / config / "model", options.scratch / "gguf" / config)
        measured += [out / config / "packed", out / config / "model", *ggufs]
    run(*tritllm, "eval", *measured, "--reference", options.model, "--text", options.text,
        "--context", options.context, "--windows", options.windows, "--json", figures)  # fmt: skip
    show(json.loads(figures.read_text("utf-8")))


if __name__ == "__main__":
    main()
