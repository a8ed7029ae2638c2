"""Which modules a glob means."""

from __future__ import annotations

import pytest

from tritllm.format.modules import matches, unmatched

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "glob",
    [
        UP,
        f"{UP}.weight",
        "model.layers.0",  # a name stands for what is below it
        "model",
        "*",
        "*.mlp.*",
        "*up_proj",
        "*up_proj.weight",
        "model.layers.[0-3].mlp.??_proj",
        "model.layers.*.weight",
    ],
)
def test_meant(glob):
    assert matches(UP, ["nothing.else", glob])


@pytest.mark.parametrize(
    "glob",
    [
        "model.layers.00",
        "model.layer",
        "up_proj",
        "",
        "mlp",
        f"{UP}.bias",
        f"{UP}.weight_scale",
        "model.layers.?",  # with wildcards, the whole name
        "*.mlp",
        "MODEL.*",
        "model.layers.[!0].*",
    ],
)
def test_not_meant(glob):
    assert not matches(UP, [glob])


def test_a_name_does_not_stand_for_longer_numbers():
    assert not matches("model.layers.10.mlp.up_proj", ["model.layers.1"])


def test_no_globs_mean_nothing():
    assert not matches(UP, [])


def test_unmatched():
    modules = [UP, "lm_head"]
    globs = ["lm_head.weight", "lm-head", "*.mlp.*", "model.layers.1"]
    assert unmatched(globs, modules) == ["lm-head", "model.layers.1"]
    assert unmatched(iter(globs), iter(modules)) == ["lm-head", "model.layers.1"]
