"""Tensors that a source stores twice, because its model ties them."""

from __future__ import annotations

from tritllm.format.safetensors_header import TensorEntry
from tritllm.quantizer.source import Source, SourceShard
from tritllm.storage.model_folder import CHUNK_BYTES


def tied_duplicates(source: Source) -> dict[str, str]:
    """lm_head stored beside equal embeddings in a model that ties them: {lm_head: embedding}."""
    text_config = source.config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    if not source.config.get("tie_word_embeddings", nested.get("tie_word_embeddings", False)):
        return {}
    by_name = source.stored
    head = next((name for name in by_name if name.split(".")[-2:] == ["lm_head", "weight"]), None)
    embedding = next(
        (name for name in by_name if name.split(".")[-2:] in (["embed_tokens", "weight"],
                                                             ["wte", "weight"])), None
    )  # fmt: skip
    if (
        head is None
        or embedding is None
        or not _same_bytes(source, by_name[head], by_name[embedding])
    ):
        return {}
    return {head: embedding}


def _same_bytes(
    source: Source, one: tuple[SourceShard, TensorEntry], other: tuple[SourceShard, TensorEntry]
) -> bool:
    """Compare by reading both: only their bytes tell whether one may be left out."""
    (shard_a, a), (shard_b, b) = one, other
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for offset in range(0, a.nbytes, CHUNK_BYTES):
        length = min(CHUNK_BYTES, a.nbytes - offset)
        if source.files.read(shard_a.name, a.begin + offset, length) != source.files.read(
            shard_b.name, b.begin + offset, length
        ):
            return False
    return True
