"""Write the table of docs/families.md: every family's tiny model goes the whole way once more.

Usage: python scripts/make_families_table.py [MODEL_TYPE ...]; all of them take some minutes. The
test that holds the table to what it saw is tests/integrations/test_families.py.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "families.md"
HEAD = (
    "| model type | known as | of the linear weights | native step | kept besides |\n"
    "|---|---|---|---|---|\n"
)


MORE = "The tests hold names and coverage of the following, which go the whole way here alone:"
UNKNOWN = "Model types of transformers {version} that generate text and are not known by name:"


def rows(asked: list[str], written: str) -> tuple[list[str], list[str]]:
    """The rows of both tables, in the order of the tiny models.

    asked: the model types that are run; of the others, the rows as they are written.
    """
    os.environ["TRITLLM_LINEAR"] = "torch"
    sys.path.insert(0, str(ROOT / "tests"))
    import transformers
    from support.family_models import ALL_MODELS, MODELS
    from support.family_run import run_family

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = {name: row for row, name in re.findall(r"^(\| `(\S+)` .*)$", written, re.MULTILINE)}
    for name in asked or ALL_MODELS:
        with TemporaryDirectory() as folder:
            found[name] = run_family(name, Path(folder)).markdown()
        print(found[name], flush=True)
    whole = [found[name] for name in MODELS]
    return whole, [found[name] for name in ALL_MODELS if name not in MODELS]


def unknown() -> str:
    """The paragraph that lists what is not known by name."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    from tritllm.quantizer.families import FAMILIES

    kinds = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )
    names = sorted({name for kind in kinds for name in kind} - FAMILIES.keys())
    text = ", ".join(f"`{name}`" for name in names)
    lines = textwrap.wrap(text, 118, break_on_hyphens=False, break_long_words=False)
    return "\n".join([UNKNOWN.format(version=transformers.__version__), *lines]) + "."


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    before = text[: text.index("| model type |")]
    whole, more = ("\n".join(each) for each in rows(sys.argv[1:], text))
    DOCS.write_text(
        f"{before}{HEAD}{whole}\n\n{MORE}\n\n{HEAD}{more}\n\n{unknown()}\n", encoding="utf-8"
    )
