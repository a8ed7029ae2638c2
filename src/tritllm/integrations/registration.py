"""`import tritllm` makes transformers know packed checkpoints and peft know packed layers, without
importing either.

transformers has no entry point for quantizers, and peft none for layers. So a finder wraps the
loader of one module of each, and ours is added right after that module has run; where it has run
already, at once.

The finder stays: whoever merely looks for the module (`importlib.util.find_spec`) sets nothing off
and takes nothing away, and a module that is reloaded, or imported again after a failure, is
registered with as well.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# The module after which to register: a name that stands in it once it has run.
_AFTER = {"transformers.quantizers.auto": "register_quantizer", "peft": "__version__"}


def register_with_libraries() -> None:
    """Register now with those that are loaded, with the others when they will be. Never raises."""
    if not any(_is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisteringFinder())
    for name, last in _AFTER.items():
        if hasattr(sys.modules.get(name), last):
            _register(name)


def _register(module: str) -> None:
    library = module.partition(".")[0]
    try:
        if library == "peft":
            from tritllm.integrations.peft.register import register
        else:
            from tritllm.integrations.transformers.register import register
        register()
    except Exception as error:  # whatever is wrong, the library's import must go on
        warnings.warn(
            f"tritllm could not register with {library}: {error!r}", RuntimeWarning, stacklevel=2
        )


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Finds these modules where the other finders find them, and has their loaders register."""

    registers_tritllm = True  # recognises the finder even after this module has been reloaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _AFTER:
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
        _register(module.__name__)
