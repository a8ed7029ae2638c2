"""tritllm bench: figures that fit together."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tritllm.cli import bench as bench_command
from tritllm.errors import TritError
from tritllm.integrations.transformers import load_model
from tritllm.run import bench as benchmark
from tritllm.run.bench import bench, weight_bytes
from tritllm.run.generate import generate


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    monkeypatch.setattr(benchmark, "_BUFFER_BYTES", 1 << 22)


def test_both_models_are_measured(speaking, threads_kept):
    steps: list[str] = []
    result = bench(speaking, prompt_tokens=16, new_tokens=4, threads=1, on_step=steps.append)
    assert result.threads == 1
    assert result.bandwidth > 1e8
    assert result.dequantized is not None
    for speed in (result.packed, result.dequantized):
        assert min(speed.prefill, speed.decode, speed.bandwidth_share) > 0
        assert speed.resident_bytes > speed.weight_bytes > speed.token_bytes
    assert result.packed.weight_bytes < result.dequantized.weight_bytes
    assert steps[-1] == "running the dequantized model"


def test_without_comparison_and_with_a_packed_head(speaking):
    plain = bench(speaking, prompt_tokens=4, new_tokens=2, compare=False)
    packed = bench(speaking, prompt_tokens=4, new_tokens=2, compare=False, lm_head_depth=2)
    assert plain.dequantized is None
    assert packed.packed.token_bytes < plain.packed.token_bytes


def test_drafts_are_measured_beside(speaking, torch_only):
    result = bench(speaking, prompt_tokens=4, new_tokens=6, compare=False, draft="planes=1")
    assert result.drafted.decode > 0
    assert result.draft.rounds > 0


def test_bytes_a_token_reads(tiny, torch_only):
    """The tied embeddings once, untied ones not, and of four experts two."""
    for family in ("llama", "llama_tied", "qwen3_moe"):
        model = load_model(tiny(family, 2) / "packed")
        total, token = weight_bytes(model)
        stored = sum(
            t.nbytes for t in {t.data_ptr(): t for t in model.state_dict().values()}.values()
        )
        assert total == stored
        if family == "llama_tied":
            assert token == total
        elif family == "llama":
            assert token == total - model.model.embed_tokens.weight.nbytes
        else:
            experts = sum(
                tensor.nbytes for name, tensor in model.state_dict().items() if ".experts." in name
            )
            assert token == total - model.model.embed_tokens.weight.nbytes - experts // 2


def test_a_prompt_that_fits_by_default(speaking):
    """The default of 512 tokens is more than this model's context of 256."""
    assert bench(speaking, new_tokens=4, compare=False).prompt_tokens == 252


def test_too_long_a_prompt_and_a_wrong_dtype(speaking):
    with pytest.raises(TritError, match="context of 256; give a smaller --prompt-tokens"):
        bench(speaking, prompt_tokens=256, new_tokens=1)
    with pytest.raises(TritError, match="--dtype int8 is not one of auto, bfloat16"):
        bench(speaking, dtype="int8")


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there(speaking, device):
    with pytest.raises(TritError, match=rf"--device {device}: "):
        bench(speaking, device=device)
    with pytest.raises(TritError, match=rf"--device {device}: "):
        generate(speaking, "A", device=device)


def test_the_files_own_dtype(speaking):
    result = bench(speaking, prompt_tokens=4, new_tokens=2, dtype="auto")
    assert result.dequantized is not None
    assert result.dequantized.name == "float16"


def test_command(speaking, threads_kept):
    app = typer.Typer()
    app.command()(bench_command.command)
    arguments = [str(speaking), "--prompt-tokens", "8", "--new-tokens", "2", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("prefill of 8, tokens/s", "share of memory bandwidth", "bfloat16", "1 threads"):
        assert text in result.stdout
    line = CliRunner().invoke(app, [*arguments, "--no-compare", "--json"])
    assert line.exit_code == 0, line.output
    figures = json.loads(line.stdout)
    assert figures["threads"] == 1
    assert figures["packed"]["decode"] > 0
    assert figures["dequantized"] is None
