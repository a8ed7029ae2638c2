"""What calibrating costs: a few blocks of a published model's shape, extrapolated to all of it.

    python benchmarks/calibrate.py qwen2.5-0.5b --tokens 65536 --measured-tokens 8192

Writes a checkpoint of random weights with `--blocks` blocks, calibrates it on random text, and
prints the seconds of products (which grow with the tokens) and of encoding (which do not), the rate
of the products that the method needs, beside torch's own product of large square matrices in the
same run, and the time for every block and all `--tokens`. The activations are those of random
weights; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from make_random_checkpoint import SHAPES

from tritllm.calibration.calibrator import TextCalibrator
from tritllm.evaluation.corpus import read_text
from tritllm.quantizer.configs import parse_config
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.plan import make_plan
from tritllm.quantizer.report import peak_memory_bytes
from tritllm.quantizer.source import open_source
from tritllm.storage.model_files import open_files

WORDS = 256
SQUARE = 4096  # of the largest matrices that torch's own product is timed on
LONG_ENOUGH = 0.25  # seconds


def write_model(folder: Path, shape: str, blocks: int) -> None:
    script = Path(__file__).with_name("make_random_checkpoint.py")
    command = [sys.executable, str(script), shape, str(folder), "--layers", str(blocks)]
    subprocess.run([*command, "--vocabulary", str(WORDS)], check=True, stdout=subprocess.DEVNULL)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bytewise = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[])
    )
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(folder)


def needed_flop(shape: str, configs: int) -> float:
    """Of the products that the method needs, for a token and a block; attention not counted.

    A forward of each stream; half a K x K product for each Hessian; for the target K x K where
    inputs are compared, and where sums are, N x K for the float weights' output and as much again.
    """
    hidden, _, heads, kv_heads, inner, *_ = SHAPES[shape]
    kv = hidden // heads * kv_heads
    weights = hidden * (2 * hidden + 2 * kv) + 3 * hidden * inner
    hessians = (3 * hidden**2 + inner**2) / 2
    targets = 2 * hidden**2 + 2 * hidden * hidden + 2 * hidden * inner
    return 2 * (weights + configs * (weights + hessians + targets))


def own_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP a second of torch's product of square matrices: the best of three.

    A processor without bfloat16 products may need minutes for large ones, so that a small product
    decides how large they are.
    """
    size = SQUARE // 16
    while True:
        a = torch.randn(size, size, device=device).to(dtype)
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            a @ a
            if device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        if size >= SQUARE or best > LONG_ENOUGH:
            return 2 * size**3 / best
        size *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--depths", default="2", help="such as 1,2,3,4: configs in one pass")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128 * 2048, help="to extrapolate to")
    parser.add_argument("--measured-tokens", type=int, default=4 * 2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    configs = tuple(parse_config(f"uniform-d{depth}") for depth in arguments.depths.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder / "model", arguments.shape, arguments.blocks)
        letters = random.Random(1).choices(
            "abcdefghijklmnopqrstuvwxyz ", k=arguments.measured_tokens
        )
        (folder / "text.txt").write_text("".join(letters), "utf-8")
        source = open_source(open_files(str(folder / "model")))
        plan = make_plan(source, Settings(configs, ("packed",), "v3", "float16"))
        calibrator = TextCalibrator(
            read_text(folder / "text.txt"),
            tokens=arguments.measured_tokens,
            context=arguments.context,
            device=arguments.device,
        )
        rates = {d: own_rate(d, arguments.device) for d in (torch.bfloat16, torch.float32)}
        (folder / "run").mkdir()
        started, started_cpu = time.perf_counter(), time.process_time()
        reached: list[float] = []

        def on_progress(progress: CalibrationProgress) -> None:
            reached.append(time.perf_counter() - started)
            print(f"{reached[-1]:8.1f} s  {progress.where}", file=sys.stderr, flush=True)

        encodings = calibrator.run(plan, folder / "run", arguments.threads, on_progress)
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - started_cpu
        again = {d: own_rate(d, arguments.device) for d in (torch.bfloat16, torch.float32)}
        encoding = sum(
            note["seconds"]
            for config in configs
            for note in encodings.notes(config)["matrices"].values()
        )
    layers = SHAPES[arguments.shape][1]
    share = layers / arguments.blocks
    grown = arguments.tokens / arguments.measured_tokens
    once = reached[0]  # modules imported, embeddings, what a block's structure is
    products = seconds - encoding - once
    total = once + share * (products * grown + encoding)
    flop = needed_flop(arguments.shape, len(configs))
    rate = flop * arguments.measured_tokens * arguments.blocks / products
    overall = flop * arguments.tokens * layers / total
    print(
        json.dumps(
            {
                "shape": arguments.shape,
                "configs": [config.name for config in configs],
                "threads": arguments.threads,
                "device": arguments.device,
                "blocks measured": arguments.blocks,
                "tokens measured": arguments.measured_tokens,
                "seconds before the first block": round(once, 1),
                "seconds of products": round(products, 1),
                "seconds of encoding": round(encoding, 1),
                "processor seconds of both": round(cpu_seconds, 1),
                "needed GFLOP/s of products": round(rate / 1e9, 1),
                "torch bfloat16 GFLOP/s": [
                    round(r[torch.bfloat16] / 1e9, 1) for r in (rates, again)
                ],
                "torch float32 GFLOP/s": [round(r[torch.float32] / 1e9, 1) for r in (rates, again)],
                "extrapolated tokens": arguments.tokens,
                "extrapolated blocks": layers,
                "extrapolated minutes": round(total / 60, 1),
                "needed GFLOP/s over the whole run": round(overall / 1e9, 1),
                "peak memory GB": round((peak_memory_bytes() or 0) / 1e9, 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
