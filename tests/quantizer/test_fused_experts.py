"""Experts that the source stores as one tensor are packed one by one, and come back as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.fused_experts import EXPERTS, HIDDEN, INNER, LAYOUTS, config_of, matrices, write_fused
from support.model_folders import hashes, load_safetensors, result_hashes, write_model

from tritllm import PackedCheckpoint, dequantize, encode, quantize, verify
from tritllm.errors import FormatError, SourceError, TritError
from tritllm.format.manifest import manifest_bytes
from tritllm.quantizer import shard_pass

PACKED, MODEL = "uniform-d2/packed", "uniform-d2/model"
GATE_UP, DOWN = (f"model.layers.0.mlp.experts.{name}_proj" for name in ("gate_up", "down"))


def quantized(source, out, **options):
    return quantize(str(source), ["uniform-d2"], out, allow_low_coverage=True, **options)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_expert_has_the_bits_of_its_own_matrix(tmp_path, kind):
    layout = LAYOUTS[kind]
    source = write_fused(tmp_path / "source", kind, shards=2)
    (report,) = quantized(source, tmp_path / "out")
    packed = PackedCheckpoint(tmp_path / "out" / PACKED)
    expected = matrices(layout)
    assert set(packed.quantized) == set(report["quantized"]) == set(expected)
    assert report["coverage_percent"] == 100
    model = {}
    for path in (tmp_path / "out" / MODEL).glob("*.safetensors"):
        model |= load_safetensors(path)
    for name, weight in expected.items():
        found, alone = packed.tensor(name), encode(weight, 2)
        for part in ("weight", "scale", "codebook"):
            np.testing.assert_array_equal(getattr(found, part), getattr(alone, part))
        layer, expert, leaf = name.split(".")[2], int(name.split(".")[-3]), name.split(".")[-2]
        which = layout.leaves.index(leaf)
        piece = model[f"model.layers.{layer}.{layout.names[which == 2]}"][expert]
        rows = piece.T if layout.transposed else piece
        if which < 2:
            rows = rows[which::2] if layout.interleaved else rows[which * INNER :][:INNER]
        np.testing.assert_array_equal(rows, alone.decode(dtype=np.float16))
    verify(packed.folder)
    dequantize(packed.folder, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out" / MODEL)
    shallow = {}
    for path in dequantize(packed.folder, tmp_path / "one", planes=1).glob("*.safetensors"):
        shallow |= load_safetensors(path)
    assert {n: t.shape for n, t in shallow.items()} == {n: t.shape for n, t in model.items()}


def test_single_experts_give_the_same_packed_tensors(tmp_path):
    layout = LAYOUTS["qwen3_moe"]
    single = write_model(tmp_path / "single", config_of(layout), [matrices(layout)])
    fused = write_fused(tmp_path / "fused", "qwen3_moe")
    found = []
    for source in (single, fused):
        quantized(source, source.parent / f"{source.name}-out", write=("packed",))
        packed = PackedCheckpoint(source.parent / f"{source.name}-out" / PACKED)
        found.append({name: packed.read(name) for name in packed.manifest["tensors"]})
    assert found[0] == found[1]


def test_a_run_goes_on_within_a_tensor(tmp_path, monkeypatch):
    source = write_fused(tmp_path / "source", "gpt_oss")
    quantized(source, tmp_path / "whole")
    monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 1)

    class InterruptedRunError(Exception):
        """Raised from on_progress."""

    steps = []

    def stop(step):
        steps.append(step.part.name)
        if len(steps) == EXPERTS + 2:  # the second expert of the second tensor
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        quantized(source, tmp_path / "out", on_progress=stop)
    again = []
    quantized(source, tmp_path / "out", on_progress=lambda step: again.append(step.part.name))
    assert len(again) < 4 * EXPERTS
    assert again[0].split(".")[-3] != "0"  # not the first expert of a tensor
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "whole")


def test_one_expert_is_held_at_a_time(tmp_path):
    plans = []
    source = write_fused(tmp_path / "source", "gpt_oss")
    quantized(source, tmp_path / "out", dry_run=True, on_plan=plans.append)
    (plan,) = plans
    parts = plan.parts("model.safetensors")
    assert sorted({part.nbytes for part in parts}) == [2 * HIDDEN * INNER, 4 * HIDDEN * INNER]
    assert sum(part.nbytes for part in parts) == sum(t.entry.nbytes for t in plan.all_tensors)
    assert [part.begin for part in parts] == sorted(part.begin for part in parts)


def test_depth_and_exclude_mean_experts_by_their_own_names(tmp_path):
    source = write_fused(tmp_path / "source", "granitemoe")
    options = {"depth": ["*.experts.1.*=3"], "exclude": ["model.layers.1.*experts*"]}
    (report,) = quantized(source, tmp_path / "out", **options)
    depths = {name: record["depth"] for name, record in report["quantized"].items()}
    assert {d for name, d in depths.items() if ".experts.1." in name} == {3}
    assert {d for name, d in depths.items() if ".experts.1." not in name} == {2}
    assert all(name.startswith("model.layers.0.") for name in depths)
    assert len(report["kept"]) == 2
    verify(tmp_path / "out" / PACKED)


BAD = {
    "another number of experts": (
        {"num_local_experts": 4}, {}, r"down_proj: 3 experts, and config\.json says 4",
    ),
    "the text model's number": (
        {"text_config": {"num_local_experts": 2}}, {}, "3 experts, and config.json says 2",
    ),
    "transposed": (
        {}, {GATE_UP: np.ones((3, 2 * INNER, HIDDEN), np.float16)},
        r"gate_up_proj: shape \[3, 48, 40\], and .* hidden_size 40 in second place",
    ),
    "one of two transposed": (
        {}, {DOWN: np.ones((3, HIDDEN, INNER), np.float16)},
        r"down_proj: shape \[3, 40, 24\], and .* hidden_size 40 in third place",
    ),
    "another number in the other tensor": (
        {"num_local_experts": None}, {DOWN: np.ones((2, INNER, HIDDEN), np.float16)},
        r"do not fit together: down_proj \[2, 24, 40\], gate_up_proj \[3, 40, 48\]",
    ),
    "another width in the other tensor": (
        {}, {DOWN: np.ones((3, 8, HIDDEN), np.float16)}, "do not fit together",
    ),
    "one of two is missing": ({}, {DOWN: None}, "there is no down_proj of these experts"),
    "no experts": (
        {"num_local_experts": None}, {GATE_UP: np.ones((0, HIDDEN, 8), np.float16)},
        r"shape \[0, 40, 8\] is not that of experts",
    ),
    "an odd number of rows": (
        {}, {GATE_UP: np.ones((3, HIDDEN, 5), np.float16)}, "5 rows are not those of 2 matrices",
    ),
    "two dimensions": (
        {}, {GATE_UP: np.ones((3, HIDDEN), np.float16)}, r"gate_up_proj: shape \[3, 40\] is not",
    ),
    "integers": (
        {}, {GATE_UP: np.ones((3, HIDDEN, 8), np.int8)}, "dtype I8 cannot be quantized",
    ),
    "not finite": (
        {}, {GATE_UP: np.full((3, HIDDEN, 2 * INNER), np.nan, np.float16)},
        r"gate_up_proj, model\.layers\.0\.mlp\.experts\.0\.gate_proj: ",
    ),
    "a single expert beside": (
        {}, {"model.layers.0.mlp.experts.0.up_proj.weight": np.ones((4, 4), np.float16)},
        r"up_proj.weight stands beside .*gate_up_proj",
    ),
    "packed by another": (
        {"quantization_config": {"quant_method": "mxfp4"}}, {}, "Mxfp4Config.*save_pretrained",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(tmp_path, case):
    config, tensors, says = BAD[case]
    source = write_fused(tmp_path / "source", "gpt_oss", **config)
    stored = load_safetensors(source / "model.safetensors") | tensors
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    fresh = json.loads((source / "config.json").read_text())
    source = write_model(tmp_path / "bad", fresh, [stored])
    with pytest.raises(SourceError, match=says) as caught:
        quantized(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "uniform-d2" / "packed").exists()
    if case != "not finite":
        assert not (tmp_path / "out").exists()


def test_one_of_two_tensors_cannot_be_left_out(tmp_path):
    """Nothing would run the other; and what no rule can read may be left out whole."""
    source = write_fused(tmp_path / "source", "gpt_oss")
    with pytest.raises(TritError, match=r"leave out both \(--exclude\)"):
        quantized(source, tmp_path / "out", exclude=["*.down_proj"])
    bad = load_safetensors(source / "model.safetensors") | {GATE_UP: np.ones((2, 3), np.float16)}
    source = write_model(tmp_path / "bad", config_of(LAYOUTS["gpt_oss"]), [bad])
    (report,) = quantized(source, tmp_path / "out", exclude=["model.layers.0.*"])
    assert set(report["kept"]) == {GATE_UP, DOWN}


def test_kernels_of_convolutions_are_no_experts(tmp_path):
    source = write_fused(tmp_path / "source", "qwen3_moe")
    kernels = {
        name: np.ones((8, 4, 4), np.float16)
        for name in ("model.experts.conv.weight", "model.experts.gate_up_proj.weight")
    }
    tensors = load_safetensors(source / "model.safetensors") | kernels
    source = write_model(tmp_path / "more", config_of(LAYOUTS["qwen3_moe"]), [tensors])
    (report,) = quantized(source, tmp_path / "out")
    assert report["kept"] == dict.fromkeys(kernels, "3-D, not recognised")


def test_some_experts_of_a_tensor_cannot_be_left_out(tmp_path):
    source = write_fused(tmp_path / "source", "gpt_oss")
    with pytest.raises(TritError, match=r"holds all experts of its block, and --exclude means"):
        quantized(source, tmp_path / "out", exclude=["*.experts.1.*"])
    with pytest.raises(TritError, match="matches nothing"):
        quantized(source, tmp_path / "out", exclude=["*.experts.3.*"])
    assert not (tmp_path / "out").exists()


def test_a_layout_that_no_row_means_is_kept_and_counts(tmp_path):
    source = write_fused(tmp_path / "source", "gpt_oss", model_type="brand_new")
    layout = LAYOUTS["gpt_oss"]
    tensors = load_safetensors(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((8, 16), np.float16)
    source = write_model(tmp_path / "more", config_of(layout, model_type="brand_new"), [tensors])
    with pytest.raises(SourceError, match=r"the family brand_new is not known; 0\.\d % of the"):
        quantize(str(source), ["uniform-d2"], tmp_path / "out")
    (report,) = quantized(source, tmp_path / "out")
    assert report["kept"] == dict.fromkeys(
        [name for name in tensors if "experts" in name], "3-D, not recognised"
    )


SLICES = {
    "another piece": ({"index": 7}, "leave a hole or overlap"),
    "rows of another": ({"rows": [0, 2 * INNER, 2]}, "leave a hole or overlap"),
    "fewer rows": ({"rows": [1, 2 * INNER - 2, 2]}, "are not those of"),
    "another shape": ({"shape": [3, HIDDEN, 8]}, "differ in file, shape"),
    "another tensor": ({"tensor": "model.norm.weight"}, "leave a hole or overlap"),
    "a stored tensor": (
        {"tensor": "model.layers.0.mlp.experts.0.gate_proj.weight"}, "is stored, and",
    ),
    "a negative row": ({"rows": [-1, 2, 1]}, "is not a slice of a tensor"),
    "a huge stop": ({"rows": [0, 1 << 62, 1]}, "are not those of"),
    "no rows": ({"rows": None}, "is not a slice of a tensor"),
}  # fmt: skip


def test_slices_that_do_not_make_up_their_tensor_are_refused(tmp_path):
    source = write_fused(tmp_path / "source", "gpt_oss")
    quantized(source, tmp_path / "out", write=("packed",))
    folder = tmp_path / "out" / PACKED
    path = folder / "tritllm.json"
    right = path.read_bytes()
    for changes, says in SLICES.values():
        manifest = json.loads(right)
        manifest["tensors"]["model.layers.0.mlp.experts.1.up_proj.weight"]["slice_of"] |= changes
        path.write_bytes(manifest_bytes(manifest))
        with pytest.raises(FormatError, match=says):
            verify(folder)
    manifest = json.loads(right)
    del manifest["tensors"]["model.layers.0.mlp.experts.2.up_proj.weight"]["slice_of"]
    path.write_bytes(manifest_bytes(manifest))
    with pytest.raises(FormatError, match="leave a hole or overlap"):
        verify(folder)
    path.write_bytes(right)
    verify(folder)
