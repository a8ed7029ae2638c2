"""The functions of native/include: one table for the three headers."""

from __future__ import annotations

import ctypes

INTERFACE = "37ab6e42f2053b5f"
"""The hash of the headers that this table and `structures` were written for.

It is the library's `tritllm_interface_hash()`. A changed header changes it, comments aside, and
the library is then refused until somebody has looked here.
"""

_INT, _INT64, _POINTER, _NAME = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p

SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    # tritllm.h
    "tritllm_interface": (_INT64, (_NAME,)),
    "tritllm_interface_hash": (_NAME, ()),
    "tritllm_isa_name": (_NAME, (_INT,)),
    "tritllm_isa_serving": (_INT, (_INT, _INT)),
    "tritllm_tiled": (_INT64, (_INT64, _INT64)),
    "tritllm_peak": (_INT, (_INT, _POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_first_nonfinite": (_INT64, (_POINTER,)),
    "tritllm_measure": (
        _INT,
        (_INT, _POINTER, _INT64, _INT64, _INT, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "tritllm_v2_codebook": (_INT, (_POINTER, _INT64, _POINTER, _POINTER)),
    "tritllm_sample": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_gather": (_INT, (_INT, _POINTER, _POINTER, _POINTER)),
    "tritllm_fit": (_INT, (_INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER)),
    "tritllm_write": (_INT, (_INT, _POINTER, _INT64, _INT64, _INT, _POINTER)),
    "tritllm_feed_back": (_INT, (_INT, _POINTER, _INT64, _INT64)),
    "tritllm_descend": (_INT, (_INT, _POINTER, _INT64, _INT64)),
    "tritllm_step_products": (
        _INT,
        (_INT, _POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _INT64, _POINTER),
    ),
    "tritllm_dequantize": (_INT, (_INT, _POINTER, _INT64, _INT64)),
    # tritllm_linear.h
    "tritllm_linear_row_scales": (_INT, (_POINTER,)),
    "tritllm_linear_planes_together": (_INT, (_INT, _INT)),
    "tritllm_linear_size": (_INT64, (_INT, _INT64, _INT64, _INT, _INT, _INT)),
    "tritllm_linear_layout": (_INT, (_INT,)),
    "tritllm_linear_prepare": (_INT, (_INT, _POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_linear_describe": (_INT, (_POINTER, _INT64, _POINTER)),
    "tritllm_linear_superblock_rows": (_INT64, (_INT,)),
    "tritllm_linear_activations_size": (_INT64, (_INT64, _INT64, _INT)),
    "tritllm_linear_begin": (_INT, (_INT, _POINTER, _POINTER)),
    "tritllm_linear_quantize": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_linear_compute": (_INT, (_POINTER, _POINTER, _INT64, _INT64)),
    "tritllm_linear_run": (_INT, (_INT, _POINTER, _POINTER, _POINTER, _INT)),
    "tritllm_linear_decode": (_INT, (_INT, _POINTER, _INT64, _INT64, _INT64)),
    "tritllm_linear_use_openmp": (None, (_POINTER,)),
    # tritllm_step.h
    "tritllm_llama_step_scratch": (_INT64, (_POINTER, _INT64, _INT64, _INT64, _INT64)),
    "tritllm_llama_step": (_INT, (_INT, _POINTER, _INT64, _POINTER, _POINTER)),
}
