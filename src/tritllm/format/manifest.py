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
    is_packed_config,
)
from tritllm.format.records import fault_of_records, is_sha256, is_shard_name, quoted
from tritllm.format.trits import GROUP

_ZEROS = "0" * 64  # stand in for the file's own hash while it is computed

_is_file_name = re.compile(r"[^\x00-\x1f\x7f]+").fullmatch


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
    start = text.find(sha256.encode())
    if start < 0:
        return False
    unsigned = hashlib.sha256(text[:start] + _ZEROS.encode())
    unsigned.update(memoryview(text)[start + len(sha256) :])
    return unsigned.hexdigest() == sha256


_Fault = tuple[str, str]  # the place as a path from $, and what is wrong there


def _faults(manifest: Mapping[str, Any]) -> Iterator[_Fault]:
    yield from _faults_of_fields("$", manifest, _FIELDS, {"encoder": _encoder})
    fault = fault_of_records(manifest["tensors"])
    if fault:
        yield fault


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
        return f"{quoted(value)}, expected {expected}"

    return fault


def _map_of(
    keys: Callable[[str], object], what_keys: str, values: Callable[[Any], object], what: str
) -> Callable[[Any], str]:
    def fault(value: Any) -> str:
        if not isinstance(value, dict):
            return "not an object"
        for name, item in value.items():
            if not keys(name):
                return f"{quoted(name)} is not {what_keys}"
            if not isinstance(item, str) or not values(item):
                return f"{quoted(item)} of {quoted(name)} is not {what}"
        return ""

    return fault


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else f"{quoted(value)} is not text"


def _text_or_null(value: Any) -> str:
    return "" if value is None else _text(value)


def _hash(value: Any) -> str:
    good = isinstance(value, str) and is_sha256(value)
    return "" if good else f"{quoted(value)} is not a SHA-256"


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


_hashes = _map_of(lambda _: True, "", is_sha256, "a SHA-256")
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
    "headers": _map_of(is_shard_name, "a shard's name", is_sha256, "a SHA-256"),
    "tensors": _tensors,
    "not_stored": _map_of(lambda _: True, "", lambda _: True, "text"),
    "side_files": _map_of(_is_file_name, "a file's name", is_sha256, "a SHA-256"),
}
