"""Models in memory beside their reference, in groups that fit, or one by one beside its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tritllm.errors import TritError
from tritllm.evaluation.corpus import Window
from tritllm.evaluation.divergence import measure
from tritllm.evaluation.reference_cache import ReferenceCache
from tritllm.evaluation.sizes import memory_of
from tritllm.evaluation.token_scores import TokenScores
from tritllm.machine import available_memory
from tritllm.run.evaluated_model import EvaluatedModel
from tritllm.run.evaluation_protocol import EvaluationProtocol
from tritllm.storage.output_errors import output_errors

OnProgress = Callable[[str, int, int], None]
_MEMORY_SHARE = 0.85  # of what is free: the rest is for loading, and for what else happens
_SCRATCH_BYTES = 1 << 30  # logits of two batches and what is made of them, for a small vocabulary
_ITEM_BYTES = {"float32": 4, "auto": 2, "bfloat16": 2, "float16": 2}


def check_vocabularies(base: EvaluatedModel, models: Sequence[EvaluatedModel]) -> None:
    """Before hours are spent on the reference; the logits themselves are compared later.

    Raises TritError for a model whose config has another vocabulary than the reference's.
    """
    expected = base.config().get_text_config().vocab_size
    for model in models:
        own = model.config().get_text_config().vocab_size
        if own != expected:
            raise TritError(
                f"{model.path}: a vocabulary of {own}, but the reference has {expected}; only "
                "models with one vocabulary can be compared"
            )


def measure_models(
    base: EvaluatedModel,
    models: Sequence[EvaluatedModel],
    protocol: EvaluationProtocol,
    cut: Sequence[Window],
    batch: int | None,
    cache: str | Path | None,
    tell: OnProgress,
) -> dict[str, TokenScores]:
    """Scores of every prediction, by the models' names.

    Side by side in groups that fit beside the reference, or one by one beside its cache.

    Raises TritError where they do not fit, or cannot be compared.
    """

    def windows_done(what: str) -> Callable[[int], None]:
        return lambda done: tell(what, done, len(cut))

    def loaded(model: EvaluatedModel) -> Any:
        tell(f"loading {model.name}", 0, len(cut))
        return model.load(protocol.dtype, protocol.device)

    vocabulary = base.config().get_text_config().vocab_size
    scores: dict[str, TokenScores] = {}
    if cache is not None:
        known = _fill_cache(base, protocol, cut, vocabulary, batch, Path(cache), loaded, tell)
        for model in models:
            found = measure(
                known, {model.name: loaded(model)}, cut, batch=batch,
                on_windows=windows_done(model.name),
            )  # fmt: skip
            scores |= found.candidates
        return scores
    item_bytes = _ITEM_BYTES[protocol.dtype]
    scratch = max(_SCRATCH_BYTES, 4 * 4 * vocabulary * protocol.context * (batch or 1))
    room = int(_MEMORY_SHARE * available_memory()) - scratch
    groups = groups_that_fit(
        memory_of(base.path, item_bytes), [memory_of(m.path, item_bytes) for m in models], room
    )
    if groups is None:
        needed = 2 * protocol.predictions * vocabulary
        raise TritError(
            f"{base.path}: the reference and a model beside it do not fit in {room / 1e9:.1f} GB "
            f"of memory; give --cache DIR, which takes {math.ceil(needed / 1e9)} GB of disk, or a "
            "smaller --dtype"
        )
    reference = loaded(base)
    for group in groups:
        beside = {models[i].name: loaded(models[i]) for i in group}
        what = ", ".join(beside)
        found = measure(reference, beside, cut, batch=batch, on_windows=windows_done(what))
        scores |= found.candidates
        del beside
    return scores


def groups_that_fit(reference: int, models: Sequence[int], room: int) -> list[list[int]] | None:
    """Indices of models, in order, that are in memory beside the reference at the same time.

    reference, models, room: bytes. None where a model does not fit beside the reference.
    """
    groups: list[list[int]] = []
    taken = room + 1
    for index, size in enumerate(models):
        if reference + size > room:
            return None
        if taken + size > room:
            groups.append([])
            taken = reference
        groups[-1].append(index)
        taken += size
    return groups


def _fill_cache(
    base: EvaluatedModel,
    protocol: EvaluationProtocol,
    cut: Sequence[Window],
    vocabulary: int,
    batch: int | None,
    folder: Path,
    loaded: Callable[[EvaluatedModel], Any],
    tell: OnProgress,
) -> ReferenceCache:
    of_text = ("text_sha256", "context", "stride", "bos", "dtype", "device", "activations",
               "versions", "windows")  # fmt: skip
    description = {"model": base.identity()} | {key: getattr(protocol, key) for key in of_text}
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = ReferenceCache(folder, description, len(cut))
    known.fill(
        lambda: loaded(base), cut, vocabulary, batch=batch,
        on_windows=lambda done: tell("the reference", done, len(cut)),
    )  # fmt: skip
    return known
