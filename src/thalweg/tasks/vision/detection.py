"""`object-detection`: what lies where on images, learned from boxes in the format of Pascal VOC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks.task import BadData, seeded
from thalweg.tasks.vision import images, voc
from thalweg.tasks.vision.assignment import DetectionLoss
from thalweg.tasks.vision.boxes import kept
from thalweg.tasks.vision.detector import Detector
from thalweg.tasks.vision.found import SURE, Boxes, in_image
from thalweg.tasks.vision.scenes import Canvas, Scenes, scenes

#: Images of a batch.
BATCH_SIZE = 8
#: Images that a training sees in all, and the bounds of its epochs.
IMAGES_SEEN, FEWEST_EPOCHS, MOST_EPOCHS = 20_000, 10, 150


def make(
    data: Path,
    size: int = 320,
    width: int = 32,
    blocks: int = 1,
    mirror: bool = True,
    validation_share: float = 0.2,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """A detector without anchors on annotated images.

    Args:
        data: a folder in the layout of Pascal VOC, or a .tar.gz of one.
        size: the longer side that images are scaled to [pixels].
        width: channels at a quarter of the side; each further halving has twice as many.
        blocks: residual blocks of each stage.
        mirror: whether images are mirrored, left for right, while training.
        validation_share: of the training images, held out where there is no list val.txt.
        on_bad_data: refuse, or skip and count.
        seed: of the first weights, the images held out, and the training.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has another layout, or holds bad data that is to be refused.
    """
    if size < 32:
        raise ValueError(f"size is the longer side of images in pixels, at least 32, got {size}")
    bad, remarks = BadData(on_bad_data), images.Remarks()
    listed = voc.read(Path(data), bad)
    classes = sorted({thing.name for one in listed.parts.get("training", ()) for thing in one.objects})
    if not classes:
        raise ValueError(f"the training images in {data} have no boxes: at least one was expected")
    canvas = Canvas.of([one.size for part in listed.parts.values() for one in part], size)
    parts = {name: scenes(part, classes, canvas, remarks, bad) for name, part in listed.parts.items()}
    training, validation = _held_out(parts, validation_share, seed)
    facts = {
        "classes": classes,
        "rows": canvas.rows,
        "columns": canvas.columns,
        "width": width,
        "blocks": blocks,
        "mirror": mirror,
    }
    with seeded(seed):
        model = build(facts)
    model.pixels.measure(training.images)
    shown = {"validation": validation} | ({"test": parts["test"]} if "test" in parts else {})
    return {
        "model": model,
        "data": (training.images, training.targets),
        "loss": DetectionLoss(canvas.rows, canvas.columns),
        "validation_data": _batches(validation),
        "batch_size": BATCH_SIZE,
        "patience": None,  # the rate comes down to its end: see docs/images.md
        "epochs": min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_SEEN / len(training.images)))),
        "callbacks": [Boxes(shown, canvas, classes)],
        "seed": seed,
        "facts": facts,
        "notes": [*bad.notes(), *listed.notes, *remarks.notes()],
    }


def build(facts: dict[str, Any]) -> Detector:
    """The network of a run, its weights fresh."""
    return Detector(len(facts["classes"]), facts["width"], facts["blocks"], facts["mirror"])


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterator[dict[str, Any]]:
    """What lies on each image: its `answer` in words, and `boxes`, surest first, in pixels of the image.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is no image.
    """
    canvas = Canvas(facts["rows"], facts["columns"])
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        content = file.read_bytes()
        try:
            size, pixels = images.opened(content).size, canvas.pixels(content, lambda remark: None)
        except images.Broken as error:
            raise ValueError(f"{file}: {error}") from error
        found = in_image(kept(thalweg.predict(model, pixels[None])[0], SURE), canvas, size)
        boxes = [
            {"class": facts["classes"][kind], "score": score, "box": [round(side, 1) for side in box]}
            for box, score, kind in zip(*(part.tolist() for part in found), strict=True)
        ]
        counts = {name: sum(box["class"] == name for box in boxes) for name in facts["classes"]}
        words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        yield {"file": str(file), "answer": words or "nothing", "boxes": boxes}


def example(facts: dict[str, Any]) -> Tensor:
    """Two images, as an export follows them through the network."""
    return torch.zeros(2, 3, facts["rows"], facts["columns"], dtype=torch.uint8)


task = thalweg.Task(make=make, build=build, predict=predict, example=example)


def _held_out(parts: dict[str, Scenes], share: float, seed: int) -> tuple[Scenes, Scenes]:
    """Training and validation part; the test part takes no part in training."""
    training = parts["training"]
    if "validation" in parts:
        return training, parts["validation"]
    count = len(training.annotated)
    held = round(share * count)
    if not 0 < held < count:
        raise ValueError(
            f"--validation-share {share} of {count} images leaves one part empty: give more images, or another share"
        )
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return training.of(sorted(drawn[held:])), training.of(sorted(drawn[:held]))


def _batches(part: Scenes, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """A part in batches that memory has room for: what a large image leaves behind in each layer is large too."""
    return list(zip(part.images.split(size), part.targets.split(size), strict=True))
