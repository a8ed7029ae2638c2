"""A decoder's step for a few new tokens a sequence, in plain NumPy: the twin of native/src/step.

Numbers are float32, and rounded to the model's dtype where the native code rounds them: queries,
keys, values, and hidden states between two blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Block:
    """A block of the Llama family (Llama, Mistral, Qwen2, Qwen3).

    q, k, v, o, gate, up, down: x [rows, K] -> [rows, N], bias included. Norms: float32 weights;
    q_norm and k_norm, of one head, are None where there are none. scaling: of the attention's
    scores.
    """

    q: Product
    k: Product
    v: Product
    o: Product
    gate: Product
    up: Product
    down: Product
    input_norm: np.ndarray
    post_norm: np.ndarray
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    head_dim: int
    epsilon: float
    scaling: float
    dtype: np.dtype


def step(
    blocks: Sequence[Block],
    hidden: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Hidden states [B, T, H] of T new tokens a sequence -> those after the last block.

    cos, sin: [B, T, D]. keys, values: of every block [B, kv_heads, S, D]; the last T of the S
    tokens are the new ones and are written. mask: bool [B, S], False hides a key. A new token sees
    the keys up to its own.
    """
    new = hidden.shape[1]
    for block, key, value in zip(blocks, keys, values, strict=True):
        q, key[:, :, -new:], value[:, :, -new:] = project(block, hidden, cos, sin)
        hidden = attend(block, hidden, q, key, value, mask).astype(block.dtype)
    return hidden


def project(
    block: Block, hidden: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states [B, T, H] -> q [B, heads, T, D], k and v [B, kv_heads, T, D]."""
    batch, new, width = hidden.shape
    x = rms_norm(hidden, block.input_norm, block.epsilon).reshape(batch * new, width)
    q, k, v = (
        product(x).reshape(batch, new, -1, block.head_dim).swapaxes(1, 2)
        for product in (block.q, block.k, block.v)
    )
    if block.q_norm is not None:
        q = rms_norm(q, block.q_norm, block.epsilon)
    if block.k_norm is not None:
        k = rms_norm(k, block.k_norm, block.epsilon)
    turned = (rotate(part, cos[:, None], sin[:, None]) for part in (q, k))
    q, k, v = (part.astype(block.dtype) for part in (*turned, v))
    return q, k, v


def attend(
    block: Block,
    hidden: np.ndarray,
    q: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
) -> np.ndarray:
    """Hidden [B, T, H], q [B, heads, T, D], keys, values -> the block's output [B, T, H]."""
    hidden = hidden.astype(np.float32)
    batch, heads, new, width = q.shape
    share, tokens = heads // key.shape[1], key.shape[2]
    key, value = (np.repeat(x.astype(np.float32), share, axis=1) for x in (key, value))
    score = np.einsum("bhnd,bhtd->bhnt", q.astype(np.float32), key) * np.float32(block.scaling)
    seen = np.tri(new, tokens, tokens - new, dtype=bool)
    if mask is not None:
        seen = seen & mask[:, None, None]
    score = np.where(seen, score, np.float32(-np.inf))
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    attended = np.einsum("bhnt,bhtd->bnhd", weight, value).reshape(batch * new, heads * width)
    hidden = hidden.reshape(batch * new, -1) + block.o(attended)
    z = rms_norm(hidden, block.post_norm, block.epsilon)
    hidden = hidden + block.down(silu(block.gate(z)) * block.up(z))
    return hidden.reshape(batch, new, -1)


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """X / sqrt(mean(x**2) + epsilon) * weight along the last axis (Zhang and Sennrich, 2019)."""
    x = x.astype(np.float32)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary position embedding (Su et al., 2021); elements i and i + D / 2 are a pair."""
    half = x.shape[-1] // 2
    partner = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos.astype(np.float32) + partner * sin.astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    """X / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))
