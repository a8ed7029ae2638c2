"""Errors a user can act on: one line that says what is wrong, where, and what to do."""


class TritError(Exception):
    """Base of every error tritllm raises on purpose. `str(error)` is one printable line."""

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else " " for c in super().__str__())


class SourceError(TritError):
    """The source model cannot be read or must not be: names the file and the tensor."""


class FormatError(TritError):
    """A packed checkpoint breaks the format: names the file and the tensor."""


class OutputError(TritError):
    """The output cannot be written: disk, permissions, or a folder that holds something else."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
