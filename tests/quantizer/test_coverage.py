"""A run that would leave most of a model as it is says so, and is asked for by name."""

from __future__ import annotations

import numpy as np
import pytest
from support.model_folders import FAMILIES, llama, random_tensors, write_family, write_model

from tritllm import quantize
from tritllm.errors import SourceError
from tritllm.quantizer.coverage import body_coverage


def planned(source, **options):
    plans = []
    quantize(str(source), ["uniform-d1"], source.parent / "out", dry_run=True,
             on_plan=plans.append, **options)  # fmt: skip
    assert not (source.parent / "out").exists()
    return plans[0]


def with_more(folder, more, model_type="llama", **shapes):
    tensors = random_tensors(llama(**shapes))
    return write_model(folder, {"model_type": model_type}, [tensors | more])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_known_families_are_covered(tmp_path, model_type):
    assert body_coverage(planned(write_family(tmp_path / "source", model_type))) > 0.9


def test_experts_that_are_put_together_are_not_called_quantized(tmp_path):
    experts = {"model.layers.0.mlp.experts.gate_up_proj": np.zeros((8, 40, 200), np.float16)}
    source = with_more(tmp_path / "source", experts)
    with pytest.raises(
        SourceError, match=r"source: 31.\d % of the parameters besides.*--allow-low"
    ):
        quantize(str(source), ["uniform-d1"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    planned(source)  # a dry run shows it
    (report,) = quantize(str(source), ["uniform-d1"], tmp_path / "out", allow_low_coverage=True)
    assert report["coverage_percent"] < 50


def test_a_family_that_is_not_known_is_asked_for(tmp_path):
    source = write_family(tmp_path / "source", "brand_new")
    with pytest.raises(SourceError, match="the family brand_new is not known; 99"):
        quantize(str(source), ["uniform-d1"], tmp_path / "out")
    quantize(str(source), ["uniform-d1"], tmp_path / "out", allow_low_coverage=True)


def test_a_large_vocabulary_does_not_count(tmp_path):
    rows = {"model.embed_tokens.weight": np.zeros((9000, 40), np.float16),
            "lm_head.weight": np.zeros((9000, 40), np.float16)}  # fmt: skip
    source = with_more(tmp_path / "source", rows)
    (report,) = quantize(str(source), ["uniform-d1"], tmp_path / "out", exclude=["lm_head"])
    assert report["coverage_percent"] < 10


def test_the_command_of_the_card_asks_for_it_as_well(tmp_path):
    source = write_family(tmp_path / "source", "brand_new")
    quantize(str(source), ["uniform-d1"], tmp_path / "out", allow_low_coverage=True)
    card = (tmp_path / "out/uniform-d1/packed/README.md").read_text()
    assert "--configs uniform-d1 --out out --allow-low-coverage" in card
