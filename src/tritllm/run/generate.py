"""Text from a packed model, streamed, and how fast it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.run.loading import check_text
from tritllm.run.text_generator import check_seed, load_text_generator
from tritllm.run.token_clock import Generation


def generate(
    folder: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    temperature: float | None = 0.0,
    top_k: int | None = None,
    seed: int | None = 0,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    compiled: bool = False,
    device: str = "cpu",
    draft: str | None = None,
    kv_cache: str | None = None,
    activations: str | None = None,
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
        temperature: 0 takes the most likely token; above it, tokens are sampled. None samples as
            the model's own generation config says.
        top_k: sample among so many of the most likely tokens; by default 50, or what the model's
            own config says.
        seed: random seed for sampling, 0 to 2**64 - 1; None leaves torch's state as it is.
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
        activations: "per-token" rounds them to int8 with one scale for each token, as BitNet's
            models are trained to have them, which is the fastest rule for these.
        verify: compare every hash with the manifest before the model runs.
        on_text: called with each piece of text as soon as it is final.

    Raises TritError where the folder is not a packed model, is damaged, the prompt is not text or
    does not fit, or a package is missing.
    """
    require("generate", "transformers", "torch", "transformers")
    import torch

    check_seed(seed)
    check_text(prompt, "the prompt")
    generator = load_text_generator(
        folder,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
        device=device,
        draft=draft,
        kv_cache=kv_cache,
        activations=activations,
        verify=verify,
        compiled=compiled,
    )
    if chat and not generator.tokenizer.chat_template:
        raise TritError(f"{folder}: its tokenizer has no chat template; leave out --chat")
    if chat:
        ids = generator.tokens_of_chat([{"role": "user", "content": prompt}])
    else:
        ids = generator.tokens(prompt)
    generator.check_room(ids.shape[1])
    if seed is not None:
        torch.manual_seed(seed)
    done, _ = generator.write(
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        compiled=compiled,
        on_text=on_text,
    )
    return done
