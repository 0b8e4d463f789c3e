"""`fit` as its users meet it."""

from __future__ import annotations

import inspect
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import thalweg
from thalweg.optim import catalogue
from thalweg.records.settings import SCHEDULES, Settings


def points(count: int = 200) -> tuple[Tensor, Tensor]:
    """Three classes that a small network tells apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return centres[y] + 0.5 * torch.randn(count, 2, generator=generator), y


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 16), *extra, nn.ReLU(), nn.Linear(16, 3))


def quiet(*args: Any, **settings: Any) -> thalweg.Run:
    return thalweg.fit(*args, **{"verbose": False, **settings})


def weights(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_option_it_learns_and_says_so() -> None:
    run = quiet(network(), points(), "cross_entropy", validation_split=0.2, metrics=["accuracy"])
    assert run.stopped_because in ("converged", "epochs", "patience")
    assert run.metrics["validation_accuracy"] >= 0.95
    assert set(run.metrics) == {"loss", "validation_loss", "accuracy", "validation_accuracy"}
    assert run.verdict is not None
    assert run.verdict.sentence
    assert run.directory == Path("runs/sequential-1")
    assert run.report() == Path("runs/sequential-1/report.html")
    assert "<html" in run.report().read_text()
    assert {"loss", "learning_rate", "gradient_norm", "validation_loss"} <= set(run.history.names)
    assert run.plot().data


def test_a_second_run_gets_a_directory_of_its_own() -> None:
    first, second = (quiet(network(), points(), "cross_entropy", epochs=1) for _ in range(2))
    assert (first.directory.name, second.directory.name) == ("sequential-1", "sequential-2")


def test_the_model_holds_the_best_validation_weights() -> None:
    x, y = points(60)
    run = quiet(
        network(), (x, y), "cross_entropy", validation_data=points(), epochs=30, learning_rate=0.3, patience=None
    )
    measured = thalweg.evaluate(run.model, points(), "cross_entropy")
    values = run.history.series("validation_loss")[1]
    assert measured["loss"] == pytest.approx(values.min(), rel=1e-9)
    assert values[-1] > values.min(), "the last weights must differ from the best for this test to mean something"
    assert run.metrics["validation_loss"] == values.min()


def test_the_run_outlives_its_directory() -> None:
    import shutil

    run = quiet(network(), points(), "cross_entropy", epochs=2, metrics=["accuracy"])
    shutil.rmtree(run.directory)
    assert len(run.history.series("loss")[0]) > 0
    assert run.metrics["accuracy"] > 0
    assert run.plot().data


def test_the_module_is_a_stock_module_again() -> None:
    model = network(nn.BatchNorm1d(16), nn.Dropout(0.5))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    quiet(model, points(), "cross_entropy", epochs=1)
    assert [module.training for module in model.modules()] == modes
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in model.modules()
    )
    assert all(p.grad is None for p in model.parameters())


def test_same_seed_same_weights_and_the_users_random_state_is_left_alone() -> None:
    def trained(seed: int) -> list[Tensor]:
        model = network(nn.Dropout(0.3))
        quiet(model, points(), "cross_entropy", epochs=3, seed=seed)
        return weights(model)

    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    first = trained(0)
    torch.manual_seed(7)
    assert same(first, trained(0))
    assert not same(first, trained(1))
    torch.manual_seed(7)
    trained(0)
    network()  # seeds with 1
    torch.manual_seed(7)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state(legacy=False)["state"]["key"].tolist()


def test_global_random_state_is_as_found_after_a_fit() -> None:
    model = network(nn.Dropout(0.3))
    before = torch.get_rng_state()
    quiet(model, points(), "cross_entropy", epochs=2)
    assert torch.equal(before, torch.get_rng_state())


# ── batch, mini-batch, stochastic ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("size", "steps"), [("full", 1), (1, 200), (32, 7), (500, 1)])
def test_batch_size_decides_how_many_updates_make_an_epoch(size: Any, steps: int) -> None:
    run = quiet(network(), points(), "cross_entropy", batch_size=size, epochs=1)
    assert run.steps == steps


def test_one_full_batch_update_is_the_formula() -> None:
    model = network().double()
    x, y = points(3000)
    x = x.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    quiet(
        model, (x, y), "cross_entropy", optimizer="sgd", learning_rate=0.5, schedule="constant",
        batch_size="full", steps=1,
    )  # fmt: skip
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] - 0.5 * gradients[name], rtol=1e-12, atol=1e-14)


def test_accumulation_changes_memory_and_not_the_result() -> None:
    def trained(accumulate: int) -> list[Tensor]:
        model = network().double()
        quiet(model, points(), "cross_entropy", batch_size=50, accumulate=accumulate, epochs=2, optimizer="sgd")
        return weights(model)

    for a, b in zip(trained(1), trained(7), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_last_batch_of_one_does_not_crash_batch_norm() -> None:
    run = quiet(network(nn.BatchNorm1d(16)), points(65), "cross_entropy", batch_size=32, epochs=2)
    assert run.steps == 4
    loader = DataLoader(TensorDataset(*points(65)), batch_size=32)
    assert quiet(network(nn.BatchNorm1d(16)), loader, "cross_entropy", epochs=2).steps == 4


def test_no_micro_batch_of_one_reaches_batch_norm() -> None:
    run = quiet(network(nn.BatchNorm1d(16)), points(72), "cross_entropy", batch_size=10, accumulate=7, epochs=1)
    assert run.steps == 8


def test_batch_norm_in_micro_batches_is_told() -> None:
    run = quiet(network(nn.BatchNorm1d(16)), points(), "cross_entropy", accumulate=4, epochs=1)
    assert any("micro-batch" in note for note in run.record.notes)


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"epochs": 2}, "epochs"),
        ({"steps": 5}, "steps"),
        ({"steps": 14}, "steps"),
        ({"time_budget": 0.2, "patience": None}, "time"),
        ({"target": {"validation_accuracy": 0.8}}, "target"),
        ({"target": {"loss": 0.5}}, "target"),
        ({"patience": 1, "learning_rate": 1.0}, "patience"),
    ],
)
def test_why_it_stops(limits: dict[str, Any], reason: str) -> None:
    run = quiet(network(), points(), "cross_entropy", validation_split=0.2, metrics=["accuracy"], **limits)
    assert run.stopped_because == reason
    for name, goal in limits.get("target", {}).items():
        value = run.history.last(name)
        assert value is not None
        assert value <= goal if name == "loss" else value >= goal
    if "steps" in limits:
        assert run.steps == limits["steps"]


def test_what_a_callback_raises_costs_no_update() -> None:
    class Away(thalweg.Callback):
        def on_step(self, run: thalweg.Run, record: Any) -> None:
            if record.step == 20:
                raise RuntimeError("the server is away")

    words = {"epochs": 10, "batch_size": 32, "patience": None, "learning_rate": 0.1, "plan": "eager"}
    whole = network()
    quiet(whole, points(), "cross_entropy", run_dir="whole", **words)
    broken = network()
    with pytest.raises(RuntimeError, match="the server is away"):
        quiet(broken, points(), "cross_entropy", run_dir="broken", callbacks=[Away()], **words)
    assert same(weights(thalweg.load("broken", "last", model=network())), weights(broken))
    run = thalweg.resume("broken", model=broken, data=points(), loss="cross_entropy", verbose=False)
    assert run.stopped_because == "epochs" and same(weights(broken), weights(whole))


def test_a_summed_loss_is_judged_as_its_mean_is() -> None:
    """Both train alike at a rate that is smaller by the batch; what is told of them is in one unit."""
    found = []
    for reduction, rate in (("mean", 0.32), ("sum", 0.01)):
        run = quiet(
            network(), points(256), nn.CrossEntropyLoss(reduction=reduction), validation_data=points(64), epochs=12,
            batch_size=32, optimizer="sgd", learning_rate=rate, schedule="constant", plan="eager", repair="advise",
        )  # fmt: skip
        found.append(run)
    mean, summed = found
    for name in ("loss", "validation_loss"):
        assert summed.metrics[name] == pytest.approx(mean.metrics[name], rel=1e-3)
    assert summed.history.facts["initial_loss"] == pytest.approx(mean.history.facts["initial_loss"], rel=1e-5)
    assert summed.verdict.state == mean.verdict.state
    assert [f.code for f in summed.findings] == [f.code for f in mean.findings]


def test_a_training_that_leaves_the_numbers_is_diverged() -> None:
    words = {"optimizer": "sgd", "learning_rate": 1e30, "epochs": 20, "patience": None, "repair": "advise"}
    run = quiet(network(), points(), "cross_entropy", **words)
    assert run.stopped_because == "diverged"
    assert run.verdict is not None
    assert run.verdict.state == "diverged"
    assert run.steps < 20 * 4


def test_until_converged_where_nothing_is_said() -> None:
    run = quiet(network(), points(), "cross_entropy", validation_data=points(100))
    assert run.record.epochs <= 100
    assert run.stopped_because in ("converged", "patience", "epochs")


# ── what may be asked ────────────────────────────────────────────────────────────────────────────────────────────────

RULES = [*catalogue.RULES, "auto"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains(rule: str) -> None:
    run = quiet(network(), points(), "cross_entropy", optimizer=rule, epochs=40, patience=None)
    losses = run.history.series("epoch_loss")[1]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_runs(schedule: str) -> None:
    run = quiet(
        network(), points(), "cross_entropy", schedule=schedule, epochs=10, validation_split=0.2, patience=None,
        learning_rate=0.01,
    )  # fmt: skip
    rates = run.history.series("learning_rate")[1]
    assert np.isfinite(rates).all()
    assert rates.max() == pytest.approx(0.01, rel=0.1)
    if schedule in ("auto", "cosine", "one_cycle", "warmup_stable_decay", "exponential", "step"):
        assert rates[-1] < 0.2 * rates.max()


def test_a_torch_scheduler_factory() -> None:
    run = quiet(
        network(), points(), "cross_entropy", optimizer="sgd", learning_rate=1.0, steps=6, batch_size=32,
        schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    )  # fmt: skip
    assert run.history.series("learning_rate")[1].tolist() == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_are_handed_over(average: str) -> None:
    def trained(kind: str | None) -> nn.Module:
        model = network(nn.BatchNorm1d(16))
        quiet(model, points(), "cross_entropy", weight_average=kind, epochs=8, schedule="constant", learning_rate=0.05)
        return model

    plain, averaged = trained(None), trained(average)
    assert not same(weights(plain), weights(averaged))
    assert thalweg.evaluate(averaged, points(), "cross_entropy", ["accuracy"])["accuracy"] > 0.95
    assert torch.isfinite(averaged[1].running_var).all()


def test_clipping_shows_the_norm_before_it() -> None:
    run = quiet(network(), points(), "cross_entropy", clip_norm=1e-3, optimizer="sgd", learning_rate=1.0, steps=10)
    assert (run.history.series("gradient_norm")[1] > 1e-2).all()
    before, after = weights(network()), weights(run.model)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True)))
    assert moved <= 10 * 1e-3 * 1.001


def test_an_own_optimizer_keeps_its_groups() -> None:
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
    )
    before = model[0].weight.clone(), model[2].weight.clone()
    run = quiet(model, points(), "cross_entropy", optimizer=optimizer, epochs=3)
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])
    assert run.optimizer is optimizer


def test_options_by_parameter_name() -> None:
    model = network()
    before = model[0].weight.clone(), model[2].weight.clone()
    quiet(
        model, points(), "cross_entropy", optimizer="sgd", epochs=2,
        optimizer_options={"groups": {"0.*": {"learning_rate": 1e-12}}},
    )  # fmt: skip
    torch.testing.assert_close(model[0].weight, before[0])
    assert not torch.allclose(model[2].weight, before[1])


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    quiet(model, points(), "cross_entropy", epochs=2)
    assert torch.equal(model[0].weight, before)


def test_tied_weights_train_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 5)
            self.head = nn.Linear(5, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    tokens = torch.arange(7).repeat(20)
    run = quiet(Tied(), (tokens, tokens), "cross_entropy", epochs=60, learning_rate=0.1, metrics=["accuracy"])
    assert run.model.head.weight is run.model.embedding.weight
    assert run.metrics["accuracy"] == 1.0
    assert run.record.decided["num_parameters"] == 35
    again = thalweg.load(run.directory, "last", model=Tied())
    assert again.head.weight is again.embedding.weight
    assert torch.equal(again.head.weight, run.model.head.weight)


def test_the_schedule_of_fit_meets_callbacks_in_order() -> None:
    seen: list[tuple[str, int]] = []

    class Watching(thalweg.Callback):
        def on_start(self, run: thalweg.Run) -> None:
            seen.append(("start", run.steps))

        def on_step(self, run: thalweg.Run, record: thalweg.StepRecord) -> None:
            assert run.steps == record.step
            seen.append(("step", record.step))

        def on_validate(self, run: thalweg.Run, record: thalweg.StepRecord) -> None:
            assert "validation_loss" in record.values
            seen.append(("validate", record.step))

        def on_end(self, run: thalweg.Run) -> None:
            assert run.verdict is not None
            seen.append(("end", run.steps))

    quiet(
        network(), points(100), "cross_entropy", validation_split=0.2, batch_size=40, epochs=2, callbacks=[Watching()]
    )
    assert seen == [
        ("start", 0), ("step", 1), ("step", 2), ("validate", 2), ("step", 3), ("step", 4), ("validate", 4), ("end", 4),
    ]  # fmt: skip


def test_a_callback_needs_only_the_methods_it_wants() -> None:
    class Ends:
        ended = False

        def on_end(self, run: thalweg.Run) -> None:
            self.ended = True

    callback = Ends()
    quiet(network(), points(), "cross_entropy", epochs=1, callbacks=callback_list(callback))
    assert callback.ended


def callback_list(callback: Any) -> list[Any]:
    return [callback]


def test_data_in_other_forms() -> None:
    x, y = points()
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    for data in (TensorDataset(x, y), loader, [(x[:100], y[:100]), (x[100:], y[100:])]):
        run = quiet(network(), data, "cross_entropy", epochs=30, metrics=["accuracy"], learning_rate=0.03)
        assert run.metrics["accuracy"] > 0.9


def test_a_generator_ends_the_training_when_it_ends() -> None:
    x, y = points()
    run = quiet(network(), ((x, y) for _ in range(5)), "cross_entropy", epochs=3)
    assert run.steps == 5
    assert run.stopped_because == "epochs"


def test_an_endless_generator_needs_a_limit_only() -> None:
    def forever() -> Any:
        while True:
            yield points()

    run = quiet(network(), forever(), "cross_entropy", steps=12)
    assert run.steps == 12


def test_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.inner(torch.cat([left, right], 1))

    x, y = points()
    for inputs in ((x[:, :1], x[:, 1:]), {"left": x[:, :1], "right": x[:, 1:]}):
        run = quiet(Two(), (inputs, y), "cross_entropy", epochs=40, learning_rate=0.03, metrics=["accuracy"])
        assert run.metrics["accuracy"] > 0.9
        assert thalweg.predict(run.model, inputs).shape == (200, 3)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_signature_shows_every_setting() -> None:
    words = list(inspect.signature(thalweg.fit).parameters)
    assert words[:3] == ["model", "data", "loss"]
    assert words[3:] == list(Settings.__slots__)


@pytest.mark.parametrize(
    ("word", "ours"), [("lr", "learning_rate"), ("max_epochs", "epochs"), ("val_data", "validation_data")]
)
def test_words_of_other_libraries_are_taken_with_a_hint(word: str, ours: str) -> None:
    value: Any = {"lr": 0.01, "max_epochs": 1, "val_data": points()}[word]
    run = quiet(network(), points(), "cross_entropy", steps=2, **{word: value})
    assert any(ours in note for note in run.record.notes)


def test_an_unknown_word_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'epochs'"):
        quiet(network(), points(), "cross_entropy", epoch=3)
    assert not Path("runs").exists(), "nothing is made before the words are understood"


def test_a_falling_loss_is_not_stopped_in_full_batch_descent() -> None:
    x = torch.linspace(-1, 1, 64)[:, None]
    for seed in range(3):
        torch.manual_seed(seed)
        run = quiet(nn.Linear(1, 1), (x, 3 * x + 1), "mse", batch_size="full")
        assert run.stopped_because == "epochs"
        assert run.verdict is not None
        assert run.verdict.state == "improving" or run.verdict.cause == "slow_convergence"


def test_half_precision_adds_up_many_terms() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(256, 8), torch.randn(256, 784)
    run = quiet(nn.Linear(8, 784).half(), (x, y), "mse", batch_size="full", optimizer="sgd", steps=2)
    assert run.history.series("loss")[1][0] == pytest.approx(1.4, abs=0.3)


def test_sparse_gradients_train() -> None:
    tokens = torch.arange(40).reshape(20, 2) % 9
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
    run = quiet(
        model,
        (tokens, torch.arange(20) % 3),
        "cross_entropy",
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        epochs=2,
    )
    assert (run.history.series("gradient_norm/0")[1] > 0).all()


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_get_their_weights_from_the_data() -> None:
    state = torch.get_rng_state()
    assert not [found for found in thalweg.check(lazy(), points(), "cross_entropy") if found.severity == "critical"]
    models = [quiet(lazy(), points(), "cross_entropy", steps=3, plan="eager").model for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert models[0][0].weight.shape == (16, 2)
    assert same(weights(models[0]), weights(models[1]))
    with pytest.raises(ValueError, match=r"layer '0'.*cannot take inputs of shape \[1\] int64"):
        quiet(lazy(), (torch.arange(9), torch.arange(9) % 3), "cross_entropy")
