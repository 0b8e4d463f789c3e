"""What a classifier confuses, and its worst mistakes, for the report; its accuracy on the test part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import thalweg
from thalweg.tasks.vision.drawing import image_of, sheet
from thalweg.tasks.vision.folders import Part

#: Mistakes that are shown, and in how many columns.
MISTAKES, COLUMNS = 32, 8
#: More classes than this make a heat map that nobody can read: the pairs that are confused most are listed instead.
MOST_CLASSES = 40
#: Pairs that are listed.
PAIRS = 12


class Confusions(thalweg.Callback):
    """At the end of a training: accuracy on the test part as a metric, and a section of the report.

    Without a test part the section is of the validation part, whose accuracy the run has already.
    """

    def __init__(self, part: Part, part_name: str, classes: Sequence[str]) -> None:
        self.part = part
        self.part_name = part_name
        self.classes = classes

    def on_end(self, run: thalweg.Run) -> None:
        """Ask the trained model about the part."""
        probabilities = thalweg.predict(run.model, self.part.images).detach().softmax(1)
        predicted = probabilities.argmax(1)
        right = predicted == self.part.labels
        accuracy = float(right.double().mean())
        if self.part_name == "test":
            run.add_metrics(test_accuracy=accuracy)
        counts = confusions(self.part.labels, predicted, len(self.classes))
        words = (
            f"Of {len(right):,} images of the {self.part_name} part, {int(right.sum()):,} are given their class: "
            f"{accuracy:.2%}. {self._hardest(counts)}"
        )
        parts: list[thalweg.Matrix | thalweg.Table | thalweg.Picture]
        parts = [*self._matrix(counts), self._pairs(counts), *self._mistakes(probabilities, predicted)]
        run.show(thalweg.Section("What is taken for what", words, parts))

    def _hardest(self, counts: Tensor) -> str:
        shares = counts.diagonal() / counts.sum(1).clamp_min(1)
        shares[counts.sum(1) == 0] = 1.0
        worst = int(shares.argmin())
        return f"The hardest class is {self.classes[worst]}, of which {float(shares[worst]):.1%} are recognised."

    def _matrix(self, counts: Tensor) -> list[thalweg.Matrix]:
        if len(self.classes) > MOST_CLASSES:
            return []
        caption = "Rows are true classes, columns what the network says, numbers are images."
        return [thalweg.Matrix("Confusions", self.classes, self.classes, counts.long().tolist(), caption)]

    def _pairs(self, counts: Tensor) -> thalweg.Table:
        """The pairs that are confused most, and how often."""
        off = counts.clone().fill_diagonal_(0)
        most = off.flatten().argsort(descending=True, stable=True)[:PAIRS]
        rows: list[list[str | float]] = []
        for place in most[off.flatten()[most] > 0].tolist():
            true, said = divmod(place, len(self.classes))
            of = counts[true].sum()
            rows.append(
                [self.classes[true], self.classes[said], int(off[true, said]), f"{float(off[true, said] / of):.1%}"]
            )
        return thalweg.Table(["is", "taken for", "images", "of its class"], rows, "What is confused most often.")

    def _mistakes(self, probabilities: Tensor, predicted: Tensor) -> list[thalweg.Picture]:
        """The images that the network is most wrong about: the least probability for what is true."""
        labels = self.part.labels
        of_truth = probabilities[torch.arange(len(labels)), labels].masked_fill(predicted == labels, 2.0)
        worst = [i for i in of_truth.argsort(stable=True)[:MISTAKES].tolist() if of_truth[i] <= 1]
        if not worst:
            return []
        words = [
            f"{self.classes[int(labels[i])]}\n→ {self.classes[int(predicted[i])]} {float(probabilities[i].max()):.0%}"
            for i in worst
        ]
        drawn = sheet([image_of(self.part.images[i]) for i in worst], words, COLUMNS)
        caption = "The worst mistakes: below each image its class, then what the network says and how sure it is."
        return [thalweg.Picture(drawn, caption)]


def confusions(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """How often each class `[classes (true), classes (said)]` was taken for each, from class numbers `[examples]`.

    >>> confusions(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).double()
