"""What tests that need torch and transformers share."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from support.speaking_model import speaking_model
from support.tiny_models import quantize_tiny

from tritllm import native as library
from tritllm.integrations.registration import register_with_libraries

register_with_libraries()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """tiny(family, depth) -> folder with packed/ and model/, made once."""
    made: dict[tuple[str, int], Path] = {}

    def folder(family: str = "llama", depth: int = 2) -> Path:
        if (family, depth) not in made:
            place = tmp_path_factory.mktemp(f"{family}-{depth}")
            made[family, depth] = quantize_tiny(place, family, depth)
        return made[family, depth]

    return folder


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch):
    """Layers that are made compute in torch, whose results are those of a dequantized layer."""
    monkeypatch.setenv("TRITLLM_LINEAR", "torch")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch):
    """native(mode): layers that are made compute by the native kernels, "int8" or "exact"."""

    def choose(mode: str) -> None:
        monkeypatch.setenv("TRITLLM_LINEAR", mode)
        if not library.available():
            pytest.skip("no native kernels")

    return choose


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with a tokenizer."""
    return speaking_model(tmp_path_factory.mktemp("speaking"))


@pytest.fixture
def threads_kept():
    """Commands set torch's threads; put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
