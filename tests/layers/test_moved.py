"""Images moved while training."""

import pytest
import torch

from thalweg.layers.moved import Moved


def slowly(image, down, right, mirrored):
    """One image, pixel by pixel."""
    _, rows, columns = image.shape
    out = torch.empty_like(image)
    for i in range(rows):
        for j in range(columns):
            from_column = min(max(j + right, 0), columns - 1)
            out[:, i, j] = image[
                :, min(max(i + down, 0), rows - 1), columns - 1 - from_column if mirrored else from_column
            ]
    return out


@pytest.mark.parametrize("mirror", [False, True])
def test_each_image_is_one_that_moving_it_can_make_and_all_are_made(mirror):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    layer = Moved(1, mirror).train()
    moved = layer(image.expand(600, -1, -1, -1))
    assert moved.shape == (600, 3, 5, 7) and moved.dtype == torch.uint8
    can = {
        tuple(slowly(image, down, right, flip).flatten().tolist())
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        for flip in ({False, True} if mirror else {False})
    }
    assert {tuple(one.flatten().tolist()) for one in moved} == can


def test_nothing_is_moved_in_evaluation():
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(Moved(2, True).eval()(x), x)
    assert torch.equal(Moved(0, False).train()(x), x)


def test_the_same_seed_moves_alike():
    x = torch.randn(8, 1, 9, 9)
    layer = Moved(3, True).train()
    torch.manual_seed(3)
    one = layer(x)
    torch.manual_seed(3)
    assert torch.equal(one, layer(x))
