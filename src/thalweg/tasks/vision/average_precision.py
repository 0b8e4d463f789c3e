"""Mean average precision at an overlap of one half, as COCO counts it (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from thalweg.tasks.vision.voc import Annotated

OVERLAP = 0.5

#: Boxes `[boxes, 4]`, scores `[boxes]` and class numbers `[boxes]` of one image, in its own pixels.
Found = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Precision:
    """How good the boxes of a part are.

    `curves` holds the precision `[recalls, classes]` at recalls from 0 to 1 in 101 steps: the best at that recall or a
    higher one; NaN for a class of which there is nothing to find. Average precision is its mean.
    """

    recalls: npt.NDArray[np.float64]
    curves: npt.NDArray[np.float64]

    @property
    def by_class(self) -> npt.NDArray[np.float64]:
        """Average precision of each class `[classes]`."""
        return self.curves.mean(0)

    @property
    def mean(self) -> float:
        """Mean average precision over the classes that there are; NaN where there is nothing to find at all."""
        known = self.by_class[~np.isnan(self.by_class)]
        return float(known.mean()) if len(known) else float("nan")


def average_precision(part: Sequence[Annotated], found: Sequence[Found], classes: Sequence[str]) -> Precision:
    """Hold what was found on each image against what is there; what is marked as difficult counts neither way."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        truth = COCO()
        truth.dataset = _truth(part, classes)
        truth.createIndex()
        answers = _answers(found)
        if not answers or not truth.dataset["annotations"]:
            return _nothing(truth.dataset["annotations"], len(classes))
        evaluation = COCOeval(truth, truth.loadRes(answers), "bbox")
        evaluation.params.iouThrs = np.array([OVERLAP])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval["precision"][0, :, :, 0, -1].astype(np.float64)
    return Precision(evaluation.params.recThrs, np.where(curves < 0, np.nan, curves))


def _truth(part: Sequence[Annotated], classes: Sequence[str]) -> dict[str, object]:
    boxes: list[dict[str, object]] = []
    for number, image in enumerate(part):
        for thing in image.objects:
            left, top, right, bottom = thing.box
            width, height = right - left, bottom - top
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": classes.index(thing.name),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(thing.difficult),
                }
            )
    images = [{"id": number} for number in range(len(part))]
    return {"images": images, "annotations": boxes, "categories": [{"id": i} for i in range(len(classes))], "info": {}}


def _answers(found: Sequence[Found]) -> list[dict[str, object]]:
    answers: list[dict[str, object]] = []
    for number, (boxes, scores, kinds) in enumerate(found):
        corners = boxes.tolist()
        for (left, top, right, bottom), score, kind in zip(corners, scores.tolist(), kinds.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            answers.append({"image_id": number, "category_id": kind, "bbox": box, "score": score})
    return answers


def _nothing(boxes: object, num_classes: int) -> Precision:
    """Nothing was found, or there is nothing to find."""
    there = {box["category_id"] for box in boxes if not box["iscrowd"]}  # type: ignore[attr-defined]
    curve = [0.0 if number in there else np.nan for number in range(num_classes)]
    return Precision(np.linspace(0, 1, 101), np.tile(curve, (101, 1)))
