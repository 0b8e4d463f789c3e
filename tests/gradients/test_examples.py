"""Norms, moments and noise of single examples' gradients, against each example's loss differentiated by itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import NAMES, case
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from thalweg.gradients import sweeps
from thalweg.gradients.examples import gradient_moments, noise_scale, per_example_norms
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.tensors.named import mapped


def one_by_one(model, data, loss):
    """{name: [examples, *shape]}: the slow twin."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = []
    for i in range(len(data[1])):
        x, y = mapped(lambda t, i=i: t[i : i + 1], data)
        output = Forward(model)(x)
        terms = 1 if loss is None else int(resolve(loss).num_terms(output, y))
        value = output if loss is None else resolve(loss)(output, y)
        g = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
        rows.append([torch.zeros_like(part) if terms == 0 else part for part in g])
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


def assert_same_norms(model, data, loss, tolerance=1e-12):
    expected = {name: g.flatten(1).norm(dim=1) for name, g in one_by_one(model, data, loss).items()}
    found = per_example_norms(model, data, loss, by_name=True)
    assert list(found) == list(expected)
    size = torch.stack(list(expected.values())).norm(dim=0).max()
    for name, norms in expected.items():
        error = (found[name] - norms).abs().max()
        assert error <= tolerance * size, f"{name}: {error}"
    total = per_example_norms(model, data, loss)
    torch.testing.assert_close(total, torch.stack(list(expected.values())).norm(dim=0), rtol=tolerance, atol=1e-30)


@pytest.fixture
def fallback(monkeypatch):
    """The names that the fallback was asked for."""
    asked = []
    formed = sweeps.example_gradients
    monkeypatch.setattr(sweeps, "example_gradients", lambda *args: asked.extend(args[3]) or formed(*args))
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_norms_of_every_case(name):
    made = case(name)
    assert_same_norms(made.model, made.data, made.loss)


@pytest.mark.parametrize("name", ["dense", "cnn", "transformer", "tied", "residual"])
def test_norms_in_single_precision_and_without_fallback(name, fallback):
    made = case(name)
    expected = {n: g.flatten(1).norm(dim=1) for n, g in one_by_one(made.model, made.data, made.loss).items()}
    x = made.x.float() if made.x.is_floating_point() else made.x
    y = made.y.float() if made.y.is_floating_point() else made.y
    model = copy.deepcopy(made.model).float()
    if name == "transformer":
        made.model.double()
        model.forward = lambda tokens: model.head(model.block(model.embedding(tokens), src_mask=mask(tokens)))
        mask = lambda t: nn.Transformer.generate_square_subsequent_mask(t.shape[1])  # noqa: E731
    norms = per_example_norms(model, (x, y), made.loss)
    torch.testing.assert_close(norms.double(), torch.stack(list(expected.values())).norm(dim=0), rtol=1e-6, atol=0)
    assert not fallback


def layer(make, shape, classes=3):
    """A model that ends with some layer, and data for it."""

    def built():
        x = torch.randn(5, *shape, dtype=torch.float64)
        model = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes)).double().eval()
        model(x)
        for module in model.modules():
            for name in ("weight", "bias"):
                if isinstance(getattr(module, name, None), nn.Parameter):
                    nn.init.normal_(getattr(module, name))
        return model, (x, torch.randint(classes, (5,)))

    return built


class Calling(nn.Module):
    """A model made of a function of itself and the layers given."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, value in layers.items():
            setattr(self, name, value)

    def forward(self, *args):
        return self.function(self, *args)


def attention(batch_first, cross=False, width=None, **options):
    """Five examples of five positions each, so that shapes alone do not tell the two apart."""

    def run(self, x):
        x = self.up(x)
        q, kv = (x, self.other(x)) if width else (x, torch.tanh(x))
        q, kv = (q, kv) if batch_first else (q.transpose(0, 1), kv.transpose(0, 1))
        y = self.attend(q, kv if cross or width else q, kv if cross or width else q, need_weights=False)[0]
        y = y if batch_first else y.transpose(0, 1)
        return y.mean(1)

    def built():
        inner = nn.MultiheadAttention(4, 2, batch_first=batch_first, kdim=width, vdim=width, **options)
        layers = {"up": nn.Linear(3, 4), "attend": inner, "other": nn.Linear(4, width or 1)}
        if not width:
            del layers["other"]
        model = Calling(run, **layers).double()
        return model, (torch.randn(5, 5, 3, dtype=torch.float64), torch.randint(4, (5,)))

    return built


def first_attention():
    """The data itself is attended to: nothing below it has a gradient."""
    model = Calling(
        lambda self, x: self.attend(x, x, x)[0].mean(1), attend=nn.MultiheadAttention(4, 2, batch_first=True)
    )
    return model.double(), (torch.randn(5, 6, 4, dtype=torch.float64), torch.randint(4, (5,)))


def image_sequence():
    """Pictures of a sequence folded into the batch axis, example by example."""

    def run(self, x):
        h = torch.tanh(self.norm(self.conv(x.flatten(0, 1))))
        return self.head(h.mean((2, 3))).unflatten(0, x.shape[:2]).mean(1)

    model = Calling(run, conv=nn.Conv2d(2, 4, 3), norm=nn.GroupNorm(2, 4), head=nn.Linear(4, 3)).double()
    nn.init.normal_(model.norm.weight)
    return model, (torch.randn(5, 4, 2, 6, 6, dtype=torch.float64), torch.randint(3, (5,)))


def time_first():
    """Linear layers over [time, batch, features], with as many steps as examples."""
    model = Calling(
        lambda self, x: self.b(torch.tanh(self.a(x.transpose(0, 1)))).sum(0), a=nn.Linear(3, 4), b=nn.Linear(4, 3)
    )
    return model.double(), (torch.randn(5, 5, 3, dtype=torch.float64), torch.randint(3, (5,)))


def long_sequence():
    """So many positions that gradients are formed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, (torch.randn(5, 40, 3, dtype=torch.float64), torch.randint(2, (5, 40)))


def wide_sequence():
    """So few positions, for the width, that products of positions are cheaper."""
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 20)).double()
    return model, (torch.randn(5, 3, 30, dtype=torch.float64), torch.randint(20, (5, 3)))


def frozen():
    model, data = layer(lambda: nn.Conv1d(2, 4, 3), (2, 9))()
    model = nn.Sequential(nn.Linear(9, 9, dtype=torch.float64), *model)
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    return model, data


def padded_embedding():
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)).double()
    return model, (torch.randint(6, (5, 5)), torch.randint(3, (5,)))


def in_place():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(inplace=True),
    )
    return model.double().eval(), (torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randint(8, (5,)))


def checkpointed():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    run = lambda self, x: self.head(checkpoint(self.inner, self.up(x), use_reentrant=False))  # noqa: E731
    model = Calling(run, up=nn.Linear(3, 4), inner=inner, head=nn.Linear(4, 3)).double()
    return model, (torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,)))


COVERED = {
    "conv1d, groups, stride": layer(lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 11)),
    "conv2d, dilation, uneven padding": layer(lambda: nn.Conv2d(2, 3, (3, 2), padding=(2, 1), dilation=2), (2, 7, 6)),
    "conv2d, same, reflect": layer(lambda: nn.Conv2d(2, 3, 4, padding="same", padding_mode="reflect"), (2, 6, 6)),
    "conv2d, depthwise": layer(lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 5, 5)),
    "conv3d": layer(lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 4, 4, 4)),
    "layer norm": layer(lambda: nn.LayerNorm((4, 3)), (2, 4, 3)),
    "rms norm": layer(lambda: nn.RMSNorm(4), (3, 4)),
    "group norm": layer(lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "instance norm": layer(lambda: nn.InstanceNorm2d(3, affine=True), (3, 4, 4)),
    "batch norm, evaluation": layer(lambda: nn.BatchNorm1d(4), (4,)),
    "attention": attention(True),
    "attention, time first": attention(False),
    "attention, no bias": attention(True, bias=False),
    "cross-attention": attention(True, cross=True),
    "cross-attention, time first": attention(False, cross=True),
    "cross-attention, widths": attention(True, width=3),
    "attention on the data": first_attention,
    "folded pictures": image_sequence,
    "time first, square": time_first,
    "long sequence": long_sequence,
    "wide sequence": wide_sequence,
    "frozen": frozen,
    "padded embedding": padded_embedding,
    "in place": in_place,
    "checkpointed": checkpointed,
}


@pytest.mark.parametrize("name", COVERED)
def test_covered_layers_need_no_fallback(name, fallback):
    torch.manual_seed(2)
    model, data = COVERED[name]()
    assert_same_norms(model, data, "cross_entropy", 1e-11)
    assert not fallback


def positions():
    """A table of positions, one for all examples, with as many rows as there are examples."""
    run = lambda self, x: self.head(torch.tanh(self.words(x) + self.places(torch.arange(5))).mean(1))  # noqa: E731
    model = Calling(run, words=nn.Embedding(7, 4), places=nn.Embedding(5, 4), head=nn.Linear(4, 3)).double()
    return model, (torch.randint(7, (5, 5)), torch.randint(3, (5,))), ["places.weight"]


def function_of_weight():
    """The embedding's weight is also used outside its layer."""
    run = lambda self, x: F.linear(torch.tanh(self.words(x)), self.words.weight)[:, -1]  # noqa: E731
    model = Calling(run, words=nn.Embedding(6, 4)).double()
    return model, (torch.randint(6, (5, 3)), torch.randint(6, (5,))), ["words.weight"]


def unknown_layer():
    run = lambda self, x: self.mix(torch.tanh(self.up(x)), x) * self.scale  # noqa: E731
    layers = {"up": nn.Linear(3, 4), "mix": nn.Bilinear(4, 3, 3), "scale": nn.Parameter(torch.randn(3))}
    model = Calling(run, **layers).double()
    return model, (torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))), ["scale", "mix.weight", "mix.bias"]


def computed_weight():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    left = ["0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    return model, (torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))), left


def one_attention_in_two_ways():
    """Self-attention and cross-attention use overlapping slices of one weight."""

    def run(self, x):
        y = self.attend(x, x, x)[0]
        return self.attend(y, x, x)[0].mean(1)

    model = Calling(run, attend=nn.MultiheadAttention(4, 2, batch_first=True)).double()
    left = ["attend.in_proj_weight", "attend.in_proj_bias"]
    return model, (torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(4, (5,))), left


@pytest.mark.parametrize(
    "make", [positions, function_of_weight, unknown_layer, computed_weight, one_attention_in_two_ways]
)
def test_the_rest_falls_back_for_just_these_parameters(make, fallback):
    torch.manual_seed(3)
    model, data, left = make()
    assert_same_norms(model, data, "cross_entropy", 1e-11)
    assert set(fallback) == set(left)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(ignore_index=1)])
def test_norms_under_other_reductions(loss):
    made = case("dense")
    assert_same_norms(made.model, made.data, loss)


def test_class_weights_and_a_function():
    made = case("dense")
    weight = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    assert_same_norms(made.model, made.data, nn.CrossEntropyLoss(weight=weight))
    assert_same_norms(made.model, made.data, lambda output, target: (output.sum(1) - target).abs().mean())


def test_a_loss_of_the_models_own():
    model = Calling(lambda self, x, y: F.cross_entropy(self.net(x), y), net=nn.Linear(3, 2)).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    expected = one_by_one(model.net, (x, y), "cross_entropy")
    found = per_example_norms(model, (x, y), by_name=True)
    torch.testing.assert_close(found["net.weight"], expected["weight"].flatten(1).norm(dim=1))


def test_inputs_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(4, 2).double()

        def forward(self, left, right):
            return self.a(left) * self.b(right)

    x = {"left": torch.randn(5, 3, dtype=torch.float64), "right": torch.randn(5, 4, dtype=torch.float64)}
    assert_same_norms(Two(), (x, torch.randn(5, 2, dtype=torch.float64)), "mse")


def test_one_example():
    made = case("transformer")
    data = made.x[1:2], made.y[1:2]
    assert_same_norms(made.model, data, made.loss)


def test_examples_that_depend_on_each_other_are_refused():
    made = case("cnn_batch_norm")
    made.model.train()
    with pytest.raises(ValueError, match=r"'1' normalises over the batch"):
        per_example_norms(made.model, made.data, made.loss)
    model = Calling(lambda self, x: self.a(x) - self.a(x).mean(0), a=nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match="depends on the other examples"):
        per_example_norms(model, case("dense").data, "cross_entropy")
    turned = Calling(lambda self, x: self.a(x, x, x)[0].mean(1), a=nn.MultiheadAttention(4, 2))  # batch_first forgotten
    with pytest.raises(ValueError, match="depends on the other examples"):
        per_example_norms(turned, (torch.randn(5, 3, 4), torch.randint(4, (5,))), "cross_entropy")


def test_dropout_is_drawn_and_the_generator_moves_as_in_a_forward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    data = case("dense").data
    per_example_norms(model, data, "cross_entropy")
    torch.manual_seed(1)
    norms = per_example_norms(model, data, "cross_entropy")
    after = torch.rand(())
    torch.manual_seed(1)
    total = F.cross_entropy(model(data[0]), data[1], reduction="none")
    assert torch.equal(after, torch.rand(()))
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(t, parameters, retain_graph=True) for t in total]
    expected = torch.stack([torch.cat([g.flatten() for g in row]).norm() for row in rows])
    torch.testing.assert_close(norms, expected)


def test_layouts_of_other_shapes_are_found_anew():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for shape in ((5, 3), (4, 7, 3), (7, 4, 3)):
        y = torch.randint(2, shape[:-1])
        assert_same_norms(model, (torch.randn(*shape, dtype=torch.float64), y), "cross_entropy")


def test_nothing_is_left_of_it():
    made = case("transformer")
    before = {name: p.detach().clone() for name, p in made.model.state_dict().items()}
    per_example_norms(made.model, made.data, made.loss)
    assert all(p.grad is None for p in made.model.parameters())
    assert all(torch.equal(before[name], p) for name, p in made.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.modules())


def test_half_precision_is_added_up_in_single():
    made = case("dense")
    model, data = copy.deepcopy(made.model).float(), (made.x.float(), made.y)
    with torch.autocast("cpu", torch.bfloat16):
        norms = per_example_norms(model, data, made.loss)
    assert norms.dtype is torch.float32
    torch.testing.assert_close(
        norms.double(), per_example_norms(*[made.model, made.data, made.loss]), rtol=0.05, atol=0.01
    )


@pytest.mark.parametrize("name", NAMES)
def test_moments(name):
    made = case(name)
    rows = one_by_one(made.model, made.data, made.loss)
    found = gradient_moments(made.model, made.data, made.loss)
    summed = gradient_moments(made.model, made.data, made.loss, summed=True)
    assert found.num_examples == len(made.y)
    for parameter, g in rows.items():
        torch.testing.assert_close(found.mean[parameter], g.mean(0), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(found.variance[parameter], g.var(0), rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(summed.variance[parameter], g.var(0).sum(), rtol=1e-9, atol=1e-14)
        if (ratio := g.mean(0).square().sum() / g.var(0).sum()).isfinite():
            torch.testing.assert_close(summed.signal_to_noise[parameter], ratio, rtol=1e-8, atol=1e-12)


def test_moments_of_an_attention_in_slices():
    torch.manual_seed(4)
    model, data = COVERED["cross-attention"]()
    rows = one_by_one(model, data, "cross_entropy")
    found = gradient_moments(model, data, "cross_entropy")
    for parameter, g in rows.items():
        torch.testing.assert_close(found.variance[parameter], g.var(0), rtol=1e-8, atol=1e-14)


def test_noise_scale_is_that_of_the_formula():
    made = case("dense")
    rows = torch.cat([g.flatten(1) for g in one_by_one(made.model, made.data, made.loss).values()], 1)
    n, big, small = len(rows), rows.mean(0).square().sum(), rows.square().sum(1).mean()
    found = noise_scale(made.model, made.data, made.loss)
    torch.testing.assert_close(found.squared_norm, (n * big - small) / (n - 1))
    torch.testing.assert_close(found.trace, (small - big) / (1 - 1 / n))
    torch.testing.assert_close(found.signal_to_noise, n * found.squared_norm.clamp_min(0) / found.trace)
    expected = found.trace / found.squared_norm if found.squared_norm > 0 else torch.tensor(torch.inf)
    torch.testing.assert_close(found.simple.double(), expected.double())
    assert found.critical_batch_size >= 1


def test_noise_scale_is_unbiased():
    """Over batches of 4 drawn from a known population, both estimates average to its |G|² and tr Σ."""
    torch.manual_seed(5)
    model = nn.Linear(3, 1).double()
    x = torch.randn(1600, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(1600, 1, dtype=torch.float64)
    rows = torch.cat([2 * (model(x) - y).detach() * x, 2 * (model(x) - y).detach()], 1)
    truth = rows.mean(0).square().sum(), rows.var(0).sum()
    found = [noise_scale(model, (x[i : i + 4], y[i : i + 4]), "mse") for i in range(0, 1600, 4)]
    for estimates, expected in zip(([f.squared_norm for f in found], [f.trace for f in found]), truth, strict=True):
        values = torch.stack(estimates)
        assert (values.mean() - expected).abs() < 4 * values.std() / len(values) ** 0.5


def test_a_gradient_hidden_by_noise_has_an_infinite_scale():
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    found = noise_scale(model, (x, torch.ones(2, 1, dtype=torch.float64)), "mse")
    assert found.squared_norm < 0
    assert found.simple == torch.inf
    assert found.signal_to_noise == 0


def test_moments_need_two_examples():
    made = case("dense")
    with pytest.raises(ValueError, match="at least two"):
        gradient_moments(made.model, (made.x[:1], made.y[:1]), made.loss)
