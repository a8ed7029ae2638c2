"""Sums over tokens that the encoder needs: float32 products, float64 sums in a fixed order."""

from __future__ import annotations

import numpy as np
import torch

TILE = 512  # columns of a part of the Hessian: products of its lower half alone are computed


class Moments:
    """Second moments of a layer's inputs x [K], and those of a target y with the inputs.

    H = sum x x^T [K, K]; C = sum y x^T [Y, K], or none where no target is given.

    columns: K. targets: Y or 0.
    """

    def __init__(self, columns: int, targets: int, device: torch.device) -> None:
        self._hessian = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._cross = torch.zeros(targets, columns, dtype=torch.float64, device=device)
        self._spans = [slice(s, min(s + TILE, columns)) for s in range(0, columns, TILE)]
        self.tokens = 0

    def add(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Add the tokens of a batch: x float32 [tokens, K], y float32 [tokens, Y]."""
        self.tokens += len(x)
        for rows in self._spans:
            for columns in self._spans:
                if columns.start <= rows.start:
                    self._hessian[rows, columns] += x[:, rows].T @ x[:, columns]
        if y is not None:
            for start in range(0, self._cross.shape[0], TILE):
                span = slice(start, start + TILE)
                self._cross[span] += y[:, span].T @ x

    def is_finite(self) -> bool:
        """Whether every input and target was a finite number, and none too large to square."""
        return bool(torch.isfinite(self._hessian.diagonal()).all()) and bool(
            torch.isfinite(self._cross.sum())
        )

    def hessian(self) -> np.ndarray:
        """H, float64 [K, K], symmetric; it is given away: nothing can be added any more."""
        for rows in self._spans:
            for columns in self._spans:
                if columns.start < rows.start:
                    self._hessian[columns, rows] = self._hessian[rows, columns].T
        hessian, self._hessian = self._hessian, self._hessian[:0]
        return hessian.cpu().numpy()

    def cross(self) -> torch.Tensor:
        """C, float64 [Y, K]."""
        return self._cross
