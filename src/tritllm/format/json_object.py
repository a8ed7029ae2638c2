"""JSON of files that are not trusted: an object, or one short error."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from tritllm.errors import FormatError

_INFINITE = (float("inf"), float("-inf"))
MOST_DIGITS = 300  # of an integer; more do not fit a float either


def parse_object(data: bytes, where: str, *, standard: bool = False) -> dict[str, Any]:
    """The JSON object in the bytes of a file.

    where: the file, for the message. standard: refuse what Python takes besides JSON (NaN,
    Infinity, numbers beyond float64) and names that appear twice in an object; else refuse integers
    of more than 300 digits, which are no numbers to most programs.

    Raises FormatError for what is not UTF-8 or not JSON, for anything but an object, and for half
    of a surrogate pair.
    """
    try:
        text = data.decode("utf-8-sig")
        with no_collection():
            if standard:
                value = parse_unique(text, parse_float=_finite, parse_constant=_refuse_constant)
            else:
                value = json.loads(text, parse_int=_integer)
        if "\\" in text and ("\\ud" in text or "\\uD" in text):  # perhaps half of a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where}: not valid JSON (half of a surrogate pair)") from None
    except RecursionError:
        raise FormatError(f"{where}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise FormatError(f"{where}: not valid JSON ({shortened(error)})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: not a JSON object")
    return value


@contextmanager
def no_collection() -> Iterator[None]:
    """Without looks for garbage: records of a file make none, and it takes a third more time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse_unique(text: str, **hooks: Any) -> Any:
    """What `json.loads` gives. Raises ValueError where an object has a name twice, too.

    A colon follows each name in the text. With no more colons than the value has names, no name
    was lost; otherwise (the text may have colons in strings) each object is looked at, which takes
    twice the time.
    """
    value = json.loads(text, **hooks)
    if text.count(":") == _count_of_names(value):
        return value
    return json.loads(text, object_pairs_hook=_unique_names, **hooks)


def _count_of_names(value: Any) -> int:
    """Names in this object and in those that are its values; objects within lists are left out."""
    count, level = 0, [value] if isinstance(value, dict) else []
    while level:
        count += sum(map(len, level))
        inner = chain.from_iterable(map(dict.values, level))
        level = [item for item in inner if type(item) is dict]
    return count


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shortened(twice)!r} appears twice")
    return fields


def nesting(value: Any) -> int:
    """How deeply lists and objects are nested: 0 for a number, 1 for [] or {}."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def leaves(value: Any) -> Iterator[Any]:
    """What is neither a list nor an object, at any depth."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict | list):
            rest.extend(item.values() if isinstance(item, dict) else item)
        else:
            yield item


def shortened(value: object, most: int = 60) -> str:
    """The value as text of at most so many characters, for a message."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in _INFINITE:
        raise ValueError(f"number {shortened(text)} is too large")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
