"""Write the table of docs/families.md: every family's tiny model goes the whole way once more.

Usage: python scripts/make_families_table.py (about a minute and a half). The test that holds the
table to what it saw is tests/integrations/test_families.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "families.md"
HEAD = (
    "| model type | known as | of the linear weights | native step | kept besides |\n"
    "|---|---|---|---|---|\n"
)


def rows() -> list[str]:
    """The table's rows, in the order of the tiny models."""
    os.environ["TRITLLM_LINEAR"] = "torch"
    sys.path.insert(0, str(ROOT / "tests"))
    import transformers
    from support.family_models import MODELS
    from support.family_run import run_family

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = []
    for name in MODELS:
        with TemporaryDirectory() as folder:
            found.append(run_family(name, Path(folder)).markdown())
    return found


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    before = text[: text.index("| model type |")]
    DOCS.write_text(f"{before}{HEAD}" + "\n".join(rows()) + "\n", encoding="utf-8")
