"""What is measured of several models at once: scores as their definition says, and samples."""

from __future__ import annotations

import pytest
import torch
import transformers

from tritllm.evaluation.divergence import compare
from tritllm.evaluation.quality import measure_quality

TEXT = "In the beginning God created the heaven and the earth. " * 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from support.speaking_model import speaking_model

    packed = speaking_model(tmp_path_factory.mktemp("quality"))
    return packed.parents[2] / "source", packed.parent / "model"


def test_scores_and_samples_of_each_model(models):
    source, quantized = models
    found = measure_quality(source, {"d2": quantized, "same": source}, TEXT, "Hello")
    assert list(found) == ["float", "d2", "same"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer(TEXT)["input_ids"]
    load = transformers.AutoModelForCausalLM.from_pretrained
    reference, other = (load(folder, dtype=torch.float32) for folder in models)
    expected = compare(reference, {"d2": other}, ids)
    assert found["float"].scores == expected["float"]
    assert found["d2"].scores == expected["d2"]
    assert found["same"] == found["float"]  # the sample as well: its seed is fixed
    assert found["d2"].sample != found["float"].sample
    assert "\n" not in found["d2"].sample


def test_a_text_without_two_tokens(models):
    with pytest.raises(ValueError, match="fewer than two tokens"):
        measure_quality(models[0], {}, "a", "Hello")
