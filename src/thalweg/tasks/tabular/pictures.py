"""What the report shows of a table's network: its errors on rows that it never saw, and which columns it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks.tabular.trees import Part, boosted_trees

#: Points of the scatter, classes of the matrix, rows that importances are measured on, permutations of each column.
POINTS, CLASSES, ROWS, REPEATS = 800, 25, 2000, 3


class Pictures(thalweg.Callback):
    """At the end of a training: the score on the rows that were held out, residuals or confusions, importances.

    `learned` are the parts that the training saw, from which boosted trees learn too, for comparison.
    """

    def __init__(self, facts: dict[str, Any], learned: Sequence[Part], judged: Part, seed: int) -> None:
        self.facts, self.learned, self.judged, self.seed = facts, learned, judged, seed

    def on_end(self, run: thalweg.Run) -> None:
        """Measure and show."""
        x, y = self.judged
        if not len(y):
            return
        output = thalweg.predict(run.model, x)
        own, trees = score(output, y, self.facts), boosted_trees(self.learned, self.judged, self.facts)
        beside = float((trees == y).double().mean()) if self.facts["classes"] else score(trees, y, self.facts)
        run.add_metrics(**{f"test_{self._name}": own, f"test_{self._name}_of_boosted_trees": beside})
        section = self._confusions(output, y) if self.facts["classes"] else self._residuals(output, y)
        trees_say = f"Boosted trees (scikit-learn's, with its defaults) reach {_told(beside)} beside {_told(own)}."
        run.show(thalweg.Section(section.title, f"{section.words} {trees_say}", section.parts))
        run.show(self._importances(run.model))

    @property
    def _name(self) -> str:
        return "accuracy" if self.facts["classes"] else "rmse"

    def _residuals(self, output: Tensor, y: Tensor) -> thalweg.Section:
        picked = torch.linspace(0, len(y) - 1, min(POINTS, len(y))).round().long()
        error = output - y
        counts, edges = np.histogram(error.numpy(), bins=40)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        target = self.facts["target"]
        points = {"a row": (y[picked].tolist(), output[picked].tolist())}
        shares = {"rows": (middles, counts.tolist())}
        words = (
            f"On {len(y):,} rows that were held out, predictions of {target} miss by {_told(error.abs().median())} in "
            f"the middle and by {_told(error.square().mean().sqrt())} as a root mean square; on the whole they lie "
            f"{_told(error.mean())} off."
        )
        parts = [
            thalweg.Curves("Predicted and true", f"true {target}", f"predicted {target}", points, points=True),
            thalweg.Curves("Residuals", "predicted − true", "rows", shares),
        ]
        return thalweg.Section("Residuals", words, parts)

    def _confusions(self, output: Tensor, y: Tensor) -> thalweg.Section:
        classes = self.facts["classes"]
        counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        counts.index_put_((y, output.argmax(1)), torch.ones_like(y), accumulate=True)
        right = counts.diagonal().sum().item() / len(y)
        words = f"On {len(y):,} rows that were held out, {right:.1%} have their own class."
        matrix = thalweg.Matrix(
            "Confusions", classes, classes, counts.tolist(), "Rows: true class; columns: predicted."
        )
        return thalweg.Section("Confusions", words, [matrix])

    def _importances(self, model: nn.Module) -> thalweg.Section:
        found = importances(model, self.facts, self.judged, self.seed)
        rows = [[name, _told(gain)] for name, gain in sorted(found.items(), key=lambda pair: -pair[1])]
        what = "accuracy falls by" if self.facts["classes"] else "rmse rises by"
        words = (
            "How much worse the predictions get when one column is shuffled among the rows "
            f"(Breiman 2001, section 10), the mean of {REPEATS} shuffles."
        )
        return thalweg.Section("Importance of the columns", words, [thalweg.Table(["column", what], rows)])


def _told(number: Tensor | float) -> str:
    """A number for a person: `46,269`, `0.4123`."""
    return f"{float(number):,.0f}" if abs(float(number)) >= 1000 else f"{float(number):.4g}"


def score(output: Tensor, y: Tensor, facts: dict[str, Any]) -> float:
    """Accuracy of classes; else the root mean squared error in the target's unit."""
    if facts["classes"]:
        return float((output.argmax(1) == y).double().mean())
    return float((output.double() - y).square().mean().sqrt())


def importances(model: nn.Module, facts: dict[str, Any], judged: Part, seed: int) -> dict[str, float]:
    """By column, how much worse the score is when its cells are shuffled; on at most `ROWS` rows."""
    generator = torch.Generator().manual_seed(seed)
    (numbers, missing, categories), y = judged
    picked = torch.randperm(len(y), generator=generator)[:ROWS]
    parts, y = {"number": [numbers[picked], missing[picked]], "category": [categories[picked]]}, y[picked]
    whole = score(thalweg.predict(model, (*parts["number"], *parts["category"])), y, facts)
    found, places = {}, {"number": 0, "category": 0}
    for column in facts["columns"]:
        kind = "category" if column["kind"] == "category" else "number"
        place, scores = places[kind], []
        places[kind] += 1
        for _ in range(REPEATS):
            order = torch.randperm(len(y), generator=generator)
            shuffled = {name: [array.clone() for array in arrays] for name, arrays in parts.items()}
            for array in shuffled[kind]:
                array[:, place] = array[order, place]
            scores.append(score(thalweg.predict(model, (*shuffled["number"], *shuffled["category"])), y, facts))
        worse = sum(scores) / REPEATS - whole
        found[column["name"]] = -worse if facts["classes"] else worse
    return found
