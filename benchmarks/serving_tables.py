"""The memory tables of docs/serving.md, from the public configs of nine models.

    python benchmarks/serving_tables.py            # prints them
    python benchmarks/serving_tables.py --write    # puts them into docs/serving.md

All figures are those of `tritllm info benchmarks/configs/MODEL.json`. The values in these files are
those of the models' own config.json, as public copies have them; what does not change shapes is
left out, and the test holds the number of parameters that follows. CPU memory is in the layout that
every processor can use (TRITLLM_ISA=scalar).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tritllm import info
from tritllm.cli.info import gpus_in_words
from tritllm.publish.info import ModelInfo
from tritllm.serving.need import GPUS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "serving.md"
BEGIN, END = "<!-- tables: benchmarks/serving_tables.py -->", "<!-- end of tables -->"
NAMES = {
    "llama-3.1-8b": "Llama-3.1-8B",
    "mistral-7b-v0.3": "Mistral-7B-v0.3",
    **{f"qwen2.5-{size.lower()}": f"Qwen2.5-{size}" for size in
       ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")},
}  # fmt: skip


def facts() -> dict[str, ModelInfo]:
    """What `tritllm info` says of each config, by the model's name."""
    os.environ["TRITLLM_ISA"] = "scalar"
    return {name: info(str(HERE / "configs" / f"{file}.json")) for file, name in NAMES.items()}


def tables(found: dict[str, ModelInfo]) -> str:
    """Both tables in Markdown."""
    contexts = [cache.context for cache in next(iter(found.values())).serving.cache]
    lines = [
        "| model | parameters | "
        + " | ".join(f"KV cache, {tokens:,} tokens" for tokens in contexts)
        + " | tensor parallel | columns of down_proj |",
        "|---|---|" + "---|" * (len(contexts) + 2),
    ]
    for name, model in found.items():
        need = model.serving
        degrees = ", ".join(str(degree.gpus) for degree in need.degrees if degree.allowed)
        refused = next((f"; {d.reason}" for d in need.degrees if not d.allowed), "")
        widest = [d for d in need.degrees if d.allowed][-1].reason.removeprefix("down_proj: ")
        caches = " | ".join(gigabytes(cache.nbytes) for cache in need.cache)
        parameters = f"{model.parameters / 1e9:.2f} B"
        lines.append(f"| {name} | {parameters} | {caches} | {degrees}{refused} | {widest} |")
    sizes = " / ".join(map(str, GPUS))
    lines += [
        "",
        f"| model | weights | file | CPU | GPU | GPUs of {sizes} GB, {contexts[0]:,} tokens | "
        f"{contexts[1]:,} tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in found.items():
        for row in model.serving.rows:
            held = (row.file_bytes, row.cpu_bytes, row.gpu_bytes)
            counts = (
                " / ".join(gpus_in_words(fit) for fit in row.fits if fit.context == context)
                for context in contexts
            )
            lines.append(
                f"| {name} | {row.name} | {' | '.join(map(gigabytes, held))} | "
                f"{' | '.join(counts)} |"
            )
            name = ""
    return "\n".join(lines)


def gigabytes(nbytes: int | None) -> str:
    """Two decimals below 10 GB, then one."""
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 1e9:.{2 if nbytes < 1e10 else 1}f} GB"


def with_tables(page: str, made: str) -> str:
    """The page with these tables between the marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into docs/serving.md")
    made = tables(facts())
    if parser.parse_args().write:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), made), "utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()
