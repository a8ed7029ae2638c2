"""The order of the packages: what each may import, and how long a file may be.

Imports are read from the sources, wherever they stand: at the top, in a function, under
`if TYPE_CHECKING`, or as a name given to `importlib.import_module`. A violation that is known and
not yet removed stands in one of the sets below; an entry that is no longer needed fails as well, so
the sets can only shrink.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "tritllm"

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def layers_of(page: str) -> tuple[str, ...]:
    """The packages of the table under "Layout", from the ground up."""
    rows = page.partition("## Layout")[2].partition("\n## ")[0].splitlines()
    return tuple(row.split("`")[1] for row in rows if row.startswith("| `"))


# A package imports itself and what stands before it. `tritllm/__init__.py` and `__main__.py` stand
# above all of them.
LAYERS = layers_of(CONTRIBUTING.read_text("utf-8"))
LAST_WITHOUT_TORCH = "publish"
TORCH = {"torch", "transformers", "accelerate"}
LINES = 300
REASON = "Long because"

KNOWN_UPWARD: set[str] = set()
KNOWN_CIRCLES: set[frozenset[str]] = set()
KNOWN_TORCH: set[str] = set()
KNOWN_LONG: set[str] = set()


@dataclass(frozen=True)
class Import:
    """One import of a source file."""

    target: str  # the module, or the module's attribute where that is what is imported
    line: int
    at_import_time: bool


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import in a file that belongs to `package`, relative ones resolved."""

    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import_time)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = package.split(".")
                base = parts[: len(parts) - node.level + 1]
                module = ".".join([*base, *([module] if module else [])])
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, at_import_time)
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            given = (
                node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else 0
            )
            if name in ("import_module", "__import__") and isinstance(given, str):
                yield Import(given, node.lineno, at_import_time)
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, at_import_time)
            return
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import_time and not lazy)

    yield from walk(tree, True)


@cache
def modules() -> dict[str, tuple[Path, tuple[Import, ...]]]:
    """Every module of the package by its dotted name, with its imports."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = ("tritllm", *path.relative_to(SOURCES).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[name] = path, tuple(imports_of(tree, package))
    assert len(found) > 50
    return found


def module_of(target: str) -> str | None:
    """The module of this package that an import names, or holds what it names."""
    while target and target not in modules():
        target = target.rpartition(".")[0]
    return target or None


def layer_of(module: str) -> int:
    """The place in LAYERS; above all of them for the package's own file."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return len(LAYERS)
    return LAYERS.index(parts[1])


def compare(found: set, known: set) -> None:
    """Nothing new, and nothing on the list that is gone."""

    def lines(entries: set) -> str:
        return "\n".join(
            sorted(" <-> ".join(sorted(e)) if isinstance(e, frozenset) else e for e in entries)
        )

    assert not found - known, f"new:\n{lines(found - known)}"
    assert not known - found, f"no longer there, take them off the list:\n{lines(known - found)}"


def test_every_package_has_its_place_in_the_order():
    tops = {name.split(".")[1] for name in modules() if "." in name} - {"__main__"}
    assert tops <= set(LAYERS)


def test_no_import_runs_upward():
    upward = set()
    for name, (_, imports) in modules().items():
        for entry in imports:
            target = module_of(entry.target)
            if target is not None and layer_of(target) > layer_of(name):
                upward.add(f"{name} -> {target}")
    compare(upward, KNOWN_UPWARD)


def _edges() -> dict[str, set[str]]:
    """What importing each module imports, packages of what it names included.

    A package and the modules inside it are no circle: Python runs the package's file first and
    lets it import them. Asking the package's file for a name of its own is one.
    """
    edges: dict[str, set[str]] = {}
    for name, (_, imports) in modules().items():
        ancestors = {name[:i] for i, c in enumerate(name) if c == "."}
        edges[name] = set()
        for entry in imports:
            target = module_of(entry.target)
            if not entry.at_import_time or target is None or target == name:
                continue
            edges[name].add(target)
            parents = {target[:i] for i, c in enumerate(target) if c == "."}
            edges[name] |= parents - ancestors - {name}
    return edges


def _circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of modules of which each reaches each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [*edges[start]]
        while stack:
            if (node := stack.pop()) not in seen:
                seen.add(node)
                stack += edges[node]
        return seen

    reach = {name: reached(name) for name in edges}
    return {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in edges
        if name in reach[name]
    }


def test_no_modules_import_each_other_in_a_circle():
    compare(_circles(_edges()), KNOWN_CIRCLES)


def test_the_quantizers_core_imports_neither_torch_nor_transformers():
    last = LAYERS.index(LAST_WITHOUT_TORCH)
    found = {
        f"{name}:{entry.target.partition('.')[0]}"
        for name, (_, imports) in modules().items()
        if layer_of(name) <= last
        for entry in imports
        if entry.target.partition(".")[0] in TORCH
    }
    compare(found, KNOWN_TORCH)


def test_a_long_file_says_why_in_its_first_lines():
    found = set()
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LINES and REASON not in (
            ast.get_docstring(ast.parse(text)) or ""
        ):
            found.add(path.relative_to(SOURCES).as_posix())
    compare(found, KNOWN_LONG)


def test_the_package_says_that_it_is_typed():
    assert (SOURCES / "py.typed").is_file()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import tritllm.cli", ("tritllm.cli", True)),
        ("from tritllm import cli", ("tritllm.cli", True)),
        ("from . import cli", ("tritllm.format.cli", True)),
        ("from ..cli import main", ("tritllm.cli.main", True)),
        ("def f():\n    from tritllm.cli import main", ("tritllm.cli.main", False)),
        ("class A:\n    import tritllm.cli", ("tritllm.cli", True)),
        ("try:\n    import torch\nexcept ImportError:\n    pass", ("torch", True)),
        ("if TYPE_CHECKING:\n    import tritllm.cli", ("tritllm.cli", False)),
        ("if typing.TYPE_CHECKING:\n    import tritllm.cli", ("tritllm.cli", False)),
        ("importlib.import_module('tritllm.cli')", ("tritllm.cli", True)),
    ],
)
def test_an_import_is_found_however_it_is_written(source, expected):
    (found,) = imports_of(ast.parse(source), "tritllm.format")
    assert (found.target, found.at_import_time) == expected


def test_a_circle_is_found_and_a_package_with_its_modules_is_none():
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {frozenset("abc")}
    assert _circles({"p": {"p.a"}, "p.a": {"p.b"}, "p.b": set()}) == set()
