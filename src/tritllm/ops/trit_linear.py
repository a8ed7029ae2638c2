"""TritLinear: a linear layer whose weight stays packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tritllm.codec import TritTensor
from tritllm.format.layout import CODEBOOK, packed_shapes
from tritllm.ops import backends, changes
from tritllm.ops import mode as modes
from tritllm.ops.backends import cpu
from tritllm.ops.check_packed_bytes import PACKED, faults_in_state
from tritllm.ops.definitions import Packed, linear, linear_prepared
from tritllm.ops.gradients import goes_straight
from tritllm.ops.numpy_arrays import torch_parts
from tritllm.ops.per_token import rounded_per_token
from tritllm.ops.planes import ReadsPlanes
from tritllm.ops.tensor_versions import seen_of, uncounted
from tritllm.ops.weight_blocks import Weights
from tritllm.storage.mapped_pages import release_pages


class TritLinear(ReadsPlanes):
    """y = x W^T + bias for packed W [out_features, in_features] = [N, K].

    Buffers, named and shaped as in the file (docs/format.md), and what `state_dict` holds:
        weight uint8 [d, N, ceil(K/5)], weight_scale uint8 [N, ceil(3G/5)],
        weight_codebook float32 [d, 27].
    bias is a parameter [N] of the model's dtype, or None. x and y are [..., K] and [..., N] of
    float32, bfloat16, float16 or float64 (where native kernels compute in float32). The result has
    gradients for x and bias; the packed weight is frozen.

    All `depth` planes are held and saved; the top `planes` of them are read, which can be set at
    any time. Off the CPU torch decodes fewer than all. A CPU's prepared memory may have the planes
    of each weight together, which is smaller and faster where all are read (`planes_together`):
    when fewer are first asked for, it is made again with planes apart, which serves all numbers.

    Where the layer's device has kernels and a layout of its own, memory in it (`prepared`) is made
    when the layer first runs, or by `prepare()` before. It is made again when what it was made from
    is replaced, moved, loaded or written in place; no copy, cast or pickle of a layer takes it
    along. Everywhere else torch computes. Casting the module casts its bias alone.

    Call `prepare()` after writes in place that are not seen: to tensors made in inference mode, and
    between calls of a compiled model or tokens that the native step makes.

    Args:
        transposed: the model stores the float weight as [in_features, out_features] (GPT-2).
        mode: one of mode.MODES (TritError for another); by default what TRITLLM_LINEAR says.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    weight_codebook: torch.Tensor
    prepared: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
        device: torch.device | str | None = None,
        mode: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        self._mode = modes.requested() if mode is None else modes.checked(mode, "mode")
        self._seen: Any = None  # what the packed tensors were when `prepare` last looked
        self._steps: tuple[torch.Tensor, ...] = ()  # the codebook's rows, views
        self._layout = 0
        for name, shape in zip(
            PACKED, packed_shapes(out_features, in_features, depth), strict=True
        ):
            dtype = torch.float32 if name.endswith(CODEBOOK) else torch.uint8
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))
        self._keep(None)
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )

    @classmethod
    def from_tensor(
        cls,
        tensor: TritTensor,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
        mode: str | None = None,
    ) -> TritLinear:
        """A layer on the CPU that holds an encoded matrix."""
        layer = cls(tensor.shape[1], tensor.shape[0], tensor.depth, bias, transposed=transposed,
                    device="meta", mode=mode)  # fmt: skip
        layer.weight, layer.weight_scale, layer.weight_codebook = torch_parts(tensor)
        return layer

    @property
    def mode(self) -> str:
        """What computes (mode.py); may be set."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        before, self._mode = self._mode, modes.checked(mode, "mode")
        if "torch" in (before, mode):
            self._forget()
        changes.note()

    @property
    def nbytes(self) -> int:
        """Bytes held to compute with: the prepared memory or the packed planes, and the bias."""
        parts = self._packed() if self.prepared is None else (self.prepared,)
        own = sum(part.nbytes for part in parts)
        return own + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., K] -> [..., N]. Raises ValueError for a layer that holds bytes that are no trits.

        Written for few instructions: at batch 1 a model calls it some two hundred times a token.
        """
        buffers = self._buffers  # past nn.Module's slow way to attributes
        planes, scale = buffers["weight"], buffers["weight_scale"]
        codebook, bias = buffers["weight_codebook"], self._parameters["bias"]
        compiling = torch.compiler.is_compiling()
        if not compiling:
            try:
                now: Any = (
                    planes._version, scale._version, codebook._version,
                    planes.data_ptr(), scale.data_ptr(), codebook.data_ptr(),
                )  # fmt: skip
            except RuntimeError:  # inference tensors count no version, fakes have no address
                now = uncounted(planes, scale, codebook)
            if now != self._seen:
                self.prepare()
        prepared, depth, mode = buffers["prepared"], planes.shape[0], self._mode
        read = min(self._most, depth)
        if prepared is not None and not compiling and goes_straight(x, bias):
            return cpu.linear_prepared(
                x, prepared, self._steps[read - 1], self._layout, read, self.in_features,
                self.out_features, modes.ARITHMETIC[mode], bias,
            )  # fmt: skip
        steps = codebook[read - 1]
        if read < depth:
            planes = planes[:read]
        if prepared is None or (read < depth and not prepared.is_cpu):
            if mode == modes.PER_TOKEN:
                x = rounded_per_token(x)
            return linear(x, planes, scale, steps, bias)
        return linear_prepared(
            x, prepared, steps, self._layout, read, self.in_features, self.out_features,
            modes.ARITHMETIC[mode], bias, None, planes, scale,
        )  # fmt: skip

    def prepare(self) -> bool:
        """Make the device's own layout from the packed planes; False where there is none, or its
        kernels cannot run.

        The planes are then needed only to save, move, train through or dequantize the layer: where
        they are a file's pages, the system is told that it may have them back.

        Raises ValueError for bytes that are no trits.
        """
        self._forget()
        planes, scale, codebook = self._packed()
        plain, made = type(planes) is torch.Tensor, None  # no DTensor, no fake
        if plain and self._mode != "torch":
            packed = Packed(planes, scale, codebook[-1], self.in_features)
            made = backends.prepare(packed, self._needs_planes_apart())
        self._seen = seen_of(planes, scale, codebook)
        if made is None:
            return False
        self._steps = codebook.detach().contiguous().unbind()
        self._layout, self._together = made.layout, made.planes_together
        self._keep(made.memory)
        changes.note()
        if planes.device.type == "cpu":
            release_pages((part.data_ptr(), part.nbytes) for part in (planes, scale))
        return True

    def _forget(self) -> None:
        """What the layer computes with was replaced: what was made of it goes (changes.py)."""
        if "_seen" in self.__dict__:
            self.__dict__.update(_seen=None, _steps=())
            self._keep(None)
        changes.note()

    def _keep(self, memory: torch.Tensor | None) -> None:
        """Prepared memory is a buffer that is not saved; accelerate wants none of those as None."""
        self._buffers["prepared"] = memory
        self._non_persistent_buffers_set = set() if memory is None else {"prepared"}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in PACKED:
            self._forget()
        elif name in ("bias", "prepared"):
            changes.note()

    def tensor(self) -> TritTensor:
        """The packed matrix as NumPy arrays, sharing the memory where it is the CPU's.

        Raises ValueError where a shape is wrong or the codebook is not finite and ascending.
        """
        planes, scale, codebook = (part.cpu().numpy() for part in self._packed())
        return TritTensor(planes, scale, codebook, self.in_features)

    def weights(self) -> Weights:
        """W as it is read now, to be decoded by blocks of rows. Raises as `forward`."""
        (planes, scale, codebook), read = self._packed(), self.planes
        if seen_of(planes, scale, codebook) != self._seen:
            self.prepare()
        return Weights(planes[:read], scale, codebook[read - 1], self.in_features,
                       self.out_features, None, self.prepared, self._layout, read)  # fmt: skip

    def keep_planes(self, planes: int) -> None:
        """Hold the top `planes` planes at most; on the CPU a view, so the rest is never loaded."""
        if planes < self.depth:
            kept = (self._buffers["weight"][:planes], self.weight_codebook[:planes])
            on_cpu = kept[0].device.type == "cpu"
            self.weight, self.weight_codebook = kept if on_cpu else (part.clone() for part in kept)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves go everywhere, casts to the bias alone: the codebook passes by as integers."""
        prepared, before = self._buffers["prepared"], self._seen
        kept = prepared is not None and before == seen_of(*self._packed())
        self._forget()
        self._buffers["weight_codebook"] = self._buffers["weight_codebook"].view(torch.int32)
        try:
            super()._apply(fn, recurse)
        finally:
            codebook = self._buffers["weight_codebook"].view(torch.float32)
            self._buffers["weight_codebook"] = codebook
        if kept and before == seen_of(*self._packed()):
            self._keep(prepared)
            self._seen, self._steps = before, codebook.detach().contiguous().unbind()
        elif prepared is not None:
            self._prepare_if_valid()
        return self

    def _packed(self) -> tuple[torch.Tensor, ...]:
        return tuple(self._buffers[name] for name in PACKED)

    def _prepare_if_valid(self) -> None:
        """After a move or a load. Bytes that are no trits (`to_empty`) are left for `forward`."""
        try:
            self.prepare()
        except ValueError:
            self._forget()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As nn.Module, but nothing is loaded that the layer could not run; and it runs at once."""
        faults = faults_in_state(state_dict, prefix, self._buffers, self.in_features)
        if faults:
            rest[-1].extend(faults)  # torch's list of errors
            return
        had = self._buffers["prepared"] is not None
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._forget()
        if had:
            self._prepare_if_valid()

    def __getstate__(self) -> dict[str, Any]:
        """Without prepared memory: a copy makes its own, in the layout of the machine it is on."""
        state = dict(self.__dict__, _seen=None, _steps=(), _non_persistent_buffers_set=set())
        state["_buffers"] = {**self._buffers, "prepared": None}
        return state

    def extra_repr(self) -> str:
        """What print(model) shows."""
        how = "portable" if self.prepared is None else "prepared"
        read = "" if self.planes == self.depth else f", planes={self.planes}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"depth={self.depth}{read}, bias={self.bias is not None}, {how}"
        )
