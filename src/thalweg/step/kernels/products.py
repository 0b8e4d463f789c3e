"""Matrix products inside a compiled step: of torch's library, of oneDNN, or our own kernel for small ones.

torch sends fp32 products to MKL, which on AMD leaves AVX-512 unused, and whose fixed cost is more than a product of a
few thousand numbers takes. Which of the three is fastest follows from shape, strides and machine: each distinct product
of a program is timed once, where the program is compiled. All three add up in fp32; they differ in the order of sums.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from thalweg.step.kernels import operators

#: The ways to multiply, by the name that is written into a plan.
DEFAULT, ONEDNN, SMALL = "default", "onednn", "small"
#: Multiplications above which the small kernel, one thread and no packing, is not tried.
SMALL_LIMIT = 2_000_000
#: A way other than the default must be faster by this factor: below it the difference is noise.
WORTH = 0.95

_KERNEL = Path(__file__).with_name("small.cpp")
#: Sums in any order, without -ffast-math: a library linked with it turns denormal numbers to zero in the whole process.
_ANY_ORDER = ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=fast"]
FLAGS = ["-O3", "-march=native", *_ANY_ORDER, "-std=c++17", "-shared", "-fPIC"]


# ── which is fastest ─────────────────────────────────────────────────────────────────────────────────────────────────

Key = str
"""A product in words: shape and strides of both factors, as "32x784:784,1 784x10:1,784"."""


def chosen(graph: GraphModule, small: Path) -> dict[Key, str]:
    """The fastest way of each distinct product of a graph, timed; those that stay with the default are left out.

    `small` is the library of the small kernel.
    """
    keys = {_key(*pair) for node in graph.graph.nodes if (pair := _values(node)) is not None}
    if not keys:
        return {}
    kernels = _kernels(small)
    found = {key: fastest(key, kernels) for key in sorted(keys)}
    return {key: way for key, way in found.items() if way != DEFAULT}


def replace(graph: GraphModule, choices: Mapping[Key, str]) -> None:
    """Put the chosen operators into a graph, in place."""
    for node in list(graph.graph.nodes):
        values = _values(node)
        if values is None or (way := choices.get(_key(*values), DEFAULT)) == DEFAULT:
            continue
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(operators.product(way), _factors(node))
            if node.target is torch.ops.aten.addmm.default:
                new = graph.graph.call_function(torch.ops.aten.add.Tensor, (new, node.args[0]))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


def _factors(node: Node) -> tuple[Node, Node] | None:
    """The two factors of a matrix product, plain or with a bias added; None for any other operation."""
    if node.op != "call_function":
        return None
    if node.target is torch.ops.aten.mm.default:
        return node.args[0], node.args[1]  # type: ignore[return-value]
    if node.target is torch.ops.aten.addmm.default and not node.kwargs:
        return node.args[1], node.args[2]  # type: ignore[return-value]
    return None


def _values(node: Node) -> tuple[Tensor, Tensor] | None:
    """The (fake) factors of an fp32 product on the CPU."""
    factors = _factors(node)
    if factors is None:
        return None
    a, b = (factor.meta["val"] for factor in factors)
    return (a, b) if a.dtype == torch.float32 and a.device.type == "cpu" else None


def _key(a: Tensor, b: Tensor) -> Key:
    return " ".join(f"{'x'.join(map(str, t.shape))}:{','.join(map(str, t.stride()))}" for t in (a, b))


def fastest(key: Key, kernels: Mapping[str, Callable[[Tensor, Tensor], Any]], seconds: float = 0.02) -> str:
    """Time one product every way; the default unless another is clearly faster."""
    a, b = (_made(part) for part in key.split())
    times = {way: _seconds(kernel, a, b, seconds) for way, kernel in kernels.items() if _fits(way, a, b)}
    if SMALL in times:  # called from Python it pays for what a program does not
        least = torch.ones(1, 1)
        times[SMALL] -= _seconds(kernels[SMALL], least, least, seconds / 4)
    best = min(times, key=times.__getitem__)
    return best if times[best] < WORTH * times[DEFAULT] else DEFAULT


def _fits(way: str, a: Tensor, b: Tensor) -> bool:
    return way != SMALL or a.numel() * b.shape[1] <= SMALL_LIMIT


def _made(part: str) -> Tensor:
    """Random numbers in a shape and strides written as "32x784:784,1"."""
    shape, strides = ([int(n) for n in text.split(sign)] for text, sign in zip(part.split(":"), "x,", strict=True))
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return torch.randn(last + 1).as_strided(shape, strides)  # numbers may share a place


def _seconds(kernel: Callable[[Tensor, Tensor], Any], a: Tensor, b: Tensor, seconds: float) -> float:
    """The least of several calls: what disturbs a measurement only ever adds to it."""
    kernel(a, b)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        kernel(a, b)
        best = min(best, time.perf_counter() - started)
    return best


def _kernels(small: Path) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """The ways as functions of two tensors."""
    kernels: dict[str, Callable[[Tensor, Tensor], Any]] = {DEFAULT: torch.mm, SMALL: _small(small)}
    if torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        kernels[ONEDNN] = lambda a, b: linear(a, b.t(), None, "none", [], "")
    return kernels


def _small(library: Path) -> Callable[[Tensor, Tensor], Any]:
    function = load_small(library).thalweg_product_small
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, whole, whole, pointer, whole, whole, pointer, whole, whole, whole]

    def call(a: Tensor, b: Tensor) -> Tensor:
        (m, k), n = a.shape, b.shape[1]
        out = torch.empty(m, n)
        function(a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(), out.data_ptr(), m, n, k)
        return out

    return call


def cxx() -> str | None:
    """The C++ compiler at hand, if any: what CXX names, else the usual ones."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((name for name in names if name and shutil.which(name)), None)


def compile_small(library: Path) -> None:
    """Make the small kernel a library, in one step for whoever looks on.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be compiled.
    """
    partial = library.with_name(f"{library.name}.{os.getpid()}")
    subprocess.run([cxx() or "c++", *FLAGS, str(_KERNEL), "-o", str(partial)], check=True)
    os.replace(partial, library)


def load_small(library: Path) -> ctypes.CDLL:
    """Bring the kernel into this process, where programs that are loaded afterwards find it."""
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
