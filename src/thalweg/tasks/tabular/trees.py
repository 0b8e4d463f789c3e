"""What is usual for tables, on the same rows: scikit-learn's boosted trees with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Part = tuple[tuple[Tensor, ...], Tensor]

#: Levels that scikit-learn's trees take a category to have at most.
LEVELS = 255


def boosted_trees(learned: Sequence[Part], judged: Part, facts: dict[str, Any]) -> Tensor:
    """What trees that learned from these parts say of the rows of another: numbers `[rows]`, or class numbers `[rows]`.

    They take missing numbers and categories as such; the ones with more levels than they can take go in as numbers.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    numbers = sum(column["kind"] != "category" for column in facts["columns"])
    levels = [2 + len(column["levels"]) for column in facts["columns"] if column["kind"] == "category"]
    categories = [numbers + place for place, count in enumerate(levels) if count <= LEVELS]
    kind = HistGradientBoostingClassifier if facts["classes"] else HistGradientBoostingRegressor
    trees = kind(categorical_features=categories or None, random_state=0)
    trees.fit(np.concatenate([_rows(x) for x, _ in learned]), np.concatenate([y.numpy() for _, y in learned]))
    return torch.from_numpy(np.asarray(trees.predict(_rows(judged[0]))))


def _rows(x: tuple[Tensor, ...]) -> np.ndarray[Any, Any]:
    """Numbers, NaN where they are missing, and categories beside each other `[rows, columns]`."""
    numbers, missing, categories = x
    return torch.cat([numbers.where(missing == 0, torch.nan), categories.to(numbers.dtype)], 1).numpy()
