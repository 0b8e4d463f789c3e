"""Changes of the loss and of scales, and what is computed into the layers at the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bodies import KINDS, Recurrent, body, body_of, images, mlp, predicted
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.repairs.change import Body
from thalweg.repairs.data import Standardise, moments
from thalweg.repairs.network import CHANGES, fold
from thalweg.step.losses import resolve

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 3
ONE_HOT = F.one_hot(LABELS, 3).float()
BINARY = (torch.arange(32) % 2).float()[:, None]
VALUES = 100 + 30 * torch.randn(32, 3, generator=torch.Generator().manual_seed(1))


class Ends(nn.Module):
    """A network that ends in a function."""

    def __init__(self, function: Any, outputs: int) -> None:
        super().__init__()
        self.dense, self.function = nn.Linear(6, outputs), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.dense(x))


def ended(head: Any, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    if head is None:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))
    if isinstance(head, nn.Module):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), head)
    return Ends(head, outputs)


SOFT = nn.Softmax(-1)
ROWS: list[tuple[Any, Any, Tensor, dict[str, str] | None]] = [
    # head, loss, target, what is to be done
    (SOFT, "cross_entropy", LABELS, {"head": "3"}),
    (nn.Sigmoid(), "cross_entropy", LABELS, {"head": "3"}),
    (nn.ReLU(), nn.CrossEntropyLoss(), LABELS, {"head": "3"}),
    (nn.LogSoftmax(-1), "cross_entropy", LABELS, None),  # twice is the same as once
    (None, "cross_entropy", LABELS, None),
    (nn.Sigmoid(), "binary_cross_entropy", BINARY, {"head": "3"}),
    (nn.Tanh(), nn.BCEWithLogitsLoss(), BINARY, {"head": "3"}),
    (nn.Sigmoid(), nn.BCELoss(), BINARY, None),
    (SOFT, "categorical_cross_entropy", LABELS, None),
    (nn.LogSoftmax(-1), "nll", LABELS, None),
    (SOFT, "nll", LABELS, {"head": "3", "loss": "cross_entropy"}),
    (None, "nll", LABELS, {"loss": "cross_entropy"}),
    (None, "categorical_cross_entropy", LABELS, {"loss": "cross_entropy"}),
    (lambda x: x.softmax(-1), "cross_entropy", LABELS, {"loss": "categorical_cross_entropy"}),
    (lambda x: x.softmax(-1), nn.CrossEntropyLoss(label_smoothing=0.1), LABELS, None),  # not to be lost
    (torch.sigmoid, "binary_cross_entropy", BINARY, {"loss": "bce"}),
    (torch.relu, "cross_entropy", LABELS, None),  # nothing can be taken out
    (nn.ReLU(), "mse", -VALUES, {"head": "3"}),
    (nn.Sigmoid(), "mae", VALUES, {"head": "3"}),
    (nn.Tanh(), "huber", VALUES, {"head": "3"}),
    (nn.Tanh(), "mse", torch.tanh(VALUES - 100), None),
    (nn.Sigmoid(), "mse", ONE_HOT, {"head": "3", "loss": "cross_entropy"}),
    (SOFT, "mse", ONE_HOT, {"head": "3", "loss": "cross_entropy"}),
    (nn.Sigmoid(), "mse", BINARY, {"head": "3", "loss": "binary_cross_entropy"}),
    (None, "mse", VALUES, None),
]  # fmt: skip


@pytest.mark.parametrize(("head", "loss", "target", "wanted"), ROWS)
def test_loss_and_output_are_brought_together(head: Any, loss: Any, target: Tensor, wanted: Any) -> None:
    case = body(ended(head, target.shape[1] if target.ndim > 1 else 3), X, target, loss)
    words = CHANGES["drop_head"].words(case)
    assert words == wanted
    if words is None:
        return
    before, module, parts = case.loss, case.model, list(case.model.modules())
    undo = CHANGES["drop_head"].apply(case, words)
    output = case.model(X)
    assert case.loss is not None
    case.loss.check(output.detach(), target)
    case.loss(output, target).backward()
    assert CHANGES["drop_head"].words(case) is None  # nothing is left to do
    if "head" in words:
        assert isinstance(case.model[3], nn.Identity)
    undo()
    assert case.loss is before and case.model is module and list(case.model.modules()) == parts


def test_a_head_that_is_shut_goes() -> None:
    model = ended(nn.ReLU(), 3)
    case = body(model, X, VALUES, "mse")
    with torch.no_grad():
        model[2].bias.fill_(5.0)
    assert CHANGES["drop_head"].words(case) is None
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    assert CHANGES["drop_head"].words(case) == {"head": "3"}


def test_a_head_that_is_a_hidden_activation_too_stays() -> None:
    act = nn.Sigmoid()
    case = body(nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 3), act), X, LABELS, "cross_entropy")
    assert CHANGES["drop_head"].words(case) is None


def test_a_head_behind_which_only_the_shape_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid(), nn.Flatten(0))
    case = body(model, X, BINARY[:, 0], "binary_cross_entropy")
    assert CHANGES["drop_head"].words(case) == {"head": "1"}


# ── classes ──


def test_weighted_classes_count_alike() -> None:
    """The loss is that of torch with its weights, and micro-batches put together by their counts give the whole."""
    y = torch.tensor([0] * 24 + [1] * 6 + [2] * 2)
    case = body(ended(None, 3), X, y, "cross_entropy")
    words = CHANGES["weigh_classes"].words(case)
    assert words is not None
    weights = torch.tensor([32 / 72, 32 / 18, 32 / 6])
    CHANGES["weigh_classes"].apply(case, words)
    output, loss = case.model(X), case.loss
    assert loss is not None
    torch.testing.assert_close(loss(output, y), F.cross_entropy(output, y, weights))
    parts = [slice(0, 10), slice(10, 32)]
    counts = [loss.num_terms(output[part], y[part]) for part in parts]
    whole = sum(n * loss(output[part], y[part]) for n, part in zip(counts, parts, strict=True)) / sum(counts)
    torch.testing.assert_close(whole, loss(output, y))
    assert sum(counts) == pytest.approx(float(weights[y].sum()))


def test_weighted_ones() -> None:
    y = (torch.arange(32) % 8 == 0).float()
    case = body(ended(None, 1), X, y, "binary_cross_entropy")
    words = CHANGES["weigh_classes"].words(case)
    assert words == {"positive": 7.0}
    CHANGES["weigh_classes"].apply(case, words)
    output = case.model(X)
    assert case.loss is not None
    wanted = F.binary_cross_entropy_with_logits(output[:, 0], y, pos_weight=torch.tensor(7.0))
    torch.testing.assert_close(case.loss(output, y), wanted)


@pytest.mark.parametrize("loss", ["mse", nn.CrossEntropyLoss()])
def test_no_weights_for_other_losses(loss: Any) -> None:
    y = VALUES if loss == "mse" else torch.tensor([0] * 30 + [1, 2])
    assert CHANGES["weigh_classes"].words(body(ended(None, 3), X, y, loss)) is None


def test_no_weights_for_equal_classes_or_missing_ones() -> None:
    assert CHANGES["weigh_classes"].words(body(ended(None, 3), X, LABELS, "cross_entropy")) is None
    assert CHANGES["weigh_classes"].words(body(ended(None, 4), X, LABELS, "cross_entropy")) is None
    assert CHANGES["weigh_classes"].words(body(ended(None, 1), X, BINARY, "binary_cross_entropy")) is None


# ── inputs ──


def standardised(case: Body) -> dict[str, float | str]:
    words = CHANGES["standardise_inputs"].words(case)
    assert words is not None
    CHANGES["standardise_inputs"].apply(case, words)
    return dict(words)


def test_features_are_standardised_each_by_itself() -> None:
    x = torch.randn(64, 6, dtype=torch.float64) * torch.tensor([1e-3, 1, 1e4, 1, 1, 1]) + torch.tensor(
        [0, 9, 0, 0, 0, 5]
    )
    x[:, 5] = 5.0
    x[7, 0] = torch.nan
    case = body(mlp().double(), x, torch.zeros(64, 3))
    assert standardised(case) == {"where": "0", "axes": "-1", "features": "6"}
    layer = case.model[0].ahead
    assert isinstance(layer, Standardise)
    made = layer(x)[torch.arange(64) != 7]
    torch.testing.assert_close(layer(x)[:, 1:5].mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[:, 1:5].std(0, correction=0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(made[:, 0].std(correction=0), torch.tensor(1.0, dtype=torch.float64))
    assert not made[:, 5].any()  # constant: centred, not blown up


@pytest.mark.parametrize(
    ("model", "shape", "where", "axis", "features"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 8, 8), "0", -3, 3),
        (nn.Sequential(nn.Conv1d(5, 4, 3), nn.Flatten()), (5, 8), "0", -2, 5),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), (3, 8, 8), "0", -3, 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), (8, 8, 3), "0", -1, 3),
        (Ends(nn.Identity(), 3), (4, 6), "dense", -1, 6),
        (Recurrent(), (7, 5), "cell", -1, 5),
    ],
)
def test_where_inputs_come_in(model: nn.Module, shape: tuple[int, ...], where: str, axis: int, features: int) -> None:
    x = 4 + 3 * torch.randn(16, *shape)
    case = body(model, x, torch.zeros(16))
    words = CHANGES["standardise_inputs"].words(case)
    assert words == {"where": where, "axes": str(axis), "features": str(features)}
    before = predicted(case)
    CHANGES["standardise_inputs"].apply(case, words)
    axes = [i for i in range(x.ndim) if i != x.ndim + axis]
    by_hand = (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True)
    after = predicted(case)
    assert not torch.allclose(after, before)
    fresh = copy.deepcopy(case)
    for module in fresh.model.modules():
        if isinstance(module, Standardise):
            module.mean.zero_()
            module.deviation.fill_(1.0)
    torch.testing.assert_close(after, predicted(fresh, by_hand), atol=1e-5, rtol=1e-4)


def test_two_inputs_each_have_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 4), nn.Linear(3, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.left(a) + self.right(b)

    x = (100 * torch.randn(16, 2), 7 + torch.randn(16, 3))
    case = body(Two(), x, torch.zeros(16, 4))  # type: ignore[arg-type]
    assert standardised(case) == {"where": "left right", "axes": "-1 -1", "features": "2 3"}
    assert case.model.left.ahead.deviation.tolist() == pytest.approx(x[0].std(0, correction=0).tolist(), rel=1e-4)


def test_inputs_that_need_none() -> None:
    x = (X - X.mean(0)) / X.std(0, correction=0)
    assert CHANGES["standardise_inputs"].words(body(mlp(), x, VALUES)) is None
    assert CHANGES["standardise_inputs"].words(body_of("words")) is None  # class numbers


def test_moments_take_finite_numbers_only() -> None:
    x = torch.tensor([[1.0, torch.inf], [3.0, 2.0], [torch.nan, 2.0]])
    mean, deviation = moments(x, -1, 2)
    assert mean.tolist() == [2.0, 2.0] and deviation.tolist() == [1.0, 1.0]


# ── targets ──


def test_predictions_come_out_in_units() -> None:
    case = body(ended(None, 3), X, VALUES, "mse", optimizer="sgd")
    words = CHANGES["scale_targets"].words(case)
    assert words is not None and words["where"] == "2"
    spread = VALUES.std(0, correction=0)
    assert words["learning_rate"] == pytest.approx(0.1 / float(spread.square().mean()), rel=1e-4)
    trivial = F.mse_loss(VALUES.mean(0).expand_as(VALUES), VALUES)
    undo = CHANGES["scale_targets"].apply(case, words)
    assert case.settings.learning_rate == words["learning_rate"]
    output = predicted(case)
    torch.testing.assert_close(output.mean(0), VALUES.mean(0), atol=1e-3, rtol=0)
    assert float(F.mse_loss(output, VALUES)) < 2.1 * float(trivial)
    undo()
    assert case.settings.learning_rate == "auto"


@pytest.mark.parametrize(
    ("loss", "scale", "wanted"), [("mse", 10, 100), ("mae", 10, 10), ("huber", 10, 10), ("huber", 0.1, 0.01)]
)
def test_the_rate_goes_down_as_the_gradient_grows(loss: str, scale: float, wanted: float) -> None:
    """The gradient with respect to the last layer, before and after, of a function that is the same."""
    y = (VALUES - 100) / 30 * scale
    words = CHANGES["scale_targets"].words(body(ended(None, 3), X, y, loss, optimizer="momentum"))
    assert words is not None
    size = float(y.std(0, correction=0).square().mean().sqrt()) / scale
    assert 0.1 / float(words["learning_rate"]) == pytest.approx(
        wanted * size ** (2 if wanted in (100, 0.01) else 1), rel=1e-3
    )
    assert "learning_rate" not in (CHANGES["scale_targets"].words(body(ended(None, 3), X, y, loss)) or {})


def test_what_was_learned_stays() -> None:
    """A network that predicts well predicts the same; in the new units its outputs are of size 1."""
    model = nn.Linear(6, 1)
    y = 500 + 40 * X[:, :1]
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, 0] = 30.0
        model.bias.fill_(500.0)
    case = body(nn.Sequential(model), X, y, "mse")
    before = predicted(case)
    CHANGES["scale_targets"].apply(case, CHANGES["scale_targets"].words(case) or {})
    after = predicted(case)
    torch.testing.assert_close(after - after.mean(), before - before.mean(), atol=1e-2, rtol=1e-4)
    assert float(F.mse_loss(after, y)) <= float(F.mse_loss(before, y)) + 1e-3
    assert float(model.weight.detach().norm()) < 1.0


def test_tied_weights_stay_as_they_are() -> None:
    case = body_of("words", "mse")
    before = case.model.embedding.weight.clone()
    case.sample = (case.sample[0], 50 + 9 * torch.randn(64, 11, dtype=torch.float64))
    CHANGES["scale_targets"].apply(case, CHANGES["scale_targets"].words(case) or {})
    assert torch.equal(case.model.embedding.weight, before)


def test_images_have_one_scale() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    case = body(model, torch.randn(16, 2, 8, 8), 50 + 9 * torch.randn(16, 2, 8, 8), "mse")
    words = CHANGES["scale_targets"].words(case)
    assert words == {"where": "2", "features": 1}


def test_tiny_targets_make_tiny_outputs() -> None:
    y = 1e-4 * torch.randn(32, 3)
    case = body(ended(None, 3), X, y, "mse")
    CHANGES["scale_targets"].apply(case, CHANGES["scale_targets"].words(case) or {})
    assert float(predicted(case).std()) < 2e-4


# ── fold ──


def names(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize("kind", ["mlp", "named", "images", "recurrent"])
def test_batch_norms_fold_into_the_layer_before(kind: str) -> None:
    case = body_of(kind)
    structure = names(case.model)
    words = CHANGES["insert_norm"].words(case)
    assert words is not None
    CHANGES["insert_norm"].apply(case, words)
    case.model.train()
    for _ in range(3):  # so that statistics are none that cancel
        case.forward(case.sample[0] * 2 + 1)
    with torch.no_grad():
        for name, p in case.model.named_parameters():
            if "behind" in name:
                p.add_(torch.rand_like(p))
    before = predicted(case)
    assert fold(case.model) == str(words["batch"]).split()[::-1]
    assert names(case.model) == structure
    torch.testing.assert_close(predicted(case), before, rtol=1e-9, atol=1e-9)


def test_inputs_fold_where_that_is_exact() -> None:
    case = body_of("mlp")
    structure = names(case.model)
    standardised(case)
    before = predicted(case)
    assert fold(case.model) == ["0"]
    assert names(case.model) == structure
    torch.testing.assert_close(predicted(case), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("padding", "bias", "folds"), [(0, True, True), (1, True, False), (0, False, False)])
def test_inputs_of_a_convolution(padding: int, bias: bool, folds: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=padding, bias=bias), nn.ReLU()).double()
    case = body(model, 3 + torch.randn(16, 2, 8, 8, dtype=torch.float64), torch.zeros(16))
    standardised(case)
    before = predicted(case)
    assert fold(model) == (["0"] if folds else [])
    torch.testing.assert_close(predicted(case), before, rtol=1e-9, atol=1e-9)


def test_targets_fold_into_the_last_layer() -> None:
    case = body_of("named", "mse")
    structure = names(case.model)
    CHANGES["scale_targets"].apply(case, CHANGES["scale_targets"].words(case) or {})
    before = predicted(case)
    assert fold(case.model) == ["head"]
    assert names(case.model) == structure
    torch.testing.assert_close(predicted(case), before, rtol=1e-9, atol=1e-9)


def test_tied_weights_are_not_folded_into() -> None:
    case = body_of("words", "mse")
    torch.manual_seed(0)
    case.sample = (case.sample[0], 50 + 9 * torch.randn(64, 11, dtype=torch.float64))
    CHANGES["scale_targets"].apply(case, CHANGES["scale_targets"].words(case) or {})
    before = predicted(case)
    assert fold(case.model) == []
    torch.testing.assert_close(predicted(case), before, rtol=0, atol=0)


def test_all_of_them_fold() -> None:
    """Around a first layer inputs and norm, around the last one targets."""
    case = Body(
        body_of("mlp", "mse").forward, resolve("mse"), body_of("mlp").settings, body_of("mlp", "mse").sample, 0.1
    )
    structure = names(case.model)
    for code in ("standardise_inputs", "insert_norm", "scale_targets"):
        words = CHANGES[code].words(case)
        assert words is not None
        CHANGES[code].apply(case, words)
    before = predicted(case)
    assert sorted(set(fold(case.model))) == ["0", "0.layer", "2", "4", "6"]
    assert names(case.model) == structure
    torch.testing.assert_close(predicted(case), before, rtol=1e-8, atol=1e-8)


def test_nothing_to_fold() -> None:
    for kind in KINDS:
        case = body_of(kind)
        structure = names(case.model)
        assert fold(case.model) == []
        assert names(case.model) == structure


def test_single_precision_folds_to_a_millionth() -> None:
    torch.manual_seed(0)
    model = images()
    case = body(model, torch.randn(32, 2, 8, 8), LABELS, "cross_entropy")
    case.model.train()
    case.model(case.sample[0])
    before = predicted(case)
    CHANGES["insert_norm"].apply(case, CHANGES["insert_norm"].words(case) or {})
    torch.testing.assert_close(predicted(case), before, rtol=0, atol=1e-6)
    fold(model)
    torch.testing.assert_close(predicted(case), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("undone", [False, True])
def test_the_rate_that_goes_with_scaled_targets_is_the_one_in_force(undone: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    case = body(model, x, 20 * torch.randn(64, 1), "mse", optimizer="sgd")
    words = CHANGES["scale_targets"].words(case)
    assert words is not None
    before, undo = case.rate, CHANGES["scale_targets"].apply(case, words)
    assert case.rate == case.settings.learning_rate == words["learning_rate"] < before / 100
    if undone:
        undo()
        assert case.rate == before
