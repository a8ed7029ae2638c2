"""`import tritllm` makes transformers know packed checkpoints, without importing transformers.

transformers has no entry point for quantizers. So a finder wraps the loader of its table of
quantizers, and ours is added right after the table has run; where it has run already, at once.

The finder stays: whoever merely looks for the table (`importlib.util.find_spec`) sets nothing off
and takes nothing away, and a table that is reloaded, or imported again after a failure, is
registered with as well.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_TABLE = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Register now if transformers' table is loaded, else when it will be. Never raises."""
    if not any(_is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())
    module = sys.modules.get(_TABLE)
    if module is not None and hasattr(module, "register_quantizer"):
        _register()


def _register() -> None:
    try:
        from tritllm.integrations.transformers.register import register

        register()
    except Exception as error:  # whatever is wrong, `import transformers` must go on
        warnings.warn(
            f"tritllm could not register with transformers: {error!r}", RuntimeWarning, stacklevel=2
        )


class _TableFinder(importlib.abc.MetaPathFinder):
    """Finds one module where the other finders find it, and has its loader register."""

    registers_tritllm = True  # recognises the finder even after this module has been reloaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TABLE:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if find is None or _is_ours(finder):
                continue
            spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


def _is_ours(finder: object) -> bool:
    return getattr(finder, "registers_tritllm", False) is True


class _RegisteringLoader(importlib.abc.Loader):
    """The module's own loader, and a registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:  # resource readers, get_source, ...
        if name == "_loader":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()
