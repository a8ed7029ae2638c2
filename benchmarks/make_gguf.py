"""Write a Qwen2 checkpoint as an F16 GGUF, for llama.cpp's programs to quantize and to time.

    pip install gguf
    python benchmarks/make_gguf.py SOURCE OUT.gguf

The weights are those of SOURCE, the tokenizer is left out: llama-bench needs none. A tensor at a
time is in memory. Norms and biases are float32, as llama.cpp's own converter writes them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.safetensors_header import TensorEntry, read_header


def entries(source: Path) -> Iterator[tuple[Path, TensorEntry]]:
    """Every tensor of the folder, and the shard it is in."""
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:

            def read(offset: int, length: int, file=file) -> bytes:
                file.seek(offset)
                return file.read(length)

            header = read_header(read, path.stat().st_size, str(path))
        yield from ((path, entry) for entry in header.entries.values())


def dtype_of(entry: TensorEntry) -> np.dtype:
    return np.dtype(np.float32 if len(entry.shape) == 1 else np.float16)


def add_config(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def write_gguf(source: Path, out: Path) -> None:
    """Convert a folder; `out` appears when it is whole."""
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] != "qwen2":
        raise SystemExit(f"{source}: is {config['model_type']}; only qwen2 is written here")
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    add_config(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    found = list(entries(source))
    for _, entry in found:
        name = names.get_name(entry.name, (".weight", ".bias"))
        dtype = dtype_of(entry)
        writer.add_tensor_info(name, entry.shape, dtype, entry.size * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for path, entry in found:
        stored = np.memmap(path, NUMPY_OF_SAFETENSORS[entry.dtype], "r", entry.begin, entry.shape)
        writer.write_tensor_data(stored.astype(np.float32).astype(dtype_of(entry)))
    writer.close()
    os.replace(part, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of safetensors, qwen2")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_gguf(arguments.source, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
