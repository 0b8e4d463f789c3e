"""`image-classification`: a residual network told apart by examples what images show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import thalweg
from thalweg.layers.moved import Moved
from thalweg.tasks.idx import is_idx, read_idx
from thalweg.tasks.task import BadData, seeded
from thalweg.tasks.vision import folders, images
from thalweg.tasks.vision.mirroring import mirroring
from thalweg.tasks.vision.residual import Classifier
from thalweg.tasks.vision.shown import Confusions

if TYPE_CHECKING:
    from PIL.Image import Image

#: Images that a training sees in all, those seen again included, where that is not fewer or more epochs than these.
IMAGES_SEEN, FEWEST_EPOCHS, MOST_EPOCHS = 300_000, 5, 60
#: Validation images that more of would say little: a standard error of 0.2 % at 98 %.
MOST_HELD_OUT = 5000
#: Shifts while training, as a share of the side (4 pixels of 32: He et al. 2016, section 4.2), and where the mirror
#: image means something else, half of it: what has a hand has a place as well.
SHIFT = 1 / 8
#: The side that the stages leave over.
LAST_SIDE = 4


def make(
    data: Path,
    size: int | None = None,
    width: int = 32,
    blocks: int = 1,
    mirror: str = "auto",
    validation_share: float = 0.1,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """A residual network on labelled images.

    Args:
        data: a folder of class folders, or of train/ (and val/, test/) with such, or a .tar.gz of either; a folder of
            IDX files; or hub:OWNER/NAME.
        size: the side that images are scaled to [pixels]; by default as they are, or at most 64 where they differ.
        width: channels at half the side; each further halving has twice as many.
        blocks: residual blocks of each stage.
        mirror: whether images are mirrored while training: yes, no, or auto, which measures whether it does harm.
        validation_share: of the training images, held out where there is no val/.
        on_bad_data: refuse, or skip and count.
        seed: of the first weights, the images held out, and the training.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no labelled images, or bad ones that are to be refused.
    """
    bad = BadData(on_bad_data)
    found = folders.read(data, size, bad)
    training, validation = _held_out(found, validation_share, seed)
    mirrored, said = _mirrored(mirror, training, len(found.classes), seed)
    side = min(training.images.shape[2:])
    facts = {
        "classes": found.classes,
        "shape": list(training.images.shape[1:]),
        "width": width,
        "blocks": blocks,
        "mirror": mirrored,
        "shift": max(1, round(side * SHIFT * (1 if mirrored else 0.5))),
    }
    with seeded(seed):
        model = build(facts)
    model.pixels.measure(training.images)
    shown = ("test", found.parts["test"]) if "test" in found.parts else ("validation", validation)
    return {
        "model": model,
        "data": (training.images, training.labels),
        "loss": "cross_entropy",
        "validation_data": (validation.images, validation.labels),
        "patience": None,  # the rate comes down to its end: see docs/images.md
        "epochs": min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_SEEN / len(training)))),
        "metrics": ("accuracy",),
        "callbacks": [Confusions(shown[1], shown[0], found.classes)],
        "seed": seed,
        "facts": facts,
        "notes": [*bad.notes(), *found.notes, *said],
    }


def build(facts: dict[str, Any]) -> Classifier:
    """The network of a run, its weights fresh."""
    channels, rows, columns = facts["shape"]
    stages = max(1, round(math.log2(min(rows, columns) / LAST_SIDE)))
    moved = Moved(facts["shift"], facts["mirror"])
    return Classifier(channels, len(facts["classes"]), facts["width"], stages, facts["blocks"], moved)


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterator[dict[str, Any]]:
    """What each image file shows: its `answer`, `probability`, and `probabilities` by class; IDX files image by image.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is no image, or of another size than IDX files can be.
    """
    for file in files:
        for place, pixels in _images_of(Path(file), facts["shape"]):
            probabilities = thalweg.predict(model, pixels[None]).softmax(1)[0].tolist()
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            yield {
                "file": place,
                "answer": facts["classes"][best],
                "probability": probabilities[best],
                "probabilities": dict(zip(facts["classes"], probabilities, strict=True)),
            }


def example(facts: dict[str, Any]) -> Tensor:
    """Two images, as an export follows them through the network."""
    return torch.zeros(2, *facts["shape"], dtype=torch.uint8)


task = thalweg.Task(make=make, build=build, predict=predict, example=example)


def _held_out(found: folders.Labelled, share: float, seed: int) -> tuple[folders.Part, folders.Part]:
    """Training and validation part; the test part takes no part in training."""
    training = found.parts["training"]
    if "validation" in found.parts:
        return training, found.parts["validation"]
    if not 0 < share < 1:
        raise ValueError(f"validation_share is a share above 0 and below 1, got {share}")
    share = min(share, MOST_HELD_OUT / len(training))
    rest, held = folders.hold_out(training, share, len(found.classes), seed)
    if not len(held):
        raise ValueError(
            f"{len(training)} images of {len(found.classes)} classes leave none for validation: give more images, "
            "a val/ folder, or a larger --validation-share"
        )
    return rest, held


def _mirrored(asked: str, training: folders.Part, num_classes: int, seed: int) -> tuple[bool, list[str]]:
    """Whether to mirror images, and the sentence that says why."""
    if asked not in ("auto", "yes", "no"):
        raise ValueError(f"mirror takes auto, yes or no, got {asked!r}")
    if asked != "auto":
        return asked == "yes", []
    drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    found = mirroring(training.images[drawn], training.labels[drawn], num_classes)
    return found.harmless, [found.sentence]


def _images_of(file: Path, shape: list[int]) -> Iterator[tuple[str, Tensor]]:
    """The images of a file, each with its place, `[channels, rows, columns]` as the network takes them."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    channels, rows, columns = shape
    if is_idx(file):
        for number, array in enumerate(read_idx(file)):
            if array.shape != (rows, columns):
                raise ValueError(f"{file} holds images of {list(array.shape)}, but the run's are of {[rows, columns]}")
            yield f"{file}, image {number}", torch.from_numpy(array)[None].expand(channels, -1, -1)
        return

    def fitted(image: Image) -> Image:
        return folders.to_size(image if channels == 3 else image.convert("L"), columns, rows)

    try:
        pixels = images.pixels(file.read_bytes(), fitted, lambda remark: None)
    except images.Broken as error:
        raise ValueError(f"{file}: {error}") from error
    yield str(file), torch.from_numpy(images.stacked([pixels], channels)[0])
