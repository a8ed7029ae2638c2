"""A conversation with a packed model, whose keys and values stay in memory between turns.

What a turn's prompt is, the tokenizer's chat template decides alone: the whole conversation, put in
the template and made tokens anew. Of the cache, as much is kept as holds the same tokens in the
same places; the rest is taken off, or, where the cache cannot be shortened, all of it. So an answer
is the one that a fresh start with the whole conversation gives, but for rounding: tokens that came
one by one were computed in another order, and an int8 cache has rounded what a prompt would see as
it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritllm.extras import require
from tritllm.run.loading import check_text
from tritllm.run.text_generator import (
    TextGenerator,
    check_seed,
    load_text_generator,
)
from tritllm.run.token_clock import Generation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answer(Generation):
    """One turn's answer. prompt_tokens: those that were computed; kept_tokens: those before them,
    whose keys and values were there already. stopped: whether `Chat.stop` ended it.
    """

    kept_tokens: int = 0
    stopped: bool = False

    @property
    def context_tokens(self) -> int:
        """Tokens of the conversation with this answer."""
        return self.kept_tokens + self.prompt_tokens + self.new_tokens


class Chat:
    """A conversation; `tritllm.chat` makes one.

        chat = tritllm.chat("out/uniform-d2/packed", system="Answer briefly.")
        print(chat.answer("What is a compiler?").text)

    messages: what was said so far, as chat templates take it. has_template: False for a model
    whose tokenizer has none; what was said is then continued as plain text, turns a line apart.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        system: str | None,
        seed: int | None,
        max_new_tokens: int,
        temperature: float | None,
        top_k: int | None,
    ) -> None:
        self._generator, self._seed = generator, seed
        self._limits: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k
        }  # fmt: skip
        self._system = system
        self.has_template = bool(generator.tokenizer.chat_template)
        self.messages: list[dict[str, str]] = []
        self._cache: Any = None
        self._held: list[int] = []  # tokens whose keys and values the cache has
        self._stopped = False
        self.reset()

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for; None where its config says none."""
        return self._generator.context

    def reset(self) -> None:
        """Forget what was said, but for the system prompt; sampling begins with its seed again."""
        import torch

        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self._forget()
        if self._seed is not None:
            torch.manual_seed(self._seed)

    def stop(self) -> None:
        """End the answer that is being given with its next token, from a signal or a thread."""
        self._stopped = True

    def answer(self, text: str, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """Say something and get the answer; both are then part of the conversation.

        on_text: called with each piece of the answer as soon as it is final.

        Raises TritError where the text is none, the chat template fails or the context is full.
        Whatever is raised, KeyboardInterrupt too, the conversation is then what it was before.
        """
        check_text(text, "the message")
        self._stopped = False
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self._tokens(asked)
        length = ids.shape[1]
        self._generator.check_room(
            length, "the conversation", "begin a new one (/reset), or say less"
        )
        kept = self._keep_common(ids[0].tolist())
        more = {} if self._cache is None else {"past_key_values": self._cache}
        try:
            done, output = self._generator.write(
                ids, on_text=on_text, stopping_criteria=[self._is_stopped], **self._limits, **more
            )
        except BaseException:  # layers may hold different tokens now
            self._forget()
            raise
        self._remember(output)
        self.messages = [*asked, {"role": "assistant", "content": done.text}]
        own = {field.name: getattr(done, field.name) for field in fields(done)}
        own |= {"prompt_tokens": length - kept, "kept_tokens": kept, "stopped": self._stopped}
        return Answer(**own)

    def _tokens(self, messages: list[dict[str, str]]) -> torch.Tensor:
        if self.has_template:
            return self._generator.tokens_of_chat(messages)
        return self._generator.tokens(_plain(messages))

    def _is_stopped(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion, as transformers calls it after every token."""
        import torch

        return torch.full((ids.shape[0],), self._stopped, dtype=torch.bool, device=ids.device)

    def _keep_common(self, ids: list[int]) -> int:
        """Shorten the cache to the tokens that `ids` begins with, all but the last at most, which
        has to be computed for its logits. Returns how many are left.
        """
        common = 0
        for held, asked in zip(self._held, ids[:-1], strict=False):
            if held != asked:
                break
            common += 1
        extra = len(self._held) - common
        if extra and not _can_be_shortened(self._cache):
            self._forget()
            return 0
        if extra:
            self._cache.crop(-extra)
        if not common:
            self._forget()
        del self._held[common:]
        return common

    def _remember(self, output: Any) -> None:
        """Note which tokens the cache holds: usually all but the last, which nothing came after."""
        self._cache = getattr(output, "past_key_values", None)
        length = 0 if self._cache is None else self._cache.get_seq_length()
        self._held = output.sequences[0, :length].tolist()
        if len(self._held) != length or not length:
            self._forget()

    def _forget(self) -> None:
        self._cache, self._held = None, []


def chat(
    folder: str | Path,
    *,
    system: str | None = None,
    max_new_tokens: int = 1024,
    temperature: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    draft: str | None = None,
    kv_cache: str | None = None,
    verify: bool = False,
) -> Chat:
    """Load a packed model to talk with.

    Args:
        folder: a packed folder, or a Hub id of one.
        system: the system prompt, which every conversation begins with.
        max_new_tokens: an answer stops after so many, at the model's end-of-text token, or where
            its context is full.
        temperature: 0 takes the most likely token; above it, tokens are sampled. None samples as
            the model's own generation config says.
        top_k: sample among so many of the most likely tokens; by default 50, or what the model's
            own config says.
        seed: random seed for sampling, 0 to 2**64 - 1, of each conversation; None differs.
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        dtype: of activations and unquantized weights; "auto" is the file's.
        threads: torch's; default is torch's own choice.
        device: that runs the model, as torch names it: "cpu", "cuda", ...
        draft: draft tokens that the whole model then verifies, which changes the speed alone: with
            "planes=N" of its own planes, with what pays of them ("auto"), or with a second packed
            folder of the same model.
        kv_cache: "int8" keeps keys and values in 9 bits an element; default is the model's dtype.
        verify: compare every hash with the manifest before the model runs.

    Raises TritError where the folder is not a packed model, is damaged, or a package is missing.
    """
    require("chat", "transformers", "torch", "transformers")
    check_seed(seed)
    if system is not None:
        check_text(system, "--system")
    generator = load_text_generator(
        folder,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
        device=device,
        draft=draft,
        kv_cache=kv_cache,
        verify=verify,
    )
    return Chat(
        generator,
        system=system,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
    )


def _plain(messages: list[dict[str, str]]) -> str:
    """A conversation as text to continue: an answer follows what was said at once, as a base model
    would have written it, and a line ends before the next turn and after the system prompt.
    """
    text = ""
    for message in messages:
        begins_line = message["role"] == "user" and text and not text.endswith("\n")
        text += ("\n" if begins_line else "") + message["content"]
    return text


def _can_be_shortened(cache: Any) -> bool:
    """Whether tokens can be taken off a cache and leave it as if they had not come.

    Not the state of linear attention, nor layers with a window that is full: what was before the
    window is gone.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not isinstance(cache, DynamicCache):
        return False
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or hasattr(layer, "conv_states"):
            return False
        window = getattr(layer, "sliding_window", None)
        if window is not None and layer.get_seq_length() >= window:
            return False
    return True
