"""A source goes in, packed and dequantized folders come out, and every byte is accounted for."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from support.model_folders import (
    BF16,
    FAMILIES,
    QUANTIZE,
    SIDE_FILES,
    hashes,
    llama,
    load_safetensors,
    random_tensors,
    result_hashes,
    shard_names,
    split,
    write_family,
    write_model,
)

from tritllm import PackedCheckpoint, dequantize, encode, quantize, verify
from tritllm.errors import OutputError

ALL = ("uniform-d1", "uniform-d2", "uniform-d3", "uniform-d4")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def four_depths(tmp_path_factory):
    """One bfloat16 Llama of three shards at all four depths."""
    folder = tmp_path_factory.mktemp("four")
    source = write_family(folder / "source", "llama", shards=3, dtype=BF16)
    return source, folder / "out", quantize(str(source), ALL, folder / "out")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_family_is_decided_by_its_names(tmp_path, model_type):
    source = write_family(tmp_path / "source", model_type, shards=2)
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out")
    expected = {name: what for name, (_, what) in FAMILIES[model_type].items()}
    assert set(report["quantized"]) == {n for n, what in expected.items() if what == QUANTIZE}
    assert report["kept"] == {n: what for n, what in expected.items() if what != QUANTIZE}
    verify(tmp_path / "out/uniform-d2/packed")


def test_unknown_model_type_is_read_with_the_common_names(tmp_path):
    source = write_family(tmp_path / "source", "brand_new")
    (report,) = quantize(str(source), ["uniform-d1"], tmp_path / "out", allow_low_coverage=True)
    assert set(report["quantized"]) == {n for n, (_, what) in llama().items() if what == QUANTIZE}


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32], ids=["f16", "bf16", "f32"])
@pytest.mark.parametrize("target", ["float16", "bfloat16"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_dequantize_gives_the_model_folder_byte_for_byte(tmp_path, dtype, target, model_type):
    source = write_family(tmp_path / "source", model_type, shards=2, dtype=dtype)
    quantize(str(source), ALL, tmp_path / "out", dtype=target)
    for config in ALL:
        folder = tmp_path / "out" / config
        dequantize(folder / "packed", tmp_path / config)
        assert hashes(tmp_path / config) == hashes(folder / "model")


def test_the_model_holds_what_the_codec_decodes_and_casts(four_depths):
    source, out, _ = four_depths
    original = {}
    for name in shard_names(3):
        original |= load_safetensors(source / name)
    for depth, config in enumerate(ALL, 1):
        for shard in shard_names(3):
            for name, stored in load_safetensors(out / config / "model" / shard).items():
                assert stored.dtype == np.float16
                expected = original[name].astype(np.float16)
                if llama()[name][1] == QUANTIZE:
                    expected = encode(original[name], depth).decode(dtype=np.float16)
                np.testing.assert_array_equal(stored, expected, err_msg=name)


def test_transposed_weights_are_grouped_along_in_features(tmp_path):
    source = write_family(tmp_path / "source", "gpt2", dtype=np.float32)
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    name = "transformer.h.0.attn.c_attn.weight"
    original = load_safetensors(source / "model.safetensors")[name]
    expected = encode(np.ascontiguousarray(original.T), 2)
    checkpoint = PackedCheckpoint(tmp_path / "out/uniform-d2/packed")
    assert checkpoint.is_transposed(name)
    np.testing.assert_array_equal(checkpoint.tensor(name).weight, expected.weight)
    stored = load_safetensors(tmp_path / "out/uniform-d2/model/model.safetensors")[name]
    np.testing.assert_array_equal(stored, expected.decode(dtype=np.float16).T)


def test_included_embeddings_of_gpt2_are_not_transposed(tmp_path):
    source = write_family(tmp_path / "source", "gpt2")
    (report,) = quantize(
        str(source), ["uniform-d2"], tmp_path / "out", include=["*.wte.weight"], write=["model"]
    )
    assert report["quantized"]["transformer.wte.weight"]["shape"] == [50, 24]


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_fewer_planes_are_what_the_tensor_decodes(four_depths, tmp_path, planes):
    _, out, _ = four_depths
    packed = out / "uniform-d4/packed"
    dequantize(packed, tmp_path / "model", planes=planes)
    checkpoint = PackedCheckpoint(packed)
    stored = {}
    for shard in shard_names(3):
        stored |= load_safetensors(tmp_path / "model" / shard)
    for name in checkpoint.quantized:
        whole = checkpoint.tensor(name).decode(planes, np.float16)
        np.testing.assert_array_equal(stored[name], whole)
        np.testing.assert_array_equal(
            checkpoint.tensor(name, planes).decode(dtype=np.float16), whole
        )


def test_planes_beyond_the_file_are_refused(four_depths, tmp_path):
    _, out, _ = four_depths
    for planes in (0, 3, -1):
        with pytest.raises(Exception, match="holds 2 planes"):
            dequantize(out / "uniform-d2/packed", tmp_path / "model", planes=planes)


def test_shards_keep_the_sources_partition(four_depths):
    source, out, _ = four_depths
    for shard in shard_names(3):
        names = set(load_safetensors(source / shard))
        assert set(load_safetensors(out / "uniform-d3/model" / shard)) == names
        packed = set(load_safetensors(out / "uniform-d3/packed" / shard))
        assert {n.removesuffix("_scale").removesuffix("_codebook") for n in packed} == names


@pytest.mark.parametrize("kind", ["packed", "model"])
def test_the_index_names_every_tensor_and_the_total_size(four_depths, kind):
    _, out, _ = four_depths
    folder = out / "uniform-d2" / kind
    index = json.loads((folder / INDEX).read_text())
    found = {shard: load_safetensors(folder / shard) for shard in shard_names(3)}
    assert index["weight_map"] == {n: shard for shard, ts in found.items() for n in ts}
    total = sum(a.nbytes for tensors in found.values() for a in tensors.values())
    assert index["metadata"]["total_size"] == total


def test_a_single_shard_has_no_index(tmp_path):
    source = write_family(tmp_path / "source")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    for kind in ("packed", "model"):
        assert not (tmp_path / "out/uniform-d2" / kind / INDEX).exists()


def test_the_safetensors_library_reads_the_packed_shards(four_depths):
    _, out, _ = four_depths
    for depth, config in enumerate(ALL, 1):
        for shard in shard_names(3):
            path = out / config / "packed" / shard
            raw = path.read_bytes()
            length = int.from_bytes(raw[:8], "little")
            assert length % 8 == 0
            header = json.loads(raw[8 : 8 + length])
            assert header.pop("__metadata__") == {"format": "pt"}
            tensors = load_safetensors(path)
            assert set(tensors) == set(header)
            for name, array in tensors.items():
                begin = header[name]["data_offsets"][0] + 8 + length
                assert begin % array.itemsize == 0, name
                base = name.removesuffix("_scale").removesuffix("_codebook")
                shape, what = llama()[base]
                if what != QUANTIZE:
                    assert array.dtype == BF16
                    assert array.shape == shape
                    continue
                rows, columns = shape
                groups = math.ceil(columns / 16)
                expected = {
                    "": (np.uint8, (depth, rows, math.ceil(columns / 5))),
                    "_scale": (np.uint8, (rows, math.ceil(3 * groups / 5))),
                    "_codebook": (np.float32, (depth, 27)),
                }[name.removeprefix(base)]
                assert (array.dtype, array.shape) == expected


def test_kept_tensors_are_verbatim_in_the_packed_file(four_depths):
    source, out, _ = four_depths
    for shard in shard_names(3):
        packed = load_safetensors(out / "uniform-d1/packed" / shard)
        for name, array in load_safetensors(source / shard).items():
            if llama()[name][1] != QUANTIZE:
                assert packed[name].tobytes() == array.tobytes()


def test_integers_stay_as_they_are_in_both_folders(tmp_path):
    tensors = random_tensors(llama()) | {
        "model.steps": np.array([1, -(2**60)], np.int64),
        "model.mask": np.array([True, False]),
        "model.tiny": np.array([[-3]], np.int8),
    }
    source = write_model(tmp_path / "source", {"model_type": "llama"}, [tensors])
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    for kind in ("packed", "model"):
        stored = load_safetensors(tmp_path / "out/uniform-d2" / kind / "model.safetensors")
        for name in ("model.steps", "model.mask", "model.tiny"):
            np.testing.assert_array_equal(stored[name], tensors[name])
            assert stored[name].dtype == tensors[name].dtype


def test_zero_sized_kept_tensors_pass(tmp_path):
    tensors = random_tensors(llama()) | {"model.none": np.empty((0, 3), np.float32)}
    source = write_model(tmp_path / "source", {"model_type": "llama"}, [tensors])
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    verify(tmp_path / "out/uniform-d2/packed")
    stored = load_safetensors(tmp_path / "out/uniform-d2/model/model.safetensors")
    assert stored["model.none"].shape == (0, 3)


def test_side_files_are_copied_and_the_rest_listed(tmp_path):
    others = {
        "README.md": b"---\nlicense: mit\n---\n",
        "pytorch_model.bin": b"\x80\x02pickle",
        "onnx/model.onnx": b"x",
        "consolidated.safetensors": b"not even read",
        "pytorch_model.bin.index.json": b"{}",
        ".git/HEAD": b"ref",
        ".cache/huggingface/x": b"y",
    }
    tensors = split(random_tensors(llama()), 2)
    source = write_model(tmp_path / "source", {"model_type": "llama"}, tensors, SIDE_FILES | others)
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert set(report["not_copied"]) == {n for n in others if not n.startswith((".git", ".cache"))}
    own = {"config.json", "README.md", INDEX, *shard_names(2)}
    for kind in ("packed", "model"):
        folder = tmp_path / "out/uniform-d2" / kind
        for name, content in SIDE_FILES.items():
            assert (folder / name).read_bytes() == content
        manifest = {"tritllm.json"} if kind == "packed" else set()
        assert set(hashes(folder)) == own | manifest | set(SIDE_FILES)


def test_tied_head_that_repeats_the_embeddings_is_stored_once(tmp_path):
    tensors = random_tensors(llama(tied=False))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    source = write_model(  # alone in its shard, which then holds nothing
        tmp_path / "source",
        {"model_type": "llama", "tie_word_embeddings": True},
        [tensors, head],
    )
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert report["kept"]["lm_head.weight"] == "tied to model.embed_tokens.weight, stored once"
    folder = tmp_path / "out/uniform-d2"
    for kind in ("packed", "model"):
        index = json.loads((folder / kind / INDEX).read_text())
        assert "lm_head.weight" not in index["weight_map"]
        assert "lm_head.weight" not in load_safetensors(folder / kind / shard_names(2)[1])
    verify(folder / "packed")
    dequantize(folder / "packed", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(folder / "model")
    manifest = json.loads((folder / "packed/tritllm.json").read_text())
    assert manifest["not_stored"] == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("config", "equal"),
    [
        ({"tie_word_embeddings": True}, False),
        ({"tie_word_embeddings": False}, True),
        ({}, True),
    ],
    ids=["different", "not tied", "not stated"],
)
def test_a_head_is_not_dropped_unless_tied_and_equal(tmp_path, config, equal):
    tensors = random_tensors(llama())
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    source = write_model(tmp_path / "source", {"model_type": "llama"} | config, [tensors])
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert report["kept"]["lm_head.weight"] == "lm_head"
    stored = load_safetensors(tmp_path / "out/uniform-d2/model/model.safetensors")
    np.testing.assert_array_equal(stored["lm_head.weight"], tensors["lm_head.weight"])


def test_include_and_exclude_choose_weights(tmp_path):
    source = write_family(tmp_path / "source")
    (report,) = quantize(
        str(source),
        ["uniform-d2"],
        tmp_path / "out",
        include=["lm_head.weight", "model.embed*"],
        exclude=["model.layers.1.*", "model.embed*"],
    )
    assert "lm_head.weight" in report["quantized"]
    assert report["kept"]["model.embed_tokens.weight"] == "excluded on request"
    assert report["kept"]["model.layers.1.mlp.up_proj.weight"] == "excluded on request"
    assert "model.layers.0.mlp.up_proj.weight" in report["quantized"]


def test_depth_overrides_by_module_the_last_match_winning(tmp_path):
    source = write_family(tmp_path / "source")
    (report,) = quantize(
        str(source),
        ["uniform-d2"],
        tmp_path / "out",
        depth=["model.layers.0.*=4", "*.down_proj=1"],
    )
    depths = {name: record["depth"] for name, record in report["quantized"].items()}
    assert depths["model.layers.0.mlp.up_proj.weight"] == 4
    assert depths["model.layers.0.mlp.down_proj.weight"] == 1
    assert depths["model.layers.1.mlp.up_proj.weight"] == 2
    packed = tmp_path / "out/uniform-d2/packed"
    quantization = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert quantization["depth"] == {n.removesuffix(".weight"): d for n, d in depths.items()}
    verify(packed)
    dequantize(packed, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out/uniform-d2/model")
    dequantize(packed, tmp_path / "two", planes=2)  # a matrix of one plane gives all it has
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(
        load_safetensors(tmp_path / "two/model.safetensors")[name],
        load_safetensors(tmp_path / "again/model.safetensors")[name],
    )


@pytest.mark.parametrize("kind", ["packed", "model"])
def test_write_one_folder_only(four_depths, tmp_path, kind):
    source, out, _ = four_depths
    quantize(str(source), ["uniform-d2"], tmp_path / "out", write=[kind])
    assert {p.name for p in (tmp_path / "out/uniform-d2").iterdir()} == {kind, "report.json"}
    ours = hashes(tmp_path / "out/uniform-d2" / kind)
    assert ours == hashes(out / "uniform-d2" / kind)


def test_several_depths_in_one_pass_equal_single_runs(four_depths, tmp_path):
    source, out, _ = four_depths
    for config in ALL:
        quantize(str(source), [config], tmp_path / "out", threads=1)
    assert result_hashes(tmp_path / "out") == result_hashes(out)


def test_codec_v2_is_recorded_and_differs(four_depths, tmp_path):
    source, out, _ = four_depths
    (report,) = quantize(str(source), ["uniform-d3"], tmp_path / "out", codec="v2")
    packed = tmp_path / "out/uniform-d3/packed"
    assert json.loads((packed / "tritllm.json").read_text())["codec"] == "v2"
    assert (
        report["sqnr_db"]["mean"]
        < json.loads((out / "uniform-d3/report.json").read_text())["sqnr_db"]["mean"]
    )


def test_configs_of_both_folders(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "rope_scaling": {"factor": 8.0, "name": "äß"},
        "quantization_config": None,
    }
    source = write_model(tmp_path / "source", config, [random_tensors(llama())])
    quantize(str(source), ["uniform-d2"], tmp_path / "out", dtype="bfloat16")
    folder = tmp_path / "out/uniform-d2"
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    assert json.loads((folder / "model/config.json").read_text("utf-8")) == plain
    packed = json.loads((folder / "packed/config.json").read_text("utf-8"))
    quantization = packed.pop("quantization_config")
    assert packed == plain
    report = json.loads((folder / "report.json").read_text())
    assert quantization == {
        "quant_method": "tritllm",
        "format_version": 1,
        "codec": "v3",
        "depth": 2,
        "group_size": 16,
        "bits_per_weight": round(report["bits_per_weight"]["quantized"], 4),
        "modules_to_not_convert": ["model.embed_tokens", "lm_head"],
    }


def test_dtype_is_stated_where_the_source_states_none(tmp_path):
    source = write_family(tmp_path / "source")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    config = json.loads((tmp_path / "out/uniform-d2/model/config.json").read_text())
    assert config["dtype"] == "float16"
    assert "torch_dtype" not in config


def test_the_report_counts_what_the_files_hold(four_depths):
    _, out, reports = four_depths
    shapes = llama()
    linear = {n: s for n, (s, what) in shapes.items() if what == QUANTIZE}
    weights = sum(math.prod(s) for s in linear.values())
    parameters = sum(math.prod(s) for s, _ in shapes.values())
    for depth, report in enumerate(reports, 1):
        folder = out / f"uniform-d{depth}"
        assert json.loads((folder / "report.json").read_text()) == report
        assert report["parameters"] == parameters
        assert report["quantized_parameters"] == weights
        assert report["coverage_percent"] == pytest.approx(100 * weights / parameters)
        assert set(report["quantized"]) == set(linear)
        packed, model = {}, {}
        for shard in shard_names(3):
            packed |= load_safetensors(folder / "packed" / shard)
            model |= load_safetensors(folder / "model" / shard)
        every_byte = sum(a.nbytes for a in packed.values())
        trit_bytes = sum(
            packed[n + suffix].nbytes for n in linear for suffix in ("", "_scale", "_codebook")
        )
        assert report["packed_bytes"] == every_byte
        assert report["model_bytes"] == sum(a.nbytes for a in model.values())
        assert report["bits_per_weight"]["quantized"] == pytest.approx(8 * trit_bytes / weights)
        assert report["bits_per_weight"]["whole_file"] == pytest.approx(8 * every_byte / parameters)
        for name, record in report["quantized"].items():
            assert record["depth"] == depth
            assert record["shape"] == list(linear[name])
            assert record["sqnr_db"] == pytest.approx(-10 * math.log10(record["nmse"]))
        values = [record["sqnr_db"] for record in report["quantized"].values()]
        assert report["sqnr_db"]["lowest"] == min(values)
        assert report["seconds"] > 0
        assert report["peak_memory_bytes"] > 1 << 20


def test_the_reported_error_is_that_of_the_decoded_weight(four_depths):
    source, out, reports = four_depths
    checkpoint = PackedCheckpoint(out / "uniform-d3/packed")
    name = "model.layers.0.mlp.up_proj.weight"
    original = next(
        tensors[name].astype(np.float64)
        for tensors in (load_safetensors(source / shard) for shard in shard_names(3))
        if name in tensors
    )
    lost = ((checkpoint.tensor(name).decode() - original) ** 2).sum() / (original**2).sum()
    assert reports[2]["quantized"][name]["nmse"] == pytest.approx(lost, rel=1e-5)


def test_an_exact_tensor_has_no_decibels(tmp_path):
    tensors = random_tensors(llama(layers=1))
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = np.zeros_like(tensors[name])
    source = write_model(tmp_path / "source", {"model_type": "llama"}, [tensors])
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert report["quantized"][name]["sqnr_db"] is None
    assert json.loads((tmp_path / "out/uniform-d2/report.json").read_text()) == report
    verify(tmp_path / "out/uniform-d2/packed")


def test_bits_a_weight_of_a_large_matrix(tmp_path):
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((1000, 1024)) * 0.02).astype(np.float16)
    source = write_model(
        tmp_path / "source",
        {"model_type": "llama"},
        [{"model.layers.0.mlp.up_proj.weight": weight}],
    )
    for depth, report in enumerate(quantize(str(source), ALL, tmp_path / "out"), 1):
        stated = (depth + 3 / 16) * math.log2(3)
        assert report["bits_per_weight"]["quantized"] == pytest.approx(stated, rel=0.015)
        on_disk = (tmp_path / f"out/uniform-d{depth}/packed/model.safetensors").stat().st_size
        assert 8 * on_disk / weight.size == pytest.approx(stated, rel=0.015)


def test_the_manifest_says_where_everything_is(four_depths):
    source, out, _ = four_depths
    manifest = json.loads((out / "uniform-d2/packed/tritllm.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["config"] == "uniform-d2"
    source_hashes = hashes(source)
    assert manifest["source"] == {
        "model": "source",
        "revision": None,
        "shards": {name: source_hashes[name] for name in shard_names(3)},
    }
    files = hashes(out / "uniform-d2/packed")
    assert manifest["side_files"] == {
        name: files[name] for name in (*SIDE_FILES, "config.json", INDEX)
    }
    assert str(source.parent) not in json.dumps(manifest)  # no path of the writer's machine
    assert manifest["command"] == ("tritllm quantize --model source --configs uniform-d2 --out out")


def test_a_new_config_may_join_a_finished_one(tmp_path):
    source = write_family(tmp_path / "source")
    quantize(str(source), ["uniform-d1"], tmp_path / "out")
    before = hashes(tmp_path / "out")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert {n: h for n, h in hashes(tmp_path / "out").items() if "uniform-d1" in n} == before
    verify(tmp_path / "out/uniform-d2/packed")


def test_dequantize_to_another_dtype(four_depths, tmp_path):
    _, out, _ = four_depths
    dequantize(out / "uniform-d2/packed", tmp_path / "model", dtype="bfloat16")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    for shard in shard_names(3):
        for array in load_safetensors(tmp_path / "model" / shard).values():
            assert array.dtype == ml_dtypes.bfloat16


def test_dequantize_refuses_a_folder_in_use_and_touches_nothing(four_depths, tmp_path):
    _, out, _ = four_depths
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        dequantize(out / "uniform-d2/packed", tmp_path / "mine")
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial/precious").write_text("x")
    (tmp_path / "empty").mkdir()
    dequantize(out / "uniform-d2/packed", tmp_path / "empty")
    assert (tmp_path / "mine/precious").read_text() == "x"
    assert (tmp_path / "mine.partial/precious").read_text() == "x"
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "mine.partial", "empty"}


def test_dequantize_refuses_to_write_into_the_packed_folder(tmp_path):
    source = write_family(tmp_path / "source")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    packed = tmp_path / "out/uniform-d2/packed"
    with pytest.raises(OutputError, match="lies in the packed folder"):
        dequantize(packed, packed / "model")
    verify(packed)


def test_dequantize_of_a_folder_without_a_side_file_is_refused(tmp_path):
    source = write_family(tmp_path / "source")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    (tmp_path / "out/uniform-d2/packed/tokenizer.json").unlink()
    with pytest.raises(Exception, match=r"tokenizer\.json: missing"):
        dequantize(tmp_path / "out/uniform-d2/packed", tmp_path / "model")
    assert not (tmp_path / "model").exists()
