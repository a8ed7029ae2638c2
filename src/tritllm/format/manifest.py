"""tritllm.json: what a packed folder holds, and the proof of it. Written last, atomically.

The checks here are those of tritllm.schema.json, the published document, written out: a folder may
hold more than a hundred thousand tensors, for which a general validator takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tritllm.errors import FormatError
from tritllm.format.json_object import parse_object, shortened
from tritllm.format.names import MANIFEST
from tritllm.format.quantization_config import (
    FORMAT_VERSION,
    check_encoder,
    check_version,
    is_depth,
    is_packed_config,
)
from tritllm.format.trits import DEPTHS, GROUP

_ZEROS = "0" * 64  # stand in for the file's own hash while it is computed

_is_sha256 = re.compile("[0-9a-f]{64}").fullmatch
_is_shard_name = re.compile(r"[^/\\]+\.safetensors").fullmatch
_is_file_name = re.compile(r"[^\x00-\x1f\x7f]+").fullmatch
_MOST = (1 << 63) - 1

_ALL = frozenset({"file", "dtype", "shape", "sha256"})
_PLANES = _ALL | {"depth", "in_features", "transposed", "nmse"}
_PART = _ALL | {"part_of"}
_KEPT = _ALL | {"kept"}
_KEPT_DTYPES = frozenset(
    ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64")
)


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The content of a tritllm.json, checked by its schema and its own hash.

    where: the file, for the message.

    Raises FormatError for a newer format version, for anything that does not follow the schema,
    where no weight is quantized, and where the file was changed after it was written.
    """
    manifest = parse_object(data, where, standard=True)
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:  # which may have any other fields
        check_version(version, where)
    fault = next(_faults(manifest), None)
    if fault:
        place, what = fault
        raise FormatError(f"{where}: {shortened(place, 200)}: {what}")
    if not any("depth" in record for record in manifest["tensors"].values()):
        raise FormatError(f"{where}: names no quantized weight")
    if not is_unchanged(data, manifest["sha256"]):
        raise FormatError(f"{where}: SHA-256 differs from the one it states; the file was changed")
    return manifest


def no_manifest(where: str, config: Any) -> FormatError:
    """The refusal of a folder without tritllm.json, by what its config.json says it is.

    transformers' save_pretrained writes packed tensors but no manifest, and none can be made
    afterwards: what it claims of the source and of the encoder's error is not in the files.
    """
    if is_packed_config(config):
        return FormatError(
            f"{where}: packed, but without {MANIFEST}: saved by transformers, or incomplete; what "
            "it holds cannot be proven, use the folder that tritllm quantize wrote"
        )
    return FormatError(f"{where}: no {MANIFEST}; not a packed checkpoint, or an incomplete one")


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Serialised in one way only, so that equal manifests are equal files; `sha256` is put in."""
    unsigned = {"sha256": _ZEROS} | manifest | {"sha256": _ZEROS}  # first, whether new or not
    text = (json.dumps(unsigned, indent=1, ensure_ascii=False) + "\n").encode()
    return text.replace(_ZEROS.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def is_unchanged(text: bytes, sha256: str) -> bool:
    """Whether the bytes of a tritllm.json are those that its `sha256` was computed from."""
    unsigned = text.replace(sha256.encode(), _ZEROS.encode(), 1)
    return hashlib.sha256(unsigned).hexdigest() == sha256


_Fault = tuple[str, str]  # the place as a path from $, and what is wrong there


def _faults(manifest: Mapping[str, Any]) -> Iterator[_Fault]:
    yield from _faults_of_fields("$", manifest, _FIELDS, {"encoder": _encoder})
    for name, record in manifest["tensors"].items():
        what = _fault_of_record(record)
        if what:
            field, text = what
            yield f"$.tensors[{shortened(repr(name), 150)}]{field}", text


def _faults_of_fields(
    place: str,
    value: Any,
    required: Mapping[str, Callable[[Any], str]],
    optional: Mapping[str, Callable[[Any], str]],
) -> Iterator[_Fault]:
    """required, optional: of each field, a function that says what is wrong with its value."""
    if not isinstance(value, dict):
        yield place, "not an object"
        return
    for name in value:
        if name not in required and name not in optional:
            yield place, f"unknown field {shortened(name)!r}"
    for name, fault in required.items():
        if name not in value:
            yield f"{place}.{name}", "missing"
        elif text := fault(value[name]):
            yield f"{place}.{name}", text
    for name, fault in optional.items():
        if name in value and (text := fault(value[name])):
            yield f"{place}.{name}", text


def _one_of(*values: Any) -> Callable[[Any], str]:
    expected = " or ".join(map(repr, values))

    def fault(value: Any) -> str:
        if any(type(value) is type(other) and value == other for other in values):
            return ""
        return f"{_quoted(value)}, expected {expected}"

    return fault


def _map_of(
    keys: Callable[[str], object], what_keys: str, values: Callable[[Any], object], what: str
) -> Callable[[Any], str]:
    def fault(value: Any) -> str:
        if not isinstance(value, dict):
            return "not an object"
        for name, item in value.items():
            if not keys(name):
                return f"{_quoted(name)} is not {what_keys}"
            if not isinstance(item, str) or not values(item):
                return f"{_quoted(item)} of {_quoted(name)} is not {what}"
        return ""

    return fault


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else f"{_quoted(value)} is not text"


def _text_or_null(value: Any) -> str:
    return "" if value is None else _text(value)


def _hash(value: Any) -> str:
    good = isinstance(value, str) and _is_sha256(value)
    return "" if good else f"{_quoted(value)} is not a SHA-256"


def _source(value: Any) -> str:
    fault = next(_faults_of_fields("", value, _SOURCE_FIELDS, {}), None)
    return f"{fault[0]} {fault[1]}".strip() if fault else ""


def _tensors(value: Any) -> str:
    return "" if isinstance(value, dict) and value else "no tensors"


def _encoder(value: Any) -> str:
    try:
        check_encoder(value, "")
    except FormatError as error:
        return str(error).removeprefix(": ")
    return ""


_hashes = _map_of(lambda _: True, "", _is_sha256, "a SHA-256")
_SOURCE_FIELDS = {"model": _text, "revision": _text_or_null, "shards": _hashes}
_FIELDS: dict[str, Callable[[Any], str]] = {
    "sha256": _hash,
    "format_version": _one_of(FORMAT_VERSION),
    "tool": _text,
    "codec": _text,
    "config": _text,
    "command": _text,
    "group_size": _one_of(GROUP),
    "source": _source,
    "dequantized_dtype": _one_of("float16", "bfloat16"),
    "headers": _map_of(_is_shard_name, "a shard's name", _is_sha256, "a SHA-256"),
    "tensors": _tensors,
    "not_stored": _map_of(lambda _: True, "", lambda _: True, "text"),
    "side_files": _map_of(_is_file_name, "a file's name", _is_sha256, "a SHA-256"),
}


def _fault_of_record(record: Any) -> tuple[str, str] | None:
    """The field and fault of one tensor's record; None where it is right. Runs for every tensor."""
    if type(record) is not dict:
        return "", "not an object"
    fields = record.keys()
    if fields == _PLANES:
        if record["dtype"] != "U8":
            return ".dtype", f"{_quoted(record['dtype'])}, expected 'U8'"
        if not is_depth(record["depth"]):
            return ".depth", f"{_quoted(record['depth'])}, expected {DEPTHS[0]}..{DEPTHS[-1]}"
        if not _is_size(record["in_features"], 1):
            return ".in_features", f"{_quoted(record['in_features'])} is not a size"
        if type(record["transposed"]) is not bool:
            return ".transposed", f"{_quoted(record['transposed'])}, expected true or false"
        if not _is_error(record["nmse"]):
            return ".nmse", f"{_quoted(record['nmse'])} is not a number of 0 or more"
        if not _is_shape(record["shape"], 1) or len(record["shape"]) != 3:
            return ".shape", f"{_quoted(record['shape'])} is not three sizes"
    elif fields == _PART:
        if record["dtype"] not in ("U8", "F32"):
            return ".dtype", f"{_quoted(record['dtype'])}, expected 'U8' or 'F32'"
        if type(record["part_of"]) is not str:
            return ".part_of", f"{_quoted(record['part_of'])} is not text"
    elif fields == _KEPT:
        if type(record["dtype"]) is not str or record["dtype"] not in _KEPT_DTYPES:
            return ".dtype", f"{_quoted(record['dtype'])} is not a dtype of a kept tensor"
        if type(record["kept"]) is not str:
            return ".kept", f"{_quoted(record['kept'])} is not text"
    else:
        return "", f"fields {_quoted(sorted(fields))} are not those of a tensor's record"
    if not _is_shape(record["shape"], 0):
        return ".shape", f"{_quoted(record['shape'])} is not a shape"
    if type(record["file"]) is not str or not _is_shard_name(record["file"]):
        return ".file", f"{_quoted(record['file'])} is not a shard's name"
    if type(record["sha256"]) is not str or not _is_sha256(record["sha256"]):
        return ".sha256", f"{_quoted(record['sha256'])} is not a SHA-256"
    return None


def _is_size(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _MOST


def _is_shape(value: Any, least: int) -> bool:
    if type(value) is not list:
        return False
    for size in value:  # noqa: SIM110 - takes half of the time of `all` over a generator
        if type(size) is not int or size < least or size > _MOST:
            return False
    return True


def _is_error(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= float(_MOST)


def _quoted(value: Any) -> str:
    try:
        return shortened(repr(value))
    except RecursionError:
        return "a deeply nested value"
