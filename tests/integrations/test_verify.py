"""What from_pretrained compares with the manifest: headers always, every byte on request."""

from __future__ import annotations

import json
import shutil
import struct
import textwrap
from pathlib import Path

import pytest
import torch
from support.hub_server import HubServer
from support.tiny_models import logits
from transformers import AutoModelForCausalLM

from tritllm.errors import FormatError
from tritllm.integrations.transformers import TritConfig, load_model

SHARD = "model.safetensors"


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    folder = tmp_path / "packed"
    shutil.copytree(tiny("llama", 2) / "packed", folder)
    return folder


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def swap_offsets(path: Path) -> None:
    """Two matrices of one shape take each other's place; every tensor is still well formed."""
    header, data = header_of(path)
    for part in ("", "_scale", "_codebook"):
        one, other = (header[f"model.layers.{i}.mlp.up_proj.weight{part}"] for i in (0, 1))
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def flip_kept(path: Path) -> None:
    """A byte of a tensor that is kept as floats, which no rule of the format can notice."""
    header, data = header_of(path)
    begin = header["model.norm.weight"]["data_offsets"][0]
    changed = bytearray(path.read_bytes())
    changed[len(changed) - len(data) + begin] ^= 1
    path.write_bytes(changed)


def flip_trit(path: Path) -> None:
    """A byte of packed digits that stays five trits."""
    header, data = header_of(path)
    begin = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0]
    changed = bytearray(path.read_bytes())
    at = len(changed) - len(data) + begin
    changed[at] = (changed[at] + 1) % 243
    path.write_bytes(changed)


def test_swapped_offsets_are_refused_without_being_asked(copied):
    swap_offsets(copied / SHARD)
    with pytest.raises(FormatError, match=SHARD) as caught:
        AutoModelForCausalLM.from_pretrained(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [flip_kept, flip_trit])
def test_every_byte_is_compared_on_request(copied, damage):
    damage(copied / SHARD)
    load_model(copied)
    with pytest.raises(FormatError, match=SHARD):
        load_model(copied, verify=True)


def test_verify_by_transformers_own_argument(copied):
    flip_kept(copied / SHARD)
    asked = TritConfig(verify=True)
    with (
        pytest.warns(UserWarning, match="loading attributes"),  # transformers' habit
        pytest.raises(FormatError, match=r"model\.norm\.weight"),
    ):
        AutoModelForCausalLM.from_pretrained(copied, quantization_config=asked)


def test_verified_models_are_the_same_and_save_no_trace(copied, tmp_path):
    model = load_model(copied, verify=True)
    assert torch.equal(logits(model), logits(load_model(copied)))
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    assert "verify" not in stored
    load_model(tmp_path / "saved")  # without a manifest nothing is compared
    with pytest.raises(FormatError, match=r"tritllm\.json"):
        load_model(tmp_path / "saved", verify=True)


def test_another_folders_manifest_is_refused(tiny, copied):
    shutil.copy(tiny("llama", 3) / "packed/tritllm.json", copied)
    with pytest.raises(FormatError):
        load_model(copied)


@pytest.fixture
def hub(copied, monkeypatch):
    with HubServer() as server:
        server.add("me/tiny", copied)
        yield server


@pytest.fixture
def from_hub(hub, forked_program):
    """from_hub(place, code): the last line of a program whose Hub is `hub`, its cache `place`."""

    def run(place: Path, code: str) -> str:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(place),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = forked_program("import tritllm\n" + textwrap.dedent(code), **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    return run


LOAD = """
    from transformers import AutoModelForCausalLM
    from tritllm.integrations.transformers import load_model
    from tritllm.errors import TritError
    try:
        {}
        print("loaded")
    except TritError as error:
        print(error)
"""


def test_a_model_from_the_hub_has_its_manifest_beside_it(from_hub, copied, tmp_path):
    load = LOAD.format("AutoModelForCausalLM.from_pretrained('me/tiny')")
    assert from_hub(tmp_path / "one", load) == "loaded"
    assert len(list((tmp_path / "one").rglob("snapshots/*/tritllm.json"))) == 1
    swap_offsets(copied / SHARD)
    assert SHARD in from_hub(tmp_path / "two", load)


def test_all_hashes_of_a_model_from_the_hub(from_hub, copied, tmp_path):
    load = LOAD.format("load_model('me/tiny', verify=True)")
    flip_kept(copied / SHARD)
    assert "model.norm.weight" in from_hub(tmp_path / "one", load)
    (copied / "tritllm.json").unlink()
    both = LOAD.format("load_model('me/tiny'); load_model('me/tiny', verify=True)")
    assert "tritllm.json" in from_hub(tmp_path / "two", both)


def test_the_manifest_is_fetched_with_the_models_token(from_hub, tmp_path):
    told = from_hub(
        tmp_path,
        """
        from tritllm.integrations.transformers import hub_manifest, load_model
        real, tokens = hub_manifest.hf_hub_download, []
        def download(*arguments, token=None, **more):
            tokens.append(token)
            return real(*arguments, token=token, **more)
        hub_manifest.hf_hub_download = download
        load_model("me/tiny", token="hf_private")
        print(tokens)
    """,
    )
    assert told == "['hf_private']"
