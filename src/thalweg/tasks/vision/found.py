"""What a detector finds on images it has not seen: average precision, curves, and boxes drawn, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import thalweg
from thalweg.tasks.vision.average_precision import Found, Precision, average_precision
from thalweg.tasks.vision.boxes import kept
from thalweg.tasks.vision.drawing import boxed, png
from thalweg.tasks.vision.images import shown
from thalweg.tasks.vision.scenes import Canvas, Scenes

#: Boxes are shown and answered from this score on; curves are of all.
SURE = 0.4
#: Images that are shown.
PICTURES = 6
#: Images that go through the network at once.
BATCH_SIZE = 16


class Boxes(thalweg.Callback):
    """At the end of a training: mean average precision as a metric, and a section of the report.

    `mean_average_precision` is of the test part where there is one, else of the validation part;
    `mean_average_precision_of_validation` is always of the latter, for choices that the test part must not make.
    """

    def __init__(self, parts: Mapping[str, Scenes], canvas: Canvas, classes: Sequence[str]) -> None:
        self.parts = parts
        self.canvas = canvas
        self.classes = classes

    def on_end(self, run: thalweg.Run) -> None:
        """Ask the trained model about each part."""
        found = {name: self._found(run, part) for name, part in self.parts.items()}
        measured = {
            name: average_precision(part.annotated, found[name], self.classes) for name, part in self.parts.items()
        }
        last = "test" if "test" in self.parts else "validation"
        run.add_metrics(
            mean_average_precision=measured[last].mean,
            mean_average_precision_of_validation=measured["validation"].mean,
        )
        run.show(self._section(last, measured, found[last]))

    def _found(self, run: thalweg.Run, part: Scenes) -> list[Found]:
        said = thalweg.predict(run.model, part.images, batch_size=BATCH_SIZE)
        return [in_image(kept(one), self.canvas, image.size) for one, image in zip(said, part.annotated, strict=True)]

    def _section(self, last: str, measured: Mapping[str, Precision], found: Sequence[Found]) -> thalweg.Section:
        part, precision = self.parts[last], measured[last]
        words = (
            f"On {len(part.annotated):,} images of the {last} part, mean average precision at an overlap of one half "
            f"is {precision.mean:.3f}. Below, boxes are what the network finds with a score of {SURE} or more; thin "
            "white ones are what is there."
        )
        counts = [sum(o.name == name for one in part.annotated for o in one.objects) for name in self.classes]
        rows: list[list[str | float]] = [
            [name, count, *(f"{one.by_class[i]:.3f}" for one in measured.values())]
            for i, (name, count) in enumerate(zip(self.classes, counts, strict=True))
        ]
        columns = ["class", f"boxes ({last})", *(f"average precision ({name})" for name in measured)]
        curves = {
            name: (precision.recalls.tolist(), precision.curves[:, i].tolist())
            for i, name in enumerate(self.classes)
            if counts[i]
        }
        drawn = [self._picture(part, found, i) for i in range(min(PICTURES, len(part.annotated)))]
        table = thalweg.Table(columns, rows, "Average precision by class.")
        return thalweg.Section(
            "What is found where",
            words,
            [table, thalweg.Curves("Precision and recall", "recall", "precision", curves), *drawn],
        )

    def _picture(self, part: Scenes, found: Sequence[Found], number: int) -> thalweg.Picture:
        one = part.annotated[number]
        boxes, scores, kinds = found[number]
        sure = scores >= SURE
        labels = [
            f"{self.classes[k]} {s:.2f}" for k, s in zip(kinds[sure].tolist(), scores[sure].tolist(), strict=True)
        ]
        drawn = boxed(
            shown(one.read()), boxes[sure].tolist(), kinds[sure].tolist(), labels, [o.box for o in one.objects]
        )
        caption = f"{one.name}: {int(sure.sum())} found, {len(one.objects)} annotated."
        return thalweg.Picture(png(drawn), caption, width=560)


def in_image(found: Found, canvas: Canvas, size: tuple[int, int]) -> Found:
    """Boxes on the canvas → boxes in pixels of the image of this size (width, height), cut off at its border."""
    boxes, scores, kinds = found
    border = torch.tensor([*size, *size], dtype=boxes.dtype)
    inside: Tensor = (boxes / canvas.scale(size)).clamp_min(0).minimum(border)
    return inside, scores, kinds
