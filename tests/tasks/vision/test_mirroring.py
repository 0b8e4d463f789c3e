import numpy as np
import pytest
import torch
from made_up_images import SHARED

from thalweg.tasks.vision.mirroring import Mirroring, mirroring
from thalweg.tasks.vision.residual import Block, Pixels


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
