"""A user's mistake is one sentence, said before training, that names the value and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import thalweg


def net(inputs: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, classes))


def x(rows: int = 20, columns: int = 4) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def y(rows: int = 20, classes: int = 3) -> Tensor:
    return torch.arange(rows) % classes


def holed(value: float) -> Tensor:
    inputs = x()
    inputs[7, 2] = value
    return inputs


def frozen() -> nn.Module:
    return net().requires_grad_(False)


class Image(nn.Module):
    """A convolution that wants `[batch, 1, height, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(100, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(1))


class Masked(nn.Module):
    """Takes a second input that it can do without, as a target would come."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(inputs)


class Dicts(Dataset):  # type: ignore[type-arg]
    """Items as Hugging Face's data sets give them."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixels": x()[i], "labels": int(y()[i])}


class Singly(IterableDataset):  # type: ignore[type-arg]
    """Examples one by one, no batches."""

    def __iter__(self) -> Iterator[Any]:
        return ((inputs, int(label)) for inputs, label in zip(x(), y(), strict=True))


MISTAKES: dict[str, tuple[Callable[[], tuple[Any, ...]], dict[str, Any], str]] = {
    "empty data": (lambda: (net(), (x(0), y(0)), "cross_entropy"), {}, "data is empty.*at least one"),
    "different length": (lambda: (net(), (x(), y(19)), "cross_entropy"), {}, "x has 20 rows and y has 19"),
    "label too large": (lambda: (net(), (x(), y(classes=4)), "cross_entropy"), {}, r"3\b.*3 classes"),
    "label below zero": (lambda: (net(), (x(), y() - 1), "cross_entropy"), {}, "-1"),
    "labels not whole": (lambda: (net(), (x(), y() + 0.5), "cross_entropy"), {}, "float32.*integers"),
    "NaN in inputs": (lambda: (net(), (holed(float("nan")), y()), "cross_entropy"), {}, "NaN or Inf in 1 row.*row 7"),
    "Inf in inputs": (lambda: (net(), (holed(float("inf")), y()), "cross_entropy"), {}, "row 7"),
    "NaN in targets": (lambda: (net(), (x(), holed(float("nan"))[:, :3]), "mse"), {}, "y holds NaN.*row 7"),
    "NaN in validation": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"validation_data": (holed(float("nan")), y())},
        "validation data holds NaN",
    ),
    "wrong width": (lambda: (net(5), (x(), y()), "cross_entropy"), {}, r"'0' \(Linear\).*\[4, 4\].*\[8, 5\]"),
    "wrong width inside": (lambda: (Image(), (torch.randn(9, 1, 8, 8), y(9)), "cross_entropy"), {}, "'head'.*144.*100"),
    "too few axes": (lambda: (Image(), (torch.randn(9, 64), y(9)), "cross_entropy"), {}, "'features'.*Conv2d"),
    "whole-number inputs": (lambda: (net(), (y(80).reshape(20, 4), y()), "cross_entropy"), {}, "float"),
    "too many inputs": (lambda: (net(), ((x(), x()), y()), "cross_entropy"), {}, "positional argument"),
    "loss does not fit": (lambda: (net(), (x(), torch.randn(20, 5)), "mse"), {}, r"\[4, 5\].*\[4, 3\].*trial of 4"),
    "silent broadcast": (lambda: (net(classes=3), (x(), torch.randn(20, 1)), "mse"), {}, r"\[4, 1\].*\[4, 3\]"),
    "unknown loss": (lambda: (net(), (x(), y()), "cross_entrpy"), {}, "did you mean 'cross_entropy'"),
    "unknown metric": (lambda: (net(), (x(), y()), "cross_entropy"), {"metrics": ["acuracy"]}, "'accuracy'"),
    "unknown rule": (lambda: (net(), (x(), y()), "cross_entropy"), {"optimizer": "adma"}, "did you mean 'adam"),
    "unknown schedule": (lambda: (net(), (x(), y()), "cross_entropy"), {"schedule": "cosin"}, "'cosine'"),
    "no targets": (lambda: (net(), x(), "cross_entropy"), {}, "no targets"),
    "all frozen": (lambda: (frozen(), (x(), y()), "cross_entropy"), {}, "every parameter.*frozen.*requires_grad_"),
    "no parameters": (lambda: (nn.ReLU(), (x(), y()), "cross_entropy"), {}, "no parameters"),
    "no device": (lambda: (net(), (x(), y()), "cross_entropy"), {"device": "cuda:99"}, "cuda:99.*auto"),
    "no such device": (lambda: (net(), (x(), y()), "cross_entropy"), {"device": "gpu"}, "'gpu'"),
    "a class of models": (lambda: (nn.ReLU, (x(), y()), "cross_entropy"), {}, r"ReLU is a class.*write ReLU\(\)"),
    "not a model": (lambda: (net, (x(), y()), "cross_entropy"), {}, "torch.nn.Module.*function"),
    "split of one": (
        lambda: (net(), (x(1), y(1)), "cross_entropy"),
        {"validation_split": 0.2},
        "leaves one part empty",
    ),
    "split of a stream": (lambda: (net(), [(x(), y())], "cross_entropy"), {"validation_split": 0.2}, "validation_data"),
    "both validations": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"validation_split": 0.2, "validation_data": (x(), y())},
        "not both",
    ),
    "split too large": (lambda: (net(), (x(), y()), "cross_entropy"), {"validation_split": 1.2}, r"\[0, 1\).*1.2"),
    "rate of nothing": (lambda: (net(), (x(), y()), "cross_entropy"), {"learning_rate": 0}, "above 0, got 0"),
    "rate in words": (lambda: (net(), (x(), y()), "cross_entropy"), {"learning_rate": "fast"}, "'fast'"),
    "no epochs": (lambda: (net(), (x(), y()), "cross_entropy"), {"epochs": 0}, "at least 1.*got 0"),
    "half an epoch": (lambda: (net(), (x(), y()), "cross_entropy"), {"epochs": 0.5}, "whole number, got 0.5"),
    "batch in words": (lambda: (net(), (x(), y()), "cross_entropy"), {"batch_size": "big"}, "'big'"),
    "full batch of a stream": (lambda: (net(), [(x(), y())], "cross_entropy"), {"batch_size": "full"}, "full"),
    "cosine to nowhere": (lambda: (net(), (x(), y()), "cross_entropy"), {"schedule": "cosine"}, "epochs"),
    "unknown option": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"optimizer": "adam", "optimizer_options": {"beta": (0.9, 0.99)}},
        "did you mean 'betas'",
    ),
    "an optimizer of another model": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"optimizer": torch.optim.SGD(net().parameters(), lr=0.1)},
        "none of the model's parameters",
    ),
    "an optimizer and a rate": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"optimizer": torch.optim.SGD(net().parameters(), lr=0.1), "learning_rate": 0.2},
        "brings its own",
    ),
    "validation that ends": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"validation_data": iter([(x(), y())])},
        "only once",
    ),
    "a loss that meets every target with every output": (
        lambda: (net(classes=1), (x(), x()[:, 0]), lambda z, t: ((z - t) ** 2).mean()),
        {},
        r"\[4\] and \[4, 1\] together to \[4, 4\].*y\[:, None\]",
    ),
    "the same by torch's function": (
        lambda: (net(classes=1), (x(), x()[:, 0]), lambda z, t: nn.functional.mse_loss(z, t)),
        {},
        r"together to \[4, 4\]",
    ),
    "a metric that does so": (
        lambda: (net(classes=1), (x(), x()[:, 0]), "mse"),
        {"metrics": [lambda z, t: (z - t).abs().mean()]},
        r"the metric '<lambda>'.*together to \[4, 4\]",
    ),
    "a metric for each example": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"metrics": [lambda z, t: (z.argmax(1) == t).float()]},
        r"the metric '<lambda>'.*one number.*shape \[4\]; average",
    ),
    "a metric of something else": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"metrics": [lambda z, t: 1 / 0]},
        "the metric '<lambda>' fails.*division by zero",
    ),
    "targets as the loss": (lambda: (net(), x(), y()), {}, r"type Tensor: data and targets.*fit\(model, \(x, y\)"),
    "a class of losses": (lambda: (net(), (x(), y()), nn.CrossEntropyLoss), {}, r"write CrossEntropyLoss\(\)"),
    "a class of rules": (
        lambda: (net(), (x(), y()), "cross_entropy"),
        {"optimizer": torch.optim.SGD},
        "got the class SGD",
    ),
    "no loss": (lambda: (net(), (x(), y()), None), {}, "must return its loss, which Sequential cannot.*give loss="),
    "outputs and no loss": (lambda: (Masked(), (x(), y()), None), {}, "^without a loss.*shape .4, 3.; give loss="),
    "three parts": (lambda: (net(), (x(), y(), np.ones(20)), "cross_entropy"), {}, r"has 3 parts.*\(\(a, b\), y\)"),
    "dicts as items": (lambda: (net(), Dicts(), "cross_entropy"), {}, "keys 'pixels', 'labels'.*no targets.*pairs"),
    "a list of examples": (lambda: (net(), Singly(), "cross_entropy"), {}, "single examples.*DataLoader"),
    "examples of NumPy": (
        lambda: (net(), list(zip(x(), y().numpy(), strict=True)), nn.CrossEntropyLoss()),
        {},
        "single examples",
    ),
    "one example": (lambda: (net(), (x()[0], y()[0]), "cross_entropy"), {}, r"y is a single number.*x\[None\]"),
    "parts of different length": (
        lambda: (net(), ({"a": x(), "b": x(10)}, y()), "cross_entropy"),
        {},
        r"x\['a'\] has 20 rows and x\['b'\] has 10",
    ),
    "words as data": (lambda: (net(), (np.array(["a"]), y(1)), "cross_entropy"), {}, "not numbers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_before_training(name: str) -> None:
    arguments, settings, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words) as raised:
        thalweg.fit(*arguments(), **{"verbose": False, "epochs": None, **settings})
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400, message
    assert not Path("runs").exists(), "nothing is made before all is checked"


def test_what_was_tried_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="classes"):
        thalweg.fit(model, (x(), y(classes=5)), "cross_entropy", verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    assert not model[0]._forward_pre_hooks


def test_a_run_directory_that_holds_a_run() -> None:
    thalweg.fit(net(), (x(), y()), "cross_entropy", epochs=1, run_dir="mine", verbose=False)
    with pytest.raises(ValueError, match=r"holds a run already.*resume=True"):
        thalweg.fit(net(), (x(), y()), "cross_entropy", epochs=1, run_dir="mine", verbose=False)


def test_a_run_directory_in_use() -> None:
    class Inside:
        message = ""

        def on_start(self, run: thalweg.Run) -> None:
            try:
                thalweg.fit(net(), (x(), y()), "cross_entropy", run_dir="mine", verbose=False)
            except ValueError as error:
                self.message = str(error)

    inside = Inside()
    thalweg.fit(net(), (x(), y()), "cross_entropy", epochs=1, run_dir="mine", verbose=False, callbacks=[inside])
    assert "in use" in inside.message


def test_a_run_directory_that_cannot_be_made() -> None:
    Path("file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        thalweg.fit(net(), (x(), y()), "cross_entropy", run_dir="file/run", verbose=False)


def test_shapes_that_a_loss_of_ones_own_brings_together_itself_are_its_own() -> None:
    for loss in (lambda z, t: (z.squeeze(1) - t).square().mean(), lambda z, t: (z - z.T).square().mean() + t.mean()):
        thalweg.fit(net(classes=1), (x(), x()[:, 0]), loss, epochs=1, verbose=False)


def test_a_loss_that_is_detached_is_told_so() -> None:
    def loss(z: Tensor, t: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, t).detach()

    with pytest.raises(ValueError, match="does not depend on the model's weights; do not detach it"):
        thalweg.fit(net(), (x(), y()), loss, epochs=1, verbose=False)


def test_data_that_ends_with_its_first_epoch_is_told() -> None:
    def once() -> Any:
        return ((x(), y()) for _ in range(3))

    told = [
        bool([note for note in thalweg.fit(net(), once(), "cross_entropy", verbose=False, **of).record.notes
              if "gone through once" in note])
        for of in ({"epochs": 5}, {"epochs": 1}, {"steps": 2}, {})
    ]  # fmt: skip
    assert told == [True, False, False, True]


def test_a_later_batch_that_cannot_be_trained_on_is_named() -> None:
    batches = [(x(), y()), (x(), y(classes=9))]
    with pytest.raises(ValueError, match="batch 2 of epoch 1 cannot be trained on.*out of bounds"):
        thalweg.fit(net(), batches, "cross_entropy", verbose=False)
    wide = [(x(), y()), (x(), y()), (x(columns=5), y())]
    with pytest.raises(ValueError, match="batch 3 of epoch 1 cannot be trained on.*shapes"):
        thalweg.fit(net(), wide, "cross_entropy", verbose=False)
    assert thalweg.History.open("runs/sequential-2/history.sqlite").series("loss")[0].tolist() == [1, 2]


def test_not_a_number_in_a_stream_is_seen_in_its_first_batch() -> None:
    with pytest.raises(ValueError, match="first batch holds NaN"):
        thalweg.fit(net(), [(holed(float("nan")), y())], "cross_entropy", verbose=False)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("los", {}, "unknown target 'los': did you mean 'loss'.*named in metrics="),
        ("accuracy", {}, r"'accuracy' is not measured.*metrics=\['accuracy'\]"),
        ("validation_loss", {}, "'validation_loss' needs held-out data: give validation_data or validation_split$"),
        ("validation_accuracy", {"metrics": ["accuracy"]}, "needs held-out data.*validation_split$"),
        ("validation_accuracy", {}, r"needs held-out data.*, and metrics=\['accuracy'\]"),
        ("validation_accuracy", {"validation_split": 0.2}, r"not measured.*metrics=\['accuracy'\]"),
    ],
)
def test_a_target_that_will_never_be_measured(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        thalweg.fit(net(), (x(), y()), "cross_entropy", target={name: 0.5}, verbose=False, **given)


@pytest.mark.parametrize("metric", ["accuracy", "top5"])
def test_classes_are_not_counted_among_real_numbers(metric: str) -> None:
    with pytest.raises(ValueError, match=f"{metric} counts classes.*real numbers.*rmse"):
        thalweg.fit(net(classes=1), (x(), x()[:, 0]), "mse", metrics=[metric], verbose=False)
    labels = (2 * y(classes=2) - 1).float()
    for target in (labels, labels.clamp(0.1, 0.9)):
        run = thalweg.fit(net(classes=1), (x(), target), "mse", metrics=[metric], steps=1, plan="eager", verbose=False)
        assert metric in run.metrics


def test_metrics_of_a_model_that_returns_its_loss_alone() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.inner(inputs), target)

    with pytest.raises(ValueError, match="metrics need the model's outputs"):
        thalweg.fit(Own(), (x(), y()), metrics=["accuracy"], verbose=False)


def test_a_models_own_fault_is_a_sentence_with_its_cause() -> None:
    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.innner(inputs)

    with pytest.raises(ValueError, match="Faulty.*no attribute 'innner'") as raised:
        thalweg.fit(Faulty(), (x(), y()), "cross_entropy", verbose=False)
    assert isinstance(raised.value.__cause__, AttributeError)


def test_predict_refuses_what_is_no_array() -> None:
    from torch.utils.data import TensorDataset

    with pytest.raises(TypeError, match="not a TensorDataset"):
        thalweg.predict(net(), TensorDataset(x()))
    with pytest.raises(ValueError, match="at least 1"):
        thalweg.predict(net(), x(), batch_size=0)


def test_numbers_of_numpys_are_written_as_plain_ones() -> None:
    given = {"batch_size": np.int64(5), "epochs": np.int64(1), "learning_rate": np.float32(0.5)}
    run = thalweg.fit(net(), (x(), y()), "cross_entropy", **given, plan="eager", verbose=False)
    asked = json.loads((run.directory / "run.json").read_text())["asked"]
    assert {name: asked[name] for name in given} == {"batch_size": 5, "epochs": 1, "learning_rate": 0.5}


def test_boolean_labels_are_classes() -> None:
    labels = y(classes=2).bool()
    assert thalweg.fit(net(), (x(), labels), "cross_entropy", steps=2, plan="eager", verbose=False).steps == 2
    assert not any(found.severity == "critical" for found in thalweg.check(net(), (x(), labels), "cross_entropy"))
