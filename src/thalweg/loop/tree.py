"""Any state of tensors and plain values ↔ JSON and named tensors, so that nothing needs to be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def pack(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into what JSON holds and its tensors by path.

    Raises:
        TypeError: a value is neither a tensor nor something JSON holds; the message names its path.

    >>> pack({"step": 3, 0: (1.5, None)})[0]
    {'__items__': [['step', 3], [0, {'__tuple__': [1.5, None]}]]}
    """
    tensors: dict[str, Tensor] = {}
    return _pack(tree, name, tensors), tensors


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(plain, list):
        return [unpack(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return tensors[plain[_TENSOR]]
    if _TUPLE in plain:
        return tuple(unpack(value, tensors) for value in plain[_TUPLE])
    if _ITEMS in plain:
        return {key: unpack(value, tensors) for key, value in plain[_ITEMS]}
    return {key: unpack(value, tensors) for key, value in plain.items()}


def require_like(tree: Any, like: Any, path: str = "it") -> None:
    """Refuse a tree that was read where a value is of another kind than the one of the same path in `like`.

    Tensors and numbers stand for each other (a sum is 0 before it is a tensor), and `None` for what may be missing;
    keys and lengths may differ.

    Raises:
        ValueError: the message names the path.

    >>> require_like({"rate": "0.1"}, {"rate": 0.2})
    Traceback (most recent call last):
    ValueError: it.rate is a str where a float is expected
    """
    kinds: tuple[Any, ...] = (Mapping, tuple | list, str, bool | int | float | Tensor)
    kind = next((kind for kind in kinds if isinstance(like, kind)), None)
    if like is None or (tree is None and not isinstance(like, Mapping)) or kind is None:
        return
    if not isinstance(tree, kind):
        raise ValueError(f"{path} is a {type(tree).__name__} where a {type(like).__name__} is expected")
    if isinstance(like, Mapping):
        for key in like.keys() & tree.keys():
            require_like(tree[key], like[key], _join(path, key))
    elif isinstance(like, tuple | list):
        for i, (value, expected) in enumerate(zip(tree, like, strict=False)):
            require_like(value, expected, _join(path, i))


def _pack(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        # A tensor that needs a gradient is a parameter held by some state: its value is what counts.
        tensors[path] = tree.detach()
        return {_TENSOR: path}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Mapping):
        items = [[key, _pack(value, _join(path, key), tensors)] for key, value in tree.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
            return dict(items)  # type: ignore[arg-type]
        return {_ITEMS: items}
    if isinstance(tree, tuple | list):
        values = [_pack(value, _join(path, i), tensors) for i, value in enumerate(tree)]
        return {_TUPLE: values} if isinstance(tree, tuple) else values
    raise TypeError(f"{path or 'the state'} holds a {type(tree).__name__}, which cannot be saved without pickling")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
