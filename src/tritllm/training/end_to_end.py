"""The loss of `--tune`: KL(float || quantized) of next-token predictions, over whole windows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

LOGIT_BYTES = 256 << 20  # of one model's logits in a forward pass, where a window is not more


def student_of(model: nn.Module) -> nn.Module:
    """A second model of the same parameters, shared, that can be given others."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared)


class Divergence:
    """Mean KL(float || quantized) in nats a token, logits in float32, every token counted.

    teacher, student: causal language models of transformers with the same vocabulary.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, device: torch.device) -> None:
        self.teacher, self.student, self.device = teacher, student, device

    def add_gradients(self, windows: torch.Tensor) -> float:
        """The loss of windows int64 [n, context]; its gradients are added to the student's."""
        total = 0.0
        for part in self._parts(windows):
            loss = self._sum(part) / windows.numel()
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def measure(self, windows: torch.Tensor) -> float:
        """The loss alone."""
        total = sum(self._sum(part).double().item() for part in self._parts(windows))
        return total / windows.numel()

    def _parts(self, windows: torch.Tensor) -> list[torch.Tensor]:
        vocabulary = self.teacher.get_output_embeddings().weight.shape[0]
        at_once = max(1, LOGIT_BYTES // (4 * vocabulary * windows.shape[1]))
        return list(windows.to(self.device).split(at_once))

    def _sum(self, windows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            expected = torch.log_softmax(self._logits(self.teacher, windows), dim=-1)
        found = torch.log_softmax(self._logits(self.student, windows), dim=-1)
        return nn.functional.kl_div(found, expected, reduction="sum", log_target=True)

    def _logits(self, model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
        return model(input_ids=windows, use_cache=False).logits.float()
