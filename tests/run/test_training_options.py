"""What may be asked of training together, and what is refused in one line."""

from __future__ import annotations

import pytest

from tritllm.errors import TritError
from tritllm.quantizer.configs import nested_config, parse_config
from tritllm.run.training_options import text_of


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((None, None, ["uniform-d2"], False, None), None),
        (("a", None, ["uniform-d2"], False, None), "a"),
        (("a", None, ["uniform-d2", "qat-d2"], False, 5), "a"),
        (("a", None, ["uniform-d2"], True, 5), "a"),
        ((None, "b", ["uniform-d2"], True, None), "b"),
        (("b", "b", ["qat-d1"], False, None), "b"),
    ],
)
def test_one_text_serves_calibration_and_training(asked, text):
    assert text_of(*asked) == text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("a", "b", [], False, None), "--calibrate and --qat name different texts"),
        ((None, None, ["uniform-d1", "qat-d2"], False, None), "config qat-d2 is trained on a text"),
        ((None, None, ["uniform-d1"], True, None), "--tune trains on a text"),
        (("a", None, ["uniform-d1"], False, 3), "--steps has no effect"),
        ((None, None, ["uniform-d1"], False, 3), "--steps has no effect"),
        (("a", None, [nested_config([2, 4])], True, None), "--nested is not trained"),
        ((None, "a", [nested_config([2, 4])], False, None), "--nested is not trained"),
    ],
)
def test_what_contradicts_itself_is_refused(asked, words):
    with pytest.raises(TritError, match=words):
        text_of(*asked)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_config_of_trained_blocks_has_one_depth(depth):
    assert parse_config(f"qat-d{depth}").depth_of("any.module") == depth
