import math

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn.metrics import r2_score, top_k_accuracy_score
from torch import nn

from thalweg.loop.metrics import higher_is_better, resolve_metrics
from thalweg.step.losses import resolve

G = torch.Generator().manual_seed(1)
Z = torch.randn(50, 8, generator=G)
Y = torch.randint(8, (50,), generator=G)
RIGHT = (Z.argmax(1) == Y).double().mean().item()


def measured(name, output, target, loss="cross_entropy", parts=(7, 20, 23)):
    """The metric counted over uneven batches."""
    metrics = resolve_metrics([name], loss)
    for z, y in zip(output.split(parts), target.split(parts), strict=True):
        metrics.update(z, y)
    (value,) = metrics.compute().values()
    return value


@pytest.mark.parametrize(
    "target",
    [Y, Y.int(), Y[:, None], F.one_hot(Y, 8), 0.9 * F.one_hot(Y, 8) + 0.1 / 8],
    ids=["indices", "int32", "column", "one-hot", "probabilities"],
)
def test_accuracy(target):
    assert 0 < RIGHT < 1
    assert measured("accuracy", Z, target) == pytest.approx(RIGHT, abs=1e-15)
    top5 = top_k_accuracy_score(Y.numpy(), Z.numpy(), k=5, labels=range(8))
    assert measured("top5", Z, target) == pytest.approx(top5, abs=1e-15)


def test_accuracy_of_sequences_leaves_ignored_targets_out():
    z, y = Z.reshape(10, 5, 8), Y.reshape(10, 5).clone()
    y[:, 3:] = -100
    expected = (z.argmax(2) == y)[:, :3].double().mean().item()
    for output in (z, z.transpose(1, 2)):
        assert measured("accuracy", output, y, parts=(1, 9)) == pytest.approx(expected, abs=1e-15)
    assert measured("top5", z, y, parts=(1, 9)) >= expected


def test_top5_of_few_classes_is_one():
    assert measured("top5", Z[:, :3], Y % 3) == 1


@pytest.mark.parametrize(
    ("loss", "output", "threshold"),
    [
        ("binary_cross_entropy", Z[:, :1], 0),
        ("binary_cross_entropy", Z[:, 0], 0),
        (resolve(nn.BCEWithLogitsLoss()).name, Z[:, :1], 0),
        (resolve(F.binary_cross_entropy_with_logits).name, Z[:, :1], 0),
        ("binary_cross_entropy", Z[:, :2], 0),
        (resolve(nn.BCELoss()).name, Z[:, :1].sigmoid(), 0.5),
        (resolve(F.binary_cross_entropy).name, Z[:, :1].sigmoid(), 0.5),
        ("mse", Z[:, :1], 0.5),
    ],
)
def test_accuracy_of_units(loss, output, threshold):
    y = Y % 2
    target = torch.stack((y, 1 - y), 1) if output.shape[-1:] == (2,) else y
    right = (output.reshape(50, -1) > threshold) == target.reshape(50, -1).bool()
    assert measured("accuracy", output, target, loss) == pytest.approx(right.double().mean().item(), abs=1e-15)


@pytest.mark.parametrize("width", [1, 3])
def test_regression(width):
    z, y = Z[:, :width], Z[:, :width] + Z[:, 3 : 3 + width] + 1e4
    if width == 1:
        y = y[:, 0]
    error = (z.double() - y.reshape(z.shape).double()).abs()
    assert measured("mae", z, y, "mse") == pytest.approx(error.mean().item(), rel=1e-14)
    assert measured("rmse", z, y, "mse") == pytest.approx(error.square().mean().sqrt().item(), rel=1e-14)
    expected = r2_score(y.reshape(z.shape).double().numpy(), z.double().numpy())
    assert measured("r2", z, y, "mse") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("output", "expected"), [(torch.full((50,), 2.0), 1.0), (torch.full((50,), 2.5), 0.0)])
def test_r2_of_a_target_that_does_not_vary(output, expected):
    assert measured("r2", output, torch.full((50,), 2.0), "mse") == expected == r2_score([2.0] * 50, output.tolist())


@pytest.mark.parametrize("loss", ["cross_entropy", "nll", "categorical_cross_entropy", "CrossEntropyLoss"])
def test_perplexity(loss):
    z, y = Z.double(), Y.clone()
    y[:10] = -100  # the first batch is of ignored targets only
    output = {"nll": z.log_softmax(1), "categorical_cross_entropy": z.softmax(1)}.get(loss, z)
    expected = F.cross_entropy(z, y).exp().item()
    assert measured("perplexity", output, y, loss) == pytest.approx(expected, rel=1e-13)
    assert math.isnan(measured("perplexity", output * math.nan, y, loss))


def test_sums_are_double():
    """In float32 the mean of a large first batch and many small ones would be lost."""
    metrics = resolve_metrics("mae", "mse")
    metrics.update(torch.tensor([1e9]), torch.tensor([0.0]))
    for _ in range(9):
        metrics.update(torch.tensor([1.0]), torch.tensor([0.0]))
    assert metrics.compute() == {"mae": (1e9 + 9) / 10}


def test_update_reads_nothing_from_the_device():
    """Tensors on the meta device hold no values: reading one raises."""
    names = ["accuracy", "top5", "perplexity"]
    metrics = resolve_metrics(names, "cross_entropy")
    metrics.update(torch.empty(4, 8, device="meta"), torch.empty(4, device="meta", dtype=torch.int64))
    regression = resolve_metrics(["mae", "rmse", "r2"], "mse")
    regression.update(torch.empty(4, 1, device="meta"), torch.empty(4, device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        metrics.compute()


def test_callable_and_torchmetrics():
    def share_above(output, target):
        return (output[:, 0] > 0).float().mean()

    theirs = torchmetrics.classification.MulticlassAccuracy(8, average="micro")
    metrics = resolve_metrics([share_above, theirs, lambda z, y: 3], "cross_entropy")
    assert metrics.names == ["share_above", "MulticlassAccuracy", "<lambda>"]
    for _ in range(2):
        metrics.reset()
        for z, y in zip(Z.split((7, 43)), Y.split((7, 43)), strict=True):
            metrics.update(z.requires_grad_(), y)
        values = metrics.compute()
    assert values["share_above"] == pytest.approx((Z[:, 0] > 0).double().mean().item(), rel=1e-6)
    assert values["MulticlassAccuracy"] == pytest.approx(RIGHT, rel=1e-6)
    assert values["<lambda>"] == 3


def test_nothing_counted_is_no_number():
    names = ["accuracy", "rmse", "r2", "perplexity"]
    metrics = resolve_metrics(names, "mse")
    assert all(math.isnan(value) for value in metrics.compute().values())
    assert metrics.names == names


def test_what_is_no_metric():
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        resolve_metrics(["acuracy"], "mse")
    with pytest.raises(ValueError, match="twice"):
        resolve_metrics(["mae", "mae"], "mse")
    with pytest.raises(TypeError, match="torchmetrics"):
        resolve_metrics([3], "mse")
    assert resolve_metrics((), "mse").compute() == {}


@pytest.mark.parametrize("name", ["accuracy", "top5", "r2", "bleu", "mean_average_precision", "validation_accuracy"])
def test_higher(name):
    assert higher_is_better(name)


@pytest.mark.parametrize(
    "name", ["loss", "validation_loss", "mae", "rmse", "perplexity", "word_error_rate", "MeanSquaredError"]
)
def test_lower(name):
    assert not higher_is_better(name)


def test_an_object_is_called_by_its_name_else_by_its_class():
    class Largest:
        def reset(self):
            self.largest = float("-inf")

        def update(self, output, target):
            self.largest = max(self.largest, output.max().item())

        def compute(self):
            return self.largest

    named = Largest()
    named.name = "largest_output"
    metrics = resolve_metrics([Largest(), named])
    metrics.reset()
    metrics.update(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 0.0]))
    assert metrics.compute() == {"Largest": 3.0, "largest_output": 3.0}
