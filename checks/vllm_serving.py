"""A real vLLM on the CPU serves packed models, and is held against the dequantized ones.

    python checks/vllm_serving.py [--environment .venv-vllm] [--work build/vllm] [PART ...]

Parts: `demo`, the demo model at one rank and at two; `load`, 32 requests at once, streaming and
`vllm bench serve`; `experts`, a tiny mixture of experts with a packed output layer; `fused`,
mixtures whose source has the experts of a block in two tensors; `planes`, fewer planes by
--hf-overrides; `refusals`, broken folders. Nothing is decided by timing: latencies are printed. The
first run makes the environment (some minutes, 3.4 GB).

Greedy tokens must be equal up to the first that differs, and there the reference must have had a
tie: its logits of the two tokens less apart than a bound. The logarithms of the probabilities that
both give to the likeliest tokens of a text must not be further apart than that bound, either. The
mixture of experts runs in float32: rounded to bfloat16, its routers have ties, and a token that
goes to another expert has another answer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vllm_environment
from parts import ROOT, CheckError, add_parts, run, run_parts
from vllm_server import Server

DATA = ROOT / "src" / "tritllm" / "demo_data"
# Nats. "exact": float32 activations in the packed products; "float32": everywhere, and the weights
# of the reference are float16.
TIES = {"float32": 0.005, "exact": 0.02, "int8": 0.4}
TOKENS, PROMPTS, TOGETHER = 48, 12, 32
TOP = 5  # likeliest tokens that are asked for
OUTPUT_LAYER = ("--include", "lm_head.weight", "--depth", "lm_head=4")


@dataclass
class Answers:
    """What a server gave: of each prompt the greedy tokens, and the logarithms of probabilities.

    tokens: [prompt][token]. likely: [prompt][token] -> token: logprob, of the likeliest.
    text: the same of a given text, [position] -> token: logprob.
    """

    tokens: list[list[str]]
    likely: list[list[dict[str, float]]]
    text: list[dict[str, float]]


def prompts() -> list[str]:
    """Pieces of the held-out text."""
    text = (DATA / "heldout.txt").read_text("utf-8")
    return [text[at : at + 120] for at in range(2000, 2000 + PROMPTS * 3000, 3000)]


def answers_of(server: Server) -> Answers:
    """Greedy continuations of the prompts, and the probabilities of a text."""
    options = {"max_tokens": TOKENS, "logprobs": TOP, "return_tokens_as_token_ids": True}
    choices = [server.complete(prompt, **options) for prompt in prompts()]
    text = (DATA / "heldout.txt").read_text("utf-8")[:400]
    scored = server.complete(text, max_tokens=1, prompt_logprobs=TOP)["prompt_logprobs"]
    return Answers(
        [choice["logprobs"]["tokens"] for choice in choices],
        [choice["logprobs"]["top_logprobs"] for choice in choices],
        [{token: entry["logprob"] for token, entry in at.items()} for at in scored[1:]],
    )


def compare(name: str, reference: Answers, found: Answers, bound: float) -> None:
    """Print how far apart they are; raises CheckError where it is more than `bound` nats."""
    apart = [
        abs(one[token] - two[token])
        for one, two in zip(reference.text, found.text, strict=True)
        for token in one.keys() & two.keys()
        if one[token] > -10
    ]
    ties = []
    for number, (one, two) in enumerate(zip(reference.tokens, found.tokens, strict=True)):
        margin = _first_difference(one, two, reference.likely[number])
        if margin is not None:
            ties.append(margin)
    worst = max(apart)
    print(
        f"{name}: {PROMPTS - len(ties)} of {PROMPTS} continuations equal, {len(ties)} part at a "
        f"tie (at most {max(ties, default=0):.4f} nats); logprobs of {len(reference.text)} "
        f"positions at most {worst:.4f} apart, {sum(apart) / len(apart):.5f} on average",
        flush=True,
    )
    if max([worst, *ties]) > bound:
        raise CheckError(f"{name}: further apart than {bound}")


def _first_difference(
    one: Sequence[str], two: Sequence[str], likely: Sequence[dict[str, float]]
) -> float | None:
    """By how much the reference preferred its own token where they part; None where they do not."""
    for own, other, top in zip(one, two, likely, strict=False):
        if own != other:
            return top[own] - top[other] if other in top else float("inf")
    return None if len(one) == len(two) else float("inf")


class Check:
    """The parts, in an environment, with what earlier ones left in the work folder."""

    def __init__(self, programs: Path, work: Path) -> None:
        self.programs, self.work = programs, work
        self._reference: dict[int, Answers] = {}

    def tritllm(self, *arguments: str | Path) -> None:
        """Run a command of this package in the environment."""
        run([self.programs / "tritllm", *arguments], cwd=self.work)

    def quantized(self, name: str, source: Path, *options: str) -> Path:
        """The folder that holds `packed` and `model`; made where it is not there."""
        out = self.work / name
        if not (out / "uniform-d2" / "packed" / "tritllm.json").exists():
            where = ("--model", source, "--configs", "uniform-d2", "--out", out)
            self.tritllm("quantize", *where, *options)
        return out / "uniform-d2"

    def demo_folder(self) -> Path:
        """The demo model at depth 2."""
        return self.quantized("demo", DATA / "model")

    def serve(self, folder: Path, *options: str, **how: Any) -> Server:
        """A server, announced."""
        what = folder.relative_to(self.work)
        print(f"... vllm serve {what} {' '.join(options)} {how or ''}".rstrip(), flush=True)
        return Server(self.programs, self.work, folder, *options, **how)

    def reference(self, ranks: int) -> Answers:
        """Of the dequantized demo model."""
        if ranks not in self._reference:
            with self.serve(self.demo_folder() / "model", ranks=ranks) as server:
                self._reference[ranks] = answers_of(server)
        return self._reference[ranks]

    def demo(self) -> None:
        """Tokens and logits at one rank and at two."""
        for ranks in (1, 2):
            reference = self.reference(ranks)
            folder = self.demo_folder() / "packed"
            with self.serve(folder, ranks=ranks, linear="exact") as server:
                compare(f"packed, {ranks} ranks", reference, answers_of(server), TIES["exact"])

    def load(self) -> None:
        """The kernels that are the default, with streaming and many requests at once."""
        figures = {}
        for kind in ("model", "packed"):
            with self.serve(self.demo_folder() / kind) as server:
                if kind == "model":
                    self._reference[1] = answers_of(server)
                else:
                    found = answers_of(server)
                    compare("packed, int8", self.reference(1), found, TIES["int8"])
                    self._stream_and_many(server)
                figures[kind] = server.bench(requests=64, together=TOGETHER)
        for key in ("median_ttft_ms", "median_tpot_ms", "p99_itl_ms", "output_throughput"):
            values = ", ".join(f"{kind} {found[key]:.1f}" for kind, found in figures.items())
            print(f"vllm bench serve, {TOGETHER} at once, 64 of 64 back: {key} {values}")

    def _stream_and_many(self, server: Server) -> None:
        prompt = prompts()[0]
        whole = server.complete(prompt, max_tokens=TOKENS)["text"]
        pieces = list(server.stream(prompt, max_tokens=TOKENS))
        if "".join(pieces) != whole or len(pieces) < TOKENS // 2:
            raise CheckError(f"streamed {pieces!r}, expected the text {whole!r}")
        texts = [prompt[: 40 + number] for number in range(TOGETHER)]

        def ask(text: str) -> int:
            options = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": 0}
            return len(server.complete(text, **options)["logprobs"]["tokens"])

        with ThreadPoolExecutor(TOGETHER) as pool:
            lengths = list(pool.map(ask, texts))
        if lengths != [TOKENS] * TOGETHER:
            raise CheckError(f"{TOGETHER} requests at once gave {lengths} tokens")
        print(f"streaming: {len(pieces)} pieces make the text; {TOGETHER} requests at once: all")

    def mixture(self, kind: str) -> Path:
        """A tiny mixture at depth 2, its output layer packed as well."""
        source = self.work / f"tiny-{kind}"
        if not source.exists():
            tiny = ROOT / "checks" / "tiny_experts.py"
            run([self.programs / "python", tiny, DATA / "model", source, kind], cwd=self.work)
        return self.quantized(kind, source, *OUTPUT_LAYER)

    def fused(self) -> None:
        """Experts whose source has those of a block in two tensors; gpt-oss's are refused."""
        for kind in ("qwen3_moe_fused", "granitemoe"):
            folder = self.mixture(kind)
            with self.serve(folder / "model", "--dtype", "float32") as server:
                reference = answers_of(server)
            with self.serve(folder / "packed", "--dtype", "float32", linear="exact") as server:
                compare(kind, reference, answers_of(server), TIES["float32"])
        for kind, expected in (("gpt_oss", "biases"), ("llama4", "weighted inputs")):
            self.refused(self.mixture(kind) / "packed", f"{expected}) cannot run packed in vLLM")

    def experts(self) -> None:
        """Experts and an output layer that are packed, at one rank and at two."""
        folder = self.mixture("qwen3_moe")
        with self.serve(folder / "model", "--dtype", "float32") as server:
            reference = answers_of(server)
        for ranks in (1, 2):
            how: dict[str, Any] = {"ranks": ranks, "linear": "exact"}
            with self.serve(folder / "packed", "--dtype", "float32", **how) as server:
                found = answers_of(server)
            compare(f"experts, {ranks} ranks", reference, found, TIES["float32"])

    def planes(self) -> None:
        """One plane of two, beside the model that it stands for."""
        packed = self.demo_folder() / "packed"
        shallow = self.work / "one-plane"
        if not shallow.exists():
            self.tritllm("dequantize", packed, shallow, "--planes", "1")
        with self.serve(shallow) as server:
            reference = answers_of(server)
        fields = json.dumps({"quantization_config": {"quant_method": "tritllm", "planes": 1}})
        with self.serve(packed, "--hf-overrides", fields, linear="exact") as server:
            compare("one plane", reference, answers_of(server), TIES["exact"])

    def refusals(self) -> None:
        """Folders that break the format end the server with one line, before it listens."""
        broken = self.work / "broken"

        def cut_short(shard: Path) -> None:
            shard.write_bytes(shard.read_bytes()[:-1000])

        def no_trits(shard: Path) -> None:
            data = bytearray(shard.read_bytes())
            length = int.from_bytes(data[:8], "little")
            name = "model.layers.1.mlp.up_proj.weight"
            begin = json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
            data[8 + length + begin] = 250
            shard.write_bytes(data)

        for change, expected in (
            (cut_short, "model.safetensors: tensors end at byte"),
            (no_trits, "tensor model.layers.1.mlp.up_proj.weight: byte 250"),
        ):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(self.demo_folder() / "packed", broken)
            change(broken / "model.safetensors")
            self.refused(broken, expected)

    def refused(self, folder: Path, expected: str) -> None:
        """The server of a folder ends with a line that says this, before it listens."""
        server = self.serve(folder)
        if server.starts():
            server.stop()
            raise CheckError(f"{folder} was served; expected a refusal: {expected}")
        log = server.log.read_text("utf-8", "replace")
        lines = [line for line in log.splitlines() if expected in line]
        if not lines:
            raise CheckError(f"{server.log} does not say {expected!r}")
        print(f"refused: {lines[-1].strip()}", flush=True)


def main() -> int:
    """Run the parts that were named, by default all; 1 where one failed."""
    parser = argparse.ArgumentParser(description="Serve packed models with a real vLLM.")
    parts: dict[str, Callable[[], None]] = {
        "demo": lambda: check.demo(),
        "load": lambda: check.load(),
        "experts": lambda: check.experts(),
        "fused": lambda: check.fused(),
        "planes": lambda: check.planes(),
        "refusals": lambda: check.refusals(),
    }
    add_parts(parser, parts)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-vllm")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "vllm")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    check = Check(vllm_environment.make(options.environment), options.work.resolve())
    return run_parts("vLLM", parts, options.part)


if __name__ == "__main__":
    sys.exit(main())
