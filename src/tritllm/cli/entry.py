"""Where the `tritllm` process begins and ends: every failure becomes one line and an exit code.

Imported before everything else of the command line, so nothing here needs more than the standard
library: a package that is missing is said in one line, and Ctrl-C is heard while torch loads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from tritllm.errors import TritError, first_line, is_no_thread
from tritllm.extras import require
from tritllm.machine import processors

FAILED = 1
STOPPED = 130  # as shells count: 128 and the number of SIGINT
_OPENBLAS_MOST = 64  # threads, as NumPy's wheels build it
TRACEBACK = "TRITLLM_TRACEBACK"  # set to anything: errors nobody expected show where they arose


def run(main: Callable[[], object] | None = None) -> NoReturn:
    """Run a command line to its end and exit.

    Args:
        main: what to run; default is the `tritllm` command on sys.argv.

    Exit codes: 0 done; 1 failed, with one line on standard error that says why; 2 wrong usage;
    130 stopped by Ctrl-C, with one line. A KeyboardInterrupt raised with a text has that text for
    its line: only a command that goes on when it is given again may say so.
    """
    stop = _Interrupts()
    warnings.showwarning = _warn
    try:
        _check_streams()
        _fit_threads()
        (main or _commands)()
        sys.stdout.flush()
        code: Any = 0
    except BaseException as error:
        code = _code_of(error, stop)
    if code == STOPPED:  # not by sys.exit: modules half imported are in no state to be torn down
        os._exit(STOPPED)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _code_of(error, stop)
    stop.ignore()
    sys.exit(code)


def _commands() -> None:
    try:
        require("the command line", "cli", "typer", "rich")
    except TritError:
        if sys.argv[1:] != ["doctor"]:
            raise
        _plain_doctor()  # which is there to say what is missing
        return
    from tritllm.cli.main import app

    app()


def _plain_doctor() -> None:
    from tritllm.run.doctor import doctor

    for finding in doctor():
        print("ok" if finding.ok else "--", f"{finding.subject}: {finding.state}")


def _check_streams() -> None:
    """Standard output takes any text, and is open: else the first file opened would take its place.

    Names of files need not be UTF-8; what cannot be written is shown as a backslash and a number.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise TritError("standard output is closed; redirect it to /dev/null instead")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fit_threads() -> None:
    """Where no thread can be started, NumPy and torch are to do with one.

    Else OpenBLAS would interrupt the process as Ctrl-C does, and OpenMP abort it.
    """
    ended = threading.Event()
    started = []
    try:
        for _ in range(min(processors(), _OPENBLAS_MOST) - 1):
            thread = threading.Thread(target=ended.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    finally:
        ended.set()
        for thread in started:
            thread.join()


class _Interrupts:
    """Ctrl-C: noted, then raised as KeyboardInterrupt; heard a second time, it ends at once.

    It ends at once amid an import, too: C code of modules that are interrupted while they load
    prints a traceback and raises another error. Noted, because other code may do so as well.
    """

    def __init__(self) -> None:
        self.heard = False
        # A process in the background is started with the signal ignored, and keeps it so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._hear)
            sys.unraisablehook = self._unraisable

    def ignore(self) -> None:
        """The work is done and the exit code decided; Ctrl-C comes too late to change it."""
        if signal.getsignal(signal.SIGINT) == self._hear:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard or _is_importing(frame):
            _say("stopped")
            os._exit(STOPPED)
        self.heard = True
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):  # Python would print and go on
            _say("stopped")
            os._exit(STOPPED)
        sys.__unraisablehook__(unraisable)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame runs, directly or not, for an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _code_of(error: BaseException, stop: _Interrupts) -> Any:
    """Say what is to be said of an error, on standard error; returns the exit code."""
    interrupt = _interrupt_in(error)
    if interrupt is not None or (stop.heard and not isinstance(error, SystemExit)):
        _say(str(interrupt or "") or "stopped")
        return STOPPED
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _forget_output()  # whoever read it has had enough, and need not be told
        return FAILED
    _say(f"error: {_explain(error)}")
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if isinstance(error, OSError):
        _forget_output()
    return FAILED


def _interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that an error is, or that typer turned into SystemExit(130)."""
    if isinstance(error, SystemExit) and error.code != STOPPED:
        return None
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _explain(error: BaseException) -> str:
    """One line for a person: what is wrong, and where that is known."""
    if isinstance(error, TritError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    if is_no_thread(error):
        return first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return str(TritError(f"{error.filename or 'standard output'}: {error.strerror}"))
    what = TritError(first_line(error))
    return f"unexpected {type(error).__name__}: {what} ({TRACEBACK}=1 shows where)"


def _forget_output() -> None:
    """What is left in standard output's buffer cannot be written; Python would try at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """A warning, in one line as errors are; Python would add the line of source."""
    _say(f"warning: {TritError(message)}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error is gone, too; the exit code still tells
        print(line, file=sys.stderr, flush=True)
