"""Matrices and vectors in training, put in the place of a module's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tritllm.training.straight_through import TrainedMatrix, TrainedVector


class Installed(nn.Module):  # type: ignore[misc]
    """What is in training within a module, by the parameter's name there.

    Before a module's forward pass each of its parameters that is in training is computed anew, so
    the module need not know of it. transposed: names of matrices that the module holds as
    [in_features, out_features], as GPT-2's do.
    """

    def __init__(
        self,
        root: nn.Module,
        matrices: Mapping[str, TrainedMatrix],
        vectors: Mapping[str, TrainedVector],
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.matrices = nn.ModuleDict({_key(name): m for name, m in matrices.items()})
        self.vectors = nn.ModuleDict({_key(name): v for name, v in vectors.items()})
        self.transposed = transposed
        self._places: list[tuple[nn.Module, str, str, Any]] = []
        for name in (*matrices, *vectors):
            path, _, leaf = name.rpartition(".")
            owner = root.get_submodule(path)
            del owner._parameters[leaf]
            self._set(owner, leaf, name)
            handle = owner.register_forward_pre_hook(self._hook(leaf, name))
            self._places.append((owner, leaf, name, handle))

    @torch.no_grad()
    def remove(self) -> None:
        """Leave ordinary parameters with the values of now in the module."""
        for owner, leaf, name, handle in self._places:
            handle.remove()
            delattr(owner, leaf)
            value = self.value(name).detach().contiguous()
            owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        self._places.clear()

    def _hook(self, leaf: str, name: str) -> Any:
        def compute(owner: nn.Module, _: Any) -> None:
            self._set(owner, leaf, name)

        return compute

    def _set(self, owner: nn.Module, leaf: str, name: str) -> None:
        setattr(owner, leaf, self.value(name))

    def value(self, name: str) -> torch.Tensor:
        """What the parameter `name` is now, in the module's layout."""
        key = _key(name)
        if key in self.vectors:
            return self.vectors[key]()
        weight = self.matrices[key]()
        return weight.T if name in self.transposed else weight


def _key(name: str) -> str:
    """A parameter's name as a key of ModuleDict, which takes no dots."""
    return name.replace(".", "/")
