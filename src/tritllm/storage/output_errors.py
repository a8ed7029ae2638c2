"""What the system says when something cannot be written, as one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritllm.errors import OutputError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def damaged(path: Path) -> OutputError:
    """What to raise for a file of an unfinished run that is not what was written."""
    return OutputError(f"{path}: damaged; delete the output folder and start again")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into an OutputError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno in _FULL else "fix the folder, or choose another,"
        raise OutputError(
            f"{path}: {error.strerror or error}; {remedy} and run the same command again"
        ) from None
