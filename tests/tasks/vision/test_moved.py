import numpy as np
import pytest
import torch
from made_up_images import SHARED

from thalweg.tasks.vision.moved import Mirroring, Moved, mirroring
from thalweg.tasks.vision.residual import Block, Pixels


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


def made(symmetric, count=600):
    """Two classes of blobs: apart up and down, or left and right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 1, 12, 12), generator=generator)
    for image, label in zip(images[:, 0], labels, strict=True):
        part = image if symmetric else image.T
        part[8 : 10 if label else 9, 3:9] += 100 * label
        part[2:4, 3:9] += 100 * (1 - label)
    return images.to(torch.uint8), labels


def test_what_a_mirror_harms_is_found():
    assert mirroring(*made(symmetric=True), 2).harmless
    found = mirroring(*made(symmetric=False), 2)
    assert not found.harmless and found.straight > 0.95 and found.mirrored < 0.3
    assert found.sentence.startswith("Images are not mirrored while training: of 200 held out")


def test_a_tenth_may_be_lost():
    assert Mirroring(0.5, 0.45, 100).harmless and not Mirroring(0.5, 0.44, 100).harmless


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not at hand")
def test_real_digits_are_not_mirrored():
    from thalweg.tasks.mnist import idx_part

    images, labels = idx_part(SHARED / "images" / "mnist", "training")
    assert not mirroring(images[:, None], labels, 10).harmless


def test_statistics_are_those_of_each_channel():
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 7
    pixels = Pixels(3)
    pixels.measure(images)
    assert np.allclose(pixels.mean.flatten(), images.double().mean((0, 2, 3)))
    assert np.allclose(pixels.std.flatten()[:2], images.double().std((0, 2, 3), correction=0)[:2])
    assert pixels.std.flatten()[2] == 1, "a channel without contrast is only centred"
    out = pixels(images)
    assert out.dtype == torch.float32 and out[:, :2].mean().abs() < 1e-5


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 1), (4, 8, 2)])
def test_a_block_begins_as_its_shortcut(inputs, outputs, stride):
    block = Block(inputs, outputs, stride).eval()
    x = torch.randn(2, inputs, 7, 7)
    assert block(x).shape == (2, outputs, 7, 7) if stride == 1 else (2, outputs, 4, 4)
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))
