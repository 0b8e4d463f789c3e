"""Data sets by name from the Hugging Face hub, through the library `datasets`: `--data hub:OWNER/NAME[:CONFIG]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "hub:"

#: What the parts of a data set are called, the usual name first.
PARTS = {"train": ("train", "training"), "validation": ("validation", "valid", "dev", "test"), "test": ("test",)}


def is_hub(data: object) -> bool:
    """Whether data is a name on the hub, not a path."""
    return str(data).startswith(PREFIX)


def splits(data: object) -> Mapping[str, Any]:
    """The parts of a data set by name, each a `datasets.Dataset`; what was fetched once is read from its cache.

    A folder after `hub:` is read in the hub's own layout (parquet, JSON, images by class), without any network.

    Raises:
        ValueError: it cannot be had; the message says why.
        ImportError: the extra `tasks` is missing.
    """
    name, _, config = str(data).removeprefix(PREFIX).partition(":")
    if not name:
        raise ValueError(f"{data} names no data set: give {PREFIX}OWNER/NAME, as on huggingface.co/datasets")
    try:
        import datasets
    except ImportError as error:
        raise ImportError('data sets of the hub need more packages: pip install "thalweg[tasks]"') from error
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # of network, cache, layout: the library has an exception for each
        said = " ".join(str(error).split())
        raise ValueError(f"the data set {name} cannot be had from the hub: {said[:200]}") from error
    return found


def part(found: Mapping[str, Any], which: str) -> Any:
    """The part of a data set for training, validation or test, under any of its usual names; None where it has none.

    >>> part({"train": [1], "dev": [2]}, "validation")
    [2]
    """
    return next((found[name] for name in PARTS[which] if name in found), None)


def column(table: Any, *kinds: str) -> str | None:
    """The first column whose feature is of one of these kinds (`Image`, `ClassLabel`, `Translation`, `string`, …)."""
    for name, feature in table.features.items():
        if type(feature).__name__ in kinds or getattr(feature, "dtype", None) in kinds:
            return str(name)
    return None
