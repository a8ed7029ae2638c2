"""Packed folders pushed to a Hub, and used again from there as their users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.hub_server import HubServer
from support.tiny_models import logits, write_tiny
from support.tiny_text import write_tokenizer

from tritllm import quantize
from tritllm.integrations.transformers import load_model

WRITER, READER, WRONG = ("hf_" + letters * 17 for letters in ("wW", "rR", "xX"))

# In a process of its own, whose HF_ENDPOINT is a Hub on the loopback and whose token may write.
# Arguments: the folders of two packed models. Prints a line of JSON.
CODE = """
import json, os, sys
import tritllm
from huggingface_hub import HfApi, ModelCard
from tritllm.errors import TritError
from tritllm.integrations.transformers import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from support.tiny_models import logits

def refused(**how):
    try:
        return str(load_model("me/secret", **how))
    except TritError as error:
        return str(error)

two, three, reader, wrong = sys.argv[1:]
earlier = tritllm.push(two, "me/tiny").rpartition("/")[2]
HfApi().create_branch("me/tiny", branch="small")
now = tritllm.push(three, "me/tiny")
tritllm.push(two, "me/secret", private=True)
models = [
    AutoModelForCausalLM.from_pretrained("me/tiny"),
    AutoModelForCausalLM.from_pretrained("me/tiny", revision=earlier),
    load_model("me/tiny", revision="small", verify=True),
]
found = {
    "card": ModelCard.load("me/tiny").data.to_dict(),
    "text": AutoTokenizer.from_pretrained("me/tiny").decode([5, 6, 7]),
    "again": tritllm.push(three, "me/tiny") == now,
    "nobody": refused(token=False),
    "wrong": refused(token=wrong),
    "impossible": refused(token=wrong + "\\n"),
    "branch": refused(revision="none"),
}
os.environ["HF_TOKEN"] = wrong  # that the token given is the one that is used
models.append(load_model("me/secret", token=reader, verify=True))
found["layers"] = [type(model.model.layers[0].mlp.up_proj).__name__ for model in models]
found["logits"] = [logits(model).tolist() for model in models]
print(json.dumps(found))
"""


def test_what_is_pushed_is_what_users_load(tmp_path):
    source = write_tiny(tmp_path / "source", "llama")
    write_tokenizer(source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    quantize(str(source), ["uniform-d2", "uniform-d3"], tmp_path / "out")
    two, three = (tmp_path / f"out/uniform-d{depth}/packed" for depth in (2, 3))
    with HubServer() as hub:
        hub.repositories.tokens = {WRITER: "write", READER: "read"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, two, three, READER, WRONG],
            env=os.environ | {
                "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITER,
                "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
            },
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    local = [logits(load_model(folder)).tolist() for folder in (two, three)]
    assert found["layers"] == ["TritLinear"] * 4
    assert found["logits"] == [local[1], local[0], local[0], local[0]]
    assert found["text"] == "cde"
    assert found["card"]["license"] == "apache-2.0"
    assert {"tritllm", "ternary"} <= set(found["card"]["tags"])
    assert found["again"]
    for name in ("nobody", "wrong", "impossible", "branch"):
        assert found[name].startswith("me/secret: ")
        assert "\n" not in found[name]
    assert "a private one" in found["nobody"]
    assert "401: the token is not valid" in found["wrong"]
    assert "no such branch" in found["branch"]
    files = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    for token in (WRITER, READER, WRONG):
        assert token not in done.stdout + done.stderr
        assert not any(token.encode() in content for content in files)
    assert hub.strangers
    assert not any(hub.strangers)
