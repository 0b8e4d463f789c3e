import json
import shutil

import pytest
import torch
from made_up_images import SHARED, write_voc
from PIL import Image

import thalweg
from thalweg.cli import main
from thalweg.tasks.vision.detection import make, task
from thalweg.tasks.vision.images import Remarks
from thalweg.tasks.vision.scenes import Canvas

SMALL = {"size": 128, "width": 16}
SHORT = {"epochs": 25, "batch_size": 8, "learning_rate": 0.005, "verbose": False}


@pytest.fixture
def run(voc_folder, tmp_path):
    return thalweg.recipe("object-detection", data=str(voc_folder), **SMALL).fit(run_dir=tmp_path / "run", **SHORT)


def test_learns_what_chance_cannot_and_answers_shows_and_exports_it(run, voc_folder, tmp_path, capsys):
    """One training, and all that can be asked of it."""
    assert run.metrics["mean_average_precision"] >= 0.8
    assert run.metrics["mean_average_precision_of_validation"] >= 0.8
    page = run.report().read_text()
    assert "What is found where" in page and page.count("data:image/png") >= 6
    image = voc_folder / "JPEGImages" / "test00.png"
    shutil.rmtree(voc_folder / "Annotations")  # what follows needs no training data
    model, facts = thalweg.load(run.directory), json.loads((run.directory / "facts.json").read_text())
    (answer,) = task.predict(model, facts, [image])
    assert 3 <= len(answer["boxes"]) <= 6 and {"disc", "square"} >= {box["class"] for box in answer["boxes"]}
    assert main(["predict", str(run.directory), str(image)]) == 0
    assert answer["answer"] in capsys.readouterr().out
    check_onnx(run, model, image, facts, tmp_path)


def check_onnx(run, model, image, facts, tmp_path):
    import onnxruntime

    pixels = Canvas(facts["rows"], facts["columns"]).pixels(image.read_bytes(), lambda remark: None)
    x = torch.stack([pixels, pixels.flip(-1), pixels.flip(-2)])
    assert main(["export", str(run.directory), str(tmp_path / "model.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), thalweg.predict(model, x), rtol=1e-3, atol=1e-2)


def test_canvas_and_boxes_are_scaled_alike(voc_folder):
    canvas = Canvas.of([(128, 96), (96, 128)], 64)
    assert canvas == Canvas(64, 64) and canvas.scale((128, 96)) == 0.5
    made = make(voc_folder, size=64)
    x, y = made["data"]
    assert x.shape == (48, 3, 64, 64) and x.dtype == torch.uint8 and y.shape == (48, 4, 5)
    for image, boxes in zip(x, y, strict=True):
        for left, top, right, bottom, kind in boxes.tolist():
            middle = image[:, int((top + bottom) / 2), int((left + right) / 2)]
            red = middle[0] > middle[2] + 50
            assert bool(red) == (kind == 0), "discs are red and squares are blue"
    assert (x[:, :, 48:] == 114).all(), "below the image the canvas is empty"


def test_a_tall_image_on_a_wide_canvas_keeps_its_shape(tmp_path):
    Image.new("L", (50, 100), 255).save(tmp_path / "tall.png")
    pixels = Canvas(64, 96).pixels((tmp_path / "tall.png").read_bytes(), lambda remark: None)
    assert (pixels[:, :, :32] == 255).all() and (pixels[:, :, 32:] == 114).all()


def test_without_lists_images_are_held_out_by_the_seed(tmp_path):
    write_voc(tmp_path / "shapes", {"train": 10})
    one, other = make(tmp_path / "shapes", size=64), make(tmp_path / "shapes", size=64, seed=1)
    assert len(one["data"][0]) == 8 and sum(len(x) for x, _ in one["validation_data"]) == 2
    assert not torch.equal(one["validation_data"][0][0], other["validation_data"][0][0])
    with pytest.raises(ValueError, match="leaves one part empty: give more images, or another share"):
        make(tmp_path / "shapes", validation_share=0.01)


def test_a_class_that_training_lacks(voc_folder):
    path = voc_folder / "Annotations" / "test00.xml"
    path.write_text(path.read_text().replace("disc", "zebra").replace("square", "zebra"))
    with pytest.raises(ValueError, match=r"test00.xml, line 4: class zebra, which the training part lacks"):
        make(voc_folder, **SMALL)
    made = make(voc_folder, **SMALL, on_bad_data="skip")
    assert made["notes"][0].startswith("Skipped 4: class zebra")
    assert made["callbacks"][0].parts["test"].annotated[0].objects == []


def test_a_broken_image_is_named(voc_folder):
    path = voc_folder / "JPEGImages" / "train00.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"train00.xml: an image that is damaged"):
        make(voc_folder, **SMALL)
    made = make(voc_folder, **SMALL, on_bad_data="skip")
    assert len(made["data"][0]) == 47 and made["notes"][0].startswith("Skipped 1: an image that is damaged")


def test_grey_and_alpha_are_converted_and_said(voc_folder):
    path = voc_folder / "JPEGImages" / "train00.png"
    image = Image.open(path).convert("RGBA")
    image.putalpha(100)
    image.save(path)
    made = make(voc_folder, **SMALL)
    (note,) = made["notes"]
    assert note.startswith("1 image had an alpha channel and was laid over white: ")
    assert Remarks().notes() == []


def test_images_without_boxes_may_be_learned_from(voc_folder):
    path = voc_folder / "Annotations" / "train00.xml"
    path.write_text("<annotation><filename>train00.png</filename></annotation>")
    assert (make(voc_folder, **SMALL)["data"][1][0, :, 4] == -1).all()
    for path in (voc_folder / "Annotations").glob("train*.xml"):
        path.write_text("<annotation></annotation>")
    with pytest.raises(ValueError, match="the training images in .* have no boxes"):
        make(voc_folder, **SMALL, on_bad_data="skip")
    with pytest.raises(ValueError, match="at least 32, got 8"):
        make(voc_folder, size=8)


def test_answers_are_in_pixels_of_the_image(voc_folder, tmp_path):
    """A network that finds one box, on an image of twice the canvas."""
    made = make(voc_folder, **SMALL)
    Image.new("RGB", (256, 192)).save(tmp_path / "large.png")

    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.said = torch.nn.Parameter(torch.tensor([[[10.0, 20, 30, 200, 3, -9]]]))

        def forward(self, x):
            return self.said

    (answer,) = task.predict(Sure(), made["facts"], [tmp_path / "large.png"])
    assert answer["answer"] == "1 disc" and answer["boxes"][0]["box"] == [20, 40, 60, 192]
    (tmp_path / "words.png").write_text("no image")
    with pytest.raises(ValueError, match=r"words.png: an image was expected"):
        next(task.predict(Sure(), made["facts"], [tmp_path / "words.png"]))


def test_a_run_is_gone_on_with(voc_folder, tmp_path):
    made = thalweg.recipe("object-detection", data=str(voc_folder), **SMALL)
    short = made.fit(run_dir=tmp_path / "run", **{**SHORT, "epochs": 1})
    longer = thalweg.resume(short.directory, epochs=2, verbose=False)
    assert longer.steps == 2 * short.steps and "mean_average_precision" in longer.metrics


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not at hand")
def test_blood_cells_are_found(tmp_path):
    """A twelfth of the training that the task gives itself: benchmarks/tasks measures the whole."""
    made = thalweg.recipe("object-detection", data=str(SHARED / "detection" / "bccd-voc.tar.gz"), size=192)
    run = made.fit(run_dir=tmp_path / "run", epochs=6, learning_rate=0.002, verbose=False)
    assert run.metrics["mean_average_precision"] >= 0.4
