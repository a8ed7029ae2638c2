"""tritllm report: the page of packed folders, by its text and in a browser that is there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from support.browser import browser, chromium
from support.manifests import kept, manifest, quantized, write_manifest

from tritllm import card, report
from tritllm.allocation.sensitivities import Basis, Sensitivities
from tritllm.errors import FormatError, TritError
from tritllm.evaluation.sizes import Size
from tritllm.evaluation.token_scores import Estimate, TokenScores
from tritllm.run.evaluate import EvaluatedRow, Evaluation
from tritllm.run.evaluation_protocol import EvaluationProtocol

EVIL = "<script>alert(1)</script>&\"'"


def model(layers=2, depth=2):
    tensors = kept("model.embed_tokens.weight", (128, 64), "embedding")
    for layer in range(layers):
        for place, kind in enumerate(("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")):
            nmse = 10.0 ** -(1 + place + layer / layers)
            tensors |= quantized(f"model.layers.{layer}.{kind}", 64, 64, depth, nmse)
    return tensors


def evaluated(**rows):
    """What eval --json writes, of models by name: (bits, KL)."""
    protocol = EvaluationProtocol(
        "/home/me/held out.txt", "0" * 64, 1021, 256, 256, None, 4, 1020, "float32", "cpu",
        "exact", "side by side", {},
    )  # fmt: skip
    nll = np.linspace(1, 3, 40)
    models = [
        EvaluatedRow(
            name, "p", "packed", "data-free", None, Size(1_000_000, 5.0, bits),
            TokenScores(nll + 0.1, nll, np.full(40, kl), nll > 1.5).statistics(), {},
        )
        for name, (bits, kl) in rows.items()
    ]  # fmt: skip
    return Evaluation(protocol, None, Estimate(19.147, 0.1), models, 1.0, None).to_json()


def save_sensitivities(path):
    """What quantize leaves of two groups."""
    basis = Basis("owner/model", "0" * 64, None, 4096, 512, 0, "v3")
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    costs = {first: [0.4, 0.03, 0.002, 0.001], second: [0.2, 0.0005, 0.0002, 0.0]}
    Sensitivities(basis, costs, {name: [name] for name in costs}).save(path)


class Tags(HTMLParser):
    """Every tag and attribute of a page, checked to be closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self._open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def close(self):
        super().close()
        assert self._open == []


def parsed(path):
    tags = Tags()
    tags.feed(path.read_text("utf-8"))
    tags.close()
    return tags


@pytest.fixture
def folders(tmp_path):
    """OUT/CONFIG/packed twice, with what eval and quantize left in OUT."""
    out = tmp_path / "out"
    made = [write_manifest(out / f"d{d}" / "packed", manifest(model(depth=d))) for d in (1, 2)]
    (out / "eval.json").write_text(evaluated(first=(2.0, 0.2), second=(3.5, 0.01)))
    save_sensitivities(out / "sensitivities.json")
    return [str(folder) for folder in made]


def test_the_page(folders, tmp_path):
    path = report(folders, out=tmp_path / "r.html")
    text = path.read_text("utf-8")
    assert "{{" not in text
    for words in ("d1/packed", "d2/packed", "held out.txt, 1,020 predictions", "19.147",
                  "owner/model", "embeddings 16.38 kB", "1. first", "2. second"):  # fmt: skip
        assert words in text, words
    assert "/home/me" not in text
    title = (
        "model.layers.0.self_attn.q_proj.weight: 64 x 64, depth 2, SQNR 10.00 dB, NMSE 0.1, "
        "sensitivity 0.03 nats"
    )
    assert f"<title>{title}</title>" in text
    assert "<td>2, 10.00 dB, 0.03 nats</td>" in text  # the table says what the map does
    assert 'id="by-sensitivity"' in text
    assert parsed(path).tags.count("circle") == 2


def test_it_loads_nothing_and_runs_no_name(tmp_path):
    tensors = model() | quantized(f"model.layers.0.{EVIL}", 64, 64, 2, 0.1)
    content = manifest(tensors, config=EVIL, source={"model": EVIL, "revision": None, "shards": {}})
    folder = write_manifest(tmp_path / "packed", content)
    (tmp_path / "e.json").write_text(evaluated(**{EVIL: (2.0, 0.1)}))
    path = report([str(folder)], out=tmp_path / "r.html", evaluation=[tmp_path / "e.json"])
    page = parsed(path)
    assert page.tags.count("script") == 1
    assert [value for name, value in page.attributes if name in ("src", "href")] == ["data:,"]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = path.read_text("utf-8")
    assert "alert(1)&lt;/script&gt;" in text
    for word in ("http:", "https:", "url(", "@import"):
        assert word not in text, word


def test_what_is_there_decides_what_is_shown(tmp_path):
    folder = str(write_manifest(tmp_path / "a/b/packed", manifest(model())))
    text = report([folder], out=tmp_path / "r.html").read_text()
    assert "Divergence" not in text
    assert "by-sensitivity" not in text
    save_sensitivities(tmp_path / "s.json")
    found = report([folder], out=tmp_path / "r.html", sensitivities=tmp_path / "s.json").read_text()
    assert "by-sensitivity" in found


def test_a_mixture_of_44544_matrices_gives_a_small_page(tmp_path):
    tensors = model(layers=58)
    record = quantized("x", 64, 64, 2, 0.1)
    for layer in range(58):
        for expert in range(256):
            for kind in ("gate", "up", "down"):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"
                tensors[name] = record["x.weight"]
    folder = write_manifest(tmp_path / "packed", manifest(tensors))
    path = report([str(folder)], out=tmp_path / "r.html")
    assert path.stat().st_size < 400_000
    assert "256 matrices, depth 2, SQNR 10.00 dB together" in path.read_text()


def test_what_cannot_be_reported(tmp_path, folders):
    out = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "plain.json"
    plain.write_text("{}")
    without_text = tmp_path / "tasks.json"
    without_text.write_text(
        json.dumps({"models": [], "protocol": None, "reference_perplexity": None})
    )
    other = tmp_path / "other.json"
    groups = {"x": {"kl": [1, 1, 1, 1], "modules": ["x"]}}
    other.write_text(json.dumps({"groups": groups}))
    for says, names, how in (
        ("nothing to report on", [], {}),
        ("empty: no tritllm.json; not a packed checkpoint", [str(tmp_path / "empty")], {}),
        ("nowhere: no such folder", [str(tmp_path / "nowhere")], {}),
        ("plain.json: not what tritllm eval --json writes", folders, {"evaluation": [plain]}),
        ("no model in it was measured on a text", folders, {"evaluation": [without_text]}),
        ("none.json: No such file", folders, {"evaluation": [tmp_path / "none.json"]}),
        ("plain.json: not sensitivities", folders, {"sensitivities": plain}),
        ("names none of these folders' layers", folders, {"sensitivities": other}),
    ):
        with pytest.raises(TritError, match=re.escape(says)):
            report(names, out=out, **how)
    changed = tmp_path / "out/d1/packed/tritllm.json"
    changed.write_text(changed.read_text().replace('"depth": 1', '"depth": 3', 1))
    with pytest.raises(FormatError, match="SHA-256 differs"):
        report(folders, out=out)
    assert not out.exists()


def test_a_picture_that_the_card_shows(folders, tmp_path):
    picture = tmp_path / "out/d1/packed/layers.png"
    assert "layers.png" not in card(folders[0]).read_text()
    report(folders[:1], out=tmp_path / "r.html", png=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "![Depth and error of each layer](layers.png)" in card(folders[0]).read_text()


@pytest.mark.skipif(chromium() is None, reason="needs chromium")
def test_in_a_browser_scales_switch_and_a_phone_shows_it(folders, tmp_path):
    path = report(folders, out=tmp_path / "r.html")
    said = []
    with browser() as started:
        page = started.new_page(viewport={"width": 360, "height": 700})
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        cell = page.locator(".map .cell").first
        colours = set()
        for name, figure in (("depth", "1"), ("error", "10.0"), ("sensitivity", "4e-1")):
            page.click(f"label[for=by-{name}]")
            assert cell.locator("text:visible").all_text_contents() == [figure]
            fill = "(rect) => getComputedStyle(rect).fill"
            colours.add(cell.locator("rect").evaluate(fill))
        assert len(colours) == 3
        cell.click()
        assert page.text_content("#told").startswith("model.layers.0.self_attn.q_proj.weight: 64")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert said == []
