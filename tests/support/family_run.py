"""The whole way of a family's tiny model, and the row of docs/families.md that comes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from support.family_models import ALL_MODELS, FamilyModel

from tritllm import quantize, verify
from tritllm.format.modules import matches
from tritllm.format.safetensors_header import TensorEntry
from tritllm.integrations.transformers import TritConfig, widened_linear
from tritllm.integrations.transformers.empty_model import checkpoint_tensors
from tritllm.integrations.transformers.experts import TritExperts
from tritllm.integrations.transformers.layers import packed_layers
from tritllm.integrations.transformers.native_step.families import family_of
from tritllm.quantizer.decisions import decide, reason_to_keep
from tritllm.quantizer.families import FAMILIES
from tritllm.quantizer.kept_weights import EMBEDDING, OUTPUT_LAYER

DEPTHS = (1, 2, 3, 4)
NATIVE_ERROR = 0.1  # of the norm, in bfloat16, each token by the experts that torch's run chose
_NOT_LINEAR = (
    r"(.*\.)?(A_log|probe|class_embedding|\w*conv\w*(\.\d+)?(\.weight)?|positional_embedding\w*)"
)
_HOW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@dataclass(frozen=True)
class Row:
    """What a run of a family showed.

    coverage: share of the linear weights of a model of usual size that are quantized, 0..1, towers
    left out. with_towers: of all linear weights, if the towers are asked for. native_step: whether
    a step of it is one native call. kept: what the tiny model kept of its matrices, and why.
    """

    model_type: str
    known_as: str
    coverage: float
    with_towers: float | None
    native_step: bool
    kept: tuple[str, ...]

    def markdown(self) -> str:
        """The row of the table."""
        towers = [f"`--include '{tower.glob}'`" for tower in FAMILIES[self.model_type].towers]
        kept = list(self.kept)
        if towers:
            kept.append(f"tower: {', '.join(towers)}, then {percent(self.with_towers or 0)}")
        step = "yes" if self.native_step else "no"
        return (
            f"| `{self.model_type}` | {self.known_as} | {percent(self.coverage)} | {step} "
            f"| {'; '.join(kept)} |"
        )


def run_family(name: str, folder: Path) -> Row:
    """Quantize a family's tiny model at all depths, verify, load, run and save it.

    Layers are to be made for torch (TRITLLM_LINEAR=torch), whose results are the dequantized
    model's. Raises AssertionError where something is not as it should be.
    """
    family = ALL_MODELS[name]
    source = folder / "source"
    model = family.build()
    model.save_pretrained(source)
    globs = [tower.glob for tower in FAMILIES[name].towers]
    configs = [f"uniform-d{depth}" for depth in DEPTHS]
    (report, *_) = quantize(
        str(source), configs, folder / "out", threads=1, dtype="bfloat16", include=globs
    )
    for config in configs:
        verify(folder / "out" / config / "packed")
    depth = DEPTHS[list(ALL_MODELS).index(name) % len(DEPTHS)]  # one a family; all in turn
    place = folder / "out" / f"uniform-d{depth}"
    packed = _compare(family, place, len(report["quantized"]))
    _save_and_reload(family, packed, folder / "again")
    _on_the_fly(family, packed, source, depth, globs)
    _names_without_prefix(packed, source, report["quantized"], globs)
    typical = family.typical()
    tensors = checkpoint_tensors(typical, "bfloat16")
    return Row(
        name,
        family.known_as,
        coverage(tensors, typical),
        coverage(tensors, typical, globs) if globs else None,
        any(family_of(module) is not None for module in packed.modules()),
        _kept(report["kept"], source),
    )


def coverage(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any], globs: Sequence[str] = ()
) -> float:
    """Share of a checkpoint's linear weights that are quantized, 0..1.

    Linear weights are all matrices but embeddings and the output layer, and those of towers only
    where `globs` ask for them.
    """
    model_type = config["model_type"]
    quantized = linear = 0
    towers = [] if globs else [tower.glob for tower in FAMILIES[model_type].towers]
    text_config = config.get("text_config", config)
    for entry in tensors:
        if not matches(entry.name.removesuffix(".weight"), towers) and is_linear(entry):
            decision = decide(entry, model_type, globs, (), text_config)
            linear += entry.size
            quantized += sum(matrix.size for matrix in decision.matrices)
    return quantized / linear


def is_linear(entry: TensorEntry) -> bool:
    """Whether a tensor is a linear weight, or the weights of several experts."""
    kept = reason_to_keep(entry)
    return (
        len(entry.shape) in (2, 3)
        and kept not in (EMBEDDING, OUTPUT_LAYER, "bias", "norm")
        and not re.fullmatch(_NOT_LINEAR, entry.name)
    )


def _load(family: FamilyModel, folder: Path, **kwargs: Any) -> Any:
    model, info = family.kind.from_pretrained(
        folder, dtype="auto", output_loading_info=True, **kwargs
    )
    assert not any(info.values()), info
    return model


@torch.no_grad()
def _outputs(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    found = [v for v in model(**inputs).values() if torch.is_tensor(v) and v.is_floating_point()]
    assert found
    assert all(output.isfinite().all() for output in found)
    return found


def _compare(family: FamilyModel, place: Path, quantized: int) -> Any:
    """The packed model computes what the dequantized one does: by torch to the bit, nearly by the
    native kernels.
    """
    expected = _load(family, place / "model", experts_implementation="eager")
    with patch.object(widened_linear, "has_bfloat16_products", lambda: True):
        model = _load(family, place / "packed")  # layers that stay bfloat16 are torch's
    layers = packed_layers(model)
    assert len(layers) == quantized
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in family.inputs().items()
    }
    if model.can_generate():
        ours, theirs = (m.generate(**inputs, **_HOW) for m in (model, expected))
        assert torch.equal(ours, theirs)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6]] * 2)
    reference = _outputs(expected, inputs)
    routes: list[_Route] = []
    with _routing(model, lambda route: routes.append(route) or route):
        found = _outputs(model, inputs)
    for ours, theirs in zip(found, reference):
        if any(layer.transposed for layer in layers.values()):  # Conv1D, summed in another order
            torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)
        else:
            assert torch.equal(ours, theirs)
    for layer in layers.values():
        layer.mode = "exact"
    again = iter(routes)
    with _routing(model, lambda _: next(again)):
        found = _outputs(model, inputs)
    assert next(again, None) is None
    for ours, theirs in zip(found, reference):
        assert (ours - theirs).float().norm() <= NATIVE_ERROR * theirs.float().norm()
    return model


_Route = tuple[torch.Tensor, torch.Tensor]  # of a mixture's tokens: experts and weights


@contextmanager
def _routing(model: Any, use: Callable[[_Route], _Route]) -> Iterator[None]:
    """Within it, each mixture takes the tokens' experts and their weights that `use` makes of its
    router's.

    Routers are discontinuous: rounded to int8, activations may send a token whose best experts are
    nearly equal to others, or make Phi-3.5-MoE's cut off another part of the weights. Both are
    right, and far apart.
    """

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden, index, weights = (*args, *kwargs.values())
        return (hidden, *use((index, weights))), {}

    hooks = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module in model.modules()
        if type(module) is TritExperts  # not Llama 4's, which are called with what they chose
    ]
    yield
    for handle in hooks:
        handle.remove()


def _assert_same(model: Any, expected: Any) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def _save_and_reload(family: FamilyModel, model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    _assert_same(_load(family, folder), model)


def _on_the_fly(
    family: FamilyModel, packed: Any, source: Path, depth: int, globs: list[str]
) -> None:
    asked = TritConfig(depth=depth, modules_to_convert=globs)
    _assert_same(_load(family, source, quantization_config=asked), packed)


def _names_without_prefix(
    model: Any, source: Path, quantized: Sequence[str], globs: Sequence[str]
) -> None:
    """A checkpoint of the base model names its layers without the prefix."""
    prefix = f"{model.base_model_prefix}."
    for name, tensor in load_file(source / "model.safetensors").items():
        if name in quantized and name.startswith(prefix):
            entry = TensorEntry(name.removeprefix(prefix), "BF16", tuple(tensor.shape), 0, 0)
            assert decide(entry, model.config.model_type, globs).quantize, entry.name


def _kept(kept: dict[str, str], source: Path) -> tuple[str, ...]:
    """The linear weights that a run kept, by the last of their names, and why."""
    leaves: dict[str, dict[str, None]] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name in kept and is_linear(TensorEntry(name, "BF16", tuple(tensor.shape), 0, 0)):
            parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit()]
            leaves.setdefault(kept[name], {})[".".join(parts[-2:])] = None
    return tuple(
        f"{', '.join(f'`{leaf}`' for leaf in found)}: {reason}"
        for reason, found in sorted(leaves.items())
    )


def percent(share: float) -> str:
    """As the table has it, rounded down."""
    return f"{math.floor(1000 * share) / 10:.1f} %"
