"""The structures of native/include, field for field; `library` compares their sizes at load."""

from __future__ import annotations

import ctypes

from tritllm.format.trits import ENTRIES, GROUP

OK, UNSUPPORTED, BAD_BYTE, BAD_PADDING, BAD_ARGUMENT = range(5)  # what functions return

TILE = 16  # rows that scratch arrays and prepared memory put together
GRID = 256  # scales among which v3's fit chooses
SAMPLE = 3072  # groups that the fit looks at, at most
BLOCK = 128  # columns that a pass of the calibrated encoder handles in one call
ALIGNMENT = 64  # bytes: of prepared memory, activations and scratch memory
PRODUCTS_AT_ONCE = 64  # of one call
WIDTH_MULTIPLE = 16  # hidden and intermediate sizes of a block
HEAD_MULTIPLE, MOST_HEAD_DIM = 32, 256
CACHE_GROUP = 32  # elements of int8 keys and values that share a scale
STEP_TOKENS = 16  # new tokens of a sequence, more of which are a prompt
SILU, GELU_TANH, RELU_SQUARED = range(3)
GROUPS, EXACT, SUPERBLOCKS, PER_TOKEN = range(4)  # what activations become, and how products add up
MOST_CHOSEN = 32

_INT, _INT64, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """tritllm_matrix: the weights to encode."""

    _fields_ = (
        ("weight", _POINTER),
        ("dtype", _INT),
        ("exponent", _INT),
        ("rows", _INT64),
        ("columns", _INT64),
        ("row_stride", _INT64),
    )


class SampleSet(ctypes.Structure):
    """tritllm_sample_set: the groups that v3's fit looks at."""

    _fields_ = (
        ("count", _INT64),
        ("largest", _FLOAT),
        ("body_weight", ctypes.c_double),
        ("group", _INT64 * SAMPLE),
        ("order", ctypes.c_uint16 * SAMPLE),
        ("in_tail", ctypes.c_uint8 * SAMPLE),
    )


class Target(ctypes.Structure):
    """tritllm_target: what the last pass of an encoding writes at one depth."""

    _fields_ = (
        ("depth", _INT),
        ("search", _INT),
        ("codebook", _POINTER),
        ("published", _POINTER),
        ("scales", _POINTER),
        ("weight", _POINTER),
        ("scale", _POINTER),
        ("row_error", _POINTER),
        ("row_limit", _POINTER),
        ("row_dot", _POINTER),
        ("row_norm", _POINTER),
    )


class Columns(ctypes.Structure):
    """tritllm_columns: a block of columns that the calibrated encoder works on."""

    _fields_ = (
        ("rows", _INT64),
        ("columns", _INT),
        ("reach", _INT),
        ("steps", _POINTER),
        ("inverse", _POINTER),
        ("centre", _POINTER),
        ("target", _POINTER),
        ("given", _POINTER),
        ("coupling", _POINTER),
        ("feedback", _POINTER),
        ("solve", _POINTER),
        ("importance", _POINTER),
        ("level", _POINTER),
        ("value", _POINTER),
        ("index", _POINTER),
        ("fixed", _INT),
        ("reserved", _INT),
    )


class Packed(ctypes.Structure):
    """tritllm_packed: packed rows and where their weights go."""

    _fields_ = (
        ("weight", _POINTER),
        ("plane_stride", _INT64),
        ("row_stride", _INT64),
        ("scale", _POINTER),
        ("scale_stride", _INT64),
        ("steps", _POINTER),
        ("columns", _INT64),
        ("planes", _INT),
        ("dtype", _INT),
        ("out", _POINTER),
        ("out_stride", _INT64),
    )


class Portable(ctypes.Structure):
    """tritllm_portable: a packed matrix to prepare."""

    _fields_ = (
        ("weight", _POINTER),
        ("plane_stride", _INT64),
        ("scale", _POINTER),
        ("steps", _POINTER),
        ("rows", _INT64),
        ("columns", _INT64),
        ("depth", _INT),
        ("row_scales", _INT),
        ("planes_together", _INT),
        ("reserved", _INT),
    )


class PreparedHeader(ctypes.Structure):
    """tritllm_prepared: what prepared memory is."""

    _fields_ = (
        ("rows", _INT64),
        ("columns", _INT64),
        ("size", _INT64),
        ("isa", _INT),
        ("layout", _INT),
        ("depth", _INT),
        ("row_scales", _INT),
        ("planes_together", _INT),
        ("reserved", _INT),
    )


class Input(ctypes.Structure):
    """tritllm_input: the activations that products share."""

    _fields_ = (
        ("x", _POINTER),
        ("stride", _INT64),
        ("batch", _INT64),
        ("columns", _INT64),
        ("dtype", _INT),
        ("arithmetic", _INT),
    )


class Product(ctypes.Structure):
    """tritllm_product: prepared memory, what it is believed to be, and where y goes."""

    _fields_ = (
        ("prepared", _POINTER),
        ("size", _INT64),
        ("rows", _INT64),
        ("layout", _INT),
        ("depth", _INT),
        ("steps", _POINTER),
        ("bias", _POINTER),
        ("y", _POINTER),
        ("stride", _INT64),
        ("bias_dtype", _INT),
        ("dtype", _INT),
    )


class Vector(ctypes.Structure):
    """tritllm_vector: an address, None for no vector, and an element type."""

    _fields_ = (("data", _POINTER), ("dtype", _INT))


class Weight(ctypes.Structure):
    """tritllm_weight: prepared memory, its bytes, a bias, and which planes are read how."""

    _fields_ = (
        ("prepared", _POINTER),
        ("size", _INT64),
        ("bias", Vector),
        ("steps", _POINTER),
        ("depth", _INT),
    )


class Expert(ctypes.Structure):
    """tritllm_expert: the matrices of one expert."""

    _fields_ = (("gate", Weight), ("up", Weight), ("down", Weight))


class Experts(ctypes.Structure):
    """tritllm_experts: the experts of a block."""

    _fields_ = (
        ("count", _INT),
        ("chosen", _INT),
        ("normalized", _INT),
        ("intermediate", _INT64),
        ("router", Vector),
        ("shared_gate", Vector),
        ("expert", ctypes.POINTER(Expert)),
    )


class Block(ctypes.Structure):
    """tritllm_block: one block of a model."""

    _fields_ = (
        ("hidden", _INT64),
        ("intermediate", _INT64),
        ("heads", _INT),
        ("kv_heads", _INT),
        ("head_dim", _INT),
        ("rotary_dim", _INT),
        ("dtype", _INT),
        ("arithmetic", _INT),
        ("epsilon", _FLOAT),
        ("norm_offset", _FLOAT),
        ("scaling", _FLOAT),
        ("softcap", _FLOAT),
        ("window", _INT64),
        ("rotary", _INT),
        ("activation", _INT),
        *((name, Vector) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, Vector) for name in ("attention_norm", "feedforward_norm")),
        *((name, Vector) for name in ("attention_sub_norm", "unit_sub_norm")),
        *((name, Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("experts", ctypes.POINTER(Experts)),
    )


class Step(ctypes.Structure):
    """tritllm_step: a few new tokens a sequence."""

    _fields_ = (
        ("batch", _INT64),
        ("new_tokens", _INT64),
        ("tokens", _INT64),
        ("hidden", _POINTER),
        ("cos", _POINTER * 2),
        ("sin", _POINTER * 2),
        ("rotary_stride", _INT64),
        ("key", _POINTER),
        ("value", _POINTER),
        ("key_stride", _INT64 * 3),
        ("mask", _POINTER),
        ("mask_stride", _INT64),
        ("final_norm", Vector),
        ("final_epsilon", _FLOAT),
        ("key_scale", _POINTER),
        ("value_scale", _POINTER),
    )


FACTS = {
    "tritllm_matrix": ctypes.sizeof(Matrix),
    "tritllm_sample_set": ctypes.sizeof(SampleSet),
    "tritllm_target": ctypes.sizeof(Target),
    "tritllm_columns": ctypes.sizeof(Columns),
    "tritllm_packed": ctypes.sizeof(Packed),
    "tritllm_portable": ctypes.sizeof(Portable),
    "tritllm_prepared": ctypes.sizeof(PreparedHeader),
    "tritllm_input": ctypes.sizeof(Input),
    "tritllm_product": ctypes.sizeof(Product),
    "tritllm_vector": ctypes.sizeof(Vector),
    "tritllm_weight": ctypes.sizeof(Weight),
    "tritllm_expert": ctypes.sizeof(Expert),
    "tritllm_experts": ctypes.sizeof(Experts),
    "tritllm_block": ctypes.sizeof(Block),
    "tritllm_step": ctypes.sizeof(Step),
    "TRITLLM_GROUP": GROUP,
    "TRITLLM_ENTRIES": ENTRIES,
    "TRITLLM_TILE": TILE,
    "TRITLLM_GRID": GRID,
    "TRITLLM_SAMPLE": SAMPLE,
    "TRITLLM_BLOCK": BLOCK,
    "TRITLLM_ALIGNMENT": ALIGNMENT,
    "TRITLLM_PRODUCTS_AT_ONCE": PRODUCTS_AT_ONCE,
    "TRITLLM_WIDTH_MULTIPLE": WIDTH_MULTIPLE,
    "TRITLLM_HEAD_MULTIPLE": HEAD_MULTIPLE,
    "TRITLLM_MOST_HEAD_DIM": MOST_HEAD_DIM,
    "TRITLLM_CACHE_GROUP": CACHE_GROUP,
    "TRITLLM_STEP_TOKENS": STEP_TOKENS,
    "TRITLLM_SILU": SILU,
    "TRITLLM_GELU_TANH": GELU_TANH,
    "TRITLLM_RELU_SQUARED": RELU_SQUARED,
    "TRITLLM_MOST_CHOSEN": MOST_CHOSEN,
}
"""Sizes in bytes and constants, each by the name under which `tritllm_interface` knows it."""
