"""Tasks of lm-evaluation-harness on a local folder of tasks, against their definition."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
import transformers
import yaml

from tritllm import evaluate
from tritllm.errors import TritError
from tritllm.evaluation.tasks import SEEDS8, SETS, run_tasks

# The harness and its libraries warn of their own futures.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

QUESTIONS = [
    {"question": f"{a} and {b} are", "choices": [" one", " two", " many"], "answer": (a + b) % 3}
    for a in range(4)
    for b in range(4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump(task))
    return folder


@torch.no_grad()
def accuracy(model, tokenizer):
    """The share of questions whose likeliest choice is the answer."""
    right = 0
    for question in QUESTIONS:
        scores = []
        for choice in question["choices"]:
            begin = tokenizer(question["question"])["input_ids"]
            ids = torch.tensor([begin + tokenizer(choice)["input_ids"]])
            log_p = torch.log_softmax(model(ids).logits[0], -1)
            rows = range(len(begin) - 1, ids.shape[1] - 1)
            scores.append(sum(float(log_p[row, ids[0, row + 1]]) for row in rows))
        right += scores.index(max(scores)) == question["answer"]
    return right / len(QUESTIONS)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval")
def test_a_local_task_scores_as_defined(speaking, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    plain = speaking.parent / "model"
    result = evaluate(
        [plain], tasks=["sums"], tasks_folder=folder, json_file=tmp_path / "found.json"
    )
    score = result.models[0].tasks["sums"]
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    expected = accuracy(model, transformers.AutoTokenizer.from_pretrained(plain))
    assert 0 < expected < 1
    assert score.metric == "acc,none"
    assert score.value == expected
    assert score.error == pytest.approx(math.sqrt(expected * (1 - expected) / 15))
    assert score.shots == 0
    stored = json.loads((tmp_path / "found.json").read_text())["models"][0]
    assert stored["tasks"]["sums"]["value"] == expected
    assert stored["statistics"] is None

    few = run_tasks(model, transformers.AutoTokenizer.from_pretrained(plain), ["sums"],
                    folder=folder, limit=3)  # fmt: skip
    assert few["sums"].value in (0, 1 / 3, 2 / 3, 1)
    with pytest.raises(TritError, match="--tasks nonsense: no such task; there are 1: sums, and"):
        run_tasks(model, None, ["nonsense"], folder=folder)
    with pytest.raises(TritError, match="nowhere: no such folder"):
        run_tasks(model, None, ["sums"], folder=folder / "nowhere")


def test_the_set_of_eight():
    assert len(SEEDS8) == 8
    assert SETS["seeds8"] is SEEDS8


def test_without_the_harness_a_line_says_what_to_install(speaking, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    with pytest.raises(TritError, match=r"--tasks needs lm_eval: pip install 'tritllm\[tasks\]'"):
        evaluate([speaking], tasks=["gsm8k"])
