"""Second-order (calibrated) encoding of one matrix: docs/calibration.md. NumPy, no torch."""

from tritllm.codec.calibrated.curvature import (
    Curvature,
    CurvatureError,
    SingularHessianError,
    TooFewTokensError,
)
from tritllm.codec.calibrated.encode import CalibratedMatrix, encode_calibrated
from tritllm.codec.calibrated.nested import encode_nested

__all__ = [
    "CalibratedMatrix",
    "Curvature",
    "CurvatureError",
    "SingularHessianError",
    "TooFewTokensError",
    "encode_calibrated",
    "encode_nested",
]
