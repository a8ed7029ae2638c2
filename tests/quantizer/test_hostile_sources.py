"""Sources that hold what is no ordinary file or no text;
and what runs out, or goes, while they are read."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
from support.model_folders import (
    llama,
    random_tensors,
    result_hashes,
    write_family,
    write_model,
)

from tritllm import quantize
from tritllm.errors import SourceError, TritError

LINEAR = "model.layers.0.mlp.up_proj.weight"
posix = pytest.mark.skipif(sys.platform == "win32", reason="has neither devices nor such names")


@pytest.fixture
def source(tmp_path):
    return write_family(tmp_path / "source")


def refused(kind, source, match):
    with pytest.raises(kind, match=match) as raised:
        quantize(str(source), ["uniform-d2"], source.parent / "out")
    assert "\n" not in str(raised.value)
    assert not (source.parent / "out").exists()


@posix
@pytest.mark.parametrize("name", ["notes.txt", "sub/zero", "model-extra.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "/nowhere/at/all"])
def test_a_link_to_a_device_or_to_nothing_is_refused(source, name, target):
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(target)
    refused(SourceError, source, rf"{name}: (not a regular file|a link to a file that is not the)")


@posix
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_device_in_the_place_of_a_file_is_not_read(source, name):
    (source / name).unlink()
    (source / name).symlink_to("/dev/zero")
    refused(SourceError, source, f"{name}: not a regular file")


@posix
def test_a_pipe_is_not_waited_for(source):
    os.mkfifo(source / "tokenizer.model")
    refused(SourceError, source, r"tokenizer\.model: not a regular file")


def test_a_config_of_a_gigabyte_is_not_read(source):
    with open(source / "config.json", "r+b") as file:
        file.truncate(1 << 30)
    refused(SourceError, source, r"config\.json: 1073741824 bytes, more than")


@posix
@pytest.mark.parametrize("where", ["source", "out", "side file", "glob"])
def test_names_that_are_no_text_are_refused_before_the_work(source, tmp_path, where):
    odd = "odd\udcff"
    arguments = {"model": str(source), "configs": ["uniform-d2"], "out": tmp_path / "out"}
    if where == "source":
        arguments["model"] = str(source.rename(tmp_path / odd))
    elif where == "out":
        arguments["out"] = tmp_path / odd
    elif where == "glob":
        arguments["include"] = [odd]
    else:
        (source / odd).write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(TritError, match=r"odd.udcff") as raised:
        quantize(**arguments)
    assert str(raised.value).isprintable()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("part", ["_scale", "_codebook"])
def test_names_that_the_packed_file_needs_are_refused(tmp_path, part):
    tensors = random_tensors(llama()) | {LINEAR + part: np.ones((72, 1), np.float32)}
    source = write_model(tmp_path / "source", {"model_type": "llama"}, [tensors])
    refused(SourceError, source, rf"tensor {LINEAR}{part} stands beside {LINEAR}: .*--exclude")
    quantize(str(source), ["uniform-d2"], tmp_path / "out", exclude=[LINEAR])


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """(source, result): a source of 24 matrices, and the hashes of what is made of it."""
    folder = tmp_path_factory.mktemp("long")
    weights = np.random.default_rng(0).standard_normal((512, 3072)).astype(np.float32)
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in range(24)]
    config = {"model_type": "llama"}
    source = write_model(folder / "source", config, [dict.fromkeys(names, weights)])
    quantize(str(source), ["uniform-d1"], folder / "whole")
    return source, result_hashes(folder / "whole")


@pytest.mark.parametrize("when", [1, 3, 6])
def test_a_source_that_is_truncated_while_it_is_read(tmp_path, long_source, when):
    source, uninterrupted = long_source
    shard = source / "model.safetensors"
    whole = shard.read_bytes()
    stamp = shard.stat().st_mtime_ns
    steps = []

    def truncate(step):
        steps.append(step)
        if len(steps) == when:
            os.truncate(shard, 1000)

    with pytest.raises(SourceError, match=r"model\.safetensors: .*truncated") as raised:
        quantize(str(source), ["uniform-d1"], tmp_path / "out", on_progress=truncate)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out/uniform-d1/packed").exists()
    shard.write_bytes(whole)
    os.utime(shard, ns=(stamp, stamp))
    quantize(str(source), ["uniform-d1"], tmp_path / "out")
    assert result_hashes(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread; raise the limit"),
        (MemoryError(), "out of memory"),
    ],
)
@pytest.mark.parametrize("start", range(3))
def test_no_threads_or_memory_left(source, tmp_path, monkeypatch, error, line, start):
    begin = threading.Thread.start
    started = 0

    def fail(thread):
        nonlocal started
        started += 1
        if started > start:
            raise error
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(TritError, match=line) as raised:
        quantize(str(source), ["uniform-d2"], tmp_path / "out")
    monkeypatch.setattr(threading.Thread, "start", begin)
    assert "\n" not in str(raised.value)
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    quantize(str(source), ["uniform-d2"], tmp_path / "whole")
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "whole")
