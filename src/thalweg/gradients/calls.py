"""What a call of torch is: one name and one form for each operation, out of the many that torch has.

`a + b`, `b.__radd__(a)`, `a.add(b)`, `torch.add(input=a, other=b)` and `a += b` are all `add(a, b)`, the last in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thalweg.gradients.rules import COMPOSED, RULES

#: What only asks about a tensor, and can be answered at once.
QUESTIONS = frozenset(
    (
        *("size", "shape", "dim", "ndim", "numel", "dtype", "device", "layout", "stride", "is_contiguous", "__len__"),
        *("is_floating_point", "is_complex", "is_nested", "is_cuda", "is_sparse", "is_leaf", "requires_grad"),
        *("grad_fn", "element_size", "grad", "retain_grad", "register_hook", "__hash__"),
    )
)
#: Operations whose floating result is a constant to the gradient.
CONSTANT = frozenset(
    (
        *("detach", "data", "sign", "floor", "ceil", "round", "trunc", "floor_divide", "heaviside", "requires_grad_"),
        *("bernoulli", "multinomial", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "tensor"),
    )
)
#: Operators with their operands the other way round.
_REFLECTED = {f"__r{word}__": word for word in ("add", "sub", "mul", "div", "truediv", "pow", "matmul")}
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def name_of(func: Callable[..., Any]) -> str:
    """The name of a function, a method, or the attribute that a getter gets."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return getattr(func.__self__, "__name__", name)  # type: ignore[attr-defined]
    return name.removesuffix(".default")


def normal(name: str, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any], str, bool]:
    """One way to name and to call an operation, out of the many that torch has; and whether it is done in place."""
    in_place = bool(named.pop("inplace", False))
    if name in _REFLECTED:
        return (args[1], args[0], *args[2:]), named, _REFLECTED[name], False
    if name.startswith("__") and name.endswith("__"):
        word = name[2:-2]
        in_place |= word == "setitem" or (word.startswith("i") and word[1:] in RULES)
        name = word[1:] if in_place and word != "setitem" else word
    elif name.endswith("_") and (name[:-1] in RULES or name[:-1] in COMPOSED):
        name, in_place = name[:-1], True
    for first in ("input", "self", "tensors", "query"):
        if first in named and not args:
            args = (named.pop(first),)
    if "other" in named and len(args) == 1:
        args = (*args, named.pop("other"))
    return args, {_OTHER_NAMES.get(key, key): value for key, value in named.items()}, name, in_place
