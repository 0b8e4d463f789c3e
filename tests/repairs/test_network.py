"""What the changes of the network do for it."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from bodies import Named, body, body_of, images, mlp, predicted
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from thalweg.repairs.blocks import Gated, Residual
from thalweg.repairs.change import Body
from thalweg.repairs.network import CHANGES, fold
from thalweg.repairs.passes import evaluating, look
from thalweg.repairs.structure import Around


def deep(activation: type[nn.Module], depth: int = 30, width: int = 32) -> Body:
    torch.manual_seed(0)
    layers = [part for i in range(depth - 1) for part in (nn.Linear(width if i else 8, width), activation())]
    return body(
        nn.Sequential(*layers, nn.Linear(width, 2)), torch.randn(256, 8), torch.arange(256) % 2, "cross_entropy"
    )


def made(body: Body, *codes: str, **other: float | str) -> None:
    for code in codes:
        words = CHANGES[code].words(body)
        assert words is not None
        CHANGES[code].apply(body, {**words, **other})


def first_to_last(body: Body) -> float:
    """Norm of the first layer's gradient over that of the last."""
    x, y = body.sample
    body.model.train()
    body.model.zero_grad()
    assert body.loss is not None
    body.loss(body.forward(x), y).backward()
    norms = [p.grad.norm() for p in body.model.parameters() if p.ndim > 1 and p.grad is not None]
    return float(norms[0] / norms[-1])


# ── first weights ──


def variances(case: Body) -> list[float]:
    """Of the outputs of layers, as they are before an activation changes them in place."""
    found: list[float] = []
    layers = [m for m in case.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda module, args, y: found.append(float(y.var()))) for m in layers]
    predicted(case)
    for hook in hooks:
        hook.remove()
    return found


def test_lsuv_gives_unit_variances() -> None:
    case = deep(nn.Tanh)
    made(case, "initialise", method="lsuv")
    *hidden, last = variances(case)
    assert len(hidden) == 29
    assert all(abs(variance - 1) <= 0.1 for variance in hidden)
    assert last < 0.2


def test_lsuv_of_convolutions_with_norms() -> None:
    case = body_of("images")
    made(case, "initialise", method="lsuv")
    *hidden, _ = variances(case)
    assert len(hidden) == 3
    assert all(abs(variance - 1) <= 0.1 for variance in hidden)


def test_he_glorot_and_orthogonal_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 500), nn.ReLU(), nn.Linear(500, 400), nn.Sigmoid(), nn.Linear(400, 300))
    case = body(model, torch.randn(8, 400), torch.zeros(8, 300))
    first, second, last = (m for m in model if isinstance(m, nn.Linear))
    wanted = {
        "he": (math.sqrt(2 / 400), math.sqrt(1 / 500), 1 / 400),
        "glorot": (math.sqrt(2 / 900), 4 * math.sqrt(2 / 900), 1 / 400),
    }
    for method, deviations in wanted.items():
        made(case, "initialise", method=method)
        for layer, deviation in zip((first, second, last), deviations, strict=True):
            # The deviation of n numbers is known to 1/√(2n) of it; six times that never fails.
            assert float(layer.weight.detach().std()) == pytest.approx(
                deviation, rel=6 / math.sqrt(2 * layer.weight.numel())
            )
            bound = 0.0 if layer is last else layer.in_features**-0.5
            assert float(layer.bias.detach().abs().max()) <= bound
            assert float(layer.bias.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)
    made(case, "initialise", method="orthogonal")
    torch.testing.assert_close(first.weight.T @ first.weight, 2 * torch.eye(400), atol=1e-4, rtol=0)
    torch.testing.assert_close(second.weight @ second.weight.T, torch.eye(400), atol=1e-4, rtol=0)


def test_a_drawn_network_of_tanh_is_not_odd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(64, 2)
    made(body(model, x, torch.zeros(64, 1)), "initialise", method="glorot")
    even = (model(x) + model(-x)).square().mean()
    assert even > 0.05 * model(x).square().mean()


def test_recurrent_weights() -> None:
    model = nn.LSTM(5, 6, batch_first=True)
    case = body(nn.Sequential(model), torch.randn(4, 3, 5), torch.zeros(4))
    made(case, "initialise", method="he")
    for gate in model.weight_hh_l0.detach().split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)
    bias = (model.bias_ih_l0 + model.bias_hh_l0).detach()
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12  # input, forget, cell, output
    bound = math.sqrt(6 / (5 + 6))
    assert float(model.weight_ih_l0.detach().abs().max()) <= bound


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_gates_remember_over_long_sequences(cell: type[nn.RNNBase]) -> None:
    model = cell(2, 200, batch_first=True)
    made(body(nn.Sequential(model), torch.randn(4, 500, 2), torch.zeros(4)), "initialise", method="he")
    gates = (model.bias_ih_l0 + model.bias_hh_l0).detach().view(-1, 200)
    steps = gates[1].exp()  # a unit with such a bias forgets over about so many steps
    assert 1 <= steps.min() < 50 < 200 < steps.mean() < 300 < 450 < steps.max() <= 499.001
    others = gates[2:] if cell is nn.LSTM else gates[[0, 2]]
    assert not others.any()
    if cell is nn.LSTM:
        assert torch.equal(gates[0], -gates[1])


def test_norms_embeddings_and_what_stays() -> None:
    model = nn.Sequential(nn.Embedding(2000, 64, padding_idx=3), nn.LayerNorm(64), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight.fill_(7.0)
        model[1].bias.fill_(7.0)
    model[2].weight.requires_grad_(False)
    kept = model[2].weight.clone()
    case = body(model, torch.randint(0, 2000, (8, 4)), torch.zeros(8, 4, 3))
    made(case, "initialise")
    assert float(model[0].weight.detach().std()) == pytest.approx(1 / 8, rel=6 / math.sqrt(2 * 2000 * 64))
    assert not model[0].weight[3].any()
    assert bool((model[1].weight == 1).all()) and not model[1].bias.any()
    assert torch.equal(model[2].weight, kept)


def test_only_the_named_layers_are_drawn() -> None:
    case = body_of("named")
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    CHANGES["initialise"].apply(case, {"method": "he", "where": "second head"})
    changed = {name.partition(".")[0] for name, p in case.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"second", "head"}


def test_draws_repeat() -> None:
    drawn = []
    for _ in range(2):
        case = body_of("mlp")
        torch.manual_seed(3)
        made(case, "initialise", method="lsuv")
        drawn.append(case.model.state_dict())
    assert all(torch.equal(t, drawn[1][name]) for name, t in drawn[0].items())


def test_the_method_follows_from_the_activations() -> None:
    tanh = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(8, 6), torch.zeros(8, 3)
    assert CHANGES["initialise"].words(body(tanh, x, y)) == {"method": "glorot", "where": "all"}
    assert CHANGES["initialise"].words(body_of("named")) == {"method": "he", "where": "all"}
    assert CHANGES["initialise"].words(deep(nn.ReLU)) == {"method": "lsuv", "where": "all"}


# ── activations ──


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Shares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.exp(), 0.5)


def test_which_activations_are_swapped() -> None:
    parts = (
        nn.ReLU(),
        Exponential(),
        nn.Tanh(),
        nn.Sigmoid(),
        Doubled(),
        Shares(),
        Noisy(),
        nn.Dropout(0.5),
        nn.GELU(),
    )
    layers = [part for activation in parts for part in (nn.Linear(6, 6), activation)]
    case = body(nn.Sequential(*layers, nn.Linear(6, 3), nn.Sigmoid()), torch.randn(8, 6), torch.zeros(8, 3))
    words = CHANGES["swap_activation"].words(case)
    assert words == {"leaky_relu": "1", "silu": "3 7"}
    CHANGES["swap_activation"].apply(case, words)
    kinds = [type(module) for module in case.model.children()][1::2]
    assert kinds[:4] == [nn.LeakyReLU, nn.SiLU, nn.Tanh, nn.SiLU]
    assert kinds[-1] is nn.Sigmoid  # the last one is no hidden one


def test_an_activation_that_is_also_the_last_one_stays() -> None:
    act = nn.Sigmoid()
    case = body(nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 3), act), torch.randn(8, 6), torch.zeros(8, 3))
    assert CHANGES["swap_activation"].words(case) is None


def test_a_deep_sigmoid_network_gets_its_gradient_back() -> None:
    case = deep(nn.Sigmoid)
    assert first_to_last(case) < 1e-12
    made(case, "swap_activation", "initialise")
    assert first_to_last(case) > 1e-2


def test_dead_units_come_back() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    x, y = case.sample
    F.mse_loss(case.model(x), y).backward()
    assert not model[0].weight.grad.any()
    made(case, "swap_activation")
    F.mse_loss(case.model(x), y).backward()
    assert model[0].weight.grad.any()


class Branches(nn.Module):
    """Functions in every place where one may stand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.second, self.third = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.relu(x)  # before any layer
        x = torch.relu(self.first(x)) * torch.sigmoid(self.gate(x))  # a gate
        x = scale * self.second(x).relu_()
        return self.third(x.sigmoid()).sigmoid()  # the last is the output


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Branches(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x, scale=2.0) if True else x)


class Moody(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.relu(self.first(x))
        return self.third(F.dropout(x, 0.5, self.training))


class Counting(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for _ in range(3 if float(x.detach().sum()) > 0 else 2):
            x = F.relu(self.first(x))
        return self.third(x)


class Masked(Branches):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.first(x))
        if mask is None:
            x = x[:, :3].repeat(1, 2)
        return self.third(x)


class Remembers(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.last = F.relu(self.first(x))
        return self.third(self.last)


class Tempered(Branches):
    temperature: float

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.third(F.relu(self.first(x)) / self.temperature)


class Still(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.first(x))
        return self.third(x)


class Draws(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.third(F.relu(self.first(x)) + torch.randn(6))


class InPlace(Branches):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.first(x)
        F.relu(x, inplace=True)
        y = self.second(x)
        return self.third(y.relu_()) + self.gate(y)


@pytest.mark.parametrize("network", [Masked, Remembers, Tempered, Still, InPlace])
def test_what_a_trace_would_change_is_left_alone(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network()
    model.temperature = 2.0
    case = body(model, torch.randn(8, 6), torch.zeros(8, 6))
    before = dict(vars(model))
    assert CHANGES["swap_activation"].words(case) is None
    assert vars(model).keys() - {"last"} == before.keys() and not isinstance(vars(model).get("last"), Proxy)


def test_tracing_draws_nothing_and_leaves_nothing() -> None:
    torch.manual_seed(0)
    case = body(Draws(), torch.randn(8, 6), torch.zeros(8, 6))
    before, drawn = set(vars(case.model)), torch.get_rng_state()
    CHANGES["swap_activation"].words(case)
    assert set(vars(case.model)) == before and torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Branches, {"in_forward_leaky_relu": ":1 :3", "in_forward_silu": ":4"}),
        (Outer, {"in_forward_leaky_relu": "inner:1 inner:3", "in_forward_silu": "inner:4"}),
        (Moody, None),  # which is another thing in training
        (Counting, None),  # which depends on values
    ],
)
def test_activations_that_are_functions(network: type[nn.Module], words: dict[str, str] | None) -> None:
    torch.manual_seed(0)
    case = body(network(), torch.randn(8, 6), torch.zeros(8, 6 if network is not Outer else 3))
    assert CHANGES["swap_activation"].words(case) == words


def test_a_function_is_swapped_where_it_is_called_and_nowhere_else() -> None:
    torch.manual_seed(0)
    case = body(Branches(), torch.randn(8, 6), torch.zeros(8, 6))
    model, x = case.model, case.sample[0]

    def expected() -> Tensor:
        with torch.no_grad():
            y = F.relu(x)
            y = F.leaky_relu(model.first(y), 0.1) * torch.sigmoid(model.gate(y))
            y = 2 * F.leaky_relu(model.second(y), 0.1)
            return model.third(F.silu(y)).sigmoid()

    undo = CHANGES["swap_activation"].apply(case, CHANGES["swap_activation"].words(case) or {})
    torch.testing.assert_close(model(x, scale=2.0), expected())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        model.second.weight.mul_(3)
    torch.testing.assert_close(model(x, 2.0), expected())
    for other in copies:
        assert not torch.equal(other(x), model(x))  # it has weights of its own
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(x, scale=2.0), expected())
    assert list(inspect.signature(model.forward).parameters) == ["x", "scale"]
    assert isinstance(model, Branches) and type(model).__name__ == "Branches"
    undo()
    assert type(model) is Branches


def test_code_says_where_a_function_is_called() -> None:
    lines = CHANGES["swap_activation"].lines({"in_forward_leaky_relu": ":1 blocks.0:0"})
    assert lines == [
        "# model.forward, activation 2: F.leaky_relu(x, 0.1)",
        "# model.blocks[0].forward, activation 1: F.leaky_relu(x, 0.1)",
    ]


def test_images_that_are_moved() -> None:
    case = body_of("images")
    words = CHANGES["augment_images"].words(case)
    assert words == {"where": "0", "shift": 1}
    CHANGES["augment_images"].apply(case, words)
    model, x = case.model, case.sample[0]
    seen: list[Tensor] = []
    model[0].layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    model.train()(x), model.eval()(x)
    assert not torch.equal(seen[0], x) and torch.equal(seen[1], x)
    kept = (seen[0][:, :, 1:-1, 1:-1, None, None] == x[:, :, None, None, 1:-1, 1:-1]).double().mean()
    assert kept > 0.02  # pixels come from elsewhere, they are not made up
    before = model(x)
    fold(model)
    assert isinstance(model[0], nn.Conv2d) and torch.equal(model(x), before)


def test_images_that_are_moved_can_still_be_standardised() -> None:
    case = body_of("images")
    case.sample = (3 + 5 * case.sample[0], case.sample[1])
    before = CHANGES["standardise_inputs"].words(case)
    made(case, "augment_images")
    after = CHANGES["standardise_inputs"].words(case)
    assert before is not None and after == {**before, "where": "0.layer"}


def test_inputs_are_standardised_once() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    case = body(model, 5 + 9 * torch.randn(64, 4), torch.zeros(64, 3))
    made(case, "standardise_inputs")
    assert CHANGES["standardise_inputs"].words(case) is None


def test_targets_are_scaled_once() -> None:
    x = torch.randn(64, 4)
    case = body(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), x, 70 + 30 * x[:, :1], "mse")
    made(case, "scale_targets")
    assert CHANGES["scale_targets"].words(case) is None


def test_images_that_two_take_or_that_are_targets_are_not_moved() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.one(x) + self.other(x)).flatten(1))

    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    assert CHANGES["augment_images"].words(body(Two(), x, y, "cross_entropy")) is None
    masks = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))
    assert CHANGES["augment_images"].words(body(masks, x, torch.zeros(8, 8, 8).long(), "cross_entropy")) is None

    class Shown(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.conv = how, nn.Conv2d(1, 1, 3, padding=1)
            self.dense = nn.Linear(64 if how == "flat" else 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.how == "beside":
                return (x + self.conv(x)).mean((2, 3)).repeat(1, 3)
            return (
                self.dense(x.flatten(1) if self.how == "flat" else x.permute(0, 2, 3, 1)).reshape(len(x), -1, 3).mean(1)
            )

    for how in ("beside", "flat", "last"):
        assert CHANGES["augment_images"].words(body(Shown(how), x, y, "cross_entropy")) is None, how
    long = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert CHANGES["augment_images"].words(body(long, torch.randn(8, 1, 8, 64), y, "cross_entropy")) == {
        "where": "0", "shift": 1,
    }  # fmt: skip
    copies = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    assert CHANGES["augment_images"].words(body(copies, x, x, "mse")) is None


# ── norms and connections ──


def test_where_norms_go() -> None:
    words = {
        kind: CHANGES["insert_norm"].words(body_of(kind)) for kind in ("images", "named", "transformer", "recurrent")
    }
    assert words["images"] == {"batch": "3 6", "matched": 1.0, "gate": 0.0}  # the first has one
    assert words["named"] == {"batch": "first second third", "matched": 1.0, "gate": 0.0}  # also ahead of F.relu
    assert words["transformer"] == {"layer": "dense.0", "matched": 1.0, "gate": 0.0}
    assert words["recurrent"] == {"batch": "head.0", "matched": 1.0, "gate": 0.0}
    small = CHANGES["insert_norm"].words(body_of("mlp", batch_size=4))
    assert small == {"layer": "0 2 4", "matched": 1.0, "gate": 0.0}
    single = body(mlp(), torch.randn(1, 6), torch.randn(1, 3))
    assert (CHANGES["insert_norm"].words(single) or {})["layer"] == "0 2 4"


@pytest.mark.parametrize("kind", ["mlp", "images", "named"])
def test_layer_norms_behind_a_closed_gate_change_nothing(kind: str) -> None:
    case = body_of(kind, batch_size=2)
    before = predicted(case)
    made(case, "insert_norm")
    assert any(isinstance(module, Gated) for module in case.model.modules())
    torch.testing.assert_close(predicted(case), before, rtol=0, atol=0)


def test_an_open_gate_with_matched_statistics_keeps_means_and_deviations() -> None:
    case = body_of("mlp", batch_size=2)
    before = predicted(body(case.model[0], *case.sample))
    CHANGES["insert_norm"].apply(case, {"layer": "0", "matched": 1.0, "gate": 1.0})
    after = predicted(body(case.model[0], *case.sample))
    torch.testing.assert_close(after.mean(0), before.mean(0))
    torch.testing.assert_close(after.std(0), before.std(0), rtol=1e-3, atol=0)
    assert not torch.allclose(after, before, rtol=0.01)


def test_what_has_overflown_gets_no_statistics() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.fill_(torch.finfo().max)
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    CHANGES["insert_norm"].apply(case, {"batch": "0 2", "matched": 1.0, "gate": 0.0})
    norms = [module for module in case.model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 2
    assert all(t.isfinite().all() for norm in norms for t in norm.state_dict().values())


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU])
def test_norms_bring_a_vanished_signal_back(activation: type[nn.Module]) -> None:
    case = deep(activation)
    assert look(case).is_constant()
    assert first_to_last(case) < 1e-9
    made(case, "insert_norm")
    assert first_to_last(case) > 1e-2


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU])
def test_connections_bring_a_vanished_signal_back(activation: type[nn.Module]) -> None:
    case = deep(activation)
    made(case, "insert_residual")
    assert first_to_last(case) > 1e-4
    assert sum(isinstance(module, Residual) for module in case.model.modules()) == 28


def test_a_closed_gate_has_a_gradient() -> None:
    case = body_of("mlp")
    made(case, "insert_residual")
    x, y = case.sample
    assert case.loss is not None
    case.loss(case.forward(x), y).backward()
    gates = [module.gate for module in case.model.modules() if isinstance(module, Residual)]
    assert len(gates) == 2
    assert all(gate.grad is not None and gate.grad.item() != 0 for gate in gates)


def test_a_connection_takes_the_shape_keeping_part_only() -> None:
    case = body(images(), torch.randn(32, 2, 8, 8), torch.arange(32) % 3, "cross_entropy")
    words = CHANGES["insert_residual"].words(case)
    assert words == {"where": "3:4", "gate": 0.0}
    keys = [key for key in case.model.state_dict() if not key.startswith("3.")]
    CHANGES["insert_residual"].apply(case, words)
    assert [key for key in case.model.state_dict() if not key.startswith("3.")] == keys


# ── dropout, frozen parameters, modes ──


def test_dropout_drops_in_training_only() -> None:
    case = body_of("mlp")
    made(case, "add_dropout")
    x, _ = case.sample
    case.model.train()
    assert not torch.equal(case.model(x), case.model(x))
    case.model.eval()
    assert torch.equal(case.model(x), case.model(x))
    assert CHANGES["add_dropout"].words(case) is None  # there is one now


def test_frozen_parameters_are_named_and_set_free() -> None:
    case = body_of("mlp")
    case.model[0].weight.requires_grad_(False)
    case.model[2].requires_grad_(False)
    words = CHANGES["unfreeze"].words(case)
    assert words == {"where": "0.weight 2.weight 2.bias"}
    undo = CHANGES["unfreeze"].apply(case, {"where": "2.weight 2.bias"})
    assert [name for name, p in case.model.named_parameters() if not p.requires_grad] == ["0.weight"]
    undo()
    assert CHANGES["unfreeze"].words(case) == words


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_cut_is_mended() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Detached(), nn.Linear(8, 3))
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    words = CHANGES["unfreeze"].words(case)
    assert words == {"detached": "2"}
    undo = CHANGES["unfreeze"].apply(case, words)
    assert first_to_last(case) > 0
    undo()
    assert isinstance(model[2], Detached)


def test_no_block_without_a_layer() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Dropout(0.1)), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    assert CHANGES["insert_residual"].words(case) == {"where": "1:2", "gate": 0.0}


class Halved(nn.Module):
    """Overflows in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1e5).half().float() / 1e5


def test_what_overflows_is_no_activation() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Halved(), nn.Linear(6, 3))
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    assert CHANGES["swap_activation"].words(case) is None


def test_no_norm_ahead_of_the_last_activation() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1), nn.Sigmoid(), nn.Flatten(0))
    case = body(model, torch.randn(32, 6), torch.randn(32))
    assert CHANGES["insert_norm"].words(case) == {"batch": "0", "matched": 1.0, "gate": 0.0}


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


def test_modules_follow_the_mode_again() -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), AlwaysDropout(), nn.Linear(40, 3))
    case = body(model, torch.randn(32, 6), torch.randn(32, 3))
    norm = model[1]
    norm.eval()
    norm.train = lambda mode=True: norm
    words = CHANGES["train_mode"].words(case)
    assert words == {"where": "1", "dropout": "3", "p": 0.2}
    undo = CHANGES["train_mode"].apply(case, words)
    assert norm.training
    case.model.eval()
    x, _ = case.sample
    assert torch.equal(case.model(x), case.model(x))
    case.model.train()
    assert norm.training and not torch.equal(case.model(x), case.model(x))
    undo()
    case.model.train()
    assert not norm.training and isinstance(case.model[3], AlwaysDropout)


# ── what they stand on ──


def test_what_stands_around_a_layer_passes_its_attributes_on() -> None:
    cell = nn.GRU(5, 8, batch_first=True)
    around = Around(cell, ahead=nn.Dropout(0.5))
    assert around.hidden_size == 8 and around.training
    assert around.weight_hh_l0 is cell.weight_hh_l0
    with pytest.raises(AttributeError, match="depth"):
        _ = around.depth
    around.eval()
    x, state = torch.randn(2, 3, 5), torch.randn(1, 2, 8)
    torch.testing.assert_close(around(x, state)[0], cell(x, state)[0])


def test_a_stock_block_keeps_its_parts() -> None:
    """torch's own blocks read the weights of their parts in evaluation, past whatever stands around them."""
    case = body_of("transformer")
    words = [change.words(case) for change in CHANGES.values() if change.code != "initialise"]
    named = " ".join(str(value) for found in words if found for value in found.values()).split()
    assert not [name for name in named if name.startswith(("stock", "attention"))]


def test_a_module_kept_in_a_list_as_well_is_left_alone() -> None:
    class Listed(Named):
        def __init__(self) -> None:
            super().__init__()
            self.order = [self.first, self.second]

    torch.manual_seed(0)
    case = body(Listed(), torch.randn(32, 6), torch.arange(32) % 3, "cross_entropy")
    assert CHANGES["insert_norm"].words(case) == {"batch": "third", "matched": 1.0, "gate": 0.0}


def test_names_that_words_cannot_hold_are_left_alone() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"one two": nn.Linear(6, 6), "three": nn.Linear(6, 6), "a:b": nn.Linear(6, 3)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["a:b"](self.parts["three"](self.parts["one two"](x).relu()).relu())

    torch.manual_seed(0)
    case = body(Keyed(), 9 * torch.randn(32, 6), 90 * torch.randn(32, 3))
    words = {code: change.words(case) for code, change in CHANGES.items()}
    assert words["insert_norm"] == {"batch": "parts.three", "matched": 1.0, "gate": 0.0}
    done = {code for code, found in words.items() if found is not None}
    assert done == {"insert_norm", "initialise", "swap_activation"}
    assert words["swap_activation"] == {"in_forward_leaky_relu": ":0 :1"}  # of the model itself


def test_modes_are_put_back_where_a_pass_fails() -> None:
    model = mlp()
    model[1].eval()
    with pytest.raises(ValueError, match="no"), evaluating(model):
        raise ValueError("no")
    assert [module.training for module in model] == [True, False, True, True, True, True, True]


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        return self.head(self.lstm(packed)[1][0][-1])


def test_the_length_of_packed_sequences_is_seen() -> None:
    case = body(Packs(), torch.randn(8, 120, 4), torch.arange(8) % 2, "cross_entropy")
    words = CHANGES["initialise"].words(case)
    assert words is not None and words["remembers"] == 120
