"""How fast a packed model runs here, beside the same model dequantized, in the same run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.run.drafting import drafting
from tritllm.run.loading import (
    check_device,
    check_dtype,
    check_packed,
    context_length,
    load,
    quiet,
    set_threads,
)
from tritllm.run.text_generator import generation_settings
from tritllm.run.token_clock import TokenClock

if TYPE_CHECKING:
    from tritllm.integrations.transformers.drafting.draft import DraftReport

PROMPT_TOKENS = 512
_BUFFER_BYTES = 1 << 29  # many times any cache
_READS = 8


@dataclass(frozen=True)
class Speed:
    """One model's line.

    weight_bytes: what its weights take in memory. token_bytes: of these, what one token reads (of
    a block's experts, those that a token chooses; not the embeddings). resident_bytes: the process,
    after decoding; on a GPU the most that torch had there. Speeds: tokens a second at batch 1.
    """

    name: str
    weight_bytes: int
    token_bytes: int
    resident_bytes: int
    prefill: float
    decode: float
    bandwidth: float

    @property
    def bandwidth_share(self) -> float:
        """Bytes read a second while decoding, as a share of what the machine can read."""
        return self.token_bytes * self.decode / self.bandwidth


@dataclass(frozen=True)
class Benchmark:
    """The packed model's speed, and those of the same with drafts and dequantized if they were
    measured. draft: what the drafts brought.
    """

    prompt_tokens: int
    threads: int
    bandwidth: float
    kernels: str
    packed: Speed
    dequantized: Speed | None
    drafted: Speed | None = None
    draft: DraftReport | None = None


def bench(
    folder: str | Path,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 32,
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "bfloat16",
    threads: int | None = None,
    compare: bool = True,
    compiled: bool = False,
    device: str = "cpu",
    draft: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure prefill and decode at batch 1, through transformers' own generate.

    Args:
        folder: a packed folder, or a Hub id of one.
        prompt_tokens: the length of the random prompt; default is 512, or what fits the context.
        new_tokens: tokens decoded after the first.
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head of the packed model, too, at this depth.
        dtype: of activations and unquantized weights, and of the dequantized model; "auto" is the
            file's.
        threads: torch's; default is torch's own choice.
        compare: measure the dequantized model as well.
        compiled: compile the decode step of both; takes a minute or so for each.
        device: that runs the models, as torch names it: "cpu", "cuda", ...
        draft: also decode with drafts by "planes=N" of the model's own planes, by what pays of them
            ("auto"), or by a second packed folder of the same model. What they bring depends on the
            text, which goes on from random tokens here.
        on_step: called with what is being done.

    Raises TritError where the folder is not a packed model or a package is missing.
    """
    require("bench", "transformers", "torch", "transformers", "psutil")
    import torch

    from tritllm.ops import backends

    check_dtype(dtype)
    check_device(device)
    set_threads(threads)
    quiet()
    check_packed(folder, planes)
    tell = on_step or (lambda step: None)

    tell("measuring memory bandwidth")
    bandwidth = read_bandwidth(device)
    tell("loading the packed model")
    options: dict[str, Any] = {"device": device, "lm_head_depth": lm_head_depth, "dtype": dtype}
    drafting_with = drafting(draft, folder, compiled=compiled, **options)
    model = load(folder, planes=planes, **options)
    dtype = str(model.dtype).removeprefix("torch.")
    prompt_tokens = _fitting(prompt_tokens, new_tokens, context_length(model))
    tell("running the packed model")
    packed = _measure("packed", model, prompt_tokens, new_tokens, bandwidth, compiled)
    drafts, drafted, report, dequantized = drafting_with(model), None, None, None
    if drafts:
        tell("running the packed model with drafts")
        drafted = _measure(
            "with drafts", model, prompt_tokens, new_tokens, bandwidth, compiled, drafts
        )
        report = drafts.report
    if compare:
        del model, drafts, drafting_with
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        tell(f"dequantizing to {dtype}")
        model = load(folder, device, planes=planes, dtype=dtype)
        model.dequantize(getattr(torch, dtype))
        gc.collect()
        tell("running the dequantized model")
        dequantized = _measure(dtype, model, prompt_tokens, new_tokens, bandwidth, compiled)
    return Benchmark(
        prompt_tokens,
        torch.get_num_threads(),
        bandwidth,
        backends.describe(torch.device(device).type),
        packed,
        dequantized,
        drafted,
        report,
    )


def _fitting(prompt_tokens: int | None, new_tokens: int, context: int | None) -> int:
    """The length of the prompt: as asked, or at most PROMPT_TOKENS of what the context leaves."""
    room = None if context is None else context - new_tokens
    if room is not None and (prompt_tokens or 1) > room:
        raise TritError(
            f"{prompt_tokens or 1} + {new_tokens} tokens exceed the model's context of {context}; "
            f"give a smaller {'--prompt-tokens' if prompt_tokens else '--new-tokens'}"
        )
    return prompt_tokens or min(PROMPT_TOKENS, room or PROMPT_TOKENS)


def read_bandwidth(device: str = "cpu") -> float:
    """Bytes a second that torch's threads, or a device, read: the best of some sums of an array."""
    import torch

    values = torch.zeros(_BUFFER_BYTES // 8, dtype=torch.int64, device=device)
    best = float("inf")
    for _ in range(_READS):
        started = time.perf_counter()
        values.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return _BUFFER_BYTES / best


def _measure(
    name: str,
    model: Any,
    prompt_tokens: int,
    new_tokens: int,
    bandwidth: float,
    compiled: bool,
    drafts: Any = None,
) -> Speed:
    import psutil
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, prompt_tokens), generator=generator).to(model.device)
    count = new_tokens + 1
    # Once for the caches' sake, at length where a static cache's length is compiled in.
    for length in (count if compiled else 2, count):
        settings = generation_settings(model, max_new_tokens=length, compiled=compiled)
        # No token has this number, so none ends the text. Least lengths (min_new_tokens) would
        # search the whole vocabulary twice for every token, which nobody's generate does.
        settings.eos_token_id = vocabulary
        settings.pad_token_id = settings.pad_token_id or 0
        clock = TokenClock()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=clock,
            draft=drafts,
        )
    done = clock.result("", prompt_tokens)
    total, token = weight_bytes(model)
    if model.device.type == "cuda":
        resident = torch.cuda.max_memory_allocated(model.device)
    else:
        resident = psutil.Process().memory_info().rss
    return Speed(
        name, total, token, resident, done.prefill_speed, done.decode_speed or 0.0, bandwidth
    )


def weight_bytes(model: Any) -> tuple[int, int]:
    """Bytes of a model's weights in memory, and of those that decoding one token reads."""
    import torch

    from tritllm.integrations.transformers.experts import TritExperts
    from tritllm.ops.trit_linear import TritLinear

    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", 1)
    experts = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, TritExperts) or hasattr(module, "gate_up_proj")
    )
    total = token = 0
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, TritLinear):
            own = module.nbytes
        else:
            own = 0
            for tensor in module.parameters(recurse=False):
                if tensor.data_ptr() not in seen:
                    own += tensor.nbytes
                    seen.add(tensor.data_ptr())
        total += own
        if isinstance(module, torch.nn.Embedding):
            tied = module.weight is getattr(model.get_output_embeddings(), "weight", None)
            token += own if tied else 0
        elif any(name == e or name.startswith(f"{e}.") for e in experts):
            block = model.get_submodule(next(e for e in experts if name.startswith(e)))
            token += own * chosen // block.num_experts
        else:
            token += own
    return total, token
