"""The 27 steps that are best for given levels: sections 4 and 6 of docs/calibration.md."""

from __future__ import annotations

import numpy as np

from tritllm.codec.codebooks import lower_steps
from tritllm.format.trits import ENTRIES, GROUP

RIDGE = 1e-3  # of each entry's own curvature, towards its present step
SAMPLED_GROUPS = 1 << 15  # groups from which the equations of the steps are summed, about
SAMPLED_ROWS = 128, 512  # in no fewer and no more rows than these, where there are as many


def sampled_rows(rows: int, groups: int) -> np.ndarray:
    """Row numbers at even distances, all rows where they are few. groups: of a row."""
    fewest, most = SAMPLED_ROWS
    count = min(rows, most, max(fewest, -(-SAMPLED_GROUPS // groups)))
    return np.arange(count, dtype=np.int64) * rows // count


def step_products(level: np.ndarray, index: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """float64 [G, 2, 27, 27]: of each group g the products k_g H_gh k_h with the groups h <= g.

    They are summed by the entries of g and h over the rows; [g, 0] holds those with h < g and
    [g, 1] that with itself. level: float32 [Kp, n]; index: int32 [G, n]; hessian: float32 [Kp, Kp].
    """
    groups, n = index.shape
    sums = np.zeros((groups, 2, ENTRIES * ENTRIES))
    for g in range(groups):
        end = (g + 1) * GROUP
        part = np.zeros((end, n), np.float32)
        for i in range(g * GROUP, end):
            part += hessian[i, :end, None] * level[i]
        part *= level[:end]
        dots = part.reshape(g + 1, GROUP, n)
        dot = dots[:, 0].copy()
        for i in range(1, GROUP):
            dot += dots[:, i]
        pairs = index[g].astype(np.int64) * ENTRIES + index[: g + 1]
        for side, span in enumerate((slice(0, g), slice(g, g + 1))):
            sums[g, side] = np.bincount(pairs[span].ravel(), dot[span].ravel(), ENTRIES * ENTRIES)
    return sums.reshape(groups, 2, ENTRIES, ENTRIES)


def normal_equations(
    products: np.ndarray, level: np.ndarray, index: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """P float64 [27, 27] and b float64 [27] of the loss s P s - 2 b s + constant in the steps s.

    P[j, k] is the sum over the rows of A_j H A_k, A_j the levels whose group has entry j.
    products: of `step_products`; pull: float32 [Kp, n], hessian times target.
    """
    groups, n = index.shape
    before, own = products.sum(axis=0)
    dots = (level * pull).reshape(groups, GROUP, n).sum(axis=1)
    right = np.bincount(index.ravel(), dots.ravel(), ENTRIES)
    return before + before.T + (own + own.T) / 2, right


def solve_steps(products: np.ndarray, right: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """float32 [27]: the minimum of the loss with a ridge to the present steps.

    An entry that nothing uses keeps its step, and so do all where the minimum is no set of steps.
    """
    ridge = RIDGE * np.diagonal(products)
    unused = np.diagonal(products) <= 0
    matrix = products + np.diag(np.where(unused, 1.0, ridge))
    matrix[unused] = np.eye(ENTRIES)[unused]
    wanted = right + ridge * steps
    wanted[unused] = steps[unused]
    try:
        found = np.linalg.solve(matrix, wanted)
    except np.linalg.LinAlgError:
        return steps
    if not (np.isfinite(found).all() and (found >= 0).all()):
        return steps
    return found.astype(np.float32)


def lower_planes(
    level: np.ndarray,
    index: np.ndarray,
    target: np.ndarray,
    diagonal: np.ndarray,
    steps: np.ndarray,
    depth: int,
) -> np.ndarray:
    """float64 [depth - 1, 27]: steps of the top planes, least squares weighted by the diagonal.

    Row r - 1 makes the sum of diagonal * (target - step * K_r)**2 small, K_r the level that r
    planes hold, among ascending steps (pool adjacent violators). level: [Kp, N] float32.
    """
    rows = np.empty((depth - 1, ENTRIES))
    groups, n = index.shape
    entry = index.ravel().astype(np.int64)
    weight = diagonal[:, None]
    for r in range(1, depth):
        top = np.rint(level / np.float32(3 ** (depth - r)))
        dot = (top * target * weight).reshape(groups, GROUP, n).sum(axis=1, dtype=np.float64)
        norm = (top * top * weight).reshape(groups, GROUP, n).sum(axis=1, dtype=np.float64)
        dots = np.bincount(entry, dot.ravel(), ENTRIES)
        norms = np.bincount(entry, norm.ravel(), ENTRIES)
        base = steps.astype(np.float64) * 3 ** (depth - r)
        all_norms = float((norms * base * base).sum())
        gain = max(float((dots * base).sum()) / all_norms, 0.0) if all_norms else 1.0
        faint = 1e-12 * norms.max() + 1e-300  # an unused entry follows the common gain
        best = (dots + faint * gain * base) / (norms + faint)
        rows[r - 1] = lower_steps(ascending(best, norms + faint), 1.0, r, r)
    return rows


def ascending(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The ascending sequence, 0 or above, with the least weighted sum of squared differences."""
    means: list[float] = []
    masses: list[float] = []
    counts: list[int] = []
    for value, mass in zip(np.maximum(values, 0).tolist(), weights.tolist(), strict=True):
        count = 1
        while means and means[-1] > value:
            total = masses[-1] + mass
            value = (means.pop() * masses.pop() + value * mass) / total
            mass, count = total, count + counts.pop()
        means.append(value)
        masses.append(mass)
        counts.append(count)
    return np.repeat(means, counts)
