"""A float model in memory whose matrices take other depths, and what that costs on a text.

The cost is the mean of KL(float || model) over the predictions of some windows, in nats a token.
What the blocks give out is kept for each window, so that a change in block b runs the model from
block b on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from tritllm.allocation.groups import Group
from tritllm.calibration.skeleton import Skeleton
from tritllm.codec import TritTensor, encode_depths
from tritllm.errors import SourceError
from tritllm.evaluation.coded_logits import CodedLogits, remember
from tritllm.evaluation.corpus import Window
from tritllm.evaluation.divergence import kl_between
from tritllm.format.trits import DEPTHS
from tritllm.quantizer.plan import Plan

FLOAT = 0  # the depth of a matrix that is not quantized
_BATCH_LOGITS = 1 << 24  # of a forward pass, at most, if that is a window or more
_ENCODED_BYTES = 1 << 30  # of encoded matrices that are kept to be decoded again
_MORE_BYTES = 2 << 30  # what torch and the interpreter take besides

Outputs = list[list[Any]]  # of the blocks: by batch, by block


@dataclass
class Sample:
    """Windows of a text, and what the float model predicts in them.

    batch: windows a forward pass. outputs: of the blocks of the model as it was last recorded.
    """

    windows: list[Window]
    batch: int
    reference: list[CodedLogits] = field(default_factory=list)
    outputs: Outputs = field(default_factory=list)


class MeasuredModel:
    """A model with float32 weights, any of which can be replaced by its encoding at a depth.

    plan: whose quantized tensors are changed. codec: the data-free encoder. threads: for the codec.

    Raises TritError where transformers cannot build the model.
    """

    def __init__(self, plan: Plan, threads: int, device: str = "cpu") -> None:
        skeleton = Skeleton(plan.source, plan.quantized)
        self._skeleton, self._codec, self._threads = skeleton, plan.codec, threads
        self._device = torch.device(device)
        skeleton.fill_all(self._device)
        self.model = skeleton.model
        self._blocks = [self.model.get_submodule(name) for name in skeleton.blocks]
        found = {**skeleton.planned, **skeleton.tables}
        self._modules = {tensor.module: name for name, tensor in found.items()}
        self._transposed = {t.module for name, t in found.items() if skeleton.is_transposed(name)}
        self._depths = dict.fromkeys(self._modules, FLOAT)
        self._encoded: dict[tuple[str, int], TritTensor] = {}

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def holds(self, module: str) -> bool:
        """Whether a module of the plan is a linear layer or an embedding table of the model."""
        return module in self._modules

    def sample(self, windows: np.ndarray) -> Sample:
        """Have the float model predict windows int64 [windows, context].

        Raises TritError for logits that are not finite.
        """
        logits = windows.shape[1] * int(self.model.config.get_text_config().vocab_size)
        batch = max(min(_BATCH_LOGITS // logits, len(windows)), 1)
        found = Sample([Window(ids, 1) for ids in windows], batch)
        with self._recorded(found):
            found.reference = remember(self.model, found.windows, batch=batch)
        return found

    def record(self, sample: Sample) -> float:
        """Keep the blocks' outputs for the model as it is now; returns its divergence."""
        with self._recorded(sample):
            return self._divergence(self.model, sample)

    def divergence(self, sample: Sample, first: int) -> float:
        """Of the model as it is now, which is as recorded in all that comes before block `first`.

        first: 0 for what comes before the blocks, too, their number for what comes behind.
        """
        return self._divergence(_FromBlock(self.model, self._blocks, sample, first), sample)

    def set_depths(self, depths: Mapping[str, int]) -> None:
        """Give the modules of the plan, by name, the weights of an encoding, or their own again.

        depths: 1..4 or `FLOAT`.

        Raises SourceError for a weight that is not finite.
        """
        for module, depth in depths.items():
            if self._depths[module] == depth:
                continue
            weight = self._weight(module) if depth == FLOAT else self._decoded(module, depth)
            parameter = self.model.get_submodule(self._modules[module]).weight
            parameter.data.copy_(weight.T if module in self._transposed else weight)
            self._depths[module] = depth

    def errors(self, group: Group) -> dict[int, float]:
        """The sum of squared errors of a group's weights at each depth."""
        total = dict.fromkeys(DEPTHS, 0.0)
        for module in group.modules:
            for depth, tensor in self._encode(module, DEPTHS).items():
                total[depth] += tensor.error or 0.0
        return total

    def first_block(self, groups: Iterable[Group]) -> int:
        """The number of the first block with a matrix of these groups, as `divergence` takes it."""
        modules = [self._modules[module] for group in groups for module in group.modules]
        return min(map(self._place, modules))

    def _place(self, module: str) -> int:
        for index, block in enumerate(self._skeleton.blocks):
            if module.startswith(f"{block}."):
                return index
        is_output = self.model.get_submodule(module) is self.model.get_output_embeddings()
        return len(self._blocks) if is_output else 0

    def _weight(self, module: str) -> torch.Tensor:
        return self._skeleton.weight(self._modules[module])

    def _decoded(self, module: str, depth: int) -> torch.Tensor:
        tensor = self._encode(module, (depth,))[depth]
        return torch.from_numpy(tensor.decode(threads=self._threads))

    def _encode(self, module: str, depths: Iterable[int]) -> dict[int, TritTensor]:
        """At these depths; what was encoded last is kept, as much as there is room for."""
        missing = [depth for depth in depths if (module, depth) not in self._encoded]
        found = {d: self._encoded[module, d] for d in depths if d not in missing}
        if missing:
            weight = self._weight(module).numpy()
            try:
                found |= encode_depths(weight, missing, self._codec, self._threads)
            except ValueError as error:
                raise SourceError(f"tensor {module}.weight: {error}; fix the source") from None
        self._encoded |= {(module, depth): found[depth] for depth in missing}
        while sum(tensor.nbytes for tensor in self._encoded.values()) > _ENCODED_BYTES:
            del self._encoded[next(iter(self._encoded))]
        return found

    def _divergence(self, model: Any, sample: Sample) -> float:
        scores = kl_between(sample.reference, model, sample.windows, batch=sample.batch)
        return max(scores.mean_kl, 0.0)  # rounding can bring it below

    @contextmanager
    def _recorded(self, sample: Sample) -> Iterator[None]:
        """Within it what the blocks give out becomes the sample's."""
        sample.outputs = []

        def record(module: nn.Module, _arguments: Any, output: Any) -> None:
            if module is self._blocks[0]:
                sample.outputs.append([])
            sample.outputs[-1].append(output)

        hooks = [block.register_forward_hook(record) for block in self._blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _FromBlock:
    """A model called with the batches of a sample in order; blocks before `first` do not run."""

    def __init__(
        self, model: nn.Module, blocks: list[nn.Module], sample: Sample, first: int
    ) -> None:
        self._model, self._passed, self._last = model, blocks[:first], first - 1
        self._outputs = iter(sample.outputs)
        self.device = model.device

    def __call__(self, input_ids: torch.Tensor) -> Any:
        outputs = next(self._outputs)
        for block in self._passed:  # each returns what the last of them returned
            block.forward = _constant(outputs[self._last])
        try:
            return self._model(input_ids=input_ids)
        finally:
            for block in self._passed:
                del block.forward


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def memory_bytes(plan: Plan, tokens: int) -> int:
    """About what measuring takes: float32 weights, encodings, logits, the blocks' outputs."""
    config = plan.source.text_config

    def number(*names: str) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int)), 0)

    width, blocks = number("hidden_size", "n_embd"), number("num_hidden_layers", "n_layer")
    outputs = 4 * tokens * width * blocks
    largest = max(matrix.size for matrix in plan.quantized)
    return (
        4 * (plan.parameters + 4 * largest)
        + outputs
        + 2 * tokens * number("vocab_size")
        + _ENCODED_BYTES
        + _MORE_BYTES
    )
