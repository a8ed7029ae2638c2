"""Errors a user can act on: one line that says what is wrong, where, and what to do."""

import re

# Tokens of the Hub: in a header that a library quotes because it cannot be sent, and by their form;
# and what an address is signed with.
_SECRETS = re.compile(r"(?<=Bearer )[^'\"]+|\bhf_[A-Za-z0-9]{20,}|(?<=\?)\S*[Ss]ignature=[^\s'\"]+")
_MORE_THREADS = "raise the limit of processes (ulimit -u), or use fewer --threads"


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
    """The first line of what an error of another library says; its type where it says nothing.

    A token in it is not shown. Where Python has no more threads, also what to do: that error has no
    type of its own.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = _SECRETS.sub("***", line)
    return f"{line}; {_MORE_THREADS}" if is_no_thread(error) else line


def is_no_thread(error: BaseException) -> bool:
    """Whether this is what Python raises where the system lets no more threads be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
