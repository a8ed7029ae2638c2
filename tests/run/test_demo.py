"""The demo on the model that ships, on a short piece of its held-out text."""

from importlib.resources import files
from itertools import pairwise

import pytest

from tritllm.errors import TritError
from tritllm.run.demo import demo

DATA = files("tritllm") / "demo_data"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    text = folder / "text.txt"
    text.write_text((DATA / "heldout.txt").read_text("utf-8")[:12000], "utf-8")
    return demo(folder / "out", text=text, tokens=2048)


def test_quality_follows_depth(result):
    float_row, *rows = (row for row in result.rows if not row.calibrated)
    assert [row.name for row in rows] == [f"uniform-d{depth}" for depth in (1, 2, 3, 4)]
    for coarse, fine in pairwise(rows):
        assert coarse.perplexity > fine.perplexity
        assert coarse.mean_kl > 5 * fine.mean_kl > 0
        assert coarse.sqnr_db + 8 < fine.sqnr_db
        assert coarse.file_bytes < fine.file_bytes < float_row.file_bytes
    assert rows[0].perplexity > 1.1 * float_row.perplexity  # one trit is visibly worse
    assert rows[3].perplexity < 1.01 * float_row.perplexity


def test_calibrated_rows_stand_beside_data_free_ones(result):
    rows = result.rows[1:]
    assert [row.calibrated for row in rows] == [False, True] * 4
    for alone, calibrated in zip(rows[::2], rows[1::2], strict=True):
        assert calibrated.name == alone.name
        assert calibrated.file_bytes == alone.file_bytes
        assert calibrated.mean_kl < 0.9 * alone.mean_kl  # on 2,048 tokens; 0.2 to 0.4 on 80,000
        assert calibrated.verified == "ok"
    assert {"quantize", "calibrate", "verify", "measure"} == set(result.seconds)


def test_the_texts_that_ship_are_apart():
    heldout = set((DATA / "heldout.txt").read_text("utf-8").splitlines()) - {""}
    calibration = set((DATA / "calibration.txt").read_text("utf-8").splitlines()) - {""}
    assert len(calibration) > 2000
    assert heldout & calibration == {"And the LORD spake unto Moses, saying,"}  # a formula


def test_every_depth_speaks(result):
    assert all(len(row.sample.split()) > 5 for row in result.rows)
    assert result.rows[0].sample != result.rows[1].sample


def test_what_is_left_behind(result):
    out = result.plot.parent
    assert result.plot.read_bytes().startswith(b"\x89PNG")
    for depth in (1, 2, 3, 4):
        for folder in ("configs", "calibrated"):
            assert (out / folder / f"uniform-d{depth}/packed/tritllm.json").is_file()
        assert (out / f"configs/uniform-d{depth}/model/config.json").is_file()


def test_shipped_model_is_small_enough():
    weights = DATA / "model/model.safetensors"
    assert len(weights.read_bytes()) <= 8_000_000


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TritError, match=r"thesis\.txt"):
        demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
