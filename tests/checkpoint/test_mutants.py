"""Hundreds of damaged folders: what `verify` refuses, no other reader lets through."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.model_folders import hashes, llama, random_tensors, shard_names, split, write_model

from tritllm import FormatError, dequantize, quantize, verify
from tritllm.checkpoint.hashes import check_hashes
from tritllm.checkpoint.packed_headers import stored_matrices
from tritllm.format.manifest import manifest_bytes

SHARDS = shard_names(2)
INDEX = "model.safetensors.index.json"
MANIFEST = "tritllm.json"
SIDE_FILES = ["tokenizer.json", "sub/a.txt", "NOTICE"]
FILES = [*SHARDS, MANIFEST, "config.json", INDEX, *SIDE_FILES]

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A packed folder of two shards at depth 2; not to be changed."""
    folder = tmp_path_factory.mktemp("mutants")
    source = write_model(
        folder / "source",
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        split(random_tensors(llama(hidden=37, inner=50, layers=1)), 2),
        {
            "README.md": b"---\nlicense: llama3.1\n---\n",
            "tokenizer.json": b'{"a": 1}',
            "sub/a.txt": b"x",
        },
    )
    quantize(str(source), ["uniform-d2"], folder / "out")
    return folder / "out/uniform-d2/packed"


@pytest.fixture
def outcome(original, tmp_path):
    """outcome(damage): whether `verify` refused; every other reader is held against it."""
    expected = {n: h for n, h in hashes(original.parent / "model").items() if n != "README.md"}

    def run(damage: Damage) -> bool:
        folder = tmp_path / "packed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        damage(folder)
        refused = fault_of(lambda: verify(folder)) is not None
        out = tmp_path / "model"
        fault = fault_of(lambda: dequantize(folder, out))
        assert not list(tmp_path.glob(".*partial"))
        if refused:
            assert fault is not None, "verify refused, dequantize wrote a model"
            assert not out.exists()
        else:
            assert fault is None
            assert {n: h for n, h in hashes(out).items() if n != "README.md"} == expected
            shutil.rmtree(out)
        return refused

    return run


def fault_of(action: Callable[[], object]) -> str | None:
    """The one line that refuses; None where nothing does. Any other exception is let through."""
    try:
        action()
    except FormatError as error:
        line = str(error)
    else:
        return None
    assert line.isprintable()
    assert len(line) < 500
    return line


def header_bytes(file: Path) -> int:
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


def flip(name: str, offset: int, mask: int) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[offset % len(data)] ^= mask
        (folder / name).write_bytes(data)

    return damage


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(outcome, original, name):
    size = (original / name).stat().st_size
    rng = np.random.default_rng(len(name))
    count = min(40, size)
    for offset in np.linspace(0, size - 1, count).astype(int):
        assert outcome(flip(name, int(offset), int(rng.integers(1, 256))))


@pytest.mark.parametrize("name", SHARDS)
def test_flipped_bytes_of_headers_stop_every_reader(outcome, original, tmp_path, name):
    length = header_bytes(original / name)
    folder = tmp_path / "packed"

    def load() -> None:
        stored_matrices([str(folder / shard) for shard in SHARDS])

    def check() -> None:
        check_hashes([folder])

    for offset in range(0, length, max(1, length // 60)):
        damage = flip(name, offset, 1 + offset % 255)
        assert outcome(damage)
        assert fault_of(load)
        assert fault_of(check)


@pytest.mark.parametrize("name", SHARDS)
def test_flipped_bytes_of_data_stop_the_check_before_a_model_runs(original, tmp_path, name):
    folder = Path(shutil.copytree(original, tmp_path / "packed"))
    whole = (folder / name).read_bytes()
    check_hashes([folder / shard for shard in SHARDS])
    for offset in np.linspace(header_bytes(original / name), len(whole) - 1, 40).astype(int):
        flip(name, int(offset), 1)(folder)
        assert "SHA-256 differs" in (fault_of(lambda: check_hashes([folder / SHARDS[0]])) or "")
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_length(outcome, original, name):
    size = (original / name).stat().st_size

    def cut(length: int) -> Damage:
        return lambda folder: os.truncate(folder / name, length)

    def append(data: bytes) -> Damage:
        def damage(folder: Path) -> None:
            with open(folder / name, "ab") as file:
                file.write(data)

        return damage

    for length in {0, 1, 7, size // 2, size - 1}:
        if length < size:
            assert outcome(cut(length)), length
    for data in (b"\0", b" ", b"\n", b"x" * 1000):
        assert outcome(append(data)), data


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_files(outcome, name):
    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def loop(path: Path) -> None:
        path.symlink_to(path)

    changes: list[Damage] = [lambda path: None, Path.mkdir, pipe, loop]
    changes += [lambda path, to=to: path.symlink_to(to) for to in ("/dev/zero", "/dev/null", "no")]
    for change in changes:

        def damage(folder: Path, change: Damage = change) -> None:
            (folder / name).unlink()
            change(folder / name)

        assert outcome(damage)


def edit_header(folder: Path, shard: str, edit: Callable[[dict], None]) -> None:
    """Rewrite a header in place, at its length."""
    path = folder / shard
    data, length = path.read_bytes(), header_bytes(path)
    fields = json.loads(data[8:length])
    edit(fields)
    text = json.dumps(fields, separators=(",", ":")).encode()
    assert len(text) <= length - 8
    path.write_bytes(data[:8] + text.ljust(length - 8) + data[length:])


def pairs_of_equal_tensors(original: Path) -> list[tuple[str, str, str]]:
    records = json.loads((original / MANIFEST).read_text())["tensors"]
    names = list(records)
    return [
        (records[a]["file"], a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if all(records[a][key] == records[b][key] for key in ("file", "dtype", "shape"))
    ]


def test_tensors_in_each_others_place(outcome, original, tmp_path):
    pairs = pairs_of_equal_tensors(original)
    assert len(pairs) >= 10
    files = [str(tmp_path / "packed" / name) for name in SHARDS]

    def load() -> None:
        stored_matrices(files)

    for shard, a, b in pairs:

        def swap(fields: dict, a: str = a, b: str = b) -> None:
            fields[a], fields[b] = fields[b], fields[a]

        def damage(folder: Path, shard: str = shard, swap: Callable = swap) -> None:
            edit_header(folder, shard, swap)

        assert outcome(damage)
        assert "SHA-256 of the header differs" in (fault_of(load) or "")


def test_bytes_of_tensors_swapped(outcome, original):
    for shard, a, b in pairs_of_equal_tensors(original):

        def damage(folder: Path, shard: str = shard, a: str = a, b: str = b) -> None:
            path = folder / shard
            data, start = bytearray(path.read_bytes()), header_bytes(path)
            fields = json.loads(data[8:start])
            (i, j), (k, m) = (fields[name]["data_offsets"] for name in (a, b))
            data[start + i : start + j], data[start + k : start + m] = (
                data[start + k : start + m],
                data[start + i : start + j],
            )
            changed = bytes(data) != path.read_bytes()
            path.write_bytes(data)
            assert changed or a.endswith("norm.weight")

        outcome(damage)


def test_shards_that_nobody_named(outcome):
    for name in ("model.safetensors", "model-00003-of-00003.safetensors", "sub/more.safetensors"):
        assert outcome(lambda folder, name=name: shutil.copy(folder / SHARDS[0], folder / name))


def test_files_that_are_no_part_are_no_fault(outcome):
    assert not outcome(lambda folder: (folder / "notes.txt").write_text("mine"))
    assert not outcome(lambda folder: (folder / "README.md").write_text("mine"))
    assert not outcome(lambda folder: (folder / "README.md").unlink())


def test_a_manifest_changed_and_signed_anew(outcome, original):
    """Each field missing, or the value of its neighbour, with the file's own hash put right."""
    manifest = json.loads((original / MANIFEST).read_text())
    places: list[tuple] = [(key,) for key in manifest if key != "sha256"]
    for name in list(manifest["tensors"])[:4]:
        places += [("tensors", name)]
        places += [("tensors", name, key) for key in manifest["tensors"][name]]
    places += [("headers", SHARDS[0]), ("side_files", "NOTICE"), ("source", "model")]
    silent = {("command",), ("tool",), ("config",), ("dequantized_dtype",), ("not_stored",)}

    def put(place: tuple, value: object) -> Damage:
        def damage(folder: Path) -> None:
            changed = json.loads((folder / MANIFEST).read_text())
            node = changed
            for key in place[:-1]:
                node = node[key]
            if value is put:
                del node[place[-1]]
            else:
                node[place[-1]] = value
            (folder / MANIFEST).write_bytes(manifest_bytes(changed))

        return damage

    for place in places:
        if place != ("side_files", "NOTICE"):  # then it is no part of the checkpoint
            assert outcome(put(place, put)), place
        for value in (None, 3, -1, "x", "0" * 64, [], {}, [1, 2, 3], 10**400):
            if place in silent or place[-1] in ("kept", "nmse", "codec", "model", "transposed"):
                continue  # what is said of the source and the encoder cannot be proven
            if (place, value) == (("side_files",), {}):  # then none is part of the checkpoint
                continue
            assert outcome(put(place, value)), (place, value)
