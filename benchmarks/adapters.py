"""What a LoRA step takes on a packed model, beside bfloat16, float32 and bitsandbytes' NF4.

    python benchmarks/adapters.py SOURCE PACKED [--planes 2] [--lm-head-depth 4]
        [--layers 4] [--steps 3]
        [--methods packed packed-bfloat16 bfloat16 float32 nf4] [--nf4-python PYTHON]

SOURCE is a float folder, PACKED the same model quantized; PYTHON an interpreter that also has
bitsandbytes. A step is forward and backward of one text of --tokens tokens with a LoRA of rank 16
on every linear layer, with gradient checkpointing, and AdamW's. What is not packed is float32 in
`packed`, bfloat16 in `packed-bfloat16`; adapters are float32 always. Each method has a process of
its own; their steps alternate, and the best of --steps counts. --layers takes the first blocks
alone: the time of a step and its memory grow by the same with each block, and with two numbers of
layers the last column tells by how much. Memory is the peak of resident memory over the steps, less
what the process had before the model was loaded; pages of files that are mapped and were read
count. glibc is told to give large arrays back (MALLOC_MMAP_THRESHOLD_), or its heap's holes count,
too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

METHODS = ("packed", "packed-bfloat16", "bfloat16", "float32", "nf4")
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--planes", type=int, default=2)
    parser.add_argument("--lm-head-depth", type=int, help="packs the output layer of `packed`, too")
    parser.add_argument("--layers", type=int, nargs="+", default=[4], help="blocks, of the first")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["packed", "bfloat16"])
    parser.add_argument("--nf4-python", default=sys.executable)
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        serve_steps(arguments)
        return
    found = {layers: measure(arguments, layers) for layers in arguments.layers}
    report(found)


def measure(arguments: argparse.Namespace, layers: int) -> dict[str, tuple[float, float, float]]:
    """Method -> seconds a step, bytes above those before loading, and the loss after the last."""
    children = {}
    for method in arguments.methods:
        python = arguments.nf4_python if method == "nf4" else sys.executable
        command = [python, __file__, str(arguments.source), str(arguments.packed)]
        for name in ("planes", "tokens", "threads"):
            command += [f"--{name}", str(getattr(arguments, name))]
        if arguments.lm_head_depth:
            command += ["--lm-head-depth", str(arguments.lm_head_depth)]
        children[method] = subprocess.Popen(
            [*command, "--layers", str(layers), "--child", method],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        )  # fmt: skip
    best: dict[str, tuple[float, float, float]] = {}
    for _ in range(arguments.steps):
        for method, child in children.items():
            answer = asked(child)
            print(f"{layers} blocks, {method}: {answer['seconds']:.2f} s", file=sys.stderr)
            seconds = min(answer["seconds"], best.get(method, (float("inf"),))[0])
            best[method] = seconds, answer["bytes"], answer["loss"]
    for child in children.values():
        child.communicate()
    return best


def asked(child: subprocess.Popen[str]) -> dict[str, float]:
    """A step of a child, and what it says of it."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("step\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"a method ended: {child.args}")
    return dict(json.loads(line))


def report(found: dict[int, dict[str, tuple[float, float, float]]]) -> None:
    first = next(iter(found.values()))
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; ratios are to {next(iter(first))}")
    print(
        f"{'blocks':>6} {'method':>15} {'s/step':>8} {'ratio':>6} {'MB':>7} "
        f"{'ratio':>6} {'loss':>7}"
    )
    for layers, methods in found.items():
        seconds, memory, _ = next(iter(methods.values()))
        for method, (own, nbytes, loss) in methods.items():
            print(
                f"{layers:>6} {method:>15} {own:>8.2f} {own / seconds:>6.2f} {nbytes / 1e6:>7.0f} "
                f"{nbytes / memory:>6.2f} {loss:>7.3f}"
            )
    if len(found) > 1:
        (few, one), (many, other) = min(found.items()), max(found.items())
        for method in one:
            per = [(other[method][i] - one[method][i]) / (many - few) for i in range(2)]
            base = [one[method][i] - few * per[i] for i in range(2)]
            print(
                f"{method}: a block {per[0]:.2f} s, {per[1] / 1e6:.1f} MB; "
                f"besides {base[0]:.2f} s, {base[1] / 1e6:.0f} MB; "
                f"28 blocks {base[0] + 28 * per[0]:.1f} s, {(base[1] + 28 * per[1]) / 1e6:.0f} MB"
            )


# --- A method's process ---------------------------------------------------------------------------


def serve_steps(arguments: argparse.Namespace) -> None:
    """Make a step for each line of the input, and say what it took."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    import tritllm  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    before = resident("VmRSS")
    model = loaded(arguments)
    model.config.use_cache = False
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model = get_peft_model(
        model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    torch.manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, arguments.tokens))
    reset_peak()
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - begin
        nbytes = resident("VmHWM") - before
        print(json.dumps({"seconds": seconds, "bytes": nbytes, "loss": loss.item()}), flush=True)


def loaded(arguments: argparse.Namespace):
    """The base of a method, its first blocks alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    method = arguments.child
    packed = method.startswith("packed")
    folder = arguments.packed if packed else arguments.source
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = arguments.layers[0]
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: arguments.layers[0]]
    options = {"config": config, "dtype": torch.float32}
    if method.endswith("bfloat16"):
        options["dtype"] = torch.bfloat16
    if method == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    if packed:
        from tritllm.integrations.transformers import TritConfig

        options["quantization_config"] = TritConfig(
            planes=arguments.planes, lm_head_depth=arguments.lm_head_depth
        )
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def resident(field: str) -> int:
    """Bytes of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("reads /proc")


def reset_peak() -> None:
    """Have VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
