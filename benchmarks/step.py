"""The native step of a model's blocks beside its products alone, and attention beside memory.

    python benchmarks/step.py [--shape 1.5b] [--depths 1 2 3 4] [--blocks 6] [--tokens 8192 32768]
        [--caches float32 bfloat16 int8] [--new 1 4] [--batch 1] [--threads 2] [--repeat 30]

Blocks have random weights, those of one memory each, so that no cache holds them all. The products
alone are the same products in two calls of tritllm_linear_run (one a width of inputs), so that
nothing stands between them. Of a mixture (--shape moe8 or moe64) they are those of as many experts
as one token has; new tokens are random, and so is what they choose. "step" and "products" are the
best of `--repeat` runs that take turns. Behind a number of tokens and a kind of cache stands what
the step takes longer over them than over 64, in bytes of the cache a second, and as a share of what
reading as many bytes with as many threads reaches (the C library's memchr, in the same turns).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from linear import random_tensor, reader

from tritllm import native
from tritllm import products as kernels
from tritllm.native.arrays import address, aligned_bytes
from tritllm.native.library import check, library
from tritllm.native.structures import CACHE_GROUP, Input, Product
from tritllm.step import native_step

BFLOAT16, FLOAT32 = 1, 2
CACHES = ("float32", "bfloat16", "int8")  # the first with blocks of that dtype, too
FEW_TOKENS = 64
UNIT = ("gate", "up", "down")


@dataclass(frozen=True)
class Shape:
    """A block's sizes; `wide` is an expert's where there are experts."""

    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0
    chosen: int = 0


# Those of Qwen2.5 models, of Llama 3, and of mixtures of few and of many experts.
SHAPES = {
    "0.5b": Shape(896, 4864, 14, 2, 64),
    "1.5b": Shape(1536, 8960, 12, 2, 128),
    "7b": Shape(3584, 18944, 28, 4, 128),
    "llama-8b": Shape(4096, 14336, 32, 8, 128),
    "moe8": Shape(2048, 3584, 16, 4, 128, 8, 2),
    "moe64": Shape(2048, 1024, 16, 4, 128, 64, 4),
}


class Model:
    """Random blocks by address."""

    def __init__(self, shape: Shape, depth: int, n_blocks: int) -> None:
        rng = np.random.default_rng(depth)
        s = self.shape = shape
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        sizes = {
            "q": (queries, s.hidden), "k": (keys, s.hidden), "v": (keys, s.hidden),
            "o": (s.hidden, queries), "gate": (s.wide, s.hidden), "up": (s.wide, s.hidden),
            "down": (s.hidden, s.wide),
        }  # fmt: skip
        made = {name: kernels.prepare(random_tensor(rng, size, depth), threads=2)
                for name, size in sizes.items()}  # fmt: skip
        self.norm = np.ones(s.hidden, np.float32)
        norm = native_step.Vector(self.norm.ctypes.data, FLOAT32)
        none = native_step.Vector(None, 0)
        self.router = rng.normal(size=(max(s.experts, 1), s.hidden)).astype(np.float32)
        # Layers that a token reads, and all that there are.
        self.prepared: list[list[kernels.Prepared]] = []
        self.held: list[object] = []

        def weights(names: tuple[str, ...], read: bool) -> dict[str, native_step.Weight]:
            found = {}
            for name in names:
                memory = aligned_bytes(made[name].nbytes)
                memory[:] = made[name].memory
                layer = dataclasses.replace(made[name], memory=memory)
                (self.prepared[-1] if read else self.held).append(layer)
                found[name] = native_step.Weight(address(memory), layer.nbytes, none)
            return found

        def experts() -> ctypes._Pointer[native_step.Experts]:
            units = (native_step.Expert(**weights(UNIT, e < s.chosen)) for e in range(s.experts))
            array = (native_step.Expert * s.experts)(*units)
            router = native_step.Vector(self.router.ctypes.data, FLOAT32)
            found = ctypes.pointer(
                native_step.Experts(s.experts, s.chosen, True, s.wide, router, none, array)
            )
            self.held += [array, found]
            return found

        blocks = []
        for _ in range(n_blocks):
            self.prepared.append([])
            unit = {"experts": experts()} if s.experts else weights(UNIT, True)
            blocks.append(native_step.Block(
                hidden=s.hidden, intermediate=0 if s.experts else s.wide, heads=s.heads,
                kv_heads=s.kv_heads, head_dim=s.head_dim, rotary_dim=s.head_dim, dtype=BFLOAT16,
                epsilon=1e-6, scaling=s.head_dim**-0.5, input_norm=norm, post_norm=norm,
                **weights(("q", "k", "v", "o"), True), **unit,
            ))  # fmt: skip
        self.blocks = {}
        for dtype in (BFLOAT16, FLOAT32):
            for block in blocks:
                block.dtype = dtype
            self.blocks[dtype] = (native_step.Block * n_blocks)(*blocks)

    def products(self, rows: int, threads: int) -> Callable[[], None]:
        """All products of `rows` rows, with as few calls as their widths allow."""
        by_width: dict[int, list[kernels.Prepared]] = {}
        for own in self.prepared:
            for layer in own:
                by_width.setdefault(layer.shape[1], []).append(layer)
        calls, held = [], []
        for width, layers in by_width.items():
            x = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
            size = library().tritllm_linear_activations_size(rows, width, 0)
            scratch = aligned_bytes(size)
            for first in range(0, len(layers), 64):
                some = layers[first : first + 64]
                results = [np.empty((rows, layer.shape[0]), np.float32) for layer in some]
                of_call = (Product * len(some))(*(
                    Product(address(layer.memory), layer.nbytes, layer.shape[0], 0, 0, None, None,
                            y.ctypes.data, layer.shape[0], FLOAT32, FLOAT32)
                    for layer, y in zip(some, results, strict=True)
                ))  # fmt: skip
                given = Input(x.ctypes.data, width, rows, width, FLOAT32, 0)
                calls.append(
                    (threads, ctypes.byref(given), scratch.ctypes.data, of_call, len(some))
                )
                held += [x, scratch, results, given]

        def run() -> None:
            for call in calls:
                check(library().tritllm_linear_run(*call))

        run.held = held  # type: ignore[attr-defined]
        return run

    def step(
        self, batch: int, new: int, tokens: int, threads: int, kind: str = "bfloat16"
    ) -> Callable[[], None]:
        """The step of `new` tokens of each of `batch` sequences that then have `tokens`."""
        s, rng = self.shape, np.random.default_rng(2)
        number = FLOAT32 if kind == "float32" else BFLOAT16
        blocks, dtype = self.blocks[number], np.float32 if number == FLOAT32 else ml_dtypes.bfloat16
        rows, n_blocks, int8 = batch * new, len(blocks), kind == "int8"
        shape = (2, n_blocks, batch, s.kv_heads, tokens, s.head_dim)
        cache = np.empty(shape, np.int8 if int8 else dtype)
        cache[:] = (
            rng.integers(-127, 128, shape[3:], np.int8)
            if int8
            else rng.uniform(0.01, 1, shape[3:]).astype(dtype)
        )
        scales = np.full((*shape[:-1], s.head_dim // CACHE_GROUP), 1e-2, np.float32)
        start = rng.normal(size=(rows, s.hidden)).astype(dtype)
        hidden = start.copy()
        cos = np.ones((rows, s.head_dim), dtype)
        sin = np.zeros_like(cos)
        pointers = [(ctypes.c_void_p * n_blocks)(*(x.ctypes.data for x in part)) for part in cache]
        of_scales = [(ctypes.c_void_p * n_blocks)(*(x.ctypes.data for x in p)) for p in scales]
        strides = tuple(n // cache.itemsize for n in cache.strides[2:5])
        call = native_step.Step(
            batch, new, tokens, hidden.ctypes.data, (cos.ctypes.data,), (sin.ctypes.data,), 0,
            ctypes.addressof(pointers[0]), ctypes.addressof(pointers[1]), strides, None, 0,
            native_step.Vector(None, 0), 1e-6,
            *(ctypes.addressof(part) if int8 else None for part in of_scales),
        )  # fmt: skip
        scratch = aligned_bytes(native_step.scratch_size(blocks, batch, new, tokens))

        def run() -> None:
            hidden[:] = start
            native_step.llama_step(threads, blocks, call, scratch.ctypes.data)

        run.held = (cache, scales, cos, sin, pointers, of_scales, scratch)  # type: ignore[attr-defined]
        return run

    def cache_bytes(self, batch: int, tokens: int, kind: str) -> int:
        """Of a block's keys and values."""
        each = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / CACHE_GROUP}[kind]
        return int(2 * each * batch * self.shape.kv_heads * tokens * self.shape.head_dim)


def best(runs: list[Callable[[], None]], repeat: int) -> list[float]:
    """Seconds, the best of each, taking turns."""
    found = [float("inf")] * len(runs)
    for run in runs:
        run()
    for _ in range(repeat):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            found[i] = min(found[i], time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192])
    parser.add_argument("--caches", choices=CACHES, nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--new", type=int, nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    print(native.describe_isa("products"), "threads", options.threads, "blocks", options.blocks)
    for depth in options.depths:
        model = Model(SHAPES[options.shape], depth, options.blocks)
        threads, batch = options.threads, options.batch
        runs = [model.products(batch, threads), model.step(batch, 1, FEW_TOKENS, threads)]
        runs += [model.step(batch, new, FEW_TOKENS, threads) for new in options.new]
        long = [(tokens, kind) for tokens in options.tokens for kind in options.caches]
        for tokens, kind in long:
            runs.append(model.step(batch, 1, tokens, threads, kind))
            same = np.ones(options.blocks * model.cache_bytes(batch, tokens, kind), np.uint8)
            runs.append(reader([same], threads))
        products, one, *others = (1e6 * t / options.blocks for t in best(runs, options.repeat))
        line = (
            f"d={depth} products {products:.0f} us a block, step {one:.0f} ({one / products:.2f})"
        )
        for new in options.new:
            several = others.pop(0)
            line += f", {new} new {several:.0f} ({several / one:.2f})"
        print(line, flush=True)
        for tokens, kind in long:
            longer, read = others.pop(0) - one, others.pop(0)
            rate = model.cache_bytes(batch, tokens, kind) / longer / 1e3
            print(
                f"    {tokens} tokens of {kind}: +{longer:.0f} us, {rate:.1f} GB/s, "
                f"{read / longer:.0%} of a plain read",
                flush=True,
            )


if __name__ == "__main__":
    main()
