"""A decoder's step for a few new tokens a sequence, in plain NumPy: the twin of native/src/step.

Numbers are float32, and rounded to the model's dtype where the native code rounds them: queries,
keys, values, and hidden states between two blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tritllm.step.int8_cache import dequantized, quantized

Product = Callable[[np.ndarray], np.ndarray]
Activation = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GatedUnit:
    """down(act(gate(z)) * up(z)); products x [rows, K] -> [rows, N]."""

    gate: Product
    up: Product
    down: Product


@dataclass(frozen=True)
class Experts:
    """Gated units of which each token takes the `chosen` that it wants most.

    router: float32 [experts, H]. normalized: the weights of a token's experts sum to one.
    shared_gate: float32 [H], or None where the block has no unit of all tokens.
    """

    units: Sequence[GatedUnit]
    router: np.ndarray
    chosen: int
    normalized: bool
    shared_gate: np.ndarray | None


@dataclass(frozen=True)
class Block:
    """A block of the Llama family (Llama, Mistral, Qwen2, Qwen3), with the parts that others add.

    q, k, v, o: x [rows, K] -> [rows, N], bias included. unit: None where there are experts alone.
    Norms: float32 weights, to which norm_offset is added; None where there is none: q_norm and
    k_norm, of one head; attention_norm and feedforward_norm, of what is added to hidden states;
    attention_sub_norm and unit_sub_norm, of what o and the unit's down multiply. scaling: of the
    attention's scores, which softcap c then bounds by c tanh(score / c). window: how many keys a
    token sees, 0 for all. rotary: which of the tables is used.
    """

    q: Product
    k: Product
    v: Product
    o: Product
    unit: GatedUnit | None
    input_norm: np.ndarray
    post_norm: np.ndarray
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    head_dim: int
    epsilon: float
    scaling: float
    dtype: np.dtype
    attention_norm: np.ndarray | None = None
    feedforward_norm: np.ndarray | None = None
    attention_sub_norm: np.ndarray | None = None
    unit_sub_norm: np.ndarray | None = None
    norm_offset: float = 0.0
    softcap: float = 0.0
    window: int = 0
    rotary: int = 0
    activation: Activation | None = None
    experts: Experts | None = None

    def normed(self, x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """X after one of the block's norms; x itself where there is none."""
        return x if weight is None else rms_norm(x, weight + self.norm_offset, self.epsilon)


def step(
    blocks: Sequence[Block],
    hidden: np.ndarray,
    cos: Sequence[np.ndarray],
    sin: Sequence[np.ndarray],
    keys: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    mask: np.ndarray | None = None,
    int8: bool = False,
) -> np.ndarray:
    """Hidden states [B, T, H] of T new tokens a sequence -> those after the last block.

    cos, sin: one or two tables [B, T, R], for the first R elements of a head. keys, values: of
    every block [B, kv_heads, S, D]; the last T of the S tokens are the new ones and are written.
    mask: bool [B, S], False hides a key. A new token sees the keys up to its own. int8: keys and
    values are float32 that hold what an int8 cache does.
    """
    new = hidden.shape[1]
    for block, key, value in zip(blocks, keys, values, strict=True):
        tables = cos[block.rotary], sin[block.rotary]
        q, *written = project(block, hidden, *tables)
        if int8:
            written = [dequantized(*quantized(x)) for x in written]
        key[:, :, -new:], value[:, :, -new:] = written
        hidden = attend(block, hidden, q, key, value, mask).astype(block.dtype)
    return hidden


def project(
    block: Block, hidden: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states [B, T, H] -> q [B, heads, T, D], k and v [B, kv_heads, T, D]."""
    batch, new, width = hidden.shape
    x = block.normed(hidden, block.input_norm).reshape(batch * new, width)
    q, k, v = (
        product(x).reshape(batch, new, -1, block.head_dim).swapaxes(1, 2)
        for product in (block.q, block.k, block.v)
    )
    q, k = block.normed(q, block.q_norm), block.normed(k, block.k_norm)
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
    """Hidden [B, T, H], q [B, heads, T, D], keys, values -> the output, float32 [B, T, H]."""
    hidden = hidden.astype(np.float32)
    batch, heads, new, width = q.shape
    share, tokens = heads // key.shape[1], key.shape[2]
    key, value = (np.repeat(x.astype(np.float32), share, axis=1) for x in (key, value))
    score = np.einsum("bhnd,bhtd->bhnt", q.astype(np.float32), key) * np.float32(block.scaling)
    if block.softcap:
        score = np.float32(block.softcap) * np.tanh(score / np.float32(block.softcap))
    seen = np.tri(new, tokens, tokens - new, dtype=bool)
    if block.window:
        seen &= ~np.tri(new, tokens, tokens - new - block.window, dtype=bool)
    if mask is not None:
        seen = seen & mask[:, None, None]
    score = np.where(seen, score, np.float32(-np.inf))
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    attended = np.einsum("bhnt,bhtd->bnhd", weight, value).reshape(batch * new, heads * width)
    attended = block.normed(attended, block.attention_sub_norm)
    hidden = hidden.reshape(batch * new, -1) + block.normed(block.o(attended), block.attention_norm)
    z = block.normed(hidden, block.post_norm)
    hidden = hidden + block.normed(feed_forward(block, z), block.feedforward_norm)
    return hidden.reshape(batch, new, -1)


def feed_forward(block: Block, z: np.ndarray) -> np.ndarray:
    """Z [rows, H] through the block's gated unit, its experts, or both: [rows, H]."""
    activation = block.activation or silu

    def through(unit: GatedUnit, x: np.ndarray) -> np.ndarray:
        gated = activation(unit.gate(x)) * unit.up(x)
        return unit.down(block.normed(gated, block.unit_sub_norm))

    experts = block.experts
    if experts is None:
        assert block.unit is not None
        return through(block.unit, z)
    out = np.zeros_like(z)
    if block.unit is not None and experts.shared_gate is not None:
        out = through(block.unit, z) / (1 + np.exp(-(z @ experts.shared_gate)))[:, None]
    for row, logits in enumerate(z @ experts.router.T):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        chosen = np.argsort(-p, kind="stable")[: experts.chosen]
        share = p[chosen] / (p[chosen].sum() if experts.normalized else 1)
        for number, weight in zip(chosen, share, strict=True):
            out[row] += weight * through(experts.units[number], z[row : row + 1])[0]
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """X / sqrt(mean(x**2) + epsilon) * weight along the last axis (Zhang and Sennrich, 2019)."""
    x = x.astype(np.float32)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary position embedding (Su et al., 2021) of the first R elements, as many as cos has;
    elements i and i + R / 2 are a pair.
    """
    width = cos.shape[-1]
    x, rest = x[..., :width], x[..., width:]
    partner = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1)
    turned = x * cos.astype(np.float32) + partner * sin.astype(np.float32)
    return np.concatenate([turned, rest], axis=-1)


def silu(x: np.ndarray) -> np.ndarray:
    """X / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """X / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) (Hendrycks and Gimpel, 2016)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return x / 2 * (1 + np.tanh(inner))


def relu_squared(x: np.ndarray) -> np.ndarray:
    """Squared ReLU, max(x, 0)**2 (So et al., 2021)."""
    return np.maximum(x, 0) ** 2
