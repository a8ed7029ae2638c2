"""`import tritllm` makes transformers know packed checkpoints, without importing transformers.

transformers has no entry point for quantizers. So a finder waits for its table of quantizers to be
imported and adds ours right after; where that has already happened, it is added at once.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_TABLE = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Register now if transformers' table is loaded, else when it will be. Never raises."""
    module = sys.modules.get(_TABLE)
    if module is not None and hasattr(module, "register_quantizer"):
        _register()
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


def _register() -> None:
    try:
        from tritllm.integrations.transformers.register import register

        register()
    except Exception as error:  # whatever is wrong, `import transformers` must go on
        warnings.warn(
            f"tritllm could not register with transformers: {error!r}", RuntimeWarning, stacklevel=2
        )


class _TableFinder(importlib.abc.MetaPathFinder):
    """Finds one module, as the other finders do, and registers once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """The module's own loader, and a registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:  # resource readers, get_source, ...
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()
