"""Train the demo model: a small Qwen2-shaped causal language model of one text, on a CPU.

    python scripts/train_demo_model.py --text kjv.txt --verses

writes OUT/model (configuration, float16 weights, tokenizer, model card), OUT/heldout.txt, the part
of the text that the model has not seen, and OUT/calibration.txt, paragraphs at equal distances of
the part that it was trained on. Any UTF-8 text will do: without --verses the last 4 %
of its lines are held out, or all of it is trained on where --heldout names another file.

With --verses each line is a verse behind its reference, as in `Ge1:1 In the beginning ...`. The
references are dropped, a chapter's verses are joined by newlines, chapters are separated by a blank
line, and the last chapter of every book with more than 5 chapters is held out. By its manual,
`bible -f Gen1:1-Rev22:21` of Debian's package bible-kjv prints the King James Version so.

Another model to measure on, of another family and width, from another text:

    python scripts/train_demo_model.py --text other.txt --family llama --hidden 320 \
        --intermediate 864 --layers 5 --heads 5 --kv-heads 5 --untied --out other

The same seed, machine, number of threads and versions of the libraries give the same weights. What
is saved is the state with the least held-out loss among those evaluated.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
)

VOCABULARY = 1536
CONTEXT = 256  # tokens
BATCH = 8  # windows of CONTEXT tokens a step
FROM_LINE_START = 1  # so many of them start at a line, behind END
WARMUP = 60  # steps
CLIP = 1.0  # largest norm of the gradient
EVALUATE_EVERY = 250  # steps
HELD_OUT_LINES = 0.04  # of a text without --verses
SHORT_BOOK = 5  # chapters; the last chapter of a longer book is held out
END = "<|endoftext|>"  # token 0: stands before a text, and is never predicted
NAMED = (
    "about", "language", "family", "hidden", "intermediate", "layers", "heads", "kv_heads",
    "steps", "lr", "seed", "threads",
)  # options that the card repeats where they are not the defaults  # fmt: skip
CALIBRATION_BYTES = 285_000  # about: 80,000 tokens and a little
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "src/tritllm/demo_data"


# --- Text ---------------------------------------------------------------------------------------


def split_lines(text: str) -> tuple[str, str]:
    """Training text and held-out text: all but the last lines, and the last HELD_OUT_LINES."""
    lines = text.splitlines(keepends=True)
    cut = len(lines) - math.ceil(HELD_OUT_LINES * len(lines))
    return "".join(lines[:cut]), "".join(lines[cut:])


def split_verses(text: str) -> tuple[str, str]:
    """Training text and held-out text from lines `BookC:V verse`, as described at the top."""
    books: dict[str, dict[int, list[str]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+ (.+)", line)
        if match is None:
            raise SystemExit(f"line {number} is not a verse behind its reference: {line[:60]!r}")
        book, chapter, verse = match.groups()
        books.setdefault(book, {}).setdefault(int(chapter), []).append(verse)
    train, heldout = [], []
    for chapters in books.values():
        for chapter, verses in chapters.items():
            last = chapter == max(chapters) and len(chapters) > SHORT_BOOK
            (heldout if last else train).append("\n".join(verses) + "\n")
    return "\n".join(train), "\n".join(heldout)


def excerpt(train_text: str) -> str:
    """Every n-th paragraph (of --verses: chapter), about CALIBRATION_BYTES in all."""
    paragraphs = train_text.split("\n\n")
    n = max(1, round(len(train_text) / CALIBRATION_BYTES))
    return "\n\n".join(paragraph.strip("\n") for paragraph in paragraphs[::n]) + "\n"


# --- Tokens -------------------------------------------------------------------------------------


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE, lossless for any text in Unicode's form NFC; END is token 0.

    It splits text as transformers' class for
    Qwen2 does, because that class ignores what tokenizer.json says about it; on ordinary text the
    tokens are those of the split that the merges were learnt with.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer = qwen2.normalizer
    tokenizer.pre_tokenizer = qwen2.pre_tokenizer
    return tokenizer


def line_starts(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Positions behind a newline from which a window fits; all positions where lines are rare."""
    newlines = [i for token, i in tokenizer.get_vocab().items() if "Ċ" in token]  # Ċ is byte 10
    is_newline = np.isin(ids, newlines)
    starts = np.flatnonzero(is_newline[:-CONTEXT] & ~is_newline[1 : 1 - CONTEXT]) + 1
    return starts if len(starts) * CONTEXT >= len(ids) else np.arange(len(ids) - CONTEXT)


def draw_batch(ids: np.ndarray, starts: np.ndarray, random: np.random.Generator) -> torch.Tensor:
    """Windows int64 [BATCH, CONTEXT + 1] from random places."""
    anywhere = random.integers(len(ids) - CONTEXT, size=BATCH - FROM_LINE_START)
    windows = [ids[i : i + CONTEXT + 1] for i in anywhere]
    for i in random.choice(starts, FROM_LINE_START):
        windows.append(np.concatenate([[0], ids[i : i + CONTEXT]]))
    return torch.from_numpy(np.stack(windows))


# --- Model --------------------------------------------------------------------------------------


def loss_of(model: PreTrainedModel, windows: torch.Tensor, reduction: str) -> torch.Tensor:
    """Cross-entropy in nats of each window's tokens but the first; matrix products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction
    )


@torch.no_grad()
def evaluate(model: PreTrainedModel, ids: np.ndarray) -> float:
    """Mean nats a token of a text cut into windows; every token but the first is scored once."""
    model.eval()
    full = (len(ids) - 1) // CONTEXT * CONTEXT
    starts = range(0, full, CONTEXT)
    windows = [torch.from_numpy(np.stack([ids[i : i + CONTEXT + 1] for i in starts]))]
    if full < len(ids) - 1:
        windows.append(torch.from_numpy(ids[None, full:]))
    total = sum(loss_of(model, part, "sum").item() for w in windows for part in w.split(BATCH))
    model.train()
    return total / (len(ids) - 1)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a fiftieth of the peak."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return peak * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def train(
    model: PreTrainedModel, tokenizer: Tokenizer, train_ids: np.ndarray, held_ids: np.ndarray, args
) -> int:
    """Train in place, leave the best evaluated state in the model, return that state's step."""
    random = np.random.default_rng(args.seed)
    starts = line_starts(train_ids, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    best, best_step, best_state = math.inf, 0, {}
    model.train()
    began, recent = time.monotonic(), []
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(model, draw_batch(train_ids, starts, random), "mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise SystemExit(f"the loss is {recent[-1]} at step {step + 1}: lower --lr")

        done = step + 1
        if done % EVALUATE_EVERY == 0 or done == args.steps:
            held = evaluate(model, held_ids)
            if held < best:
                best, best_step = held, done
                best_state = {k: v.clone() for k, v in model.state_dict().items()}
            print(f"step {done}: training {np.mean(recent):.4f}, held out {held:.4f} nats a token")
            recent = []
        if done % 50 == 0 or done == 5:
            spent = time.monotonic() - began
            left = spent / done * (args.steps - done)
            speed = done * BATCH * CONTEXT / spent
            print(
                f"step {done} of {args.steps}, {speed:.0f} tokens/s, {spent / 60:.1f} min spent, "
                f"about {left / 60:.1f} min left",
                flush=True,
            )
    model.load_state_dict(best_state)
    return best_step


# --- Files --------------------------------------------------------------------------------------


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in float16 and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def sample(model: PreTrainedModel, tokenizer: Tokenizer, n_tokens: int = 120) -> str:
    """Text drawn from the beginning of a line, at temperature 0.7."""
    prompt = torch.zeros((1, 1), dtype=torch.int64)
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.7, top_k=50,
        max_new_tokens=n_tokens,
    )  # fmt: skip
    return tokenizer.decode(out[0].tolist())


TITLES = ("A small model of one text", "The demo model of tritllm")

CARD = """\
---
license: apache-2.0
language: {language}
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A causal language model small enough to ship with the package and to train on two CPU cores, so that
quantizing, evaluating and generating can be tried without a download. It knows one text and nothing
else: it is a test piece, not an assistant.

| | |
|---|---|
| shape | {family}, {layers} layers, hidden {hidden}, intermediate {intermediate}, {heads} heads \
and {kv_heads} key-value heads of {head_dim}, {tied} embeddings, context {context} |
| parameters | {parameters:,}, of which {linear:,} in linear layers; float16 |
| tokenizer | byte-level BPE, {vocabulary:,} tokens, {bytes_per_token:.2f} bytes a token; \
`{end}` stands before a text and is never predicted |
| training text | {about}; {train_bytes:,} bytes |
| held-out text | {held_bytes:,} bytes: {split} |
| calibration text | {calibration_bytes:,} bytes of the training text, taken at equal distances |
| held-out perplexity | {perplexity:.2f} a token, {bits:.3f} bits a byte |

The perplexity is that of the float16 weights, over windows of {context} tokens, each of the
{held_tokens:,} tokens but the first scored once. The state saved is the one with the least
held-out loss of those evaluated, so the number leans a little to the favourable side.

## Training

{steps:,} steps of {batch} windows of {context} tokens, {epochs:.1f} times the training text's \
length; AdamW without
weight decay, peak learning rate {lr:g}, linear warm-up and cosine decay, no dropout, matrix
products in bfloat16; kept is the state after step {best_step:,}. It took {minutes:.0f} minutes on \
{threads} CPU threads
(torch {torch}, transformers {transformers}). To train it again:

```
{command}
```

`heldout.txt` and `calibration.txt` stand beside this folder; the rest of the training text does not
ship. The weights are ours, licensed under Apache 2.0.

## A sample

Drawn from `{end}` at temperature 0.7:

```
{sample}
```
"""


def main() -> None:
    """Read the arguments, train, save, and measure what was saved."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="the text to train on, UTF-8")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--heldout", type=Path, help="a held-out text, instead of a part of --text")
    held.add_argument("--verses", action="store_true", help="lines are `BookC:V verse`")
    parser.add_argument("--about", help="what the text is, for the model card (its file's name)")
    parser.add_argument("--language", default="en", help="its language, for the model card")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder (the package's)")
    parser.add_argument("--family", choices=("qwen2", "llama"), default="qwen2")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=720)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    text = args.text.read_text(encoding="utf-8")
    if args.heldout:
        train_text, held_text = text, args.heldout.read_text(encoding="utf-8")
        split = "a text of its own"
    elif args.verses:
        train_text, held_text = split_verses(text)
        split = f"the last chapter of every book with more than {SHORT_BOOK} chapters"
    else:
        train_text, held_text = split_lines(text)
        split = f"the last {HELD_OUT_LINES:.0%} of the lines"

    tokenizer = train_tokenizer(train_text)
    train_ids = np.array(tokenizer.encode(train_text).ids)
    held_ids = np.array(tokenizer.encode(held_text).ids)
    held_bytes = len(held_text.encode())
    if min(len(train_ids), len(held_ids)) < 2 * CONTEXT:
        raise SystemExit(f"training and held-out text need {2 * CONTEXT} tokens each")
    print(f"training on {len(train_ids):,} tokens, holding out {len(held_ids):,}", flush=True)

    config = AutoConfig.for_model(
        args.family, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=CONTEXT,
        tie_word_embeddings=not args.untied, bos_token_id=0, eos_token_id=0,
        hidden_size=args.hidden, num_hidden_layers=args.layers, intermediate_size=args.intermediate,
        num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    began = time.monotonic()
    best_step = train(model, tokenizer, train_ids, held_ids, args)
    minutes = (time.monotonic() - began) / 60
    unrounded = evaluate(model, held_ids)
    folder = args.out / "model"
    save(model, tokenizer, folder)
    (args.out / "heldout.txt").write_text(held_text, encoding="utf-8")
    calibration_text = excerpt(train_text)
    (args.out / "calibration.txt").write_text(calibration_text, encoding="utf-8")

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats = evaluate(model, held_ids)
    drawn = sample(model, tokenizer)
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    shown = ["--text", args.text.name]
    shown += ["--heldout", args.heldout.name] if args.heldout else []
    shown += ["--verses"] if args.verses else []
    shown += ["--untied"] if args.untied else []
    for name in NAMED:
        value = getattr(args, name)
        option = "--" + name.replace("_", "-")
        shown += [] if value == parser.get_default(name) else [option, str(value)]
    card = CARD.format(
        about=args.about or args.text.name,
        language=args.language,
        title=TITLES[args.out.resolve() == DEFAULT_OUT],
        family={"qwen2": "Qwen2", "llama": "Llama"}[args.family],
        tied="untied" if args.untied else "tied",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        context=CONTEXT,
        parameters=model.num_parameters(),
        linear=sum(m.weight.numel() for m in linear),
        vocabulary=config.vocab_size,
        bytes_per_token=held_bytes / len(held_ids),
        end=END,
        train_bytes=len(train_text.encode()),
        held_bytes=held_bytes,
        calibration_bytes=len(calibration_text.encode()),
        held_tokens=len(held_ids),
        split=split,
        perplexity=math.exp(nats),
        bits=nats * len(held_ids) / held_bytes / math.log(2),
        steps=args.steps,
        batch=BATCH,
        epochs=args.steps * BATCH * CONTEXT / len(train_ids),
        lr=args.lr,
        best_step=best_step,
        minutes=minutes,
        threads=args.threads,
        torch=torch.__version__,
        transformers=transformers.__version__,
        command=shlex.join(["python", "scripts/train_demo_model.py", *shown]),
        sample=drawn.removeprefix(END).strip(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    size = (folder / "model.safetensors").stat().st_size
    print(
        f"saved step {best_step} in {folder}, {size:,} bytes, {minutes:.1f} min\n"
        f"held-out perplexity {math.exp(nats):.3f} in float16 "
        f"({math.exp(unrounded):.3f} before rounding)\n{drawn}"
    )


if __name__ == "__main__":
    sys.exit(main())
