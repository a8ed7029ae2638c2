"""Text from a packed model, streamed, and how fast it came."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.run.drafting import drafting
from tritllm.run.loading import (
    check_device,
    check_dtype,
    check_kv_cache,
    check_packed,
    check_text,
    context_length,
    load,
    load_tokenizer,
    one_line,
    quiet,
    set_threads,
    shown,
)

if TYPE_CHECKING:
    import torch

    from tritllm.integrations.transformers.drafting.draft import DraftReport

SEEDS = 2**64  # what torch takes
_KEPT_TOKENS, _MOST_TOKENS = 32, 96  # decoded again for every new one


@dataclass(frozen=True)
class Generation:
    """What was generated, and its cost. Prefill ends with the first new token.

    context_full: the length of the model's context, where that ended the text. draft: what drafts
    brought, where they were asked for.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    context_full: int | None = None
    draft: DraftReport | None = None

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_speed(self) -> float | None:
        """New tokens a second after the first; None where there is only one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None


def generate(
    folder: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    temperature: float = 0.0,
    top_k: int = 50,
    seed: int = 0,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    compiled: bool = False,
    device: str = "cpu",
    draft: str | None = None,
    kv_cache: str | None = None,
    verify: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        folder: a packed folder, or a Hub id of one.
        prompt: the text to continue; with chat, the user's message.
        max_new_tokens: stop after so many, at the model's end-of-text token, or where its context
            is full.
        chat: put the prompt in the tokenizer's chat template.
        temperature: 0 takes the most likely token; above it, tokens are sampled.
        top_k: sample among so many of the most likely tokens.
        seed: random seed for sampling, 0 to 2**64 - 1.
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        dtype: of activations and unquantized weights; "auto" is the file's.
        threads: torch's; default is torch's own choice.
        compiled: compile the decode step; takes a minute or so first, pays for long texts.
        device: that runs the model, as torch names it: "cpu", "cuda", ...
        draft: draft tokens that the whole model then verifies, which changes the speed alone: with
            "planes=N" of its own planes, with what pays of them ("auto"), or with a second packed
            folder of the same model.
        kv_cache: "int8" keeps keys and values in 9 bits an element; default is the model's dtype.
        verify: compare every hash with the manifest before the model runs.
        on_text: called with each piece of text as soon as it is final.

    Raises TritError where the folder is not a packed model, is damaged, the prompt is not text or
    does not fit, or a package is missing.
    """
    require("generate", "transformers", "torch", "transformers")
    import torch

    check_dtype(dtype)
    check_device(device)
    if not 0 <= seed < SEEDS:
        raise TritError(f"--seed {shown(seed)} is not 0..{SEEDS - 1}")
    check_text(prompt, "the prompt")
    check_kv_cache(kv_cache, compiled=compiled)
    set_threads(threads)
    quiet()
    check_packed(folder, planes)
    tokenizer = load_tokenizer(folder)
    options: dict[str, Any] = {
        "device": device, "lm_head_depth": lm_head_depth, "dtype": dtype, "verify": verify
    }  # fmt: skip
    drafting_with = drafting(draft, folder, compiled=compiled, **options)
    model = load(folder, planes=planes, **options)
    drafts = drafting_with(model)
    model.set_kv_cache(kv_cache)
    if chat and not tokenizer.chat_template:
        raise TritError(f"{folder}: its tokenizer has no chat template; leave out --chat")
    if chat:
        messages = [{"role": "user", "content": prompt}]
        with one_line(folder, "its chat template fails: "):
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    if not length:
        raise TritError("the prompt has no tokens; give some text")
    context = context_length(model)
    room = max_new_tokens if context is None else context - length
    if room < 1:
        raise TritError(
            f"the prompt's {length} tokens fill the model's context of {context}; shorten it"
        )
    torch.manual_seed(seed)
    clock = TokenClock(tokenizer, on_text)
    settings = generation_settings(
        model,
        max_new_tokens=min(max_new_tokens, room),
        temperature=temperature,
        top_k=top_k,
        compiled=compiled,
    )
    output = model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        generation_config=settings,
        streamer=clock,
        draft=drafts,
    )
    new = output[0, length:]
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    done = replace(clock.result(text, length), draft=None if drafts is None else drafts.report)
    return replace(done, context_full=context) if len(new) == room < max_new_tokens else done


def generation_settings(
    model: Any,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 50,
    compiled: bool = False,
    **more: Any,
) -> Any:
    """A GenerationConfig with the model's special tokens and nothing else of its defaults.

    compiled: a static cache, and the decode step compiled; transformers does so by itself on some
    accelerators, and on a CPU when it is told that every device will do.
    """
    from transformers import CompileConfig, GenerationConfig

    from tritllm.integrations.transformers.compat import compile_on_any_device

    own = model.generation_config
    if compiled:
        how = CompileConfig(fullgraph=True, dynamic=False, mode="default")
        compile_on_any_device(how)
        more = {"cache_implementation": "static", "compile_config": how, **more}
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k}
    pad = own.pad_token_id
    end = own.eos_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
        **sampling,
        **more,
    )


class TokenClock:
    """A streamer for `model.generate`: passes text on and notes when tokens came.

    Text is passed on up to its last space or line end, for a later token may change a word's bytes;
    the rest comes with the next word, or at the end.
    """

    def __init__(self, tokenizer: Any = None, on_text: Callable[[str], None] | None = None) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._printed = 0
        self._prompt_seen = False
        self._times: list[float] = []
        self._started = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Called by generate with the prompt's tokens first, then with every new one."""
        if not self._prompt_seen:
            self._prompt_seen = True
            self._started = time.perf_counter()
            return
        self._times.append(time.perf_counter())
        if self._on_text is not None:
            self._tokens += value.reshape(-1).tolist()
            text = self._text()
            self._emit(text, max(text.rfind(" "), text.rfind("\n")) + 1)
            self._forget(text)

    def end(self) -> None:
        """Called by generate when it is done."""
        if self._on_text is not None:
            text = self._text()
            self._emit(text, len(text))

    def result(self, text: str, prompt_tokens: int) -> Generation:
        """The measurement, with the whole text."""
        if not self._times:
            raise TritError("the model generated nothing; give a larger --max-new-tokens")
        first, last = self._times[0], self._times[-1]
        return Generation(
            text, prompt_tokens, len(self._times), first - self._started, last - first
        )

    def _text(self) -> str:
        """That of the tokens which are kept; all of it up to `_printed` was passed on."""
        return self._decode(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _forget(self, text: str) -> None:
        """Drop early tokens where the others' text is the end of all the text, so that a token of
        a long text costs no more than one of a short.
        """
        if len(self._tokens) <= _MOST_TOKENS:
            return
        kept = self._tokens[-_KEPT_TOKENS:]
        end = self._decode(kept)
        begin = len(text) - len(end)
        if end and text.endswith(end) and begin <= self._printed:
            self._tokens, self._printed = kept, self._printed - begin

    def _emit(self, text: str, upto: int) -> None:
        if self._on_text is not None and upto > self._printed:
            self._on_text(text[self._printed : upto])
            self._printed = upto
