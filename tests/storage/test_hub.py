"""Sources on the Hub: read in place or downloaded, pinned to a commit, and published again."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from itertools import chain, pairwise, repeat

import numpy as np
import pytest
from huggingface_hub import HfApi
from support.attempts import WorkersHere
from support.fused_experts import EXPERTS, write_fused
from support.hub_server import HubServer
from support.model_folders import (
    hashes,
    llama,
    random_tensors,
    result_hashes,
    shard_names,
    split,
    write_model,
)

from tritllm import quantize, verify
from tritllm.errors import OutputError, SourceError, TritError, first_line
from tritllm.format.safetensors_header import read_header
from tritllm.integrations.vllm.stored import read_stored
from tritllm.publish.push import push
from tritllm.quantizer.quantize import quantize as core_quantize
from tritllm.run.info import info
from tritllm.storage import hub_files
from tritllm.storage.hub_files import HubFiles

# huggingface_hub's habit when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPOSITORY = "some-org/Tiny-Llama"
TOKEN = "hf_" + "aB3" * 11 + "z"
CARD = b"---\nlicense: apache-2.0\nbase_model: some-org/base\n---\n# Tiny\n"


@pytest.fixture
def source(tmp_path):
    return write_model(
        tmp_path / "source",
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        split(random_tensors(llama(), np.float32), 3),
        {
            "README.md": CARD,
            "tokenizer.json": b"{}",
            "sub/extra.txt": b"x",
            "empty.txt": b"",
            "pytorch_model.bin": b"\x80\x02pickled",
        },
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub on the loopback, in the place of the real one; its cache is a folder of the test."""
    from huggingface_hub import HfFileSystem, constants
    from huggingface_hub.utils import _http

    HfFileSystem.clear_instance_cache()  # they are shared, and remember the last test's Hub
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
    HfFileSystem.clear_instance_cache()


NAMING = ("tritllm.json", "README.md")  # say where the source came from


def same_but_for_its_name(one, other) -> None:
    """Equal bytes, besides the source's name and revision in manifest and card."""
    first, second = result_hashes(one), result_hashes(other)
    assert first.keys() == second.keys()
    for name in first:
        if not name.endswith(NAMING):
            assert first[name] == second[name], name
    for path in one.glob("*/packed/tritllm.json"):
        manifests = []
        for manifest in (path, other / path.relative_to(one)):
            content = json.loads(manifest.read_text())
            for key in ("sha256", "command"):
                del content[key]
            content["source"] = content["source"]["shards"]
            manifests.append(content)
        assert manifests[0] == manifests[1]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "snapshot"])
def test_a_hub_id_gives_what_the_local_folder_gives(hub, source, tmp_path, stream):
    sha = hub.add(REPOSITORY, source)
    configs = ["uniform-d1", "uniform-d3"]
    reports = quantize(REPOSITORY, configs, tmp_path / "hub", stream=stream)
    quantize(str(source), configs, tmp_path / "local")
    same_but_for_its_name(tmp_path / "local", tmp_path / "hub")
    assert [report["revision"] for report in reports] == [sha, sha]
    assert reports[0]["source"] == REPOSITORY
    packed = tmp_path / "hub/uniform-d1/packed"
    manifest = json.loads((packed / "tritllm.json").read_text())
    assert manifest["source"]["model"] == REPOSITORY
    assert manifest["source"]["revision"] == sha
    assert manifest["command"] == (
        f"tritllm quantize --model {REPOSITORY} --revision {sha} --configs uniform-d1 --out out"
    )
    card = (packed / "README.md").read_text()
    assert f"https://huggingface.co/{REPOSITORY}" in card
    assert sha[:12] in card
    assert "base_model: some-org/Tiny-Llama" in card
    assert "base_model_relation: quantized" in card
    verify(packed)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "snapshot"])
def test_other_processes_read_the_hub_too(hub, source, tmp_path, stream):
    hub.add(REPOSITORY, source)
    for name, workers in (("here", None), ("apart", WorkersHere())):
        core_quantize(REPOSITORY, ["uniform-d1"], tmp_path / name, stream=stream, workers=workers)
    assert result_hashes(tmp_path / "apart") == result_hashes(tmp_path / "here")


def test_streaming_fetches_each_byte_once_and_stores_nothing(hub, source, tmp_path):
    hub.add(REPOSITORY, source)
    quantize(REPOSITORY, ["uniform-d1", "uniform-d2"], tmp_path / "out", stream=True)
    sizes = sum((source / name).stat().st_size for name in shard_names(3))
    headers = sum(
        8 + 8 + int.from_bytes((source / name).read_bytes()[:8], "little")
        for name in shard_names(3)
    )
    fetched = hub.bytes_of(".safetensors")
    assert sizes <= fetched <= sizes + headers
    for shard in shard_names(3):
        ranges = sorted(r[1:] for r in hub.fetched if r[0] == shard)
        data = [r for r in ranges if r[0] >= 16]
        assert all(a[1] <= b[0] for a, b in pairwise(data))
    assert not (tmp_path / "cache").exists()
    assert not hub.bytes_of(".bin")


def test_a_snapshot_leaves_the_pickle_on_the_hub(hub, source, tmp_path):
    hub.add(REPOSITORY, source)
    quantize(REPOSITORY, ["uniform-d1"], tmp_path / "out")
    assert not any(".bin" in request for request in hub.requests if "resolve" in request)
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "snapshot"])
def test_revision_pins_a_commit(hub, source, tmp_path, stream):
    first = hub.add(REPOSITORY, source)
    second_source = write_model(
        tmp_path / "second", {"model_type": "llama"}, [random_tensors(llama(), seed=1)]
    )
    second = hub.add(REPOSITORY, second_source)
    for revision, sha, folder in ((first, first, source), (None, second, second_source)):
        out = tmp_path / f"out-{sha}"
        (report,) = quantize(
            REPOSITORY, ["uniform-d1"], out, revision=revision, stream=stream, write=["packed"]
        )
        assert report["revision"] == sha
        manifest = json.loads((out / "uniform-d1/packed/tritllm.json").read_text())
        assert manifest["source"]["revision"] == sha
        assert set(manifest["source"]["shards"]) == {p.name for p in folder.glob("*.safetensors")}


def test_a_branch_that_moved_is_noticed_on_resuming(hub, source, tmp_path):
    hub.add(REPOSITORY, source)
    with pytest.raises(ZeroDivisionError):
        quantize(
            REPOSITORY, ["uniform-d1"], tmp_path / "out", stream=True, on_progress=lambda _: 1 / 0
        )
    hub.add(REPOSITORY, source)
    with pytest.raises(OutputError, match=r"revision: \w{40} -> \w{40}"):
        quantize(REPOSITORY, ["uniform-d1"], tmp_path / "out", stream=True)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "snapshot"])
@pytest.mark.parametrize(
    ("repository", "revision"),
    [("some-org/nothing", None), (REPOSITORY, "no-such-branch"), ("bad name/with spaces", None)],
)
def test_what_the_hub_does_not_have(hub, source, tmp_path, repository, revision, stream):
    hub.add(REPOSITORY, source)
    with pytest.raises(SourceError, match="not a local folder, and the Hub says: ") as raised:
        quantize(repository, ["uniform-d1"], tmp_path / "out", revision=revision, stream=stream)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "snapshot"])
def test_a_hub_that_cannot_be_reached(hub, tmp_path, monkeypatch, stream):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SourceError, match="and the Hub says: ") as raised:
        quantize(REPOSITORY, ["uniform-d1"], tmp_path / "out", stream=stream)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("answers", [7, 9, 16, 24, 31])
def test_a_hub_that_dies_midway_leaves_a_run_that_resumes(hub, source, tmp_path, answers):
    hub.add(REPOSITORY, source)
    hub.refuse_after = answers
    with pytest.raises(SourceError, match=rf"^{REPOSITORY}/.*403") as raised:
        quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out/uniform-d2/packed").exists()
    hub.refuse_after = None
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True)
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "whole", stream=True)
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "whole")


FAULTS = ("503", "drop", "short")


@pytest.fixture
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(hub_files.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("answer", [4, 8, 17, 26])
def test_an_answer_that_fails_once_or_twice_is_asked_for_again(
    hub, source, tmp_path, no_waiting, fault, answer
):
    hub.add(REPOSITORY, source)
    hub.faults = iter([""] * answer + [fault, fault])
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True)
    assert list(hub.faults) == []  # all of them came
    if fault != "503":  # which the client itself tries again
        assert no_waiting == [1, 2]
    quantize(str(source), ["uniform-d2"], tmp_path / "local")
    same_but_for_its_name(tmp_path / "local", tmp_path / "out")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_fails_always_ends_the_run_which_resumes(
    hub, source, tmp_path, no_waiting, fault
):
    hub.add(REPOSITORY, source)
    hub.faults = chain([""] * 12, repeat(fault))
    with pytest.raises(SourceError, match=rf"^{REPOSITORY}/model-0000") as raised:
        quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True)
    assert "\n" not in str(raised.value)
    assert [wait for wait in no_waiting if wait in (1, 2, 4)][:3] == [1, 2, 4]
    assert len(hub.fetched) < 12 + 30
    hub.faults = iter(())
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True)
    quantize(str(source), ["uniform-d2"], tmp_path / "local")
    same_but_for_its_name(tmp_path / "local", tmp_path / "out")


def test_a_file_is_looked_up_once_however_many_ranges_are_read(hub, source):
    hub.add(REPOSITORY, source)
    shard = shard_names(3)[0]
    files = HubFiles(REPOSITORY, None)
    found = [files.read(shard, 100 * index, 100) for index in range(2)]
    before = len(hub.requests)
    found += [files.read(shard, 100 * index, 100) for index in range(2, 20)]
    assert b"".join(found) == (source / shard).read_bytes()[:2000]
    assert len(hub.requests) - before == 2 * 18  # the address, and where it leads
    assert not [request for request in hub.requests[before:] if "/api/" in request]


def test_files_of_the_hub_can_be_pickled_amid_reading(hub, source):
    hub.add(REPOSITORY, source)
    shard = shard_names(3)[0]
    files = HubFiles(REPOSITORY, None)
    data = files.read(shard, 0, 500)
    assert pickle.loads(pickle.dumps(files)).read(shard, 0, 500) == data


def test_a_connection_that_is_lost_is_one_line(hub, source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub.add(REPOSITORY, source)
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    seen = []

    def lose_it(step):
        seen.append(step)
        if len(seen) == 3:
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)

    with pytest.raises(SourceError, match=f"^{REPOSITORY}/model-0000") as raised:
        quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", stream=True, on_progress=lose_it)
    assert "\n" not in str(raised.value)
    assert 3 <= len(seen) < len(llama())  # what had been read was still encoded


def test_info_of_a_hub_id_fetches_headers_only(hub, source):
    hub.add(REPOSITORY, source)
    facts = info(REPOSITORY)
    assert facts.parameters == sum(int(np.prod(shape)) for shape, _ in llama().values())
    assert facts.licence.id == "apache-2.0"
    assert facts.base_model == "some-org/base"
    headers = sum(
        16 + int.from_bytes((source / name).read_bytes()[:8], "little") for name in shard_names(3)
    )
    assert hub.bytes_of(".safetensors") == headers
    assert {name for name, *_ in hub.fetched} == {
        "config.json",
        "README.md",
        "model.safetensors.index.json",
        *shard_names(3),
    }


def test_info_of_what_serving_takes_fetches_the_config_alone(hub, tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160,
              "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}  # fmt: skip
    tensors = {"model.embed_tokens.weight": np.zeros((2, 2), np.float16)}  # not the config's
    hub.add(REPOSITORY, write_model(tmp_path / "source", config, [tensors], {}))
    assert info(REPOSITORY, serving=True).serving.rows[0].file_bytes == 2 * (
        2 * 100 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 160 + 2 * 64) + 64
    )
    assert {name for name, *_ in hub.fetched} == {"config.json"}


def test_packed_matrices_and_info_of_a_repository_come_from_its_headers(hub, source, tmp_path):
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    packed = tmp_path / "out/uniform-d2/packed"
    hub.add("me/packed", packed)
    there, here = read_stored("me/packed", None), read_stored(str(packed), None)
    assert there.matrices.keys() == here.matrices.keys() != set()
    for name, matrix in there.matrices.items():
        assert matrix.parts == here.matrices[name].parts
        assert matrix.in_features == here.matrices[name].in_features
        assert matrix.file.startswith("me/packed/model-")
    headers = sum(
        16 + int.from_bytes((packed / name).read_bytes()[:8], "little") for name in shard_names(3)
    )
    assert hub.bytes_of(".safetensors") == headers
    told, own = info("me/packed"), info(str(packed))
    assert told.depths == own.depths
    assert told.depths.keys() == {2}
    assert told.weight_bytes == own.weight_bytes
    assert told.sqnr_mean_db == own.sqnr_mean_db
    assert hub.bytes_of(".safetensors") == 2 * headers


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_of_experts_streams_though_the_connection_breaks_within_it(
    hub, tmp_path, no_waiting, fault
):
    """An expert is fetched at a time, and fetched again alone."""
    source = write_fused(tmp_path / "source", "gpt_oss")
    hub.add(REPOSITORY, source)
    options = {"stream": True, "allow_low_coverage": True}
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "whole", **options)
    shard = source / "model.safetensors"
    header = read_header(lambda at, size: shard.read_bytes()[at:][:size], shard.stat().st_size, "")
    entry = header.entries["model.layers.1.mlp.experts.gate_up_proj"]
    each = entry.nbytes // EXPERTS
    second = ("model.safetensors", entry.begin + each, entry.begin + 2 * each)
    answer = hub.fetched.index(second)
    hub.fetched.clear()
    hub.faults = iter([""] * answer + [fault])
    quantize(REPOSITORY, ["uniform-d2"], tmp_path / "out", **options)
    assert list(hub.faults) == []
    again = [end for _, begin, end in hub.fetched if begin == second[1]]
    assert len(again) == (1 if fault == "503" else 2)
    assert max(end - begin for _, begin, end in hub.fetched) == each
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "whole")


def test_the_command_line_streams_a_private_model_though_the_connection_breaks(
    hub, source, tmp_path, command_line
):
    hub.add(REPOSITORY, source, private=True)
    hub.repositories.tokens = {TOKEN: "read"}
    hub.faults = iter([""] * 9 + ["drop"])
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }
    arguments = ["--configs", "uniform-d1", "--out", tmp_path / "out", "--stream"]
    done = command_line("quantize", "--model", REPOSITORY, *arguments, **environment)
    assert list(hub.faults) == []
    quantize(str(source), ["uniform-d1"], tmp_path / "local")
    same_but_for_its_name(tmp_path / "local", tmp_path / "out")
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    told = command_line("info", REPOSITORY, **environment)
    assert "apache-2.0" in told.stdout
    nowhere(TOKEN, tmp_path, done.stdout, done.stderr, told.stdout, told.stderr)
    assert hub.strangers
    assert not any(hub.strangers)  # the token went to the Hub alone


def nowhere(token, folder, *texts) -> None:
    """Raise where a token is in a text, in a file of the folder, or in a file's name."""
    for path in folder.rglob("*"):
        assert token not in path.name
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
    assert not [text for text in texts if token in text]


WHO = {
    "nobody": (None, "the token is missing; set HF_TOKEN or run `hf auth login`"),
    "a wrong token": ("hf_" + "x" * 34, "401: the token is not valid; set HF_TOKEN or run"),
}
CALLS = {
    "stream": lambda out: quantize(REPOSITORY, ["uniform-d1"], out, stream=True),
    "snapshot": lambda out: quantize(REPOSITORY, ["uniform-d1"], out),
    "info": lambda _: info(REPOSITORY),
    "vllm": lambda _: read_stored(REPOSITORY, None),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("who", WHO)
def test_a_private_model_and_who_may_not_read_it(
    hub, source, tmp_path, monkeypatch, capfd, caplog, call, who
):
    hub.add(REPOSITORY, source, private=True)
    hub.repositories.tokens = {TOKEN: "read"}
    token, said = WHO[who]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TritError, match=rf"^{REPOSITORY}: ") as raised:
        CALLS[call](tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert said in str(raised.value)
    nowhere(token or TOKEN, tmp_path, str(raised.value), *capfd.readouterr(), caplog.text)
    assert not (tmp_path / "out").exists()


# Publishing


@pytest.fixture
def packed(source, tmp_path):
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    return tmp_path / "out/uniform-d2/packed"


@pytest.fixture
def token(hub, monkeypatch):
    hub.repositories.tokens = {TOKEN: "write"}
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("kind", ["packed", "model"])
def test_push_uploads_every_file(hub, packed, kind):
    folder = packed.with_name(kind)
    url = push(folder, "me/Tiny-trit")
    sha = hub.repositories.by_name["me/Tiny-trit"].sha_of("main")
    assert url == f"{hub.endpoint}/me/Tiny-trit/commit/{sha}"
    uploaded = hub.files("me/Tiny-trit")
    del uploaded[".gitattributes"]
    assert uploaded == {name: (folder / name).read_bytes() for name in hashes(folder)}


@pytest.mark.usefixtures("token")
def test_push_verifies_first(hub, packed):
    with open(packed / "tokenizer.json", "ab") as file:
        file.write(b" ")
    with pytest.raises(TritError, match=r"tokenizer\.json: SHA-256 differs"):
        push(packed, "me/Tiny-trit")
    assert hub.requests == []


@pytest.mark.usefixtures("token")
def test_push_of_a_packed_folder_without_its_manifest(hub, packed):
    (packed / "tritllm.json").unlink()
    with pytest.raises(TritError, match=r"packed, but without tritllm\.json"):
        push(packed, "me/Tiny-trit")
    assert hub.requests == []


@pytest.mark.parametrize("name", [".", "packed.partial", "nowhere"])
def test_push_of_what_is_no_finished_folder(hub, packed, tmp_path, name):
    if name == "packed.partial":
        os.rename(packed, tmp_path / name)
    with pytest.raises(TritError, match="not a finished model folder"):
        push(tmp_path / name, "me/Tiny-trit")
    assert hub.requests == []


@pytest.mark.usefixtures("token")
def test_llama_derivatives_must_be_named_so(hub, source, tmp_path):
    (source / "README.md").write_bytes(b"---\nlicense: llama3.1\n---\n")
    quantize(str(source), ["uniform-d2"], tmp_path / "llama")
    for kind in ("packed", "model"):
        folder = tmp_path / "llama/uniform-d2" / kind
        with pytest.raises(TritError, match=r"llama3\.1 licence wants .* begin with Llama"):
            push(folder, "me/Tiny-trit")
        assert hub.requests == []
    push(folder, "me/Llama-Tiny-trit")
    assert "NOTICE" in hub.files("me/Llama-Tiny-trit")


@pytest.mark.usefixtures("token")
def test_pushing_again_uploads_nothing(hub, packed):
    first = push(packed, "me/Tiny-trit")
    stored = len(hub.stored)
    assert stored == 3
    assert push(packed, "me/Tiny-trit") == first
    assert len(hub.stored) == stored


@pytest.mark.usefixtures("token")
def test_a_push_replaces_the_weights_of_an_earlier_one_and_nothing_else(hub, packed, tmp_path):
    push(packed, "me/Tiny-trit")
    repository = hub.repositories.by_name["me/Tiny-trit"]
    picture = hub.repositories.store(b"picture")
    repository.commit(repository.files() | {"picture.png": picture, "sub/x.safetensors": picture})
    one = write_model(tmp_path / "one", {"model_type": "llama"}, [random_tensors(llama())], {})
    push(one, "me/Tiny-trit")
    left = {".gitattributes", "picture.png", "sub/x.safetensors", *hashes(packed)}
    shards = {name for name in left if name.startswith("model-")}
    assert len(shards) == 3
    gone = shards | {"model.safetensors.index.json", "tritllm.json"}
    assert set(hub.files("me/Tiny-trit")) == left - gone | set(hashes(one))


def test_a_push_that_is_killed_leaves_the_repository_as_it_was(hub, packed, monkeypatch, tmp_path):
    hub.repositories.tokens = {TOKEN: "write"}
    hub.hold_after = 1
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "tritllm", "push", str(packed), "me/Tiny-trit", "--private"]
    with subprocess.Popen(command, env=os.environ | environment) as process:
        assert hub.held.wait(60)
        process.kill()
    assert set(hub.files("me/Tiny-trit")) == {".gitattributes"}
    assert hub.repositories.by_name["me/Tiny-trit"].private
    hub.hold_after = None
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(packed, "me/Tiny-trit")
    assert len(hub.stored) == len(set(hub.stored)) == 3  # what had come is not sent again
    uploaded = hub.files("me/Tiny-trit")
    assert (
        uploaded.items() >= {name: (packed / name).read_bytes() for name in hashes(packed)}.items()
    )


@pytest.mark.usefixtures("token")
def test_a_push_amid_anothers_is_refused(hub, packed, tmp_path, monkeypatch):
    push(packed, "me/Tiny-trit")
    repository = hub.repositories.by_name["me/Tiny-trit"]
    store, theirs = hub.repositories.store, []

    def meanwhile(data):
        theirs.append(repository.commit(dict(repository.files())))
        return store(data)

    monkeypatch.setattr(hub.repositories, "store", meanwhile)
    one = write_model(tmp_path / "one", {"model_type": "llama"}, [random_tensors(llama())], {})
    with pytest.raises(OutputError, match="not uploaded: 412: A commit has happened since"):
        push(one, "me/Tiny-trit")
    assert repository.sha_of("main") == theirs[-1]


@pytest.mark.usefixtures("token")
def test_a_folder_of_many_files_is_one_commit(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # that is when it would divide it
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text(str(number))
    (tmp_path / "config.json").write_text("{}")
    push(tmp_path, "me/many")
    repository = hub.repositories.by_name["me/many"]
    assert len(repository.files()) == 302
    assert len(repository.commits) == 2  # the first is the Hub's


@pytest.mark.usefixtures("token")
def test_private_does_not_pass_over_a_public_repository(hub, packed):
    push(packed, "me/Tiny-trit")
    with pytest.raises(OutputError, match=r"^me/Tiny-trit: is there and public"):
        push(packed, "me/Tiny-trit", private=True)
    push(packed, "me/Other", private=True)
    assert hub.repositories.by_name["me/Other"].private


def test_a_line_shows_no_token_and_no_signature(hub):
    with pytest.raises(Exception, match="Illegal header value") as raised:
        HfApi(token=f"{TOKEN}\nx").model_info(REPOSITORY)
    assert TOKEN in str(raised.value)  # so the client itself quotes it
    assert first_line(raised.value) == "Illegal header value b'Bearer ***'"
    assert first_line(ValueError(f"no {TOKEN} here")) == "no *** here"
    url = "https://large.example/f?part=1&X-Amz-Signature=0a1b&x=2"
    assert first_line(OSError(f"403 for '{url}'")) == "403 for 'https://large.example/f?***'"
    assert first_line(OSError("hf_models/a.bin: no such file")) == "hf_models/a.bin: no such file"


PUSHERS = {
    "nobody": (None, "401: Invalid username or password; set HF_TOKEN or run `hf auth login`"),
    "a wrong token": ("hf_" + "x" * 34, "401: the token is not valid; set HF_TOKEN or run"),
    "a reader": (TOKEN, "403: not allowed: You need a write token"),
}


@pytest.mark.parametrize("who", PUSHERS)
def test_who_may_not_push(hub, packed, tmp_path, monkeypatch, capfd, caplog, who):
    hub.repositories.tokens = {TOKEN: "read"}
    token, said = PUSHERS[who]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OutputError, match=r"^me/Tiny-trit: not uploaded: ") as raised:
        push(packed, "me/Tiny-trit")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    nowhere(token or TOKEN, tmp_path, str(raised.value), *capfd.readouterr(), caplog.text)
    assert not hub.repositories.by_name


@pytest.mark.usefixtures("token")
def test_a_card_whose_metadata_is_broken_is_refused_before_anything_is_sent(hub, packed, tmp_path):
    folder = packed.with_name("model")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(OutputError, match=r"Invalid metadata in README\.md") as raised:
        push(folder, "me/Tiny-trit")
    assert "\n" not in str(raised.value)
    assert hub.stored == []


def test_a_hub_that_refuses_the_upload(hub, packed, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match=r"me/Tiny-trit: not uploaded: .") as raised:
        push(packed, "me/Tiny-trit")
    assert "\n" not in str(raised.value)
