"""Balanced-ternary quantization of language models: encode, pack, verify, run.

Every command is a function here, of the same name and arguments. A name is imported when it is
first used, so that `import tritllm` costs nothing and needs NumPy only where numbers are met.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tritllm.integrations.registration import register_with_libraries
from tritllm.version import __version__ as __version__

if TYPE_CHECKING:
    from tritllm.checkpoint.dequantize import dequantize as dequantize
    from tritllm.checkpoint.packed import PackedCheckpoint as PackedCheckpoint
    from tritllm.codec import TritTensor as TritTensor
    from tritllm.codec import encode as encode
    from tritllm.codec import encode_depths as encode_depths
    from tritllm.errors import FormatError as FormatError
    from tritllm.errors import OutputError as OutputError
    from tritllm.errors import SourceError as SourceError
    from tritllm.errors import TritError as TritError
    from tritllm.publish.card import card as card
    from tritllm.publish.push import push as push
    from tritllm.run.bench import bench as bench
    from tritllm.run.chat import chat as chat
    from tritllm.run.demo import demo as demo
    from tritllm.run.doctor import doctor as doctor
    from tritllm.run.evaluate import evaluate as evaluate
    from tritllm.run.generate import generate as generate
    from tritllm.run.info import info as info
    from tritllm.run.quantize import quantize as quantize
    from tritllm.run.report import report as report
    from tritllm.run.serve import serve as serve
    from tritllm.run.verify import verify as verify

_MODULE_OF = {
    "FormatError": "tritllm.errors",
    "OutputError": "tritllm.errors",
    "PackedCheckpoint": "tritllm.checkpoint.packed",
    "SourceError": "tritllm.errors",
    "TritError": "tritllm.errors",
    "TritTensor": "tritllm.codec",
    "bench": "tritllm.run.bench",
    "card": "tritllm.publish.card",
    "chat": "tritllm.run.chat",
    "demo": "tritllm.run.demo",
    "dequantize": "tritllm.checkpoint.dequantize",
    "doctor": "tritllm.run.doctor",
    "encode": "tritllm.codec",
    "encode_depths": "tritllm.codec",
    "evaluate": "tritllm.run.evaluate",
    "generate": "tritllm.run.generate",
    "info": "tritllm.run.info",
    "push": "tritllm.publish.push",
    "quantize": "tritllm.run.quantize",
    "report": "tritllm.run.report",
    "serve": "tritllm.run.serve",
    "verify": "tritllm.run.verify",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_libraries()
