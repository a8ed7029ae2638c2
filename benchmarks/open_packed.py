"""Seconds to open a packed folder of many matrices, of which only headers and manifest are read.

    python benchmarks/open_packed.py --layers 58 --experts 256

The shards are sparse files: they take no room on the disk, and opening reads none of their data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from tritllm import PackedCheckpoint
from tritllm.format.layout import part_names, tensors_of
from tritllm.format.manifest import manifest_bytes
from tritllm.format.quantization_config import make_quantization_config
from tritllm.format.safetensors_header import build_header

HIDDEN, INNER = 7168, 2048  # of an expert of DeepSeek-V3
SHAPES = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}


def write_folder(folder: Path, layers: int, experts: int, depth: int) -> int:
    """Write headers, manifest, index and config; returns the number of matrices."""
    records, hashes, modules = {}, {}, []
    for layer in range(layers):
        file = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        specs = []
        for expert in range(experts):
            for kind, shape in SHAPES.items():
                module = f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj"
                modules.append(module)
                parts = tensors_of(f"{module}.weight", *shape, depth)
                specs += parts
                for spec in parts:
                    records[spec.name] = {
                        "file": file,
                        "dtype": spec.dtype,
                        "shape": list(spec.shape),
                        "sha256": hashlib.sha256(spec.name.encode()).hexdigest(),
                        "part_of": f"{module}.weight",
                    }
                name = part_names(f"{module}.weight")[0]
                del records[name]["part_of"]
                records[name] |= {
                    "depth": depth,
                    "in_features": shape[1],
                    "transposed": False,
                    "nmse": 0.0123456789,
                }
        header = build_header(specs, {"format": "pt"})
        hashes[file] = hashlib.sha256(header.raw).hexdigest()
        (folder / file).write_bytes(header.raw)
        os.truncate(folder / file, max(entry.end for entry in header.entries.values()))
    config = make_quantization_config("v3", dict.fromkeys(modules, depth), 3.5, ["lm_head"])
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    index = {"weight_map": {name: record["file"] for name, record in records.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    manifest = {
        "format_version": 1,
        "tool": "benchmark",
        "codec": "v3",
        "config": f"uniform-d{depth}",
        "command": "",
        "group_size": 16,
        "dequantized_dtype": "bfloat16",
        "source": {"model": "none", "revision": None, "shards": {}},
        "headers": hashes,
        "tensors": records,
        "not_stored": {},
        "side_files": {},
    }
    (folder / "tritllm.json").write_bytes(manifest_bytes(manifest))
    return len(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = write_folder(Path(folder), arguments.layers, arguments.experts, arguments.depth)
        size = (Path(folder) / "tritllm.json").stat().st_size
        print(f"{count} matrices, manifest of {size / 1e6:.1f} MB")
        for _ in range(arguments.repeats):
            start, cpu = time.perf_counter(), time.process_time()
            checkpoint = PackedCheckpoint(folder)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            assert len(checkpoint.quantized) == count
            print(f"opened in {seconds:.2f} s, {cpu:.2f} s of processor time")


if __name__ == "__main__":
    main()
