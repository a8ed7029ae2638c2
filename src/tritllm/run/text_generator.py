"""Tokens from a loaded model, streamed and timed: what generate, chat and bench do alike."""

from __future__ import annotations

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
    context_length,
    load,
    load_tokenizer,
    one_line,
    quiet,
    set_threads,
    shown,
)
from tritllm.run.token_clock import Generation, TokenClock

if TYPE_CHECKING:
    import torch

SEEDS = 2**64  # what torch takes
# What a model's own generation config may say of how a token is chosen.
_SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip


@dataclass(frozen=True)
class TextGenerator:
    """A packed model that is ready to write. drafts: what it drafts with, or None."""

    folder: str | Path
    model: Any
    tokenizer: Any
    drafts: Any

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for; None where its config says none."""
        return context_length(self.model)

    def tokens(self, text: str) -> torch.Tensor:
        """A text's tokens [1, L], with those that the tokenizer puts before and after a text."""
        return self.tokenizer(text, return_tensors="pt")["input_ids"]

    def tokens_of_chat(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """The tokens [1, L] of messages in the chat template, up to where the answer begins.

        Raises TritError where the template fails, as some do for roles that they do not know.
        """
        with one_line(self.folder, "its chat template fails: "):
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]

    def check_room(self, tokens: int, what: str = "the prompt", remedy: str = "shorten it") -> None:
        """Raise TritError where nothing can follow so many tokens of `what`."""
        if not tokens:
            raise TritError(f"{what} has no tokens; give some text")
        if self.context is not None and tokens >= self.context:
            raise TritError(
                f"{what} of {tokens} tokens fills the model's context of {self.context}; {remedy}"
            )

    def write(
        self,
        ids: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float | None,
        top_k: int | None,
        compiled: bool = False,
        on_text: Callable[[str], None] | None = None,
        **more: Any,
    ) -> tuple[Generation, Any]:
        """Continue tokens ids [1, L], for which there is room, until the context is full at most.

        max_new_tokens, temperature, top_k, compiled: as `generation_settings` takes them. on_text:
        called with each piece of text as soon as it is final. more: passed to generate. Returns
        what was written, and what transformers' generate returned.
        """
        import torch

        length = ids.shape[1]
        room = max_new_tokens if self.context is None else self.context - length
        settings = generation_settings(
            self.model,
            max_new_tokens=min(max_new_tokens, room),
            temperature=temperature,
            top_k=top_k,
            compiled=compiled,
        )
        clock = TokenClock(self.tokenizer, on_text)
        ids = ids.to(self.model.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=clock,
            draft=self.drafts,
            return_dict_in_generate=True,
            **more,
        )
        new = output.sequences[0, length:]
        text = str(self.tokenizer.decode(new, skip_special_tokens=True))
        done = replace(
            clock.result(text, length),
            draft=None if self.drafts is None else self.drafts.report,
            context_full=self.context if len(new) == room < max_new_tokens else None,
        )
        return done, output


def load_text_generator(
    folder: str | Path,
    *,
    planes: int | None,
    lm_head_depth: int | None,
    dtype: str,
    threads: int | None,
    device: str,
    draft: str | None,
    kv_cache: str | None,
    verify: bool,
    compiled: bool = False,
    activations: str | None = None,
) -> TextGenerator:
    """Check the options, load the model, its tokenizer and what it drafts with.

    The arguments are those of `generate`. Raises TritError as it says.
    """
    require("generate", "transformers", "torch", "transformers")
    check_dtype(dtype)
    check_device(device)
    check_kv_cache(kv_cache, compiled=compiled)
    set_threads(threads)
    quiet()
    check_packed(folder, planes)
    tokenizer = load_tokenizer(folder)
    options: dict[str, Any] = {
        "device": device, "lm_head_depth": lm_head_depth, "dtype": dtype, "verify": verify
    }  # fmt: skip
    drafting_with = drafting(draft, folder, compiled=compiled, **options)
    model = load(folder, planes=planes, activations=activations, **options)
    drafts = drafting_with(model)
    model.set_kv_cache(kv_cache)
    return TextGenerator(folder, model, tokenizer, drafts)


def check_seed(seed: int | None) -> None:
    """Raise TritError for what torch does not take as a seed; None is no seed."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise TritError(f"--seed {shown(seed)} is not 0..{SEEDS - 1}")


def generation_settings(
    model: Any,
    *,
    max_new_tokens: int,
    temperature: float | None = 0.0,
    top_k: int | None = None,
    compiled: bool = False,
    **more: Any,
) -> Any:
    """A GenerationConfig with the model's special tokens, and of its other defaults none but those
    that are asked for.

    temperature: 0 takes the most likely token, above it tokens are sampled; None takes all that the
    model's own generation config says of sampling. top_k: sample among so many of the most likely
    tokens; None is 50, or with temperature None the model's own.
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
    if temperature is None:
        asked = {name: getattr(own, name, None) for name in _SAMPLING}
        asked["top_k"] = top_k or asked["top_k"]
        sampling = {name: value for name, value in asked.items() if value is not None}
    elif temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k or 50}
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
