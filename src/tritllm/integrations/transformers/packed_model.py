"""What packed models can do besides what transformers' can: read fewer planes, for a while or not.

A loaded model gets a subclass of its own class, of the same name, because `generate` must be an
ordinary method for whoever wraps, copies or inspects the model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from tritllm.errors import TritError
from tritllm.format.trits import DEPTHS
from tritllm.integrations.transformers.layers import packed_layers
from tritllm.integrations.transformers.native_step.watch import subclass
from tritllm.ops.planes import read_planes, reading_planes
from tritllm.ops.trit_linear import TritLinear


class PackedModel(nn.Module):  # type: ignore[misc]
    """A model with packed layers, each of which holds as many planes as its file, or `planes=` at
    load, gave it. Copies and pickles are packed models, too.
    """

    stock: type

    def set_planes(self, planes: int | None) -> None:
        """Have the packed layers read so many of the planes that they hold, the most significant.

        None is all. Nothing is loaded or copied, and saving still writes all planes; the next token
        of whoever generates with this model sees it. Layers that hold fewer read all they have, and
        an output layer packed by `lm_head_depth` stays as it is.

        Raises TritError for a number that is not 1..the deepest layer's planes.
        """
        read_planes(*self._checked(planes))

    def planes(self, planes: int | None) -> AbstractContextManager[None]:
        """Within it the model reads so many planes, as `set_planes` says; then as many as before.

            with model.planes(2):
                model.generate(...)

        Raises TritError for a number that is not 1..the deepest layer's planes.
        """
        return reading_planes(*self._checked(planes))

    def _checked(self, planes: int | None) -> tuple[list[TritLinear], int]:
        layers = layers_of_planes(self)
        deepest = max((layer.depth for layer in layers), default=0)
        if planes is None:
            return layers, DEPTHS[-1]
        if planes not in range(1, deepest + 1):
            raise TritError(f"planes {planes!r:.40} is not 1..{deepest}, what the model holds")
        return layers, planes

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A packed model again, made from the stock class."""
        state = super().__reduce_ex__(2)[2]
        return _restored, (self.stock,), state


class PackedGenerator(PackedModel):
    """A packed model that generates text."""

    @torch.no_grad()
    def generate(self, *args: Any, planes: int | None = None, **kwargs: Any) -> Any:
        """As transformers defines it, reading so many planes meanwhile; None leaves them.

        Raises TritError for a number that is not 1..the deepest layer's planes.
        """
        if planes is None:
            return super().generate(*args, **kwargs)
        with self.planes(planes):
            return super().generate(*args, **kwargs)


def use_packed_model(model: nn.Module) -> None:
    """Give a model with packed layers these methods."""
    if not isinstance(model, PackedModel):
        model.__class__ = _packed_class(type(model))


def layers_of_planes(model: Any) -> list[TritLinear]:
    """The packed layers whose planes a model's are: not an output layer that `lm_head_depth`
    packed.
    """
    config = getattr(model.config, "quantization_config", None)
    own = getattr(config, "lm_head_depth", None)
    head = None if own is None else model.get_output_embeddings()
    return [layer for layer in packed_layers(model).values() if layer is not head]


def _packed_class(kind: type) -> type:
    return subclass(kind, PackedGenerator if issubclass(kind, GenerationMixin) else PackedModel)


def _restored(stock: type) -> nn.Module:
    return nn.Module.__new__(_packed_class(stock))
