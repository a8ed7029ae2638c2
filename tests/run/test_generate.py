"""tritllm generate: the text of the model, in pieces, with its speed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

from tritllm.cli import generate as generate_command
from tritllm.errors import TritError
from tritllm.integrations.transformers import load_model
from tritllm.run.generate import generate
from tritllm.run.token_clock import TokenClock

PROMPT = "Größe"


def test_text_is_the_models_and_comes_in_pieces(speaking, torch_only):
    pieces: list[str] = []
    done = generate(speaking, PROMPT, max_new_tokens=24, on_text=pieces.append)
    assert "".join(pieces) == done.text
    assert (done.prompt_tokens, done.new_tokens) == (len(PROMPT.encode()), 24)
    assert done.prefill_speed > 0
    assert done.decode_speed > 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(speaking)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = load_model(speaking).generate(**inputs, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(output[0, done.prompt_tokens :]) == done.text


def test_sampling_repeats_with_its_seed(speaking, torch_only):
    how = {"max_new_tokens": 12, "temperature": 1.5}
    first, second, third = (generate(speaking, PROMPT, seed=s, **how).text for s in (1, 1, 2))
    assert first == second != third


def test_chat_planes_and_head(speaking, torch_only):
    plain = generate(speaking, PROMPT, max_new_tokens=8)
    chat = generate(speaking, PROMPT, max_new_tokens=8, chat=True)
    assert chat.prompt_tokens == len(f"[user] {PROMPT}\n[assistant]".encode())
    coarse = generate(speaking, PROMPT, max_new_tokens=8, planes=1, lm_head_depth=4)
    assert coarse.text != plain.text


@pytest.mark.parametrize("draft", ["planes=1", "itself"])
def test_drafts_change_the_speed_alone(speaking, torch_only, draft):
    how = {"max_new_tokens": 16, "dtype": "float32"}
    plain, pieces = generate(speaking, PROMPT, **how), []
    drafted = generate(
        speaking, PROMPT, draft=str(speaking) if draft == "itself" else draft,
        on_text=pieces.append, **how,
    )  # fmt: skip
    assert "".join(pieces) == drafted.text == plain.text
    assert drafted.new_tokens == plain.new_tokens
    assert plain.draft is None
    assert drafted.draft.rounds > 0
    if draft == "itself":
        assert drafted.draft.acceptance == 1
        assert str(drafted.draft).startswith(f"drafts by {speaking}: ")
        assert drafted.draft.length > 1


def test_a_draft_that_cannot_be(speaking, tiny, torch_only, tmp_path):
    for draft, says in (
        ("planes=2", "the model reads 2 planes, a draft takes 1"),
        ("nowhere/at/all", "no such folder"),
        (str(tiny("llama") / "packed"), "no tokenizer"),
        (str(tiny("llama") / "model"), "is not a packed model"),
    ):
        with pytest.raises(TritError, match=says):
            generate(speaking, PROMPT, draft=draft, max_new_tokens=4)
    with pytest.raises(TritError, match="leave out --compiled"):
        generate(speaking, PROMPT, draft="auto", compiled=True)
    other = shutil.copytree(speaking, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] = {f"{w}x": i for w, i in content["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TritError, match="its tokenizer is not that of"):
        generate(speaking, PROMPT, draft=str(other), max_new_tokens=4)


def test_one_token_has_no_decode_speed(speaking, torch_only):
    assert generate(speaking, PROMPT, max_new_tokens=1).decode_speed is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "--dtype int8 is not one of auto, bfloat16"),
        ({"prompt": ""}, "the prompt has no tokens"),
        ({"kv_cache": "int4"}, "--kv-cache int4 is not int8"),
        ({"kv_cache": "int8", "compiled": True}, "--compiled needs a static cache"),
        ({"kv_cache": "int8"}, "does not fit .*: its heads are 12 wide, not a multiple of 32"),
    ],
)
def test_what_cannot_be(speaking, torch_only, options, says):
    with pytest.raises(TritError, match=says):
        generate(speaking, **{"prompt": PROMPT} | options)


def test_pieces_end_at_words_so_that_no_character_is_cut():
    class Tokenizer:
        def decode(self, tokens, skip_special_tokens):
            return bytes(tokens).decode("utf-8", "replace")

    pieces: list[str] = []
    clock = TokenClock(Tokenizer(), pieces.append)
    clock.put(torch.zeros(1, 3))
    for byte in "ein größerer\nText".encode():
        clock.put(torch.tensor([byte]))
    clock.end()
    assert pieces == ["ein ", "größerer\n", "Text"]


@pytest.mark.parametrize("seed", range(3))
def test_a_long_text_is_decoded_in_short_pieces(seed):
    """Of a tokenizer that drops the first space and whose characters are of several tokens."""
    longest = 0

    class Tokenizer:
        def decode(self, tokens, skip_special_tokens):
            nonlocal longest
            longest = max(longest, len(tokens))
            return bytes(tokens).decode("utf-8", "replace").removeprefix(" ")

    generator = torch.Generator().manual_seed(seed)
    letters = list("aä  €\n😀" + "b" * seed)
    text = "".join(letters[i] for i in torch.randint(len(letters), (400,), generator=generator))
    pieces: list[str] = []
    clock = TokenClock(Tokenizer(), pieces.append)
    clock.put(torch.zeros(1, 3))
    for byte in text.encode():
        clock.put(torch.tensor([byte]))
    clock.end()
    assert "".join(pieces) == text.removeprefix(" ")
    assert longest < 150 < len(text.encode())


def test_command(speaking, torch_only, threads_kept):
    app = typer.Typer()
    app.command()(generate_command.command)
    result = CliRunner().invoke(
        app, [str(speaking), "--prompt", PROMPT, "--max-new-tokens", "9", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output
    expected = generate(speaking, PROMPT, max_new_tokens=9).text
    assert result.stdout == expected + "\n"
    assert "7 prompt tokens at" in result.stderr
    assert "9 new tokens, the first after" in result.stderr
