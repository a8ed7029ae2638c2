"""No threads or no memory left: fewer threads or a Python error, never the end of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.native_library import needs_library

pytestmark = [
    needs_library,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits"),
]

PREPARE = """
import os, resource
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
from tritllm import products
from tritllm.codec import native_encode
from tritllm.codec.tensor import TritTensor

def limit(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

weight = np.random.default_rng(1).standard_normal((640, 400)).astype(np.float32)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, behind PREPARE."""
    return subprocess.run(
        [sys.executable, "-c", PREPARE + code], capture_output=True, text=True, check=False
    )


def test_without_more_threads_fewer_do_the_work() -> None:
    """A thread's stack does not fit into what memory is left."""
    done = python("""
encoded = native_encode.encode_v3(weight, [2], 1)[2]
tensor = TritTensor(encoded.weight, encoded.scale, encoded.codebook, 400)
prepared = products.prepare(tensor)
x = np.ones((9, 400), np.float32)
expected = products.linear(prepared, x, threads=1)
limit(6)
assert (products.linear(prepared, x, threads=8) == expected).all()
again = native_encode.encode_v3(weight, [2], 8)[2]
assert (again.weight == encoded.weight).all()
import threading
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("no thread")
""")
    assert (done.returncode, done.stdout) == (0, "no thread\n"), done.stderr


@pytest.mark.parametrize("megabytes", [0, 1, 2, 4, 8])
def test_without_memory_there_is_a_result_or_a_memory_error(megabytes: int) -> None:
    done = python(f"""
native_encode.encode_v3(weight[:16], [1], 1)
limit({megabytes})
try:
    native_encode.encode_v3(weight, [1, 2, 3, 4], 2)
    print("done")
except MemoryError:
    print("no memory")
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("done\n", "no memory\n")
