"""`load_model` of what goes on with a text: also of what sees pictures, and of nothing else."""

from __future__ import annotations

import pytest
from support.family_models import ALL_MODELS

from tritllm import quantize
from tritllm.errors import TritError
from tritllm.integrations.transformers import load_model


def packed(folder, family):
    ALL_MODELS[family].build().save_pretrained(folder / "source")
    quantize(str(folder / "source"), ["uniform-d1"], folder / "out", write=("packed",))
    return folder / "out" / "uniform-d1" / "packed"


def test_a_model_that_sees_goes_on_with_a_text(tmp_path):
    model = load_model(packed(tmp_path, "llava"))
    ids = ALL_MODELS["llama"].inputs()["input_ids"]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape == (2, ids.shape[1] + 3)


@pytest.mark.parametrize(("family", "kind"), [("bert", "BertForMaskedLM"), ("vit", "ViTModel")])
def test_an_encoder_is_refused_in_one_line(tmp_path, family, kind):
    with pytest.raises(TritError, match=f"{kind} does not go on with a text") as caught:
        load_model(packed(tmp_path, family))
    assert "\n" not in str(caught.value)
