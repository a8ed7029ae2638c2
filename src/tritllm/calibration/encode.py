"""Encoding the matrices of a stage with its statistics; data-free where that cannot be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritllm.calibration.moments import Moments
from tritllm.calibration.observe import Kind
from tritllm.calibration.part import Part
from tritllm.codec import TritTensor, encode
from tritllm.codec.calibrated import Curvature, CurvatureError, encode_calibrated, encode_nested
from tritllm.errors import SourceError, TritError
from tritllm.integrations.transformers.compat import Conv1D
from tritllm.quantizer.configs import Config
from tritllm.quantizer.matrices import SourceMatrix

CODEC = "v3"  # of the data-free encodings, and the format of the calibrated ones


@dataclass(frozen=True)
class Outcome:
    """A matrix that is encoded.

    data_free: why it could not be calibrated; None where it was.
    loss_before, loss_after: of data-free v3 and of the result, relative: see `CalibratedMatrix`;
        None where it is data-free.
    tokens: that were summed. seconds: the encoding took, statistics not included; the first
        matrix of a stage has those of factoring the Hessian.
    trained: what a `PartTrainer` says of the training; None where there was none.
    """

    matrix: SourceMatrix
    encoded: TritTensor
    data_free: str | None
    loss_before: float | None
    loss_after: float | None
    tokens: int
    seconds: float
    trained: Mapping[str, Any] | None = None


def encode_stage(
    part: Part,
    modules: Sequence[str],
    moments: Moments | None,
    kind: Kind,
    config: Config,
    threads: int,
    data_free: str | None = None,
) -> Iterator[Outcome]:
    """Encode matrices that share an input, and put what they became in place of their weights.

    moments: of their inputs, used up; None with the reason in `data_free`.

    Raises TritError where an input was not a finite number, SourceError where a weight is not.
    """
    started = time.monotonic()
    curvature, cross = None, None
    tokens = moments.tokens if moments else 0
    if moments:
        if not moments.is_finite():
            raise TritError(
                f"cannot be calibrated: inputs of {part.matrices[modules[0]].name} are not "
                "finite numbers, or too large to square; check the source's weights, or quantize "
                "without calibration"
            )
        cross = moments.cross()
        try:
            curvature = Curvature.of(moments.hessian(), tokens)
        except CurvatureError as error:
            data_free = str(error)
    row = 0
    for name in modules:
        planned = part.matrices[name]
        module: Any = part.root.get_submodule(name)
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        matrix = np.ascontiguousarray(weight.detach().cpu().numpy())
        rows = slice(row, row + len(matrix))
        row = rows.stop
        depth = config.depth_of(planned.module)
        before = after = None
        try:
            if curvature is None:
                result = encode(matrix, depth, CODEC, threads)
            else:
                assert cross is not None
                if kind is Kind.INPUT:
                    wanted = (weight.detach().double() @ cross).cpu().numpy()
                else:
                    wanted = cross[rows].cpu().numpy()
                if config.nested and depth == config.depth:
                    found = encode_nested(matrix, curvature, wanted, config.nested, threads=threads)
                else:
                    found = encode_calibrated(matrix, curvature, wanted, depth, threads=threads)
                result = _trit_tensor(found.encoded, matrix.shape[1])
                before, after = found.loss_before, found.loss_after
        except ValueError as error:
            raise SourceError(f"tensor {planned.name}: {error}; fix the source") from None
        new = torch.from_numpy(result.decode(threads=threads)).to(weight.device)
        with torch.no_grad():
            weight.copy_(new)
        seconds = time.monotonic() - started
        yield Outcome(planned, result, data_free, before, after, tokens, seconds)
        started = time.monotonic()


def _trit_tensor(encoded: Any, columns: int) -> TritTensor:
    parts = encoded.weight, encoded.scale, encoded.codebook
    return TritTensor(*parts, columns, encoded.error, encoded.energy)
