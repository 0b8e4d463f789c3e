import math

import numpy as np
import pytest
import torch
from slow_rules import SlowAdamW, SlowMuon
from torch import nn

from thalweg.optim import Muon, muon
from thalweg.optim.matrices import embeddings, output_layer

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MATRICES = [(5, 7), (7, 5), (6, 6), (4, 30), (40, 3), (8, 3, 2, 2), (3, 5, 3), (7, 2, 2, 1, 2), (2, 2)]
VECTORS = [(1, 9), (9, 1, 1), (6,), ()]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(p):
    return p.detach().numpy().reshape(p.shape[0] if p.ndim else 1, -1)


@pytest.mark.parametrize("shape", [*MATRICES, *VECTORS], ids=str)
def test_follows_the_slow_twin(shape):
    p = nn.Parameter(drawn(*shape))
    if shape in MATRICES:
        twin = SlowMuon(matrix(p), muon.COEFFICIENTS, muon.MARGIN, **OPTIONS)
    else:
        twin = SlowAdamW(matrix(p), **OPTIONS)
    optimizer = Muon([p], **OPTIONS)
    target = drawn(*shape, seed=1)
    for step in range(40):
        noise = 0.1 * drawn(*shape, seed=2 + step)
        p.grad = p.detach() - target + noise
        twin.step(twin.W - target.numpy().reshape(twin.W.shape) + noise.numpy().reshape(twin.W.shape))
        optimizer.step()
    assert np.abs(matrix(p) - twin.W).max() < 1e-9


@pytest.mark.parametrize("shape", [(1, 5, 9), (3, 9, 5), (2, 40, 40), (1, 64, 600)])
def test_singular_values_come_out_near_one_with_their_vectors(shape):
    U = drawn(*shape) * 1e-3
    O = muon.orthogonal(U.clone())  # noqa: E741
    left, values, right = torch.linalg.svd(U, full_matrices=False)
    bound = math.sqrt(muon.MARGIN) * values.pow(4).sum(-1).pow(0.25)
    D = left.mT @ O @ right.mT
    found = D.diagonal(dim1=-2, dim2=-1)
    assert (D - torch.diag_embed(found)).abs().max() < 1e-10
    is_large = values > 0.003 * bound.unsqueeze(-1)
    assert ((found - 1).abs() < 0.22)[is_large].all()


@pytest.mark.parametrize("arithmetic", ["exact", "bfloat16"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-11, 1e-9, 1e-3, 1e6, 1e8])
def test_gradients_of_any_size_give_steps_of_bounded_size(size, arithmetic):
    """Where squares of squares leave the range of float32, nothing is to be divided by what is left of them."""
    U = muon.prepared(torch.Size((1, 24, 32)), torch.empty(0), arithmetic).copy_(drawn(1, 24, 32) * size)
    values = torch.linalg.svdvals(muon.orthogonal(U)[0].double())
    assert values.max() < 1.3
    assert size < 1e-8 or values.max() > 0.9
    assert size > 1e-15 or values.max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 96, 64)])
def test_bfloat16_is_near_the_exact_one(shape):
    U = drawn(*shape).float()
    O = muon.orthogonal(U.clone())  # noqa: E741
    assert (muon.orthogonal(U.bfloat16()).float() - O).norm() < 0.1 * O.norm()


def test_is_the_polar_factor_that_torch_takes():
    """torch's iteration is coarser (0.68 to 1.20) and in bfloat16: the directions are the same."""
    from torch.optim._muon import _zeropower_via_newtonschulz as theirs

    U = drawn(1, 32, 48).float()
    other = theirs(U[0].clone(), (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    assert torch.nn.functional.cosine_similarity(muon.orthogonal(U.clone())[0].flatten(), other.flatten(), dim=0) > 0.95


def test_an_entry_moves_by_a_fifth_of_the_rate():
    for shape in ((64, 64), (16, 128), (128, 16), (32, 8, 3, 3)):
        p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        p.grad = drawn(*shape)
        Muon([p], lr=1.0, weight_decay=0.0).step()
        assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_rows_of_very_different_gradients_come_to_move_alike():
    p = nn.Parameter(torch.zeros(8, 32, dtype=torch.float64))
    optimizer = Muon([p], lr=1.0, weight_decay=0.0)
    scales = torch.tensor([1.0, 1, 1, 1, 1, 1, 1e-3, 1e-3], dtype=torch.float64).unsqueeze(1)
    steps = []
    for step in range(60):
        before = p.detach().clone()
        p.grad = scales * drawn(8, 32, seed=step)
        optimizer.step()
        steps.append((p.detach() - before).norm(dim=1))
    rows = torch.stack(steps[20:]).mean(0)
    assert rows.max() < 1.3 * rows.min()


def test_turned_inputs_turn_the_trajectory():
    Q = torch.linalg.qr(drawn(6, 6, seed=3))[0]
    x, y = drawn(64, 6) * torch.tensor([9, 3, 1, 1, 0.3, 0.1]).double(), drawn(64, 5, seed=1)
    W = nn.Parameter(drawn(5, 6, seed=2))
    turned = nn.Parameter(W.detach() @ Q.T)
    for p, inputs in ((W, x), (turned, x @ Q.T)):
        optimizer = Muon([p], lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            (inputs @ p.T - y).square().mean().backward()
            optimizer.step()
    assert (W @ Q.T - turned).abs().max() < 1e-9


def test_a_stack_is_the_loop_over_its_matrices():
    together = [nn.Parameter(drawn(6, 9, seed=i)) for i in range(4)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    rules = [Muon(together), *(Muon([p]) for p in alone)]
    for step in range(20):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = drawn(6, 9, seed=100 * i + step)
            q.grad = p.grad.clone()
        for rule in rules:
            rule.step()
    assert all((p - q).abs().max() < 1e-12 for p, q in zip(together, alone, strict=True))


class Language(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(self.norm(x + self.attention(x, x, x)[0]))


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_output_layer_and_vectors_are_for_adamw(tied):
    model = Language(tied)
    assert embeddings(model) == {model.embedding.weight}
    assert output_layer(model) == {model.head.weight}
    optimizer = Muon(model)
    ours = optimizer.param_groups[0]
    assert ours["param_names"] == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0]
    model(torch.randint(0, 11, (4, 6))).square().mean().backward()
    optimizer.step()
    kept = {name: "momentum" in optimizer.state[p] for name, p in model.named_parameters()}
    assert {name for name, is_ours in kept.items() if is_ours} == set(ours["param_names"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arithmetic": "fp8"}, 'arithmetic is "auto"'),
        ({"momentum": 1.0}, "momentum lies in"),
        ({"weight_decay": math.nan}, "weight_decay is a number"),
    ],
)
def test_what_options_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        Muon([nn.Parameter(drawn(5, 7))], **options)


def test_the_arithmetic_is_timed_once_and_written_down():
    p = nn.Parameter(drawn(48, 48).float())
    optimizer = Muon([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["arithmetic"] in ("exact", "bfloat16")
    again = Muon([q := nn.Parameter(p.detach().clone())], arithmetic="bfloat16")
    q.grad = torch.ones_like(q)
    again.step()
    assert again.state[q]["arithmetic"] == "bfloat16"
    again.load_state_dict(optimizer.state_dict())
    assert again.state[q]["arithmetic"] == optimizer.state[p]["arithmetic"]


def test_an_output_layer_of_one_row_is_the_output_layer() -> None:
    model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    moved = Muon(model).param_groups[0]["params"]
    assert [id(p) for p in moved] == [id(model[0].weight), id(model[2].weight)]
