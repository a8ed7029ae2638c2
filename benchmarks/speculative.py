"""Speculative decoding: what drafts of a model are accepted, and what they bring a large one.

    python benchmarks/speculative.py record D4/packed --text TEXT --draft planes=2 \
        [--draft D1/packed] --out RECORD.json
    python benchmarks/speculative.py replay BIG_D4/packed --record RECORD.json \
        [--second BIG_D1/packed] [--threads 2] [--tokens 48] [--passes 3]

`record` goes on with pieces of a text, greedily, once without drafts and once with each draft,
holds the tokens to be the same, and prints and keeps which drafted tokens were accepted, with the
draft's probability of each. `replay` times a model whose weights are too many for a cache, such as
make_random_checkpoint.py's of a Qwen2.5-1.5B shape, on which nothing would be accepted by itself:
its tokens are forced to a fixed sequence, and each drafted token is right or wrong as the record
says; all else, draft steps, verification, cache, length of drafts, is generate's own. Without
drafts, with each recorded draft, in turn, in one run; the ratios are of medians of the passes,
whose spread is shown.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
import transformers

from tritllm.integrations.transformers import Draft, load_model
from tritllm.integrations.transformers.drafting.candidates import Candidates
from tritllm.run.token_clock import TokenClock

PROMPT = 64  # tokens


def settings(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


# --- Recording ------------------------------------------------------------------------------------


class Recorded(Draft):
    """A draft that keeps what was verified: pairs of its probability and whether it was right."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pairs: list[tuple[float, bool]] = []

    def add_round(self, confidences, kept, draft_seconds, verify_seconds) -> None:
        verified = confidences[: kept + 1]
        self.pairs += [(round(c, 4), place < kept) for place, c in enumerate(verified)]
        super().add_round(confidences, kept, draft_seconds, verify_seconds)


def record(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.folder, dtype=arguments.dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder)
    ids = tokenizer(arguments.text.read_text(), return_tensors="pt")["input_ids"][0]
    step = (len(ids) - PROMPT) // arguments.prompts
    prompts = [ids[i * step : i * step + PROMPT][None] for i in range(arguments.prompts)]
    plain = [model.generate(prompt, **settings(arguments.tokens)) for prompt in prompts]
    found = {}
    for asked in arguments.draft:
        source = asked if asked.startswith("planes=") else load_model(asked, dtype=arguments.dtype)
        draft = Recorded(model, source)
        same = 0
        for prompt, expected in zip(prompts, plain, strict=True):
            out = model.generate(prompt, draft=draft, **settings(arguments.tokens))
            same += torch.equal(out, expected)
        report = draft.report
        found[asked if source is asked else "second"] = draft.pairs
        print(
            f"{asked}: {100 * report.acceptance:.1f} % of {len(draft.pairs)} verified tokens "
            f"accepted; {same} of {len(prompts)} texts token for token the same"
        )
    arguments.out.write_text(json.dumps(found))


# --- Replaying ------------------------------------------------------------------------------------


class Forced(transformers.LogitsProcessor):
    """Makes a fixed token the most likely one at each position."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.tokens[input_ids.shape[1]]] = torch.finfo(scores.dtype).max
        return scores


class Replay(Candidates):
    """Drafts that are right where the record says so."""

    pairs: ClassVar[list[tuple[float, bool]]]
    at: ClassVar[int]

    def _chosen(self, score: torch.Tensor) -> tuple[torch.Tensor, float]:
        real, _ = super()._chosen(score)  # what choosing costs is timed, too
        place = (Replay.at + len(self._confidences)) % len(self.pairs)
        confidence, right = self.pairs[place]
        return (real if right else (real + 1) % score.shape[-1]), confidence

    def update_candidate_strategy(self, input_ids, scores, num_matches) -> None:
        Replay.at += min(int(num_matches) + 1, len(self._confidences))
        super().update_candidate_strategy(input_ids, scores, num_matches)


def timed(model: Any, prompt: torch.Tensor, truth: torch.Tensor, tokens: int, draft: Any) -> float:
    """Seconds for a token after the first."""
    clock = TokenClock()
    out = model.generate(
        prompt, draft=draft, streamer=clock, logits_processor=[Forced(truth)], **settings(tokens)
    )
    assert torch.equal(out[0], truth[: out.shape[1]])
    return 1 / clock.result("", prompt.shape[1]).decode_speed


def replay(arguments: argparse.Namespace) -> None:
    import tritllm.integrations.transformers.packed_model as packed_model

    packed_model.Candidates = Replay
    torch.set_num_threads(arguments.threads)
    options = {"dtype": "bfloat16", "lm_head_depth": arguments.lm_head_depth}
    # Drafts by own planes may make a model's memory again, so they have a model of their own.
    model, own_planes = (load_model(arguments.folder, **options) for _ in range(2))
    records = json.loads(arguments.record.read_text())
    drafts: dict[str, Any] = {"without drafts": None}
    for name in records:
        if name == "second" and arguments.second is None:
            continue
        second = name == "second"
        source = load_model(arguments.second, **options) if second else name
        drafts[name] = Draft(model if second else own_planes, source)
    drafts["auto"] = None  # made anew in each pass, so that its trials count every time
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, model.config.vocab_size, (PROMPT + arguments.tokens + 9,),
                          generator=generator)  # fmt: skip
    prompt = truth[None, :PROMPT]
    times: dict[str, list[float]] = {name: [] for name in drafts}
    for number in range(arguments.passes + 1):
        for name, draft in drafts.items():
            if name == "auto":
                draft = Draft(model, "auto", say=lambda line: print(" ", line))
            Replay.pairs, Replay.at = records.get(name, records.get("planes=2", [])), 37 * number
            if name == "auto" and not Replay.pairs:
                continue
            generating = model if draft is None else draft.model
            seconds = timed(generating, prompt, truth, arguments.tokens, draft)
            if number:  # the first warms up
                times[name].append(seconds)
            elif name == "auto" and not draft.pace.off:
                print(f"  auto took {draft.pace.planes} planes")
    load = os.getloadavg()[0]
    print(f"{arguments.threads} threads, {arguments.tokens} tokens, load {load:.1f}")
    plain = times["without drafts"]
    for name, own in times.items():
        if not own:
            continue
        print(
            f"{name}: {1000 * median(own):.1f} ms a token, {1000 * min(own):.1f} to "
            f"{1000 * max(own):.1f}; {median(plain) / median(own):.2f} times the speed without, "
            f"{min(plain) / min(own):.2f} of the best passes"
        )
        if drafts[name] is not None:
            print(f"  {drafts[name].report}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("record")
    first.add_argument("folder", type=Path)
    first.add_argument("--text", type=Path, required=True)
    first.add_argument("--draft", action="append", required=True)
    first.add_argument("--out", type=Path, required=True)
    first.add_argument("--prompts", type=int, default=12)
    first.add_argument("--tokens", type=int, default=96)
    first.add_argument("--dtype", default="auto")
    first.set_defaults(run=record)
    second = commands.add_parser("replay")
    second.add_argument("folder", type=Path)
    second.add_argument("--record", type=Path, required=True)
    second.add_argument("--second", type=Path)
    second.add_argument("--threads", type=int, default=2)
    second.add_argument("--tokens", type=int, default=48)
    second.add_argument("--passes", type=int, default=3)
    second.add_argument("--lm-head-depth", type=int, default=4)
    second.set_defaults(run=replay)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
