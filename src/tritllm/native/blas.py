"""NumPy's matrix products on one thread each, for callers with threads of their own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def on_one_thread() -> AbstractContextManager[Any]:
    """While it holds, a product of NumPy's uses no threads but its caller's, in the whole process.

    OpenBLAS makes its threads wait for each other many times in a product: where another process
    wants a core, 135 ms were measured for what one thread does in 9.
    """
    return _controller().limit(limits=1, user_api="blas")
