"""What packed models can do besides what transformers' can: read fewer planes, and draft with them.

A loaded model gets a subclass of its own class, of the same name, because `generate` must be an
ordinary method for whoever wraps, copies or inspects the model.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from tritllm.errors import TritError
from tritllm.format.trits import DEPTHS
from tritllm.integrations.transformers.compat import get_model_conversion_mapping
from tritllm.integrations.transformers.drafting import Draft
from tritllm.integrations.transformers.drafting.candidates import Candidates
from tritllm.integrations.transformers.drafting.one_by_one import OneByOne
from tritllm.integrations.transformers.drafting.refusals import refuses_drafts
from tritllm.integrations.transformers.experts import TritExperts
from tritllm.integrations.transformers.int8_cache import Int8Cache
from tritllm.integrations.transformers.kv_cache import check_kv_cache
from tritllm.integrations.transformers.layers import layers_of_planes
from tritllm.integrations.transformers.native_step.causal import NativeLogits, has_plain_logits
from tritllm.integrations.transformers.native_step.decode_inputs import (
    next_arguments,
    next_inputs,
)
from tritllm.integrations.transformers.native_step.watch import subclass
from tritllm.ops.planes import read_planes, reading_planes
from tritllm.ops.trit_linear import TritLinear
from tritllm.storage.output_errors import output_errors

_DRAFT = "_tritllm_draft"
_KV_CACHE = "_tritllm_kv_cache"
_WHOLE = "_tritllm_whole"  # among generate's arguments: input_ids are the whole sequence


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

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers defines it.

        Raises OutputError, before anything is written, for a folder that cannot be written into.
        """
        folder = Path(save_directory)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers defines it; a mixture's experts are apart, and so are their adapters."""
        if any(isinstance(module, TritExperts) for module in self.modules()):
            conversions = self.hf_quantizer.update_weight_conversions(
                get_model_conversion_mapping(self), model=self
            )
            kwargs.setdefault("weight_mapping", conversions)
        return super().load_adapter(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A packed model again, made from the stock class."""
        state = super().__reduce_ex__(2)[2]
        return _restored, (self.stock,), {n: v for n, v in state.items() if n != _DRAFT}


class PackedGenerator(PackedModel):
    """A packed model that generates text."""

    def set_draft(self, draft: str | Draft | Any | None) -> None:
        """What `generate` drafts with where it is not told; None for nothing, as in the beginning.

        It is then left out where drafts cannot be had: several sequences, beams, static caches.

        Raises TritError as `Draft` does.
        """
        self.__dict__[_DRAFT] = None if draft is None else self._draft_of(draft)

    def set_kv_cache(self, kind: str | None) -> None:
        """The cache that `generate` uses where it is given none.

        "int8" is an `Int8Cache`, None transformers' own choice, as in the beginning.

        Raises TritError for another name, and where the model's layers do not fit such a cache.
        """
        check_kv_cache(kind, self)
        self.__dict__[_KV_CACHE] = kind

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        planes: int | None = None,
        draft: str | Draft | Any | None = None,
        kv_cache: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers defines it.

        Args:
            planes: read so many planes meanwhile; None leaves them.
            draft: draft tokens, and verify them with the whole model: "planes=N", "auto", a second
                model (see `Draft`), or a `Draft`, which tells afterwards what came of it.
            kv_cache: keep keys and values as "int8"; None is what `set_kv_cache` said.
            args: see transformers.
            kwargs: see transformers.

        Raises TritError for planes that the model does not hold, where there can be no drafts, and
        where the model's layers do not fit such a cache.
        """
        check_kv_cache(kv_cache, self)
        with nullcontext() if planes is None else self.planes(planes):
            asked = None if draft is None else self._draft_of(draft)
            refusal = refuses_drafts(args, kwargs, self.generation_config)
            if asked is not None and refusal is not None:
                raise TritError(f"draft: {refusal}")
            if asked is None and refusal is None:
                asked = self.__dict__.get(_DRAFT)
            if asked is not None and not asked.pace.off:
                kwargs["assistant_model"] = asked
                if kwargs.get("streamer") is not None:
                    kwargs["streamer"] = OneByOne(kwargs["streamer"])
            if (kv_cache or self.__dict__.get(_KV_CACHE)) and kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = Int8Cache()
            return super().generate(*args, **kwargs)

    def _draft_of(self, draft: str | Draft | Any) -> Draft:
        if isinstance(draft, Draft) and draft.model is not self:
            raise TritError("draft: it was made for another model")
        return draft if isinstance(draft, Draft) else Draft(self, draft)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers defines it, but for the first forward of assisted generation: that is
        given the whole sequence, also where a cache from an earlier call holds its beginning.
        """
        inputs = None if args else next_inputs(input_ids, kwargs)
        if inputs is not None:
            return inputs
        if kwargs.pop(_WHOLE, False) and kwargs.get("is_first_iteration"):
            held = kwargs["past_key_values"].get_seq_length()
            if held:
                kwargs["next_sequence_length"] = input_ids.shape[1] - held
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' seam for what the model is given for the tokens after new ones."""
        one = not args and kwargs.get("num_new_tokens", 1) == 1
        updated = next_arguments(self, outputs, model_kwargs) if one else None
        if updated is not None:
            return updated
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _get_candidate_generator(self, *, assistant_model: Any = None, **kwargs: Any) -> Any:
        """transformers' seam for drafts; a `Draft` passes through generate as the assistant."""
        if isinstance(assistant_model, Draft):
            kwargs["model_kwargs"][_WHOLE] = True  # comes back in each call of the method above
            names = ("input_ids", "generation_config", "logits_processor", "model_kwargs")
            return Candidates(assistant_model, **{name: kwargs[name] for name in names})
        return super()._get_candidate_generator(assistant_model=assistant_model, **kwargs)


class PackedCausalModel(PackedGenerator, NativeLogits):
    """A packed model that generates text, and whose forward is known."""


def use_packed_model(model: nn.Module) -> None:
    """Give a model with packed layers these methods."""
    if not isinstance(model, PackedModel):
        model.__class__ = _packed_class(type(model))


def _packed_class(kind: type) -> type:
    if has_plain_logits(kind):
        return subclass(kind, PackedCausalModel)
    return subclass(kind, PackedGenerator if issubclass(kind, GenerationMixin) else PackedModel)


def _restored(stock: type) -> nn.Module:
    return nn.Module.__new__(_packed_class(stock))
