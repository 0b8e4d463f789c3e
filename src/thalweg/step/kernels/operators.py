"""Our operators as a compiled step calls them: C functions; called from Python they are torch's own operations."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Put ahead of a program; it needs the kernel of `small.cpp` in the process.
SOURCE = Path(__file__).with_name("operators.cpp").read_text()
KERNEL = Path(__file__).with_name("small.cpp").read_text()


@cache
def _library() -> torch.library.Library:
    library = torch.library.Library("thalweg", "DEF")
    for name in ("product_onednn", "product_small"):
        library.define(f"{name}(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.flexible_layout,))
        library.impl(name, torch.mm, "CPU")
        torch.library.register_fake(f"thalweg::{name}", _product, lib=library)
    library.define("held_scalar(Tensor a) -> Tensor")
    library.impl("held_scalar", Tensor.clone, "CPU")
    torch.library.register_fake("thalweg::held_scalar", torch.empty_like, lib=library)
    drawn = "drawn(SymInt[] size, SymInt[] stride, ScalarType dtype, float p) -> Tensor"
    library.define(drawn, tags=(torch.Tag.nondeterministic_seeded,))
    library.impl("drawn", _drawn, "CompositeExplicitAutograd")
    torch.library.register_fake("thalweg::drawn", _empty, lib=library)
    return library


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _drawn(size: list[int], stride: list[int], dtype: torch.dtype, p: float) -> Tensor:
    return _empty(size, stride, dtype, p).bernoulli_(p)


def _empty(size: list[int], stride: list[int], dtype: torch.dtype, p: float) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype)


def product(way: str) -> Any:
    """The operator `(a [m, k], b [k, n]) → [m, n]` of a way, "onednn" or "small"."""
    _library()
    return getattr(torch.ops.thalweg, f"product_{way}").default


def held() -> Any:
    """The operator that copies a double scalar, past which a compiler does not carry a computation."""
    _library()
    return torch.ops.thalweg.held_scalar.default


def drawn() -> Any:
    """The operator that draws a mask of ones, with probability p, and zeros: a new tensor, as torch draws it in place.

    Inductor may read what is drawn in place before it is drawn.
    """
    _library()
    return torch.ops.thalweg.drawn.default


def sources() -> dict[Any, list[str]]:
    """Operator → its C function, for `aot_inductor.custom_ops_to_c_shims`."""
    return {
        held(): [SOURCE],
        product("small"): ["int thalweg_1"],
        product("onednn"): ["int thalweg_2"],
        drawn(): ["int thalweg_3"],
    }
