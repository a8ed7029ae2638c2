"""tritllm chat: talk with a packed model in the terminal, or by lines from a pipe."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

from tritllm.cli.console import errors
from tritllm.cli.options import (
    Device,
    Draft,
    Dtype,
    KvCache,
    LmHeadDepth,
    MaxNewTokens,
    PackedModel,
    Planes,
    Seed,
    Temperature,
    TopK,
    TorchThreads,
    VerifyHashes,
)
from tritllm.errors import TritError
from tritllm.run.chat import Answer, Chat, chat

PROMPT = "> "
HELP = """\
/reset   begin a new conversation; the system prompt stays
/help    this
/exit    end, as Ctrl-D does
Ctrl-C stops an answer. Anything else is said to the model."""
_COMMAND = re.compile(r"/[a-z]+").fullmatch


def command(
    folder: PackedModel,
    system: Annotated[
        str | None, typer.Option(help="System prompt, which every conversation begins with.")
    ] = None,
    max_new_tokens: MaxNewTokens = 1024,
    temperature: Temperature = None,
    top_k: TopK = None,
    seed: Seed = None,
    planes: Planes = None,
    lm_head_depth: LmHeadDepth = None,
    dtype: Dtype = "auto",
    threads: TorchThreads = None,
    device: Device = "cpu",
    draft: Draft = None,
    kv_cache: KvCache = None,
    verify: VerifyHashes = False,
) -> None:
    """Chat with a packed model: answers as they come, tokens a second after each.

    Commands: /reset, /help, /exit. Ctrl-C stops an answer, Ctrl-D ends. Where standard input is no
    terminal, each line is said to the model, and the answers alone go to standard output.
    """
    conversation = chat(
        folder,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
        device=device,
        draft=draft,
        kv_cache=kv_cache,
        verify=verify,
    )
    if not conversation.has_template:
        _note(
            f"{folder}: its tokenizer has no chat template, so this is no chat model: what you "
            "type is continued as plain text",
            "yellow",
        )
    talk(conversation, interactive=sys.stdin.isatty())


def talk(conversation: Chat, *, interactive: bool) -> None:
    """Answer line after line of standard input, to its end or /exit.

    interactive: a person is asked for lines, sees errors and goes on; else the first error ends it.
    """
    if interactive:
        with contextlib.suppress(ImportError):  # lines can be edited and called back
            import readline  # noqa: F401
        _note("/help lists the commands; Ctrl-D ends")
    for line in _typed() if interactive else (line.rstrip("\r\n") for line in sys.stdin):
        said = line.strip()
        if not said:
            continue
        if said == "/exit":
            return
        if said == "/reset":
            conversation.reset()
            _note("a new conversation")
        elif said == "/help":
            typer.echo(HELP)
        elif _COMMAND(said):
            _note(f"no command {said}; /help lists them", "yellow")
        else:
            try:
                _answer(conversation, line)
            except TritError as error:
                if not interactive:
                    raise
                _note(f"error: {error}", "red")


def _typed() -> Iterator[str]:
    """Lines that a person types; Ctrl-C takes a line back, Ctrl-D ends."""
    while True:
        try:
            with _on_ctrl_c(signal.default_int_handler):
                line = input(PROMPT)
        except KeyboardInterrupt:
            typer.echo()
            _note("Ctrl-D ends")
            continue
        except EOFError:
            typer.echo()
            return
        yield line


def _answer(conversation: Chat, text: str) -> None:
    """Print an answer as it comes. Ctrl-C stops it at the next token; before the first one, and a
    second time, it is broken off, and the conversation is what it was before.
    """
    shown = stopped = False

    def show(piece: str) -> None:
        nonlocal shown
        shown = True
        typer.echo(piece, nl=False)

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not shown or stopped:
            raise KeyboardInterrupt
        stopped = True
        conversation.stop()

    try:
        with _on_ctrl_c(hear):
            done = conversation.answer(text, on_text=show)
    except KeyboardInterrupt:
        typer.echo()
        _note("broken off; what you said is taken back", "yellow")
        return
    typer.echo()
    if done.context_full:
        _note(
            f"stopped where the model's context of {done.context_full} tokens is full; /reset "
            "begins a new conversation",
            "yellow",
        )
    _note(_cost(done, conversation.context))
    if done.draft:
        _note(str(done.draft))


def _cost(done: Answer, context: int | None) -> str:
    """How fast an answer came, and how full the context is."""
    speed = f" at {done.decode_speed:.1f} tokens/s" if done.decode_speed else ""
    of = f" of {context:,}" if context else ""
    return (
        f"{'stopped; ' if done.stopped else ''}{done.new_tokens} tokens{speed}, the first after "
        f"{done.prefill_seconds:.2f} s ({done.prompt_tokens} computed, {done.kept_tokens} kept); "
        f"{done.context_tokens:,}{of} tokens of context"
    )


@contextlib.contextmanager
def _on_ctrl_c(handler: signal.Handlers | object) -> Iterator[None]:
    """Within it, Ctrl-C does this, unless the process was started with it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _note(line: str, style: str = "dim") -> None:
    errors.print(line, style=style, markup=False, soft_wrap=True)
