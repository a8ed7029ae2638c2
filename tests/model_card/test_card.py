"""Cards state the source's licence, never a guess, and can be read by the Hub's own parser."""

from __future__ import annotations

import json
import warnings

import pytest
from huggingface_hub import ModelCard
from support.model_folders import hashes, write_family

from tritllm import FormatError, dequantize, quantize
from tritllm.model_card.licence import (
    Licence,
    base_model_of_card,
    licence_notice,
    licence_of_card,
)
from tritllm.publish.card import card as write_card
from tritllm.run.info import info


def front(text: str) -> str:
    return f"---\n{text}\n---\n# Title\n"


def quantized(tmp_path, card: str | None, **arguments):
    """OUT/uniform-d2 of a source with this card."""
    source = write_family(tmp_path / "Tiny-1B", arguments.pop("model_type", "llama"))
    if card is not None:
        (source / "README.md").write_text(card, encoding="utf-8")
    quantize(str(source), ["uniform-d2"], tmp_path / "out", **arguments)
    return tmp_path / "out/uniform-d2"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (front("license: apache-2.0"), Licence("apache-2.0")),
        (front("license: mit\nlanguage: [en, de]\ntags:\n- x"), Licence("mit")),
        (
            front("license: other\nlicense_name: tongyi\nlicense_link: https://x.y/LICENSE"),
            Licence("other", "tongyi", "https://x.y/LICENSE"),
        ),
        (
            front("license: llama3.1\nlicense_link: LICENSE"),
            Licence("llama3.1", None, "https://www.llama.com/llama3_1/license/"),
        ),
        ("---\r\nlicense: mit\r\n---\r\ntext", Licence("mit")),
        (None, Licence()),
        ("", Licence()),
        ("# A title only", Licence()),
        (front("language: en"), Licence()),
        (front(""), Licence()),
        (front("license:"), Licence()),
        (front("license: [mit, apache-2.0]"), Licence()),
        (front("license: {a: b}"), Licence()),
        (front("license: 3"), Licence()),
        (front("license: mit\n: : [broken"), Licence()),
        (front("\tlicense: mit"), Licence()),
        (front("license: !!python/object/apply:os.system ['false']"), Licence()),
        (front("- license"), Licence()),
        (front("just text"), Licence()),
        (front("1: 2\nnull: 3"), Licence()),
        ("---\nlicense: mit\n", Licence()),
        ("The text.\n\n---\nlicense: mit\n---\n", Licence()),
    ],
)  # fmt: skip
def test_the_licence_of_a_card(card, licence):
    assert licence_of_card(card) == licence


@pytest.mark.parametrize(
    ("card", "base"),
    [
        (front("base_model: a/b"), "a/b"),
        (front("base_model: [a/b, c/d]"), "a/b, c/d"),
        (front("base_model: 7"), "7"),
        (front("license: mit"), None),
        (front("base_model:"), None),
        (None, None),
        (front("{broken"), None),
    ],
)
def test_the_base_model_of_a_card(card, base):
    assert base_model_of_card(card) == base


@pytest.mark.parametrize("kind", ["packed", "model"])
def test_the_front_matter_can_be_parsed(tmp_path, kind):
    folder = quantized(tmp_path, front("license: apache-2.0")) / kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert set(card.data.tags) >= {"tritllm", "ternary"}
    assert card.data.library_name == {"packed": "tritllm", "model": "transformers"}[kind]
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # a local folder is nobody's model on the Hub


def test_what_the_details_say(tmp_path):
    folder = quantized(tmp_path, front("license: apache-2.0"))
    report = json.loads((folder / "report.json").read_text())
    card = (folder / "packed/README.md").read_text()
    rows = dict(
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("| ")
    )
    assert rows["Source model"] == "`Tiny-1B`"
    assert rows["Depth"] == "d=2 (9 levels)"
    bits = report["bits_per_weight"]["quantized"]
    assert rows["Bits per weight"] == f"3.47 (information), {bits:.2f} (in the packed file)"
    assert rows["Group size"] == "16"
    coverage = report["coverage_percent"]
    assert rows["Quantized layers"] == (
        f"14 2D linear matrices, {coverage:.1f} % of the parameters"
    )
    assert rows["Kept as in the source"] == "token embeddings, `lm_head`, all `*_norm` layers"
    assert rows["Codec"] == "tritllm v3"
    mean, lowest = report["sqnr_db"]["mean"], report["sqnr_db"]["lowest"]
    assert rows["SQNR"] == f"{mean:.2f} dB mean over matrices, {lowest:.2f} dB lowest"
    packed, model = report["packed_bytes"] / 1e3, report["model_bytes"] / 1e3
    assert rows["Size"] == f"{packed:.2f} kB packed, {model:.2f} kB dequantized"
    assert "tritllm quantize --model Tiny-1B --configs uniform-d2 --out out" in card
    assert "That of the source: apache-2.0." in card
    assert "@article{" in card
    assert "Built with" not in card
    assert not (folder / "packed/NOTICE").exists()


def test_a_licence_with_a_name_and_a_link(tmp_path):
    text = "license: other\nlicense_name: tongyi\nlicense_link: https://x.y/LICENSE"
    folder = quantized(tmp_path, front(text))
    for kind in ("packed", "model"):
        data = ModelCard.load(folder / kind / "README.md").data
        assert (data.license, data.license_name) == ("other", "tongyi")
        assert data.license_link == "https://x.y/LICENSE"
        text = (folder / kind / "README.md").read_text()
        assert "That of the source: [tongyi](https://x.y/LICENSE)." in text


@pytest.mark.parametrize("card", [None, "# no front matter", front("license: {")])
def test_an_unknown_licence_is_called_so(tmp_path, card):
    folder = quantized(tmp_path, card)
    for kind in ("packed", "model"):
        data = ModelCard.load(folder / kind / "README.md").data
        assert data.license == "unknown"
        text = (folder / kind / "README.md").read_text()
        assert "Unknown: the source states none." in text
    assert info(str(folder / "packed")).licence == Licence()


@pytest.mark.parametrize(
    ("licence", "built", "link"),
    [
        ("llama3.1", "Built with Llama", "https://www.llama.com/llama3_1/license/"),
        ("llama3", "Built with Meta Llama 3", "https://www.llama.com/llama3/license/"),
        ("llama2", "Built with Llama", "https://ai.meta.com/llama/license/"),
        ("llama3.3", "Built with Llama", "https://www.llama.com/llama3_3/license/"),
    ],
)
def test_llama_licences(tmp_path, licence, built, link):
    folder = quantized(tmp_path, front(f"license: {licence}"))
    for kind in ("packed", "model"):
        text = (folder / kind / "README.md").read_text()
        data = ModelCard(text).data
        assert (data.license, data.license_link) == (licence, link)
        assert f"**{built}**" in text
        assert "\n# Llama-Tiny-1B-trit-uniform-d2\n" in text
        notice = (folder / kind / "NOTICE").read_text()
        assert notice == licence_notice(Licence(licence))
        assert "Copyright (c) Meta Platforms, Inc. All Rights Reserved." in notice
        assert notice.strip() in text
    dequantize(folder / "packed", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(folder / "model")


def test_a_notice_of_the_source_is_kept(tmp_path):
    source = write_family(tmp_path / "Llama-3.1-1B")
    (source / "README.md").write_text(front("license: llama3.1"))
    (source / "NOTICE").write_text("theirs")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    folder = tmp_path / "out/uniform-d2"
    for kind in ("packed", "model"):
        assert (folder / kind / "NOTICE").read_text() == "theirs"
        assert "\n# Llama-3.1-1B-trit-uniform-d2\n" in (folder / kind / "README.md").read_text()
    dequantize(folder / "packed", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(folder / "model")


@pytest.mark.parametrize(
    "card",
    [
        None,
        front("license: llama3.2"),
        front("license: other\nlicense_name: a name\nlicense_link: LICENSE"),
        front("license: apache-2.0"),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_card_can_be_written_anew(tmp_path, card, model_type):
    packed = quantized(tmp_path, card, model_type=model_type) / "packed"
    before = hashes(packed)
    (packed / "README.md").write_text(front("license: x") if card is None else card)
    if card is None:
        (packed / "README.md").unlink()
    assert write_card(packed) == packed / "README.md"
    assert hashes(packed) == before


def test_a_card_of_mixed_depths(tmp_path):
    folder = quantized(tmp_path, None, depth=["*.0.*=4"])
    text = (folder / "packed/README.md").read_text()
    assert "| Depth | d=2 and d=4 (9 and 81 levels) |" in text
    assert "a depth for each layer" in text
    assert "--depth '*.0.*=4'" in text
    facts = info(str(folder / "packed"))
    assert facts.depths.keys() == {2, 4}
    assert facts.depths[2] == facts.depths[4]
    assert f"**{facts.information_bits:.2f} bits per weight**" in text


def test_a_card_of_fewer_planes(tmp_path):
    folder = quantized(tmp_path, None)
    dequantize(folder / "packed", tmp_path / "one", planes=1)
    text = (tmp_path / "one/README.md").read_text()
    assert "| Planes read | the 1 most significant |" in text


def test_an_encoder_is_not_called_a_text_generator(tmp_path):
    source = write_family(tmp_path / "source", "bert", architectures=["BertModel"])
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    text = (tmp_path / "out/uniform-d2/model/README.md").read_text()
    assert "pipeline_tag" not in text
    assert 'AutoModel.from_pretrained("source-trit-uniform-d2")' in text


@pytest.mark.parametrize("architectures", [None, [], {}, "LlamaForCausalLM", {"a": 1}, 5, [None]])
def test_odd_architectures_do_not_stop_a_run(tmp_path, architectures):
    source = write_family(tmp_path / "source", architectures=architectures)
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert info(str(tmp_path / "out/uniform-d2/packed")).parameters > 0


def test_a_folder_that_is_not_packed_gets_no_card(tmp_path):
    folder = quantized(tmp_path, None)
    with pytest.raises(FormatError, match=r"no tritllm\.json"):
        write_card(folder / "model")
    (folder / "packed/config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json: missing"):
        write_card(folder / "packed")


def test_a_packed_card_says_how_the_packed_folder_runs(tmp_path):
    text = (quantized(tmp_path, None) / "packed/README.md").read_text()
    ways = ("import tritllm", "from_pretrained(", "tritllm generate ", "tritllm serve ")
    places = [text.index(way) for way in (*ways, "tritllm dequantize ")]
    assert places == sorted(places)
