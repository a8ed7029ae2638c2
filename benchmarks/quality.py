"""What quantized models lose at what size: ours beside other libraries', under one protocol.

    pip install -e '.[demo]' bitsandbytes hqq gguf gptqmodel auto-round
    python benchmarks/quality.py OUT --model MODEL --text HELDOUT.txt --calibration TEXT.txt \
        --llama-cpp LLAMA_CPP_BUILD --plot quality.png

Every row is the same float model with the weights of its linear layers replaced by what a library
stored for them; embeddings, output matrix and norms stay as they are. Bits a weight are the bytes
stored for those layers, scales and codebooks included, over their weights. The divergence is
measured by tritllm.evaluation on TEXT, in float32, in windows of --context tokens. Whoever
calibrates does so with --tokens tokens of CALIBRATION, which must be another text.

Each library runs in a process of its own, with another interpreter if told so (--python
gptq=/venv/bin/python); what cannot run is named below the table with the reason. Rows are kept in
OUT/results.json: a later call with --only NAMES measures those peers again and prints all.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from quality_peers import PEERS
from quality_peers.recipe import linear_layers, load_model
from quality_peers.table import print_missing, print_rows, print_verdicts
from safetensors.torch import load_file

from tritllm.evaluation.corpus import read_text, sample_windows, tokenize
from tritllm.evaluation.divergence import compare

HERE = Path(__file__).parent
MEMORY = 2e9  # bytes of models that are measured in one pass over the text
Row = dict[str, Any]


def run_peer(
    name: str, arguments: argparse.Namespace, windows: np.ndarray | None, scratch: Path
) -> list[Row]:
    """The peer's rows, each with the file of its weights unless it is missing."""
    job: Row = {
        "model": str(arguments.model.resolve()),
        "scratch": str(scratch / "work"),
        "threads": arguments.threads,
    }
    (scratch / "work").mkdir()
    if windows is not None:
        np.save(scratch / "windows.npy", windows)
        job["windows"] = str(scratch / "windows.npy")
        job["tokens"], job["context"] = windows.size, arguments.context
        job["calibration"] = str(arguments.calibration.resolve())
    if arguments.rows:
        job["rows"] = arguments.rows
    if arguments.llama_cpp:
        job["llama_cpp"] = str(arguments.llama_cpp.resolve())
    (scratch / "job.json").write_text(json.dumps(job))

    python = arguments.python.get(name, sys.executable)
    command = [python, "-m", "quality_peers", name, scratch / "job.json", scratch / "rows"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(arguments.threads),
    }
    done = subprocess.run(list(map(str, command)), env=environment, stdout=sys.stderr)
    rows = [
        json.loads(path.read_text()) | {"weights": path.with_name("weights.safetensors")}
        for path in sorted(scratch.glob("rows/*/row.json"))
    ]
    if done.returncode:
        reason = f"its process ended with {done.returncode}"
        rows.append({"peer": name, "name": f"the rest of {name}", "missing": reason})
    return rows


def measure(model: torch.nn.Module, rows: list[Row], ids: list[int], context: int) -> list[Row]:
    """Compare models with the rows' weights with the float model, a few in memory at a time."""
    at_once = max(1, int(MEMORY // sum(p.nbytes for p in model.parameters())))
    present = [row for row in rows if "missing" not in row]
    figures: dict[str, Row] = {}
    for first in range(0, len(present), at_once):
        part = present[first : first + at_once]
        models = {row["name"]: with_weights(model, row["weights"]) for row in part}
        for name, found in compare(model, models, ids, context=context).items():
            figures[name] = {
                "kl": found.mean_kl, "agreement": found.agreement, "ppl": found.perplexity,
            }  # fmt: skip
    return [
        {key: row[key] for key in row if key != "weights"} | figures.get(row["name"], {})
        for row in rows
    ]


def with_weights(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """A copy of the model with the file's weights in its linear layers."""
    changed = copy.deepcopy(model)
    layers, weights = linear_layers(changed), load_file(path)
    if weights.keys() != layers.keys():
        raise SystemExit(f"{path}: other layers than the model's: {weights.keys() ^ layers.keys()}")
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(weights[name])
    return changed


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    results = run(arguments)
    print_rows(results)
    print_verdicts(results)
    print_missing(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        from quality_peers.plot import plot_quality

        plot_quality(arguments.plot, results["rows"], arguments.title or arguments.model.name)


def run(arguments: argparse.Namespace) -> Row:
    """Run the peers asked for and measure their rows; OUT/results.json has all rows so far."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    corpus = tokenize(read_text(arguments.text), tokenizer)
    ids = corpus.ids[: arguments.text_tokens].tolist()
    settings = {
        "model": str(arguments.model.resolve()),
        "text": corpus.sha256,
        "text_tokens": len(ids),
        "context": arguments.context,
        "calibration": None,
        "calibration_tokens": 0,
    }
    windows = None
    if arguments.calibration:
        calibration = tokenize(read_text(arguments.calibration), tokenizer)
        if calibration.sha256 == corpus.sha256:
            raise SystemExit("--calibration is the text that is measured; give another")
        count = -(-arguments.tokens // arguments.context)
        windows = sample_windows(calibration, arguments.context, count)
        settings |= {"calibration": calibration.sha256, "calibration_tokens": windows.size}

    path = arguments.out / "results.json"
    results: Row = {"settings": settings, "rows": []}
    if path.exists():
        results = json.loads(path.read_text())
        if results["settings"] != settings:
            raise SystemExit(f"{path}: of other settings: {results['settings']}; give another OUT")
    model = load_model(arguments.model)
    if "float" not in results:
        scores = compare(model, {}, ids, context=arguments.context)["float"]
        results["float"] = {"ppl": scores.perplexity, "predictions": scores.predictions}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
            scratch = Path(folder).resolve()
            rows = run_peer(name, arguments, windows, scratch)
            rows = measure(model, rows, ids, arguments.context)
        again = {row["name"] for row in rows}
        results["rows"] = [row for row in results["rows"] if row["name"] not in again] + rows
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(part, path)
        for row in rows:
            shown = row.get("missing") or f"{row['bits']:.2f} bits, KL {row['kl']:.5f}"
            print(f"{row['name']}: {shown}", file=sys.stderr, flush=True)
    return results


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder for results.json and scratch files")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal model")
    parser.add_argument("--text", type=Path, required=True, help="held-out text to measure on")
    parser.add_argument("--text-tokens", type=int, help="measure on the first of it; all")
    parser.add_argument("--calibration", type=Path, help="another text, for whoever calibrates")
    parser.add_argument("--tokens", type=int, default=81920, help="calibration tokens")
    parser.add_argument("--context", type=int, default=256, help="tokens a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help=f"peers with commas between: {', '.join(PEERS)}; all")
    parser.add_argument("--rows", help="of those peers, rows whose name has this regex; all")
    parser.add_argument("--llama-cpp", type=Path, help="a build of llama.cpp, shared libraries")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--plot", type=Path, help="a PNG of divergence against bits")
    parser.add_argument("--title", help="of the plot")
    arguments = parser.parse_args(words)
    arguments.only = list(PEERS) if arguments.only is None else arguments.only.split(",")
    arguments.only = [name for name in arguments.only if name]
    arguments.python = dict(pair.split("=", 1) for pair in arguments.python)
    unknown = {*arguments.only, *arguments.python} - PEERS.keys()
    if unknown:
        parser.error(f"no peer {sorted(unknown)[0]}; there are {', '.join(PEERS)}")
    return arguments


if __name__ == "__main__":
    main()
