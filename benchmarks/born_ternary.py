"""A model that was trained ternary: tritllm, transformers' own, ik_llama.cpp and llama.cpp in turn.

    pip install gguf
    python benchmarks/born_ternary.py --llama-bin LLAMA_BUILD/bin --ik-bin IK_BUILD/bin SCRATCH
    ... [--threads 2] [--passes 2] [--prompt-tokens 128] [--new-tokens 32] [--only-make]

SCRATCH gets random trits in the shape of BitNet b1.58 2B4T: a folder as transformers' `bitnet`
method stores it (two bits a weight), the packed folder that `tritllm quantize` makes of it, and
GGUFs of the same shape in the types that are made for ternary models, by each engine's own
llama-quantize; what is there already is used again. The GGUFs have the architecture `llama`, whose
blocks lack two of BitNet's norms. 3.9 GB are kept, and 8 GB are needed meanwhile.

Every measurement is a process of its own, decoding after a prompt of the same length, a warm-up
first. The output matrix is tied: depth 4 in ours (--lm-head-depth 4), llama-quantize's own choice
in GGUFs, bfloat16 in transformers. transformers runs a folder in two ways, by its config: as
`bitlinear`, which unpacks at every call, and as `autobitlinear`, which unpacks once, to bfloat16.
Figures are the best pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Contender, Programs, Settings, output, theirs

from tritllm.storage.model_folder import shard_header

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 2560, 30, 20, 5, 6912, 128256
SCALE = 1.25  # of every matrix
IK_TYPES, LLAMA_TYPES = ("IQ2_BN", "IQ1_BN"), ("TQ2_0", "TQ1_0")
CLASSES = ("autobitlinear", "bitlinear")
MODES = ("int8", "per-token")  # ours
GOAL_OWN, GOAL_IK = 20.0, 1.3


def config_of(layers: int, linear_class: str) -> dict:
    return {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": True, "bos_token_id": 128000,
        "eos_token_id": 128001, "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline",
        },
    }  # fmt: skip


def matrices(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes [out, in] of the linear layers."""
    keys = HIDDEN // HEADS * KV_HEADS
    for layer in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (HIDDEN, HIDDEN)), ("self_attn.k_proj", (keys, HIDDEN)),
            ("self_attn.v_proj", (keys, HIDDEN)), ("self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("mlp.gate_proj", (INTERMEDIATE, HIDDEN)), ("mlp.up_proj", (INTERMEDIATE, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, INTERMEDIATE)),
        ):  # fmt: skip
            yield f"model.layers.{layer}.{name}", shape


def norms(layers: int) -> Iterator[tuple[str, int]]:
    """Names and lengths."""
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", HIDDEN
        yield prefix + "self_attn.attn_sub_norm.weight", HIDDEN
        yield prefix + "post_attention_layernorm.weight", HIDDEN
        yield prefix + "mlp.ffn_sub_norm.weight", INTERMEDIATE
    yield "model.norm.weight", HIDDEN


def write_source(folder: Path, layers: int) -> None:
    """The folder of transformers' bitnet method."""
    folder.mkdir()
    specs = [("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN))]
    specs += [(name, "BF16", (n,)) for name, n in norms(layers)]
    for name, (rows, columns) in matrices(layers):
        specs.append((f"{name}.weight", "U8", (rows // 4, columns)))
        specs.append((f"{name}.weight_scale", "BF16", (1,)))
    rng = np.random.default_rng(0)
    fours = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3)
                      for c in range(3) for d in range(3)], np.uint8)  # fmt: skip
    header = shard_header(specs)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for entry in header.entries.values():
            if entry.dtype == "U8":
                file.write(fours[rng.integers(0, 81, entry.size, np.uint8)].tobytes())
            elif len(entry.shape) == 2:
                for _ in range(0, VOCABULARY, VOCABULARY // 8):
                    rows = rng.standard_normal((VOCABULARY // 8, HIDDEN), np.float32)
                    file.write((rows.view(np.uint32) >> 16).astype("<u2").tobytes())
            else:
                value = SCALE if entry.name.endswith("_scale") else 1.0
                bits = int(np.float32(value).view(np.uint32) >> 16)
                file.write(np.full(entry.size, bits, "<u2").tobytes())
    (folder / "config.json").write_text(json.dumps(config_of(layers, CLASSES[0]), indent=2))


def write_gguf(path: Path, layers: int) -> None:
    """Random trits of the same shape, F16, with the architecture `llama`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for add, value in (
        (writer.add_block_count, layers), (writer.add_context_length, 4096),
        (writer.add_embedding_length, HIDDEN), (writer.add_feed_forward_length, INTERMEDIATE),
        (writer.add_head_count, HEADS), (writer.add_head_count_kv, KV_HEADS),
        (writer.add_rope_dimension_count, HIDDEN // HEADS), (writer.add_rope_freq_base, 500000.0),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, VOCABULARY),
    ):  # fmt: skip
        add(value)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    shapes = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    shapes += [(name, (n,)) for name, n in norms(layers) if "sub_norm" not in name]
    shapes += [(f"{name}.weight", shape) for name, shape in matrices(layers)]
    for name, shape in shapes:
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        stored = names.get_name(name, (".weight",))
        writer.add_tensor_info(stored, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    steps = np.array([-1, 0, 1], np.float16)
    for _, shape in shapes:
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(steps[rng.integers(0, 3, shape, np.uint8)])
    writer.close()


def make_files(folder: Path, programs: Programs, layers: int, threads: int) -> None:
    """All models; each gets its name when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf_types = [(name, programs.llama) for name in LLAMA_TYPES]
    gguf_types += [(name, programs.ik) for name in IK_TYPES if programs.ik]
    missing = [(n, bin_) for n, bin_ in gguf_types if not (folder / f"{n}.gguf").exists()]
    f16 = folder / "part-F16.gguf"
    if missing:
        write_gguf(f16, layers)
        for name, bin_ in missing:
            print(f"making {name}.gguf", file=sys.stderr, flush=True)
            part = folder / f"part-{name}.gguf"
            output([bin_ / "llama-quantize", f16, part, name, str(threads)])
            os.replace(part, folder / f"{name}.gguf")
        f16.unlink()
    if not (folder / "source" / "config.json").exists():
        write_source(folder / "source", layers)
    output([
        sys.executable, "-m", "tritllm", "quantize", "--model", folder / "source", "--configs",
        "uniform-d1", "--write", "packed", "--out", folder / "tritllm",
    ])  # fmt: skip


def run_transformers(folder: Path, linear_class: str, settings: Settings) -> dict[str, float]:
    """Seconds of prefill and of each new token, as tokens a second; in this process."""
    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    transformers.utils.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config["linear_class"] = linear_class
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.bfloat16
    )
    ids = torch.randint(0, VOCABULARY, (1, settings.prompt))
    found = {}
    with torch.no_grad():
        for _ in range(2):  # a warm-up, which compiles
            start = time.perf_counter()
            out = model(ids, use_cache=True, logits_to_keep=1)
            found["prefill"] = settings.prompt / (time.perf_counter() - start)
            for step in range(settings.new + 1):
                if step == 1:
                    start = time.perf_counter()
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            found["decode"] = settings.new / (time.perf_counter() - start)
    return found


@dataclass(frozen=True)
class Row:
    """A contender: ours in a mode, transformers in a class, or a GGUF."""

    name: str
    mode: str | None = None
    linear_class: str | None = None
    gguf: Contender | None = None


def rows_of(programs: Programs) -> list[Row]:
    found = [Row(f"tritllm, {mode}", mode=mode) for mode in MODES]
    for name in IK_TYPES if programs.ik else ():
        found += [Row(c.name, gguf=c) for c in (Contender(name, True), Contender(name, True, True))]
    found += [Row(name, gguf=Contender(name)) for name in LLAMA_TYPES]
    return found + [Row(f"transformers, {name}", linear_class=name) for name in CLASSES]


def measure(row: Row, folder: Path, programs: Programs, settings: Settings) -> dict[str, float]:
    """Tokens a second of prefill and decode."""
    if row.gguf:
        whats = ("prefill", "decode")
        return {what: theirs(row.gguf, programs, folder, settings, what) for what in whats}
    numbers = [f"--prompt-tokens={settings.prompt}", f"--threads={settings.threads}"]
    if row.linear_class:
        # transformers unpacks for seconds a token.
        new = settings.new if row.linear_class == "autobitlinear" else max(2, settings.new // 16)
        command = [sys.executable, __file__, folder, f"--run-transformers={row.linear_class}"]
        return json.loads(output([*command, *numbers, f"--new-tokens={new}"]))
    command = [sys.executable, "-m", "tritllm", "bench", folder / "tritllm/uniform-d1/packed"]
    command += ["--json", "--no-compare", "--lm-head-depth=4", f"--new-tokens={settings.new}"]
    done = subprocess.run(
        [str(word) for word in (*command, *numbers)], check=True, capture_output=True, text=True,
        env={**os.environ, "TRITLLM_LINEAR": row.mode or ""},
    )  # fmt: skip
    return json.loads(done.stdout)["packed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="a folder for the models; kept")
    parser.add_argument("--llama-bin", type=Path, help="llama-bench, llama-quantize")
    parser.add_argument("--ik-bin", type=Path, help="the same of ik_llama.cpp")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--only-make", action="store_true", help="make the models and stop")
    parser.add_argument("--run-transformers", choices=CLASSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = Settings(arguments.threads, arguments.prompt_tokens, arguments.new_tokens, 0)
    if arguments.run_transformers:
        source = arguments.scratch / "source"
        print(json.dumps(run_transformers(source, arguments.run_transformers, settings)))
        return
    if not arguments.llama_bin:
        parser.error("--llama-bin is needed")
    programs = Programs(arguments.llama_bin, arguments.ik_bin)
    make_files(arguments.scratch, programs, arguments.layers, arguments.threads)
    if arguments.only_make:
        return
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.passes):
        for row in rows_of(programs):
            print(f"pass {number + 1}: {row.name}", file=sys.stderr, flush=True)
            speeds = measure(row, arguments.scratch, programs, settings)
            found.setdefault(row.name, []).append(speeds)
    print(f"{arguments.layers} layers, {settings.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"| tokens a second | decode {settings.new} | prefill {settings.prompt} |\n|---|---|---|")
    best = {
        (name, what): max(each[what] for each in speeds)
        for name, speeds in found.items()
        for what in ("decode", "prefill")
    }
    for name, speeds in found.items():
        cells = [
            f"{best[name, what]:.2f} ({', '.join(f'{each[what]:.2f}' for each in speeds)})"
            for what in ("decode", "prefill")
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    ik = [name for name in found if name.startswith("ik ")]
    for what in ("decode", "prefill"):
        mine = best["tritllm, int8", what]
        for name in CLASSES:
            ratio = mine / best[f"transformers, {name}", what]
            print(f"{what}: {ratio:.1f} times transformers' {name} (goal {GOAL_OWN})")
        if ik:
            rival = max(ik, key=lambda name: best[name, what])
            print(f"{what}: {mine / best[rival, what]:.2f} times {rival} (goal {GOAL_IK})")


if __name__ == "__main__":
    main()
