"""Maps of models: what stands in which cell, how it is coloured, and how large they become."""

from __future__ import annotations

import math

import pytest
from support.manifests import kept, manifest, quantized

from tritllm.format.blocks import Place, place_of
from tritllm.pictures.colours import scales_of
from tritllm.pictures.layer_map import MOST_KINDS, MOST_ROWS, OTHER, map_of, short_kind


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("model.layers.3.self_attn.q_proj", Place("model.layers", 3, "self_attn.q_proj")),
        ("layers.0.mlp.experts.17.up_proj", Place("layers", 0, "mlp.experts.up_proj")),
        ("h.11.attn.c_attn", Place("h", 11, "attn.c_attn")),
        ("3.q", Place("", 3, "q")),
        ("model.visual.blocks.2.attn.qkv", Place("model.visual.blocks", 2, "attn.qkv")),
        ("lm_head", Place("", None, "lm_head")),
        ("model.embed_tokens", Place("", None, "embed_tokens")),
    ],
)
def test_the_place_of_a_module(module, place):
    assert place_of(module) == place


def small():
    return manifest(
        quantized("model.layers.0.self_attn.q_proj", 64, 48, 2, 0.01)
        | quantized("model.layers.0.mlp.experts.0.up_proj", 32, 64, 1, 0.1)
        | quantized("model.layers.0.mlp.experts.1.up_proj", 96, 64, 3, 0.001)
        | quantized("model.layers.1.self_attn.q_proj", 64, 48, 2, 0.0)
        | kept("model.layers.0.mlp.gate.weight", (2, 64), "MoE router")
        | kept("model.layers.0.norm.weight", (64,), "norm")
        | kept("model.embed_tokens.weight", (128, 64), "embedding")
        | quantized("lm_head", 128, 64, 4, 0.0001)
    )


def test_cells_and_what_is_in_no_block():
    drawn = map_of("small", small(), {"model.layers.0.self_attn.q_proj": (4.0, 3.0, 2.0, 1.0)})
    (stack,) = drawn.stacks
    assert (stack.name, stack.rows) == ("model.layers", ("0", "1"))
    assert stack.kinds == ("self_attn.q_proj", "mlp.gate", "mlp.experts.up_proj")
    assert [short_kind(kind) for kind in stack.kinds] == ["q", "gate", "experts up"]
    q = stack.cells["0", "self_attn.q_proj"]
    assert (q.depths, q.nmse, q.sensitivity) == ([2], 0.01, 3.0)
    assert q.sqnr == pytest.approx(20)
    experts = stack.cells["0", "mlp.experts.up_proj"]
    assert experts.depths == [1, 3]
    assert experts.nmse == pytest.approx(0.1 * 0.25 + 0.001 * 0.75)
    assert experts.worst.name == "model.layers.0.mlp.experts.0.up_proj.weight"
    assert math.isinf(stack.cells["1", "self_attn.q_proj"].sqnr)
    assert stack.cells["0", "mlp.gate"].depths == []
    assert [m.name for m in drawn.outside] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert drawn.parts["embeddings"] == 128 * 64 * 2
    assert drawn.parts["all else that is kept"] == 2 * (2 * 64 + 64)
    assert "output layer" not in drawn.parts
    assert sum(drawn.parts.values()) == drawn.measures.packed_bytes


def test_scales_name_their_cells():
    drawn = map_of("small", small(), {"model.layers.0.self_attn.q_proj": (4.0, 3.0, 2.0, 1.0)})
    depth, error, sensitivity = scales_of([drawn])
    q = drawn.stacks[0].cells["0", "self_attn.q_proj"]
    experts = drawn.stacks[0].cells["0", "mlp.experts.up_proj"]
    exact = drawn.stacks[0].cells["1", "self_attn.q_proj"]
    router = drawn.stacks[0].cells["0", "mlp.gate"]
    assert [depth.label(cell) for cell in (q, experts, router)] == ["2", "1-3", "16b"]
    assert [depth.step(cell) for cell in (q, experts, router)] == [1, 2, None]
    assert [error.label(cell) for cell in (q, exact, router)] == ["20.0", "exact", ""]
    assert error.step(experts) == 0
    assert error.step(q) == error.step(exact) == len(error.colours) - 1
    assert sensitivity.label(q) == "3e+00"
    assert sensitivity.step(experts) is None
    assert [s.name for s in scales_of([map_of("small", small(), {})])] == ["depth", "error"]
    for scale in (depth, error, sensitivity):
        assert len(scale.legend()) == len(scale.colours) == len(scale.edges) + 1


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_are_ordered_by_lightness_and_figures_stand_out():
    for scale in scales_of([map_of("small", small(), {})]):
        lights = [_luminance(colour) for colour in scale.colours]
        assert lights in (sorted(lights), sorted(lights, reverse=True))
        for step, light in enumerate(lights):
            ink = _luminance(scale.ink(step))
            low, high = sorted((light, ink))
            assert (high + 0.05) / (low + 0.05) > 3.5, (scale.name, step)


def test_a_map_is_bounded():
    tensors = {}
    for block in range(500):
        tensors |= quantized(f"layers.{block}.k{block % 60:02}", 16, 16, 1, 0.1)
    tensors |= quantized("layers.7.k00", 160, 160, 1, 0.1)  # a kind of more weights
    (stack,) = map_of("many", manifest(tensors), {}).stacks
    assert len(stack.rows) <= MOST_ROWS
    assert stack.rows[0] == "0-3"
    assert len(stack.kinds) == MOST_KINDS + 1
    assert stack.kinds[-1] == OTHER
    assert "k00" in stack.kinds
    assert sum(len(cell.matrices) for cell in stack.cells.values()) == 501
