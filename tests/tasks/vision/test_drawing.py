import io

import numpy as np
import torch
from PIL import Image

from thalweg.tasks.vision.drawing import LINE, boxed, image_of, png, sheet


def read(png_bytes):
    return np.asarray(Image.open(io.BytesIO(png_bytes)).convert("RGB"))


def test_images_lie_in_rows_with_their_words_below():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("L", (8, 4), 99)
    pixels = read(sheet([red, blue, red], ["one", "two\nlines", "three"], columns=2, side=40))
    assert pixels.shape == (2 * (40 + 2 * LINE + 8) + 8, 2 * 48 + 8, 3)
    assert tuple(pixels[28, 28]) == (255, 0, 0) and tuple(pixels[28, 76]) == (99, 99, 99)
    assert tuple(pixels[10, 76]) == (255, 255, 255), "a wide image keeps its shape"
    assert (pixels[49:76, 8:48] < 128).any(), "there are words"


def test_a_long_name_stays_below_its_own_image():
    long = read(sheet([Image.new("L", (4, 4))] * 2, ["a very long name of a class indeed", ""], columns=2, side=40))
    assert (long[49:, 8:48] < 128).any() and (long[49:, 50:] == 255).all()


def test_boxes_are_drawn_where_they_are():
    drawn = np.asarray(boxed(Image.new("RGB", (100, 80)), [(40, 40, 80, 70)], [0], ["a"], [(5, 5, 20, 20)]))
    assert tuple(drawn[69, 60]) == (0xE6, 0x9F, 0x00) and tuple(drawn[55, 60]) == (0, 0, 0)
    assert tuple(drawn[5, 10]) == (255, 255, 255) and tuple(drawn[10, 10]) == (0, 0, 0)


def test_tensors_as_images():
    pixels = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    assert np.array_equal(np.asarray(image_of(pixels)), pixels.numpy().transpose(1, 2, 0))
    assert np.array_equal(read(png(image_of(pixels[:1])))[..., 0], pixels[0].numpy())
