"""Loops of a user's own, each fault of them beside a sound loop that looks like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import thalweg


def points(count: int = 256) -> tuple[Tensor, Tensor]:
    """Three clouds on a circle."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    angle = 2 * torch.pi * y / 3
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.4 * torch.randn(count, 2, generator=generator), y


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), *between, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Alone(nn.Module):
    """A module of a user's own around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def batches(steps: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = points()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (size,), generator=generator)
        yield x[rows], y[rows]


def trained(
    model: nn.Module,
    optimizer: Any = None,
    steps: int = 220,
    *,
    clears: bool = True,
    each: Callable[[int], None] = lambda step: None,
    clip: float | None = None,
    given: Any = "the same",
    forward: nn.Module | None = None,
) -> thalweg.Watch:
    """A plain loop with one thing in it that may be wrong."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(forward or model, optimizer if given == "the same" else given) as w:
        for step, (x, y) in enumerate(batches(steps), 1):
            each(step)
            if clears:
                optimizer.zero_grad()
            loss = cross_entropy((forward or model)(x), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            w.step(loss)
    return w


def wrong(w: thalweg.Watch) -> list[str]:
    """Codes of what is more than a note."""
    return [finding.code for finding in w.findings if finding.severity != "note"]


# ── sound loops ──


def test_a_sound_loop_has_nothing_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    w = trained(network())
    assert wrong(w) == []
    assert capsys.readouterr().err == ""


def test_it_records_what_fit_records() -> None:
    w = trained(network(nn.BatchNorm1d(16)))
    names = set(w.history.names)
    layers = ("0", "1", "3", "5")
    assert {"loss", "learning_rate", "gradient_norm", "loss_spread", "update_cosine"} <= names
    assert {
        f"{signal}/{layer}" for signal in ("gradient_norm", "weight_norm", "update_ratio") for layer in layers
    } <= names
    assert {"dead_share/2", "activation_mean/4"} <= names
    assert w.history.series("loss")[0].tolist() == [*range(1, 21), *range(30, 221, 10)]
    assert w.history.series("update_ratio/0")[0].tolist() == [1, 10, 20, 50, 100, 200]
    assert w.history.facts["optimizer"] == "adam"
    assert w.history.facts["beta2"] == 0.999


def test_the_numbers_are_those_of_the_loop() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms, losses, ratios = [], [], []
    with thalweg.watch(model, optimizer) as w:
        for x, y in batches(10):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
            before = model[0].weight.detach().clone(), model[0].bias.detach().clone()
            optimizer.step()
            moved = [(a - b).norm() for a, b in zip(before, model[0].parameters(), strict=True)]
            whole = [p.norm() for p in model[0].parameters()]
            ratios.append((torch.stack(moved).norm() / torch.stack(whole).norm()).item())
            w.step(loss)
            losses.append(loss.item())
    assert w.history.series("loss")[1] == pytest.approx(losses)
    assert w.history.series("gradient_norm")[1] == pytest.approx(norms)
    assert w.history.series("update_ratio/0")[1] == pytest.approx([ratios[0], ratios[9]], rel=1e-4)


def test_it_leaves_the_training_as_it_is() -> None:
    plain, watched = network(nn.Dropout(0.2)), network(nn.Dropout(0.2))
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.005)
    torch.manual_seed(3)
    for x, y in batches(120):
        optimizer.zero_grad()
        cross_entropy(plain(x), y).backward()
        optimizer.step()
    torch.manual_seed(3)
    trained(watched, steps=120)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert not any(p._post_accumulate_grad_hooks or p._backward_hooks for p in watched.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def test_gradients_that_are_added_up_on_purpose_are_not_stale() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(model, optimizer) as w:
        for micro, (x, y) in enumerate(batches(480, 8), 1):
            loss = cross_entropy(model(x), y) / 4
            loss.backward()
            if micro % 4 == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=micro % 8 == 0)
                w.step(loss)
    assert wrong(w) == []
    assert w.history.series("stale_gradient")[1].max() == 0
    assert w.history.series("loss")[0][-1] == 120


def test_calls_for_micro_batches_are_counted_to_their_update() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(model, optimizer) as w:
        for micro, (x, y) in enumerate(batches(40, 8), 1):
            loss = cross_entropy(model(x), y)
            loss.backward()
            if micro % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
            w.step(loss)
    assert w.history.series("loss")[0].tolist() == list(range(1, 11))


def test_a_pass_of_another_loss_before_clearing_is_not_stale() -> None:
    """As of a generator, through which its critic's loss passes before its own gradients are cleared."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(model, optimizer) as w:
        for x, y in batches(60):
            model(x).square().mean().backward()
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            w.step(loss)
    assert w.history.series("stale_gradient")[1].max() == 0


def test_gradients_cleared_before_it_is_told() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(model, optimizer) as w:
        for x, y in batches(120):
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            w.step(loss.item())
    assert wrong(w) == []
    assert w.history.series("gradient_norm")[1].min() > 0


def test_under_autocast_and_with_a_scaler() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with thalweg.watch(model, optimizer) as w:
        for x, y in batches(120):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            w.step(loss)
    assert wrong(w) == []
    assert w.history.series("gradient_norm")[1].max() < 100
    assert "clip_factor" not in w.history.names or w.history.series("clip_factor")[1].min() > 0.99


def test_an_update_that_a_scaler_skips_is_no_update() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with thalweg.watch(model, optimizer) as w:
        for step, (x, y) in enumerate(batches(120), 1):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            scaler.scale(loss * (float("inf") if step % 10 == 5 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            w.step(loss)
    assert wrong(w) == []
    assert w.history.series("gradient_norm")[1].max() < 1e3
    assert w.history.series("loss")[0][-1] == 108 // 10 * 10


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_stays_compiled_in_one_piece(in_place: bool) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = network()
    compiled: Any = None

    if in_place:
        model = Alone(model)  # torch does not compile its own containers in place
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    w = trained(model, forward=compiled)
    assert wrong(w) == []
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert w.history.series("gradient_norm")[1].min() > 0
    assert not [name for name in w.history.names if name.startswith("dead_share")]
    assert wrong(trained(network(), clears=False))[0] == "stale_gradients"
    torch._dynamo.reset()


def test_several_optimizers() -> None:
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.05, momentum=0.9)
    rest = torch.optim.Adam([*model[2].parameters(), *model[4].parameters()], lr=0.005)
    with thalweg.watch(model, [first, rest]) as w:
        for x, y in batches(220):
            first.zero_grad()
            rest.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            first.step()
            rest.step()
            w.step(loss)
    assert wrong(w) == []


def test_without_an_optimizer() -> None:
    assert wrong(trained(network(), given=None)) == []
    w = trained(network(), clears=False, given=None)
    assert wrong(w)[0] == "stale_gradients"


def test_layers_that_are_frozen_on_purpose() -> None:
    model = network(nn.BatchNorm1d(16))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    w = trained(model, each=lambda step: (model.train(), model[1].eval()))  # type: ignore[func-returns-value]
    assert wrong(w) == []


# ── faults ──


def test_gradients_that_are_never_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    w = trained(network(), clears=False)
    found = w.findings[0]
    assert (found.code, found.severity) == ("stale_gradients", "critical")
    told = capsys.readouterr().err
    assert told.count("zero_grad") == 1
    assert "step 20:" in told


def test_evaluation_mode_left_on() -> None:
    model = network(nn.BatchNorm1d(16), nn.Dropout(0.1))
    assert "wrong_mode" in wrong(trained(model, each=lambda step: model.eval() if step == 1 else None))


def test_evaluation_mode_between_and_where_it_does_not_matter() -> None:
    model = network(nn.Dropout(0.1))

    def validate(step: int) -> None:
        model.eval()
        with torch.no_grad():
            model(points()[0])
        model.train()

    assert wrong(trained(model, each=validate)) == []
    assert wrong(trained(network().eval())) == []


def test_a_part_that_is_cut_off() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(2, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.above(self.below(x).relu().detach())

    torch.manual_seed(0)
    w = trained(Cut())
    found = {finding.code: finding for finding in w.findings}
    assert found["frozen_parameters"].place.startswith("below")
    assert found["frozen_parameters"].severity == "warning"
    assert w.history.facts["unreached_parameters"] == ["below.weight", "below.bias"]


def test_a_part_that_has_its_turn_later_is_not_cut_off() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])
            self.turn = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.heads[self.turn](x)

    torch.manual_seed(0)
    model = Two()

    def take_turns(step: int) -> None:
        model.turn = step // 5 % 2

    assert "frozen_parameters" not in wrong(trained(model, each=take_turns))


def test_a_layer_that_the_optimizer_does_not_know() -> None:
    model = network()
    optimizer = torch.optim.Adam([*model[0].parameters(), *model[2].parameters()], lr=0.005)
    model[4] = nn.Linear(16, 3)
    w = trained(model, optimizer)
    found = {finding.code: finding for finding in w.findings}
    assert found["frozen_parameters"].place in ("4", "5")
    assert "optimizer" in found["frozen_parameters"].advice


def test_clipping_that_always_clips() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = trained(model, optimizer, clip=1e-3)
    found = {finding.code: finding for finding in w.findings}
    assert found["optimizer_misconfigured"].severity == "warning"
    assert found["optimizer_misconfigured"].evidence["clip_factor"] < 0.05
    assert w.history.series("gradient_norm")[1].max() > 0.01
    assert wrong(trained(network(), clip=10.0)) == []
    adaptive = trained(network(), clip=0.05)
    assert {f.code: f.severity for f in adaptive.findings}.get("optimizer_misconfigured") in (None, "note")


def test_a_loss_that_is_no_number() -> None:
    model = network()

    def spoil(step: int) -> None:
        if step == 60:
            model[0].weight.data[0, 0] = float("nan")

    w = trained(model, each=spoil)
    assert "non_finite" in wrong(w)


def test_a_loss_that_is_no_number_under_a_scaler() -> None:
    model = network()
    model[0].weight.data.fill_(float("nan"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    scaler = torch.amp.GradScaler("cpu")
    with thalweg.watch(model, optimizer) as w:
        for x, y in batches(60):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            w.step(loss)
    assert "non_finite" in wrong(w)


# ── the rest ──


def test_overfitting_is_seen_by_held_out_losses() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with thalweg.watch(model, optimizer) as w:
        for step, (x, y) in enumerate(batches(600), 1):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            w.step(loss)
            if step % 30 == 0:
                w.validated(0.5 + 0.05 * abs(step - 150) / 30, accuracy=0.8)
    assert "overfitting" in [finding.code for finding in w.findings]
    assert w.history.last("validation_accuracy") == 0.8


def test_the_report(tmp_path: Any) -> None:
    w = trained(network(), clears=False)
    page = w.report(tmp_path / "page.html").read_text()
    assert "never cleared" in page
    assert "Sequential" in page


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="Module"):
        thalweg.watch("model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Optimizer"):
        thalweg.watch(network(), "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not ours"):
        thalweg.watch(network(), repair="full")
    with pytest.raises(ValueError, match="nothing to watch"):
        thalweg.watch(network().requires_grad_(False))
    with pytest.raises(ValueError, match="none of the model's parameters"):
        thalweg.watch(network(), torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"one number, got shape \[3\]: average"), thalweg.watch(network()) as w:
        w.step(torch.ones(3))


def test_a_loss_of_one_entry_is_a_number() -> None:
    with thalweg.watch(network(), repair="off") as w:
        w.step(torch.ones(1))
        w.step(torch.tensor(2.0))
    assert w.history.series("loss")[1].tolist() == [1.0, 2.0]


def test_a_loop_that_breaks_leaves_no_hooks() -> None:
    model = network()
    with pytest.raises(KeyboardInterrupt), thalweg.watch(model) as w:
        w.step(1.0)
        raise KeyboardInterrupt
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
