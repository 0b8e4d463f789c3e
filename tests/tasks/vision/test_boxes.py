import itertools
import math

import numpy as np
import pytest
import torch

from thalweg.tasks.vision.assignment import DetectionLoss, assigned, moved
from thalweg.tasks.vision.average_precision import average_precision
from thalweg.tasks.vision.boxes import generalised_overlap, kept, overlap
from thalweg.tasks.vision.detector import Detector, Jitter, grid
from thalweg.tasks.vision.voc import Annotated, Object


def slow_overlap(a, b):
    """By counting the cells of a fine grid: boxes of whole numbers."""
    cells = [set(itertools.product(range(x0, x1), range(y0, y1))) for x0, y0, x1, y1 in (a, b)]
    both, either = cells[0] & cells[1], cells[0] | cells[1]
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return len(both) / len(either), len(both) / len(either) - (around - len(either)) / around


def test_overlap_is_what_counting_says():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 12, (2, 60, 2))
    boxes = torch.from_numpy(np.concatenate([corners.min(0), corners.max(0) + 1], 1))
    for a, b in zip(boxes[:30], boxes[30:], strict=True):
        plain, general = slow_overlap(a.tolist(), b.tolist())
        assert overlap(a.double(), b.double()) == pytest.approx(plain)
        assert generalised_overlap(a.double(), b.double()) == pytest.approx(general)


def said(*rows):
    """What a detector says of places: box, then probability of each class."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32)
    return torch.cat([boxes, torch.tensor([row[1] for row in rows]).logit()], 1)


def test_of_boxes_on_one_thing_the_surest_of_each_class_is_kept():
    found = said(
        ([0, 0, 10, 10], [0.6, 0.01]),
        ([0, 1, 10, 11], [0.9, 0.01]),  # the same thing, surer
        ([0, 0, 10, 10], [0.01, 0.7]),  # there too, of another class
        ([0, 6, 10, 16], [0.5, 0.01]),  # a neighbour: it overlaps by a third
        ([50, 50, 60, 60], [0.01, 0.01]),  # nothing
    )
    boxes, scores, classes = kept(found)
    assert boxes[:, 1].tolist() == [1, 0, 6] and classes.tolist() == [0, 1, 0]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert len(kept(found, least=0.95)[0]) == 0


def test_each_place_is_given_the_smallest_box_that_fits_it():
    target = torch.tensor([[[0, 0, 60, 60, 0], [30, 30, 50, 50, 1], [0, 0, 0, 0, -1]]]).float()
    wanted, classes = assigned(target, 64, 64)
    places, strides = grid(64, 64, target.device, torch.float32)
    for place, stride, box, kind in zip(places, strides, wanted[0], classes[0], strict=True):
        near = {
            number: (right - left) * (bottom - top)
            for number, (left, top, right, bottom, _) in enumerate(target[0, :2].tolist())
            if left < place[0] < right
            and top < place[1] < bottom
            and max(abs(place[0] - (left + right) / 2), abs(place[1] - (top + bottom) / 2)) < 1.5 * stride
            and {8: 0, 16: 64, 32: 128}[int(stride)]
            <= max(place[0] - left, right - place[0], place[1] - top, bottom - place[1])
            < {8: 64, 16: 128, 32: math.inf}[int(stride)]
        }
        best = min(near, key=near.get) if near else None
        assert int(kind) == (-1 if best is None else int(target[0, best, 4]))
        assert best is None or torch.equal(box, target[0, best, :4])
    assert (classes == 1).any() and (classes == 0).any()


def test_large_boxes_are_for_coarse_places():
    for side, stride in ((40, 8), (150, 16), (300, 32)):
        target = torch.tensor([[[10, 10, 10 + side, 10 + side, 0]]]).float()
        _, classes = assigned(target, 320, 320)
        found = grid(320, 320, target.device, torch.float32)[1][classes[0] >= 0]
        assert len(found) and (found == stride).all()


def test_boxes_move_as_their_images_do():
    """A bright box is where its moved corners say, after jitter."""
    torch.manual_seed(0)
    layer = Jitter(mirror=True, light=0.0)
    x = torch.zeros(40, 3, 64, 96)
    x[:, :, 20:40, 30:60] = 1.0
    target = torch.tensor([30, 20, 60, 40, 0]).float().expand(40, 1, 5)
    images, moves = layer(x)
    boxes = moved(target, moves, 64, 96)[:, 0]
    for image, (left, top, right, bottom, kind) in zip(images[:, 0], boxes.tolist(), strict=True):
        bright = (image > 0.5).nonzero().float()
        assert kind == 0
        assert bright.amin(0).tolist() == pytest.approx([top, left], abs=1.01)
        assert (bright.amax(0) + 1).tolist() == pytest.approx([bottom, right], abs=1.01)
    assert (moves[:, 0] < 0).any() and (moves[:, 0] > 0).any()


def test_a_box_of_which_little_is_left_is_not_asked_for():
    target = torch.tensor([[[0, 0, 10, 10, 2], [30, 30, 40, 40, 1], [0, 0, 0, 0, -1]]]).float()
    boxes = moved(target, torch.tensor([[1.0, 1.0, -8.0, 0.0]]), 64, 64)
    assert boxes[0].tolist() == [[0, 0, 2, 10, -1], [22, 30, 32, 40, 1], [0, 0, 0, 0, -1]]


def test_the_loss_is_least_for_what_is_there():
    target = torch.tensor([[[10, 10, 42, 42, 1], [0, 0, 0, 0, -1]]]).float()
    loss = DetectionLoss(64, 64)
    wanted, classes = assigned(target, 64, 64)
    right = torch.full((1, len(classes[0]), 6), -12.0)
    right[..., :4] = wanted
    right[0, classes[0] >= 0, 5] = 12.0
    assert loss(right, target) < 1e-3
    other_class, other_box = right.clone(), right.clone()
    other_class[..., [4, 5]] = right[..., [5, 4]]
    other_box[..., 2] += 16
    assert loss(other_class, target) > 1 and loss(other_box, target) > 0.3
    nothing = torch.tensor([[[0, 0, 0, 0, -1]]]).float()
    assert loss(right, nothing) > 1 and loss(torch.full_like(right, -12.0), nothing) < 1e-3


def test_the_loss_has_a_gradient_wherever_training_begins():
    torch.manual_seed(0)
    network = Detector(2, 8, 1, mirror=True).train()
    target = torch.tensor([[[10, 10, 42, 42, 1]], [[0, 0, 0, 0, -1]]]).float()
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    loss = DetectionLoss(64, 64)(network(x), target)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_places_cover_the_image_and_outputs_belong_to_them():
    places, strides = grid(64, 96, torch.device("cpu"), torch.float32)
    assert len(places) == 8 * 12 + 4 * 6 + 2 * 3 and places[0].tolist() == [4, 4] and places[1].tolist() == [12, 4]
    assert strides.unique().tolist() == [8, 16, 32]
    network = Detector(3, 8, 1, mirror=False).eval()
    found = network(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert found.shape == (2, len(places), 7)
    middle = (found[..., :2] + found[..., 2:4]) / 2
    assert ((middle - places).abs() < 4 * strides[:, None]).all(), "a box begins around its place"


def annotated(*objects):
    return Annotated("", "", bytes, (100, 100), [Object(name, box, difficult, 0) for name, box, difficult in objects])


def found(*boxes):
    """(box, score, class) each."""
    return (
        torch.tensor([b[0] for b in boxes]).float().reshape(-1, 4),
        torch.tensor([b[1] for b in boxes]).float(),
        torch.tensor([b[2] for b in boxes]).long(),
    )


def test_average_precision_by_hand():
    """Two cats: one found first, then a false alarm, then the other: precision 1 up to recall 0.5, then 2/3."""
    part = [annotated(("cat", (0, 0, 10, 10), False), ("dog", (50, 50, 70, 70), False)),
            annotated(("cat", (20, 20, 40, 40), False))]  # fmt: skip
    answers = [
        found(([0, 0, 10, 10], 0.9, 0), ([80, 80, 90, 90], 0.8, 0)),
        found(([20, 20, 40, 41], 0.7, 0)),
    ]
    precision = average_precision(part, answers, ["cat", "dog", "hen"])
    assert precision.by_class[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert precision.by_class[1] == 0 and np.isnan(precision.by_class[2])
    assert precision.mean == pytest.approx(precision.by_class[0] / 2)


def test_what_is_difficult_counts_neither_way():
    part = [annotated(("cat", (0, 0, 10, 10), False), ("cat", (20, 20, 40, 40), True))]
    both = [found(([20, 20, 40, 40], 0.9, 0), ([0, 0, 10, 10], 0.8, 0))]
    one = [found(([0, 0, 10, 10], 0.8, 0))]
    for answers in (both, one):
        assert average_precision(part, answers, ["cat"]).mean == pytest.approx(1)


def test_nothing_found_and_nothing_to_find():
    part, nothing = [annotated(("cat", (0, 0, 10, 10), False))], [found()]
    precision = average_precision(part, nothing, ["cat", "dog"])
    assert precision.mean == 0 and np.isnan(precision.by_class[1])
    assert np.isnan(average_precision([annotated()], nothing, ["cat"]).mean)
