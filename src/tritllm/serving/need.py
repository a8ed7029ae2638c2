"""Weights, cache and GPUs that serving a model takes, at each depth and beside 16-bit floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tritllm.format.trits import DEPTHS
from tritllm.serving.cache import CacheRule, cache_rule, number
from tritllm.serving.weights import MatrixBytes, WeightParts, degree_parts

GPUS = (24, 48, 80, 141)  # GB, of 10**9 bytes: no card of that name has less
DEGREES = (1, 2, 4, 8)  # GPUs that share the blocks' matrices, within a machine
_STAGES = (1, 2)  # that share the blocks (pipeline parallel)
UTILIZATION = 0.9  # of a GPU's memory that vLLM is given (--gpu-memory-utilization)


@dataclass(frozen=True)
class Degree:
    """Whether tensor parallelism over `gpus` GPUs can cut the model, and why."""

    gpus: int
    allowed: bool
    reason: str


@dataclass(frozen=True)
class CacheNeed:
    """Bytes of keys and values of all sequences at a context of so many tokens each."""

    context: int
    nbytes: int


@dataclass(frozen=True)
class Fit:
    """The fewest GPUs of so many GB that hold weights, cache and what vLLM keeps free.

    The GPUs are tensor_parallel times pipeline_parallel; the latter is 2 (two groups of GPUs share
    the blocks, on two machines where one has not enough) where tensor parallelism alone is not
    enough. Both are None where that does not do either.
    """

    gpu_gigabytes: int
    context: int
    tensor_parallel: int | None
    pipeline_parallel: int | None


@dataclass(frozen=True)
class DepthNeed:
    """One row, by name: "16 bits" (floats), "d=1" to "d=4", or a packed folder "as packed".

    Bytes: file, of all tensors; cpu, with the matrices as this machine's kernels hold them, None
    where there are none; gpu, as the GPU's kernels hold them.
    """

    name: str
    file_bytes: int
    cpu_bytes: int | None
    gpu_bytes: int
    fits: tuple[Fit, ...]


@dataclass(frozen=True)
class ServingNeed:
    """What `tritllm info` says of serving a model.

    cache: None and `cache_unknown` says why, where the config's attention is of an unknown kind.
    assumption: what GPUs are counted with, in words.
    """

    sequences: int
    rows: tuple[DepthNeed, ...]
    cache: tuple[CacheNeed, ...] | None
    cache_unknown: str | None
    degrees: tuple[Degree, ...]
    assumption: str


def serving_need(
    parts: WeightParts,
    config: Mapping[str, Any],
    contexts: Sequence[int],
    sequences: int,
    gpu_size: MatrixBytes,
    cpu_size: MatrixBytes | None = None,
    depths: Sequence[int] = DEPTHS,
) -> ServingNeed:
    """Count what serving takes.

    Args:
        parts: the model's tensors; with depths of their own where a file is packed.
        config: of the text model, with every default filled in.
        contexts: tokens of each sequence, one column of the answer each.
        sequences: that are served at a time.
        gpu_size: bytes of a packed matrix as the GPU's kernels hold it.
        cpu_size: the same of the CPU's kernels; None: there are none here.
        depths: a row each, for a model that is not packed.
    """
    rule = cache_rule(config)
    degrees = tuple(_degree(parts, config, gpus) for gpus in DEGREES)
    allowed = [degree.gpus for degree in degrees if degree.allowed]
    own = any(matrix.depth is not None for matrix in parts.matrices)
    names: list[tuple[str, int | None]] = [("as packed", None)] if own else [
        (f"d={depth}", depth) for depth in depths
    ]  # fmt: skip
    reserve = _Reserve(config)
    held: tuple[int, int | None, int]
    rows = []
    for name, depth in [("16 bits", None), *names]:
        floats = name == "16 bits"
        fits = [
            _fit(parts, depth, None if floats else gpu_size, rule, (context, sequences), gpu,
                 allowed, reserve)
            for context in contexts
            for gpu in GPUS
            if isinstance(rule, CacheRule)
        ]  # fmt: skip
        if floats:
            held = (parts.float_bytes,) * 3
        else:
            on_cpu = None if cpu_size is None else parts.packed_bytes(depth, cpu_size)
            held = (parts.packed_bytes(depth), on_cpu, parts.packed_bytes(depth, gpu_size))
        rows.append(DepthNeed(name, *held, tuple(fits)))
    return ServingNeed(
        sequences,
        tuple(rows),
        tuple(CacheNeed(context, sequences * rule.nbytes(context)) for context in contexts)
        if isinstance(rule, CacheRule)
        else None,
        None if isinstance(rule, CacheRule) else rule,
        degrees,
        reserve.in_words(),
    )


class _Reserve:
    """What a GPU's memory holds besides weights and cache: an estimate, not a measurement.

    vLLM tries a step of the most tokens it will take at once before it sizes its cache: of 8,192
    tokens and 1,024 sequences on cards of 70 GB and more, else 2,048 and 256 (its defaults for
    `vllm serve`). Counted are a token's hidden states four times and its gated values twice, both
    in 16 bits, and a sequence's logits twice in 32 bits.
    """

    _CONTEXT_BYTES = 10**9  # CUDA's context, communication buffers, CUDA graphs

    def __init__(self, config: Mapping[str, Any]) -> None:
        hidden = number(config, "hidden_size", "n_embd", "d_model")
        self._hidden = hidden
        self._inner = number(config, "intermediate_size", "n_inner") or 4 * hidden
        self._vocabulary = number(config, "vocab_size")

    def nbytes(self, gpu_gigabytes: int, degree: int) -> int:
        """On each of `degree` GPUs of this size."""
        tokens, sequences = (8192, 1024) if gpu_gigabytes >= 70 else (2048, 256)
        a_token = 2 * (4 * self._hidden + 2 * self._inner // degree)
        return self._CONTEXT_BYTES + tokens * a_token + sequences * self._vocabulary * 8

    def in_words(self) -> str:
        """The assumption, with its figures for one GPU."""
        small, large = (self.nbytes(gpus, 1) / 1e9 for gpus in (24, 80))
        return (
            f"{100 * UTILIZATION:.0f} % of a GPU's memory for vLLM (--gpu-memory-utilization "
            f"{UTILIZATION}), of which {small:.1f} GB (cards of 24 and 48 GB) or {large:.1f} GB "
            "(80 and 141 GB) go to activations, CUDA graphs and the CUDA context: an estimate"
        )


def _fit(
    parts: WeightParts,
    depth: int | None,
    size: MatrixBytes | None,
    rule: CacheRule,
    load: tuple[int, int],
    gpu_gigabytes: int,
    allowed: Sequence[int],
    reserve: _Reserve,
) -> Fit:
    """The fewest GPUs that hold one replica; load: tokens a sequence, and sequences."""
    context, sequences = load
    for stages, degree in product(_STAGES, allowed):
        weights = parts.gpu_bytes(depth, degree, rule.key_value_heads, size)
        # Stages share the blocks; the vocabulary's matrices are on the first or the last.
        vocabulary = -(-parts.vocabulary_bytes // degree)
        weights = (weights - vocabulary) // stages + vocabulary
        cache = sequences * rule.nbytes(context, degree) // stages
        free = UTILIZATION * gpu_gigabytes * 10**9 - reserve.nbytes(gpu_gigabytes, degree)
        if weights + cache <= free:
            return Fit(gpu_gigabytes, context, degree, stages)
    return Fit(gpu_gigabytes, context, None, None)


def _degree(parts: WeightParts, config: Mapping[str, Any], gpus: int) -> Degree:
    made = degree_parts(parts, config, gpus)
    return Degree(gpus, made.size is not None, made.reason)
