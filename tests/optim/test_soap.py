import copy
import math
import warnings

import numpy as np
import pytest
import torch
from slow_rules import SlowAdamW, SlowLeadingSOAP, SlowMixedSOAP, SlowSOAP
from torch import nn

from thalweg.optim import SOAP, bases, budget, frames
from thalweg.optim.budget import Choice

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
#: Shape → the sides that get a basis of all directions.
SHAPES = {
    (5, 7): ("left", "right"),
    (6, 6): ("left", "right"),
    (3, 50): ("left",),
    (50, 3): ("right",),
    (4, 10): ("left", "right"),
    (8, 3, 2, 2): ("left", "right"),
    (3, 5, 2): ("left", "right"),
    (7, 2, 2, 1, 2): ("left", "right"),
    (2, 3): ("left", "right"),
    (1, 9): (),
    (9, 1, 1): (),
    (6,): (),
    (): (),
}


@pytest.fixture(autouse=True)
def short_sides(monkeypatch):
    """Sides so short that a test is quick have leading directions, too."""
    monkeypatch.setattr(frames, "SLACK", 1.5)


def parameters(shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


class Valley:
    """Gradients C_l (W − W*) C_r, badly conditioned and turned, and a little noise: they depend on W."""

    def __init__(self, shape, seed=0):
        generator = np.random.default_rng([seed, *shape, 7])
        m, n = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        self.left, self.right = (self._curvature(generator, d) for d in (m, n))
        self.best = generator.normal(size=(m, n))
        self.generator = generator

    @staticmethod
    def _curvature(generator, d):
        Q = np.linalg.qr(generator.normal(size=(d, d)))[0]
        return Q @ np.diag(np.geomspace(1, 0.01, d)) @ Q.T

    def gradient(self, W, noise):
        return self.left @ (W - self.best) @ self.right + 0.05 * noise


def follow(optimizer, ps, twins, steps):
    """Both rules, each on its own way down the same valley; the largest distance between them in any step."""
    valleys = [Valley(p.shape) for p in ps]
    worst = 0.0
    for _ in range(steps):
        for p, twin, valley in zip(ps, twins, valleys, strict=True):
            noise = valley.generator.normal(size=valley.best.shape)
            W = p.detach().numpy().reshape(valley.best.shape)
            p.grad = torch.from_numpy(valley.gradient(W, noise)).reshape(p.shape)
            twin.step(valley.gradient(twin.W, noise))
        optimizer.step()
        for p, twin in zip(ps, twins, strict=True):
            worst = max(worst, float(np.abs(p.detach().numpy().reshape(twin.W.shape) - twin.W).max()))
    return worst


def matrix(p):
    return p.detach().numpy().reshape(p.shape[0] if p.ndim else 1, -1) if p.numel() else np.zeros((0, 0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "mine",
    [
        {"period": 1, "statistics_period": 1, "tolerance": 0.0, "start": 3},  # before, null spaces have no one basis
        {"period": 4, "statistics_period": 3, "tolerance": 0.01, "start": 10},
    ],
    ids=["always", "seldom"],
)
def test_follows_the_slow_twin(shape, mine):
    (p,) = ps = parameters([shape])
    sides = {side: number for number, side in enumerate(SHAPES[shape])}
    twin = SlowSOAP(matrix(p), sides, **OPTIONS, **mine) if sides else SlowAdamW(matrix(p), **OPTIONS)
    assert follow(SOAP(ps, **OPTIONS, **mine, rank=None, budget=None), ps, [twin], 60) < 1e-8
    assert not sides or twin.turns > 1


def test_all_shapes_at_once_follow_their_twins():
    """Bases are turned in turns: each side of each matrix in the step of its number."""
    shapes = [(5, 7), (6, 6), (5, 7), (3, 50), (6,), (5, 7)]
    ps = parameters(shapes)
    mine = {"period": 5, "statistics_period": 1, "tolerance": 0.0, "start": 4}
    numbers = [{"left": 0, "right": 3}, {"left": 6, "right": 7}, {"left": 1, "right": 4}, {"left": 8}, {}]
    numbers.append({"left": 2, "right": 5})
    twins = [
        SlowSOAP(matrix(p), sides, **OPTIONS, **mine) if sides else SlowAdamW(matrix(p), **OPTIONS)
        for p, sides in zip(ps, numbers, strict=True)
    ]
    assert follow(SOAP(ps, **OPTIONS, **mine, rank=None, budget=None), ps, twins, 50) < 1e-8


def test_is_the_soap_of_another_package(monkeypatch):
    """From a state of pytorch_optimizer's: with bases turned in every step and no floor, the two are one rule."""
    other = pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr("thalweg.optim.rotation.FLOOR", 0.0)
    theirs, ours = parameters([(6, 6)]), parameters([(6, 6)])
    options = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.0}
    peer = other.SOAP(theirs, **options, precondition_frequency=1)
    mine = SOAP(ours, **options, period=1, statistics_period=1, tolerance=0.0, budget=None)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(40, 6, 6, generator=generator, dtype=torch.float64)
    theirs[0].grad = gradients[0].clone()
    peer.step()
    found = peer.state[theirs[0]]
    (L, R), (left, right) = found["GG"], found["Q"]
    zeros = torch.zeros(6, 6, dtype=torch.float64)
    mine.state[ours[0]] = {"step": 0, "choice": "both", "seconds": 0.0, "momentum": zeros, "variance": zeros.clone()}
    mine.state[ours[0]] |= {"left": L.clone(), "right": R.clone(), "left_basis": left, "right_basis": right}
    for gradient in gradients[1:]:
        theirs[0].grad, ours[0].grad = gradient.clone(), gradient.clone()
        peer.step()
        mine.step()
    assert (theirs[0] - ours[0]).abs().max() < 1e-4  # of 0.5; its ε stands elsewhere, its factors are float32


def test_turned_inputs_turn_the_trajectory():
    """y = W x with x → Qx: from the first basis on, W goes as WQᵀ, which Adam's does not."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64) * torch.tensor([9, 3, 1, 1, 0.3, 0.1]).double()
    y = torch.randn(64, 5, generator=generator, dtype=torch.float64)

    def steps(W, x, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (x @ W.T - y).square().mean().backward()
            optimizer.step()

    (W,) = plain = parameters([(5, 6)])
    one = SOAP(plain, lr=0.01, budget=None)
    steps(W, x, one, 10)
    turned = [nn.Parameter(W.detach() @ Q.T)]
    two = SOAP(turned, lr=0.01, budget=None)
    two.load_state_dict(one.state_dict())
    state = two.state[turned[0]]
    state["right"], state["right_basis"] = Q @ state["right"] @ Q.T, Q @ state["right_basis"]
    steps(W, x, one, 40)
    steps(turned[0], x @ Q.T, two, 40)
    assert (W @ Q.T - turned[0]).abs().max() < 1e-9


@pytest.mark.parametrize(("shape", "rank"), [((6, 9), None), ((30, 9), 4)], ids=["all directions", "leading"])
def test_a_stack_is_the_loop_over_its_matrices(shape, rank):
    """To the last digits: a batch of products may add up in another order than one."""
    together, alone = parameters([shape] * 4), parameters([shape] * 4)
    options = {"lr": 0.02, "rank": rank, "period": 1, "statistics_period": 2, "start": 3}
    rules = [SOAP(together, **options), *(SOAP([p], **options) for p in alone)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        for rule in rules:
            rule.step()
    for number, (p, q) in enumerate(zip(together, alone, strict=True)):
        # Alone, statistics are learnt in even steps, as the first stack does.
        assert (p - q).abs().max() < 1e-10, number


# ── leading directions ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "mine", [{"statistics_period": 1, "start": 3}, {"statistics_period": 3, "start": 10}], ids=["always", "seldom"]
)
@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (12, 20), (9, 3, 3)], ids=str)
def test_leading_directions_follow_the_slow_twin(shape, mine):
    rank = 3
    (p,) = ps = parameters([shape])
    drawn = {
        side: torch.randn(d, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
        for side, d in zip(("left", "right"), matrix(p).shape, strict=True)
    }
    twin = SlowLeadingSOAP(matrix(p), drawn, **OPTIONS, **mine)
    optimizer = SOAP(ps, **OPTIONS, **mine, rank=rank, budget=None)
    assert follow(optimizer, ps, [twin], 60) < 1e-8
    kept = optimizer.state[p]
    assert [len(kept[side]) for side in ("left", "right")] == [rank, rank]
    assert kept["momentum"].shape == tuple(d + rank for d in twin.W.shape)


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (4, 3, 3)], ids=str)
def test_a_side_in_full_beside_leading_directions_follows_the_slow_twin(shape):
    """Up to one and a half times the rank a side has all its directions here."""
    rank, mine = 3, {"statistics_period": 2, "start": 6, "period": 4, "tolerance": 0.01}
    (p,) = ps = parameters([shape])
    side, d = max(zip(("left", "right"), matrix(p).shape, strict=True), key=lambda of: of[1])
    drawn = torch.randn(d, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    twin = SlowMixedSOAP(matrix(p), {side: drawn}, **OPTIONS, **mine)
    optimizer = SOAP(ps, **OPTIONS, **mine, rank=rank, budget=None)
    assert follow(optimizer, ps, [twin], 60) < 1e-8
    assert twin.turns > 1
    assert optimizer.state[p][side].shape == (rank,)


def first_moves(optimizer, ps, steps):
    """How far each parameter is moved in each step, by gradients of ones: AdamW's whole rate is a move of lr."""
    moves = []
    for _ in range(steps):
        before = [p.detach().clone() for p in ps]
        for p in ps:
            p.grad = torch.ones_like(p)
        optimizer.step()
        moves.append([float((p.detach() - b).abs().mean()) for p, b in zip(ps, before, strict=True)])
    return np.array(moves)


PLAIN = {"lr": 0.01, "weight_decay": 0.0}


def test_matrices_move_by_a_tenth_at_first_and_vectors_by_all():
    ps = parameters([(5, 7), (6,)])
    moves = first_moves(SOAP(ps, **PLAIN, start=3), ps, 3)
    assert moves == pytest.approx(np.tile([0.001, 0.01], (3, 1)), rel=1e-4)


def test_the_tenth_goes_on_where_a_training_is_resumed_in_it():
    whole, part = parameters([(5, 7), (4, 9)]), parameters([(5, 7), (4, 9)])
    optimizer, first = SOAP(whole, **PLAIN, start=4), SOAP(part, **PLAIN, start=4)
    expected = first_moves(optimizer, whole, 7)
    found = first_moves(first, part, 2)
    again = SOAP(part, **PLAIN, start=4)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    found = np.concatenate([found, first_moves(again, part, 5)])
    assert np.array_equal(found, expected)
    assert all(torch.equal(p, q) for p, q in zip(whole, part, strict=True))
    assert found[3] == pytest.approx([0.001, 0.001], rel=1e-4)
    assert found[4] == pytest.approx([0.01 / 35**0.5, 0.01 / 6], rel=1e-2)


def test_a_group_that_comes_later_begins_gently_by_its_own_steps():
    early, late = parameters([(5, 7)]), parameters([(4, 9)])
    optimizer = SOAP(early, **PLAIN, start=2)
    first_moves(optimizer, early, 5)
    optimizer.add_param_group({"params": late, "start": 3})
    moves = first_moves(optimizer, [*early, *late], 5)
    assert moves[:3, 1] == pytest.approx([0.001] * 3, rel=1e-4)
    assert moves[3:, 1] == pytest.approx([0.01 / 6] * 2, rel=1e-2), "along one direction of 36 entries"
    assert moves[:, 0] == pytest.approx([0.01 / 35**0.5] * 5, rel=1e-2)


def test_a_matrix_that_is_to_have_no_basis_moves_at_the_whole_rate_after_the_start():
    ps = parameters([(5, 7)])
    moves = first_moves(SOAP(ps, **PLAIN, start=3, choices={"5x7": "none"}), ps, 6)
    assert moves[:, 0] == pytest.approx([0.001] * 3 + [0.01] * 3, rel=1e-3)


def stack(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("many", [1, 3])
def test_a_frame_loses_nothing_on_the_way_there_and_back(many, dim):
    G = stack(many, 9, 9)
    Q = torch.linalg.qr(stack(many, 9, 2, seed=1))[0]
    found = frames.split(G, Q, dim)
    assert (found.square().sum((-2, -1)) - G.square().sum((-2, -1))).abs().max() < 1e-12
    rest = found.narrow(dim, 2, 9)
    assert (Q.mT @ rest if dim == -2 else rest @ Q).abs().max() < 1e-12
    assert (frames.joined(found, Q, dim) - G).abs().max() < 1e-12


def test_leading_directions_become_those_of_the_largest_eigenvalues():
    Q = torch.linalg.qr(stack(30, 30))[0]
    scales = torch.tensor([9.0, 7, 5] + [0.3] * 27, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    values = found = None
    for _ in range(200):
        G = (Q * scales) @ torch.randn(30, 8, generator=generator, dtype=torch.float64)
        if found is None:
            values, found, _ = frames.first(G.unsqueeze(0), 3, 0.1)
        else:
            values, found, _, _ = frames.followed(values, found, G.unsqueeze(0), 0.9)
    assert torch.linalg.svdvals(Q[:, :3].mT @ found[0]).min() > 0.99
    assert values[0].tolist() == sorted(values[0].tolist(), reverse=True)
    assert values[0].sum() == pytest.approx(8 * (81 + 49 + 25), rel=0.5)


def test_directions_that_were_drawn_stay_until_there_is_a_gradient():
    """A layer that is dead at first, whose first coordinates stay so: it finds the others."""
    values, Q, _ = frames.first(torch.zeros(1, 12, 4, dtype=torch.float64), 3, 0.05)
    assert not torch.equal(Q[0].abs().round(), torch.eye(12, 3, dtype=torch.float64))
    G = stack(1, 12, 4)
    G[:, :6] = 0
    for _ in range(20):
        values, Q, _, well = frames.followed(values, Q, G, 0.9)
    assert bool(well)
    exact = torch.linalg.eigvalsh(G[0] @ G[0].mT)[-3:].flip(0)
    assert (Q[0].mT @ G[0]).square().sum() == pytest.approx(float(exact.sum()), rel=0.05)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_leading_directions_outlive_a_gradient_that_is_not_finite(broken):
    G = stack(2, 12, 4)
    values, Q, _ = frames.first(G, 3, 0.05)
    G[1, 0, 0] = broken
    found, turned, order, well = frames.followed(values, Q, G, 0.9)
    assert well.tolist() == [True, False]
    assert torch.equal(turned[1], Q[1]) and torch.equal(found[1], values[1]) and order[1].tolist() == [0, 1, 2]
    assert not torch.equal(turned[0], Q[0]) and found.isfinite().all()


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12])
def test_leading_directions_do_not_depend_on_the_scale_of_gradients(scale):
    G = stack(1, 12, 4).float()
    _, expected, _ = frames.first(G, 6, 0.05)  # more directions than the gradient has
    _, Q, _ = frames.first(G * scale, 6, 0.05)
    assert (Q - expected).abs().max() < 1e-2


def test_a_step_along_leading_directions_never_leads_uphill():
    """A constant gradient whose rest is small, and along which the rest's own steps would lead back."""
    q, a = torch.full((9,), 1 / 3, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    r = torch.tensor([8.0] + [-1] * 8, dtype=torch.float64)
    b = torch.tensor([-5.0, 1, 1, 1, 1, 1], dtype=torch.float64) / 150
    G = torch.outer(q, a) + torch.outer(r, b)
    p = nn.Parameter(torch.zeros(9, 6, dtype=torch.float64))
    optimizer = SOAP([p], lr=0.01, rank=1, weight_decay=0.0, choices={"9x6": "left"}, start=2)
    for _ in range(60):
        before, p.grad = p.detach().clone(), G.clone()
        optimizer.step()
        assert ((p.detach() - before) * G).sum() < 0


def test_a_side_up_to_eight_times_the_rank_has_all_directions(monkeypatch):
    monkeypatch.undo()
    ps = parameters([(128, 3), (129, 16), (3, 4, 8, 4)], torch.float32)
    optimizer = SOAP(ps, start=2)
    for _ in range(3):
        for p in ps:
            p.grad = torch.ones_like(p)
        optimizer.step()
    bases = [[tuple(optimizer.state[p][f"{side}_basis"].shape) for side in ("left", "right")] for p in ps]
    assert bases == [[(128, 128), (3, 3)], [(129, 16), (16, 16)], [(3, 3), (128, 128)]]


def test_no_long_side_has_all_directions_however_high_the_rank(monkeypatch):
    monkeypatch.undo()
    assert [frames.directions(d, 200) for d in (150, 1024, 1025, 1600)] == [150, 1024, 200, 200]
    assert [frames.directions(d, 2000) for d in (1500, 2000, 2001)] == [1500, 2000, 2000]


def test_statistics_of_all_directions_are_gone_on_with_where_leading_ones_would_begin():
    """A state of a version, or of a rank, by which the side had all."""
    (p,), (q,) = parameters([(5, 40)]), parameters([(5, 40)])
    first, second = SOAP([p], rank=None, start=4), SOAP([q], rank=3, start=4)
    first_moves(first, [p], 2)
    saved = copy.deepcopy(first.state_dict())
    saved["param_groups"][0]["rank"] = 3
    second.load_state_dict(saved)
    first_moves(second, [q], 6)
    assert torch.isfinite(q).all()
    assert second.state[q]["left_basis"].shape == (5, 5) and second.state[q]["choice"] == "both"


def test_groups_may_have_different_ranks():
    def steps(groups, count=8):
        optimizer = SOAP(groups, start=3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.randn(3, 50, generator=generator, dtype=torch.float64)
            optimizer.step()
        return optimizer

    for ranks in ((4, None), (None, 4)):
        groups = [{"params": [p], "rank": rank} for p, rank in zip(parameters([(3, 50)] * 2), ranks, strict=True)]
        optimizer = steps(groups)
        found = {group["rank"]: optimizer.state[group["params"][0]] for group in optimizer.param_groups}
        assert [found[4]["choice"], found[None]["choice"]] == ["both", "left"]
    with pytest.raises(ValueError, match="rank is a number of directions"):
        SOAP([{"params": parameters([(3, 50)]), "rank": 0}])


def test_a_state_without_a_rank_is_of_all_directions():
    one, two = parameters([(5, 40)]), parameters([(5, 40)])
    first, second = SOAP(one, rank=None, start=4), SOAP(two)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        if step == 2:
            saved = first.state_dict()
            for group in saved["param_groups"]:
                del group["rank"]
            two[0].data.copy_(one[0])
            second.load_state_dict(saved)
        for p in (one[0], two[0]):
            p.grad = torch.randn(5, 40, generator=generator, dtype=torch.float64) if p is one[0] else one[0].grad
        first.step()
        if step >= 2:
            second.step()
    assert torch.equal(one[0], two[0])


def test_a_wide_layer_keeps_little_more_than_adamw_does():
    p = nn.Parameter(torch.randn(400, 600))
    optimizer = SOAP([p], budget=None, start=2)
    for _ in range(4):
        p.grad = torch.randn(400, 600)
        optimizer.step()
    numbers = sum(t.numel() for t in optimizer.state[p].values() if isinstance(t, torch.Tensor))
    assert numbers == 2 * 416 * 616 + 16 * (400 + 600) + 2 * 16


# ── bases ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_basis_that_fits_is_left_and_one_that_does_not_is_turned():
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)
    F = Q @ torch.diag(values) @ Q.mT
    assert bases.turned(F, Q, 0.1) is None
    found, turns = torch.eye(5, dtype=torch.float64), 0
    while (new := bases.turned(F, found, 1e-6)) is not None:
        turns, found = turns + 1, new[1]
    assert 5 < turns < 200
    assert (found.T @ F @ found - torch.diag(values)).abs().max() < 1e-4


def test_the_order_of_columns_is_that_of_falling_eigenvalues():
    F = torch.diag(torch.tensor([1.0, 3.0, 2.0]).double())
    F[0, 1] = F[1, 0] = 0.1
    order, basis = bases.turned(F, torch.eye(3, dtype=torch.float64), 0.0)
    assert order.tolist() == [1, 2, 0]
    assert basis.abs().argmax(0).tolist() == [1, 2, 0]


def test_eigenvectors_of_a_rank_of_one_and_of_nothing():
    v = torch.tensor([3.0, 4.0, 0.0])
    values, Q = bases.eigenbasis(torch.outer(v, v))
    assert values.tolist() == pytest.approx([25, 0, 0], abs=1e-5)
    assert (Q.mT @ Q - torch.eye(3)).abs().max() < 1e-6
    assert bases.turned(torch.zeros(3, 3), Q, 0.0) is None
    for broken in (torch.full((3, 3), torch.nan), torch.full((3, 3), torch.inf)):
        with pytest.raises(bases.NoBasis):
            bases.eigenbasis(broken)
        with pytest.raises(bases.NoBasis):
            bases.turned(broken, Q, 0.0)


@pytest.mark.parametrize(("broken", "rank"), [("eigh", None), ("householder_product", None), ("geqrf", 2)])
def test_a_decomposition_that_fails_leaves_the_basis_and_is_told_once(broken, rank, monkeypatch):
    def fails(*_):
        raise torch.linalg.LinAlgError(f"{broken} did not converge")

    ps = parameters([(4, 6)], torch.float32)
    optimizer = SOAP(ps, lr=0.01, rank=rank, budget=None, start=3, period=1, statistics_period=1, tolerance=0.0)
    generator = torch.Generator().manual_seed(0)

    def steps(count):
        for _ in range(count):
            ps[0].grad = torch.randn(4, 6, generator=generator)
            optimizer.step()

    steps(2 if rank is None else 4)
    monkeypatch.setattr(torch, broken, fails) if broken == "geqrf" else monkeypatch.setattr(torch.linalg, broken, fails)
    with pytest.warns(UserWarning, match="keeps the old basis") as told:
        steps(5)
    assert len(told) == 1
    kept = optimizer.state[ps[0]]
    if broken == "eigh":
        assert torch.linalg.matrix_norm(kept["left_basis"].mT @ kept["left_basis"] - torch.eye(4)) < 1e-5
    monkeypatch.undo()
    before = kept["left_basis"].clone()
    steps(1)
    assert not torch.equal(kept["left_basis"], before)
    assert ps[0].isfinite().all()


# ── what each shape gets ─────────────────────────────────────────────────────────────────────────────────────────────


class Priced:
    """A shape whose choices have prices that a test gives."""

    def __init__(self, num_parameters, *prices, harmed=False):
        self.num_parameters, self.kept, self.harmed, self.arithmetics = num_parameters, [{}], harmed, (False, True)
        self.prices = prices

    def offers(self):
        sides = [(), ("left",), ("left", "right")]
        low = True in self.arithmetics
        return [
            Choice(s, bool(s) and low and self.harmed, price * (1 if low else 3) if s else 0.0)
            for s, price in zip(sides, (0.0, *self.prices), strict=False)
        ]

    def is_harmless(self, choice):
        return not self.harmed


def test_the_budget_buys_what_is_cheapest_for_each_parameter():
    shapes = {"dear": Priced(100, 5.0, 9.0), "cheap": Priced(100, 1.0, 2.0), "large": Priced(1000, 4.0, 20.0)}

    def sides(limit):
        return {name: len(choice.sides) for name, choice in budget._within(limit, shapes).items()}

    assert sides(0.5) == {"dear": 0, "cheap": 0, "large": 0}
    assert sides(4.0) == {"dear": 0, "cheap": 0, "large": 1}
    assert sides(6.5) == {"dear": 0, "cheap": 2, "large": 1}
    assert sides(11.5) == {"dear": 1, "cheap": 2, "large": 1}
    assert sides(1e9) == {"dear": 2, "cheap": 2, "large": 2}


def test_bfloat16_is_given_up_where_it_harms_and_all_is_weighed_again():
    found = budget._within(4.0, {"a": Priced(10, 1.0, 2.0, harmed=True), "b": Priced(10, 1.0, 2.0)})
    assert [c.bfloat16 for c in found.values()] == [False, False]
    assert [len(c.sides) for c in found.values()] == [0, 2]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))


def train(model, optimizer, steps, first=0):
    generator = torch.Generator().manual_seed(0)
    for step in range(first + steps):
        x, y = torch.randn(32, 8, generator=generator), torch.randint(0, 3, (32,), generator=generator)
        if step >= first:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize("rank", [None, 3])
def test_what_was_decided_by_clock_can_be_told_again(rank, monkeypatch):
    monkeypatch.setattr("thalweg.optim.budget.bfloat16_may_pay", lambda device: True)  # on every processor alike
    one, two = network(), network()
    first = SOAP(one, rank=rank, budget=0.25)
    train(one, first, 30)
    assert set(first.choices) == {"16x8", "12x16", "5x12"}
    second = SOAP(two, rank=rank, choices=first.choices)
    train(two, second, 30)
    assert second.choices == first.choices
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_closure_is_part_of_the_time_between_two_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("thalweg.optim.soap.now", lambda device: clock[0])
    model = network()
    optimizer = SOAP(model, budget=0.25, start=10)

    def closure():
        clock[0] += 5.0
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).square().mean()
        loss.backward()
        return loss

    for _ in range(9):
        optimizer.step(closure)
        clock[0] += 1.0
    assert list(optimizer._gaps) == [6.0] * 8


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("share", [0.0, 1e9])
def test_a_budget_of_nothing_buys_nothing_and_one_of_everything_all(share, rank, monkeypatch):
    monkeypatch.setattr("thalweg.optim.budget.bfloat16_may_pay", lambda device: True)
    model = network()
    optimizer = SOAP(model, rank=rank, budget=share)
    train(model, optimizer, 12)
    words = {choice.removesuffix(" bfloat16") for choice in optimizer.choices.values()}
    assert words == ({"none"} if share == 0.0 else {"both"})
    if share == 0.0:
        assert all("left" not in kept and "exp_avg" in kept for kept in optimizer.state.values())


def test_no_clock_decides_where_all_is_to_repeat():
    model = network()
    optimizer = SOAP(model, budget=0.0)
    torch.use_deterministic_algorithms(True)
    try:
        train(model, optimizer, 12)
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(optimizer.choices.values()) == {"both"}


@pytest.mark.parametrize("rank", [None, 3])
def test_bfloat16_projections_are_nearly_the_exact_ones(rank):
    one, two = network(), network()
    train(one, SOAP(one, lr=0.01, rank=rank), 60)
    low = dict.fromkeys(("16x8", "12x16", "5x12"), "both bfloat16")
    train(two, SOAP(two, lr=0.01, rank=rank, choices=low), 60)
    start = network()
    moved = [torch.cat([(p - q).flatten() for p, q in zip(m.parameters(), start.parameters(), strict=True)])
             for m in (one, two)]  # fmt: skip
    assert 0 < (moved[0] - moved[1]).norm() < 0.25 * moved[0].norm()


@pytest.mark.parametrize("words", ["both", "left bfloat16", "right", "none"])
def test_choices_read_as_they_are_written(words):
    assert Choice.of(words).words == words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 0}, "period is a number of steps"),
        ({"statistics_period": 2.5}, "statistics_period is a number of steps"),
        ({"tolerance": 1.0}, "tolerance lies in"),
        ({"rank": 0}, "rank is a number of directions"),
        ({"start": 1, "budget": 0.25}, "budget=None lets no clock decide"),
        ({"choices": {"5x7": "all"}}, "a choice is"),
        ({"lr": -1.0}, "lr is a number of 0 or more"),
        ({"lr": torch.tensor(0.1)}, "lr is a number of 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas lies in"),
    ],
)
def test_what_options_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        SOAP(parameters([(5, 7)]), **options)


def test_a_choice_that_a_shape_cannot_have():
    ps = parameters([(3, 50)])
    optimizer = SOAP(ps, rank=None, budget=None, start=1, choices={"3x50": "both"})
    ps[0].grad = torch.ones(3, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match="3x50 cannot have 'both': its sides are left"):
        optimizer.step()


@pytest.mark.parametrize("rank", [None, 3])
def test_a_copy_goes_on_alike(rank):
    model = network()
    optimizer = SOAP(model, rank=rank)
    train(model, optimizer, 15)
    twin_model, twin = copy.deepcopy((model, optimizer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m, o in ((model, optimizer), (twin_model, twin)):
            train(m, o, 10, first=15)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin_model.parameters(), strict=True))
