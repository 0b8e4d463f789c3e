"""The sweep against autograd, in float64, on a table of models and on a table of operations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import NAMES, case
from torch import Tensor, nn

from thalweg.gradients.chain import backprop, gradients
from thalweg.gradients.rules import RULES
from thalweg.gradients.tape import UntraceableError
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


def by_autograd(model, x, y, loss):
    """The loss and its gradients by name, from a copy: the model keeps its buffers and modes."""
    model = copy.deepcopy(model)
    inputs = x if isinstance(x, tuple) else (x,)
    with torch.random.fork_rng(devices=[]):
        value = model(*inputs, y) if loss is None else resolve(loss)(model(*inputs), y)
        value.backward()
    return float(value.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_autograd(model, x, y, loss, tolerance=1e-12):
    """Each gradient to `tolerance` of its norm; of one that cancels to nothing, of the largest there is."""
    value, expected = by_autograd(model, x, y, loss)
    found = gradients(model, (x, y), loss)
    assert expected.keys() == found.keys()
    largest = max(float(g.norm()) for g in expected.values())
    for name, g in expected.items():
        assert found[name].shape == g.shape and found[name].dtype == g.dtype
        error = float((found[name] - g).norm())
        assert error <= tolerance * max(float(g.norm()), 1e-3 * largest), f"{name}: {error:.2e}"
    return value, found


# ── models ──


class Lambda(nn.Module):
    """A function of the input and a weight matrix, which is a tenth of the input: f(x, w)."""

    def __init__(self, f, *shape):
        super().__init__()
        self.f = f
        self.w = nn.Parameter(torch.randn(*shape or (4, 5)))

    def forward(self, x):
        return self.f(x, self.w)


class BasicBlock(nn.Module):
    """A residual block as torchvision writes it: in-place ReLU, in-place sum."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm(self.first(x)))
        out = self.second(out)
        out += x
        return self.relu(out)


class Cells(nn.Module):
    """A loop over time with one cell, and the states gathered in place."""

    def __init__(self, cell, has_memory=False):
        super().__init__()
        self.cell, self.has_memory = cell, has_memory
        self.head = nn.Linear(cell.hidden_size, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), self.cell.hidden_size)
        state = (h, h) if self.has_memory else h
        outputs = torch.zeros(len(x), x.shape[1], self.cell.hidden_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs[:, t] = state[0] if self.has_memory else state
        return self.head(outputs).mean(1)


class Last(nn.Module):
    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x):
        output, state = self.layer(x)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(output.mean(0 if not self.layer.batch_first else 1)) + h.sum((0, 2)).unsqueeze(-1)


class Attends(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.need_weights = options.pop("need_weights", True)
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        batch, length = (x.shape[0], x.shape[1]) if self.attention.batch_first else (x.shape[1], x.shape[0])
        padding = torch.zeros(batch, length, dtype=torch.bool)
        padding[0, -2:] = True
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        y, weights = self.attention(x, x, x, padding, self.need_weights, mask)
        y = y if weights is None else y + weights.sum()
        return self.head(y.mean(1 if self.attention.batch_first else 0))


class OwnLoss(nn.Module):
    """Returns its loss, and branches on a value of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, target):
        z = self.layer(x)
        if z.mean() > 100:
            raise AssertionError
        return {"loss": F.cross_entropy(z, target, label_smoothing=0.1)}


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * x * w, x + w

    @staticmethod
    def backward(ctx, g, k):
        x, w = ctx.saved_tensors
        return 2 * x * w * g + k, x * x * g + k


class Scaled(torch.autograd.Function):
    """s x, with an argument that is no tensor and a constant that is one."""

    @staticmethod
    def forward(ctx, s, x, constant):
        ctx.s = s
        return s * x + constant

    @staticmethod
    def backward(ctx, g):
        return None, ctx.s * g, None


class Nested(nn.Module):
    """Custom functions of custom functions, one of whose outputs is used again outside."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        product, total = Square.apply(x, Scaled.apply(3.0, self.w, torch.ones(6, 4)))
        once = Scaled.apply(0.5, total, torch.zeros(6, 4))
        return (Scaled.apply(2.0, once, torch.ones(6, 4)) * once).tanh() + product


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.w = nn.Linear(4, 3), nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        product, total = Square.apply(self.first(x), self.w)
        return product + total.tanh()


def images(*shape):
    return torch.randn(6, *(shape or (4, 7, 7)))


def _seq(*modules):
    return nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3))


# name → (model, x); the target is three classes
MODELS = {
    "batch norm in training": lambda: (_seq(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), images()),
    "batch norm in evaluation": lambda: (_seq(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval(), images()),
    "batch norm of rows": lambda: (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(6, 4)),
    "residual blocks": lambda: (_seq(BasicBlock(4), BasicBlock(4), nn.AdaptiveAvgPool2d(1)), images()),
    "group norm": lambda: (_seq(nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3)), images()),
    "instance norm": lambda: (_seq(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 3)), images()),
    "layer norm": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
        torch.randn(6, 4),
    ),
    "rms norm": lambda: (nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3)), torch.randn(6, 4)),
    "strided": lambda: (_seq(nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2))), images()),
    "groups": lambda: (_seq(nn.Conv2d(4, 8, 3, groups=4, padding=2, dilation=2)), images()),
    "same": lambda: (_seq(nn.Conv2d(4, 3, (2, 4), padding="same"), nn.Tanh()), images()),
    "reflected": lambda: (_seq(nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect"), nn.Tanh()), images()),
    "circular": lambda: (_seq(nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), nn.Tanh()), images()),
    "1d": lambda: (_seq(nn.Conv1d(4, 3, 3, stride=2), nn.BatchNorm1d(3), nn.MaxPool1d(2)), images(4, 12)),
    "3d": lambda: (_seq(nn.Conv3d(2, 3, 2, padding=1), nn.MaxPool3d(2), nn.AvgPool3d(2)), images(2, 5, 5, 5)),
    "transposed": lambda: (_seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2)), images(4, 4, 5)),
    "transposed 1d": lambda: (_seq(nn.ConvTranspose1d(4, 2, 4, 3, 1)), images(4, 5)),
    "pooling": lambda: (_seq(nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1)), images()),
    "padded means": lambda: (_seq(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 2, 1, True, False)), images(4, 8, 8)),
    "adaptive": lambda: (_seq(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d(2)), images()),
    "upsampling": lambda: (
        _seq(nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(10)),
        images(),
    ),
    "shuffled": lambda: (_seq(nn.Conv2d(4, 4, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2)), images()),
    "dropout": lambda: (nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.4), nn.Linear(9, 3)), torch.randn(6, 4)),
    "dropout of channels": lambda: (_seq(nn.Conv2d(4, 6, 3), nn.Dropout2d(0.5)), images()),
    "lstm": lambda: (Last(nn.LSTM(4, 5, 2, batch_first=True, dropout=0.3), 5), torch.randn(6, 7, 4)),
    "lstm, both ways": lambda: (Last(nn.LSTM(4, 5, 2, bidirectional=True), 10), torch.randn(7, 6, 4)),
    "lstm without bias": lambda: (Last(nn.LSTM(4, 5, bias=False), 5), torch.randn(7, 6, 4)),
    "gru, both ways": lambda: (Last(nn.GRU(4, 5, 2, bidirectional=True, batch_first=True), 10), torch.randn(6, 7, 4)),
    "rnn": lambda: (Last(nn.RNN(4, 5, 2, bidirectional=True), 10), torch.randn(7, 6, 4)),
    "rnn, relu": lambda: (Last(nn.RNN(4, 5, nonlinearity="relu", bias=False), 5), torch.randn(7, 6, 4)),
    "lstm cells": lambda: (Cells(nn.LSTMCell(4, 5), True), torch.randn(6, 7, 4)),
    "gru cells": lambda: (Cells(nn.GRUCell(4, 5)), torch.randn(6, 7, 4)),
    "rnn cells": lambda: (Cells(nn.RNNCell(4, 5)), torch.randn(6, 7, 4)),
    "attention": lambda: (Attends(dropout=0.2), torch.randn(5, 6, 4)),
    "attention, batch first": lambda: (Attends(batch_first=True, need_weights=False), torch.randn(6, 5, 4)),
    "attention, separate": lambda: (Attends(kdim=4, vdim=4, bias=False), torch.randn(5, 6, 4)),
    "own Transformer": lambda: (
        _seq(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 8, 0.1, "gelu", norm_first=True), 2, enable_nested_tensor=False
            )
        ),
        torch.randn(6, 5, 4),
    ),
    "Transformer in evaluation": lambda: (
        _seq(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval(),
        torch.randn(6, 5, 4),
    ),
    "decoder": lambda: (DecodesItself(), torch.randn(6, 5, 4)),
    "weight norm": lambda: (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), torch.randn(6, 4)),
    "custom function": lambda: (Custom(), torch.randn(6, 4)),
    "nested custom functions": lambda: (Nested(), torch.randn(6, 4)),
}


class DecodesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerDecoderLayer(4, 2, 8, 0.0, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x[:, :3], x).mean(1))


def activations():
    return [
        nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(),
        nn.Hardtanh(-0.7, 0.9), nn.Softplus(2.0), nn.Tanhshrink(), nn.Softsign(), nn.PReLU(6), nn.Softshrink(0.01),
        nn.LogSigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.ReLU6(), nn.Softmin(1), nn.LogSoftmax(1), nn.Softmax(1),
    ]  # fmt: skip


def made(name, dtype=torch.float64):
    """A model of the table and its batch; lazy layers made, LazyLinear by one run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model, x = MODELS[name]()
            mode = model.training
            model.eval()(x[:2] if not isinstance(model, Custom | Nested) else x)
            return model.train(mode), x, torch.arange(6) % 3
        finally:
            torch.set_default_dtype(default)


@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODELS)
def test_models_equal_autograd(name):
    model, x, y = made(name)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    value, _ = assert_equal_to_autograd(model, x, y, "cross_entropy")
    assert backprop(model, [(x, y)], "cross_entropy").loss == pytest.approx(value, rel=1e-12)
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("place", range(len(activations())))
def test_activations_equal_autograd(place):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 6), activations()[place], nn.Linear(6, 3)).double()
    nn.init.normal_(model[0].weight, std=3)  # both sides of every kink
    assert_equal_to_autograd(model, torch.randn(9, 4).double(), torch.arange(9) % 3, "cross_entropy")


@pytest.mark.parametrize("name", NAMES)
def test_shared_cases_equal_autograd(name):
    known = case(name)
    assert_equal_to_autograd(known.model, known.x, known.y, known.loss)
    assert_equal_to_autograd(known.model.train(), known.x, known.y, known.loss)


# ── operations ──

INDEX = torch.tensor([[0, 2, 2, 1, 3], [3, 3, 0, 1, 2], [1, 1, 1, 1, 1], [0, 1, 2, 3, 0]])
MASK = (INDEX > 1)[:, :, None]


def _written(x, w):
    y = torch.zeros(4, 5, dtype=x.dtype)
    y[1:3] = w[1:3] * x[1:3]
    y[0, INDEX[0, :2]] = w[0, :2]
    return y


def _grown(x, w):
    y = w * 1
    y += x
    y *= w
    y[:, 1] -= 2
    y.clamp_(-1, 1).add_(w)
    return y.masked_fill_(MASK[..., 0], 0.5)


def _without(x, w):
    with torch.no_grad():
        scale = w.abs().max()
    return x * w / scale + w.detach() * w.data


OPERATIONS = {
    "operators": lambda x, w: (1 + x) * w - 2 / (w * w + 1) + (3 - w) / 2 - (-w) ** 2 + 2 ** (w / 3) + w**0 - x**3,
    "tensor power": lambda x, w: (x.abs() + 1) ** w + torch.pow(w.abs(), 1.5),
    "matmul": lambda x, w: x @ w.T @ torch.matmul(w, x.mT),
    "reflected matmul": lambda x, w: x.detach() @ w.t(),
    "vectors": lambda x, w: w @ x[0] + x[:, 0].dot(w[:, 1]) + (w[:, 0] @ x).sum() + torch.mv(w, x[1]),
    "batched": lambda x, w: torch.bmm(w.expand(3, 4, 5), torch.stack([x.T] * 3)) + (w[None] @ x.T),
    "addmm": lambda x, w: torch.addmm(x @ x.T, w, x.T, beta=0.5, alpha=2),
    "einsum": lambda x, w: (
        torch.einsum("ij,kj->ik", x, w) + torch.einsum("ij,ij->", x, w) + torch.einsum("ab,cd->ac", x, w)
    ),
    "bilinear": lambda x, w: F.bilinear(x, w, torch.stack([w.T @ x, x.T @ w])),
    "outer": lambda x, w: torch.outer(w[0], x[1]),
    "broadcast": lambda x, w: w[:, :1] * x + w[1] - x / w[:, 1:2].exp() + sum(torch.broadcast_tensors(w[:1], x)),
    "sums": lambda x, w: w.sum() + w.sum(1) + x.sum() * w.sum((0, 1), keepdim=True) + w.mean(-1) + (w * x).mean(),
    "moments": lambda x, w: w.var() + w.std(1) + w.var(0, unbiased=False).sum() + torch.var_mean(w, 1, correction=2)[0],
    "norms": lambda x, w: w.norm() + w.norm(dim=1) + w.norm(p=3, dim=1) + torch.linalg.norm(w * x) + w.norm(1),
    "products": lambda x, w: w.prod() + w.prod(1) + (w * (x > 0)).prod(0).sum(),
    "logsumexp": lambda x, w: w.logsumexp(1) + torch.logsumexp(w * x, (0, 1)),
    "extremes": lambda x, w: (
        w.max() + w.max(1).values + w.min(dim=0)[0].sum() + w.amax((0, 1)) + w.amin(1) + w.max(x)[:, 0]
    ),
    "ties": lambda x, w: w.round().mul(0).add(w * 0).amax(1) + torch.maximum(w * 0, w * 0)[:, 0] + w.sum(),
    "order": lambda x, w: (
        w.sort(1)[0] * x + w.topk(2, dim=0).values.sum() + w.sort(descending=True).values + w.cumsum(0)
    ),
    "elementary": lambda x, w: (
        w.exp()
        + w.sin() * w.cos()
        + w.tan()
        + w.sinh()
        + w.cosh()
        + w.expm1()
        + w.erf()
        + w.erfc()
        + w.abs().log()
        + w.square().log1p()
        + (w * w).sqrt()
        + (w * w + 1).rsqrt()
        + w.reciprocal()
        + w.atan()
        + w.asinh()
        + (w.tanh() / 2).asin()
        + (w.tanh() / 2).acos()
        + (w.tanh() / 2).atanh()
        + w.exp2()
        + w.abs().log2()
        + w.abs().log10()
    ),
    "clamps": lambda x, w: (
        w.clamp(-0.5, 0.5) + w.clamp(min=0) + w.clip(max=1) + w.clamp_min(0.1) + torch.clamp_max(w, 0.2)
    ),
    "rounding": lambda x, w: w * w.sign() + w.floor() * w + (w * 3).round(),
    "choice": lambda x, w: (
        torch.where(x > 0, w, x * w) + torch.where(x > 1, w, 0.0) + w.masked_fill(x > 0, 0.0) + torch.minimum(w, x)
    ),
    "lerp": lambda x, w: (
        torch.lerp(w, x, 0.3) + torch.lerp(x, w, w) + torch.addcmul(x, w, w, value=2) + torch.addcdiv(w, x, w.exp())
    ),
    "glu": lambda x, w: F.glu(torch.cat([w, x], 1)) + F.normalize(w) + F.cosine_similarity(w, x)[:, None],
    "threshold": lambda x, w: (
        F.threshold(w, 0.1, 20.0) + F.hardshrink(w) + torch.special.expit(w) + F.relu(w * 1, inplace=True)
    ),
    "rows": lambda x, w: w.log_softmax(0) + F.softmax(w, dim=1) * x + torch.softmax(w, -1),
    "shapes": lambda x, w: (
        w.view(2, 10).reshape(-1, 4).t().flatten() * x.ravel() + w.unflatten(1, (5, 1)).squeeze(2).flatten()
    ),
    "orders": lambda x, w: (
        w.permute(1, 0) + w.T + w.mT + w.transpose(0, 1) + w.movedim(0, 1) + w.flip(0).T + w.rot90() + w.roll(1, 0).T
    ),
    "parts": lambda x, w: (
        w.split(2)[1] + w.chunk(2, dim=0)[0] * w.split([1, 3])[1][1:] + w.unbind(1)[2][:2, None] + w.narrow(0, 1, 2)
    ),
    "unused parts": lambda x, w: w.split(1, 1)[3] * 2 + w.unbind()[1],
    "joined": lambda x, w: torch.cat([w, x, w]) @ torch.stack([w[0], x[1], w[2]], 1),
    "copies": lambda x, w: (
        w.repeat(2, 1) * torch.tile(x, (2, 1)) + w.repeat_interleave(2, 0) + w.expand(2, 4, 5).reshape(8, 5)
    ),
    "windows": lambda x, w: w.unfold(1, 3, 1).sum((1, 2)) + F.pad(w, (1, 2, 0, 1), value=3.0)[:4, 1] + w.diagonal()[:4],
    "edges": lambda x, w: F.pad(w[None], (2, 2), mode="reflect")[0] + F.pad(w[None], (2, 2), mode="replicate")[0],
    "picked": lambda x, w: (
        w[INDEX[0]] + w[1] + w[:, [0, 0, 2, 2, 2]][:1] + w[..., None][:, :, 0][0:1] + w[x > 0].sum() + w[::2, 1:2].sum()
    ),
    "picked by name": lambda x, w: (
        w.gather(0, INDEX) + w.index_select(0, INDEX[0]).sum() + w.select(0, 1) + w.masked_select(x > 0).sum()
    ),
    "taken": lambda x, w: w.take_along_dim(INDEX, 0) + w.tril() - w.triu(1),
    "written": _written,
    "scattered": lambda x, w: (
        (w * 1).scatter_add(0, INDEX, w * x)
        + torch.zeros_like(w).index_add(0, INDEX[0, :4], w)
        + w.scatter(1, INDEX[:, 3:4], x)
    ),
    "grown in place": _grown,
    "overwritten": lambda x, w: torch.empty_like(x).copy_(w) * (w * 2).fill_(3.0) + (w * 1).zero_(),
    "constants": _without,
    "types": lambda x, w: w.to(torch.float64) * (w > 0).double() + w.float().double() * 0 + w.contiguous() + w.clone(),
    "attention": lambda x, w: (
        F.scaled_dot_product_attention(w, x, w, is_causal=True) + F.scaled_dot_product_attention(x, w, w, w @ w.T)
    ),
    "grouped attention": lambda x, w: F.scaled_dot_product_attention(
        x.expand(4, 4, 5), torch.stack([w, w * 2]), torch.stack([w, x]), enable_gqa=True
    ),
    "blind query": lambda x, w: F.scaled_dot_product_attention(x, w, w, INDEX[:, :4] > 1),
    "embedding": lambda x, w: F.embedding(INDEX, w, padding_idx=2) * 3,
    "keywords": lambda x, w: (
        torch.sum(input=w, axis=1)
        + torch.mean(w, axis=1, keepdims=True)[:, 0]
        + torch.add(input=w, other=x, alpha=2).sum(dim=1)
    ),
}


def unevenly(z, y):
    """A loss that gives each output a gradient of its own."""
    return (z * torch.arange(1.0, z.numel() + 1).view(z.shape)).sum()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_autograd(name):
    torch.manual_seed(5)
    model = Lambda(OPERATIONS[name], 4, 5).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    assert_equal_to_autograd(
        model, x, torch.zeros(()), lambda z, y: (z * torch.arange(1.0, z.numel() + 1).view(z.shape)).sum()
    )


# ── losses ──

Z, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).double(), torch.tensor([0, 3, 1, -100, 2, 2])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
P = Z.flip(0).softmax(1)
LOSSES = {
    "labels": ("cross_entropy", LABELS),
    "probabilities": ("cross_entropy", P),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2, weight=WEIGHT), LABELS),
    "smoothed probabilities": (nn.CrossEntropyLoss(label_smoothing=0.2, weight=WEIGHT), P),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "mse": ("mse", Z.flip(0)),
    "mae": ("mae", Z.flip(0)),
    "huber": ("huber", Z.flip(0) * 2),
    "smooth": (nn.SmoothL1Loss(beta=0.3), Z.flip(0)),
    "binary": ("binary_cross_entropy", P),
    "binary, weighted": (nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT), P),
    "binary of probabilities": (lambda z, y: F.binary_cross_entropy(z.sigmoid(), y), P),
    "categorical": (lambda z, y: resolve("categorical_cross_entropy")(z.softmax(1), y), LABELS.clamp_min(0)),
    "nll": (lambda z, y: F.nll_loss(z.log_softmax(1), y, WEIGHT), LABELS),
    "kl": (lambda z, y: resolve("kl_divergence")(z.log_softmax(1), y), P),
    "without a rule": (lambda z, y: F.gaussian_nll_loss(z, y, y.abs() + 1) + torch.special.i0(z).sum(), Z.flip(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_autograd(name):
    loss, y = LOSSES[name]
    torch.manual_seed(1)
    assert_equal_to_autograd(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double(), Z, y, loss)


def test_ctc_is_left_to_autograd():
    model = nn.Linear(3, 5).double()
    target = (torch.tensor([[1, 2], [3, 4]]), torch.tensor([6, 6]), torch.tensor([2, 1]))
    assert_equal_to_autograd(model, torch.randn(2, 6, 3).double(), target, "ctc")


def test_a_model_that_returns_its_loss():
    model, x, y = OwnLoss().double(), torch.randn(6, 4).double(), torch.arange(6) % 3
    model(x, y)["loss"].backward()
    found = gradients(model, (x, y))
    assert torch.allclose(found["layer.weight"], model.layer.weight.grad, rtol=1e-12, atol=1e-15)
    assert [row.kind for row in backprop(model, (x, y)).rows] == ["cross_entropy", "Linear"]


# ── rows ──


def test_a_dense_network_by_hand():
    """y = W₂ W₁ x with numbers that a person can follow: g₂ = 2y, ∂J/∂h = W₂ᵀ g₂, ∂J/∂x = W₁ᵀ ∂J/∂h."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[0.6, 0.8]]))
    result = backprop(model, ([[1.0, 1.0]], [[0.0]]), "mse")
    y = 0.6 * 3 + 0.8 * 4
    out, first = result.rows
    assert (out.name, out.kind, first.name) == ("1", "Linear", "0")
    assert result.loss == pytest.approx(y * y)
    assert out.output_gradient == pytest.approx(2 * y)
    assert out.jacobian == pytest.approx(1.0)
    assert out.weight_gradient == pytest.approx(2 * y * 5)
    assert first.output_gradient == pytest.approx(2 * y)
    assert first.jacobian == pytest.approx(math.hypot(0.6 * 3, 0.8 * 4))
    assert first.signal == pytest.approx(1.0) and out.signal == pytest.approx(math.sqrt((9 + 16) / 2))
    assert (first.input_shape, first.output_shape) == ((1, 2), (1, 2))


def test_orthogonal_layers_neither_grow_nor_shrink():
    layers = [nn.Linear(8, 8, bias=False) for _ in range(5)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    rows = backprop(nn.Sequential(*layers).double(), (torch.randn(16, 8), torch.randn(16, 8)), "mse").rows
    assert [row.jacobian for row in rows] == pytest.approx([1.0] * 5)


def test_rows_name_layers_operations_and_repeated_calls():
    known = case("residual")
    rows = backprop(known.model, known.data, known.loss).rows
    names = [row.name for row in rows]
    assert names[0] == "head" and names[-1] == "norm"
    assert {"add", "add #2", "up", "up #2", "gelu", "gelu #2"} <= set(names)
    branch = next(row for row in rows if row.name == "down #2")
    total = gradients(known.model, (known.x, known.y), known.loss)
    both = [row.weight_gradient for row in rows if row.name.startswith("down")]
    norm = math.hypot(*(float(total[f"down.{which}"].norm()) for which in ("weight", "bias")))
    assert abs(both[0] - both[1]) <= norm <= sum(both)
    assert branch.jacobian == pytest.approx(branch.input_gradient / branch.output_gradient)


def test_a_residual_branch_is_told_apart_from_its_skip():
    """y = x + 3x: the branch has growth 3 and gives 3 g, though x gets 4 g in all."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return x + self.inner(x)

    model = Branch().double()
    nn.init.constant_(model.inner.weight, 3.0)
    add, inner = backprop(model, ([[1.0], [1.0]], [[0.0], [0.0]]), "mse").rows
    assert (add.name, add.kind, inner.name) == ("add", "add", "inner")
    assert inner.jacobian == pytest.approx(3.0)
    assert add.jacobian == pytest.approx(math.sqrt(2))


def test_what_a_layer_does_not_have_is_none():
    known = case("tied")
    rows = backprop(known.model, known.data, known.loss).rows
    assert [row.name for row in rows] == ["head", "tanh", "inner", "embedding"]
    assert rows[1].weight_gradient is None and rows[1].jacobian is not None
    assert (rows[3].signal, rows[3].jacobian, rows[3].input_gradient) == (None, None, None)
    assert rows[3].weight_gradient > 0


def test_recurrent_and_attention_layers_are_one_row():
    assert [row.kind for row in backprop(case("lstm").model, case("lstm").data, "mse").rows] == ["Linear", "LSTM"]
    known = case("transformer")
    kinds = [row.kind for row in backprop(known.model, known.data, known.loss).rows]
    feed_forward = ["LayerNorm", "add", "Linear", "gelu", "Linear"]
    assert kinds == ["Linear", *feed_forward, "LayerNorm", "add", "MultiheadAttention", "Embedding"]


def test_frozen_parameters_have_no_gradient_but_let_it_through():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    model[1].requires_grad_(False)
    found = gradients(model, (torch.randn(6, 4).double(), torch.arange(6) % 3), "cross_entropy")
    assert found.keys() == {"0.weight", "0.bias"}
    rows = backprop(model, (torch.randn(6, 4), torch.arange(6) % 3), "cross_entropy").rows
    assert rows[0].weight_gradient is None and rows[1].weight_gradient > 0


def test_the_gradients_of_inputs_are_not_computed_where_no_one_sees_them(monkeypatch):
    """What stands before the first weight is pulled back for the table of layers, and not for the weights alone."""
    pulled = []

    def doubled(x):
        return 2 * x, lambda g: [(x, lambda: pulled.append("x") or 2 * g)]

    monkeypatch.setitem(RULES, "tanh", doubled)
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 3)).double()
    data = torch.randn(6, 4).double(), torch.arange(6) % 3
    found = gradients(model, data, "cross_entropy")
    assert found.keys() == {"1.weight", "1.bias"} and not pulled
    backprop(model, data, "cross_entropy")
    assert pulled == ["x"]


@pytest.mark.parametrize("gain, word", [(1e-2, "vanishes"), (1.0, "arrives"), (1e2, "explodes")])
def test_vanishing_and_exploding_are_said_and_drawn(gain, word):
    layers = [nn.Linear(8, 8, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain)
    result = backprop(nn.Sequential(*layers), (torch.randn(16, 8), torch.ones(16, 8)), "mse")
    assert word in result.sentence
    assert result.growth == pytest.approx(gain**5, rel=1e-3)
    lines = result.table().splitlines()
    assert "|∂J/∂y|" in lines[0] and lines[1].startswith("5") and result.sentence in lines[-1]
    figure = result.plot()
    assert list(figure.layout.xaxis.ticktext) == [str(i) for i in range(6)]
    assert figure.layout.yaxis.type == "log"
    assert list(figure.data[0].y) == [row.output_gradient for row in result.rows[::-1]]


def test_a_gradient_that_stops_is_said():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.init.constant_(model[0].bias, -100.0)
    result = backprop(model, (torch.randn(8, 2), torch.randn(8, 1)), "mse")
    assert result.sentence == "The gradient is zero from 0 on."
    assert result.plot().data[0].y[0] is None


# ── data, and what cannot be followed ──


def test_only_the_first_256_examples_count():
    model, x = nn.Linear(3, 1).double(), torch.randn(400, 3).double()
    y = x.sum(1, keepdim=True)
    assert backprop(model, (x, y), "mse").loss == pytest.approx(F.mse_loss(model(x[:256]), y[:256]).item())


class OnlyForward(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.layer, self.f = nn.Linear(3, 3), f

    def forward(self, x):
        return self.f(self.layer(x))


def _seen_after(z):
    view = z.view(-1)
    z.mul_(2)
    return z + view.view(z.shape)


def _changed_after(z):
    mask = torch.ones_like(z)
    y = z * mask
    mask.fill_(3.0)
    return y


def _custom_after_change(z):
    y = z * 1
    y += 1
    return Scaled.apply(2.0, y, z.detach()) + Scaled.apply(2.0, _changed(z * 1), z.detach())


def _changed(z):
    z.add_(1)
    return z


def _under_autocast(z):
    with torch.autocast("cpu", torch.bfloat16):
        return z @ z


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda z: torch.special.i0(z), "special_i0"),
        (lambda z: torch.fft.rfft(z).abs(), "fft_rfft"),
        (lambda z: torch.einsum("i...,j...->ij", z, z), "ellipsis"),
        (_seen_after, "shares its memory"),
        (_under_autocast, "autocast"),
        (_custom_after_change, "reads a tensor that was changed"),
        (_changed_after, "changed in place after"),
        (lambda z: z.detach() * 0 + 1, None),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_named(f, words):
    model = nn.Sequential(OnlyForward(f))
    if words is None:
        with pytest.raises(ValueError, match="does not depend on the parameters"):
            backprop(nn.Sequential(OnlyForward(f)), (torch.randn(3, 3), torch.randn(3, 3)), "mse")
        return
    with pytest.raises(UntraceableError, match=words) as error:
        backprop(model, (torch.randn(3, 3), torch.randn(3, 3)), "mse")
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


def test_a_packed_sequence_is_refused_by_name():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 3, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
            return self.layer(packed)[1][0][0]

    with pytest.raises(UntraceableError, match="pack_padded_sequence"):
        backprop(Packed(), (torch.randn(2, 4, 3), torch.randn(2, 3)), "mse")


def test_a_loss_that_does_not_fit_is_said():
    with pytest.raises(ValueError, match="label 7"):
        backprop(nn.Linear(3, 3), (torch.randn(2, 3), torch.tensor([0, 7])), "cross_entropy")


def test_nothing_stays_attached():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    hooks = nn.modules.module
    backprop(model, (torch.randn(5, 3), torch.randn(5, 3)), "mse")
    with pytest.raises(UntraceableError):
        backprop(OnlyForward(torch.special.i0), (torch.randn(3, 3), torch.randn(3, 3)), "mse")
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert type(model(torch.randn(4, 3)).grad_fn).__name__ == "NativeBatchNormBackward0"


def test_several_inputs_and_keyword_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Embedding(5, 2)

        def forward(self, x, tokens):
            return self.a(x) * self.b(tokens)

    model = Two().double()
    x, tokens, y = torch.randn(6, 3).double(), torch.arange(6) % 5, torch.randn(6, 2).double()
    _, found = assert_equal_to_autograd(model, (x, tokens), y, "mse")
    named = gradients(model, ({"x": x, "tokens": tokens}, y), "mse")
    assert all(torch.equal(named[name], found[name]) for name in found)
    assert backprop(model, ((x, tokens), y), "mse").rows[0].kind == "mul"


def test_a_keras_model_is_swept_operation_by_operation(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    inner = (layers.Dense(8, "relu", kernel_regularizer="l2"), layers.BatchNormalization(), layers.Dropout(0.3))
    model = keras.Sequential([keras.Input((4,)), *inner, layers.Dense(3)])
    forward, x, y = Forward(model), torch.randn(10, 4), torch.arange(10) % 3
    before = {name: t.detach().clone() for name, t in forward.state().items()}
    value = backprop(model, (x, y), "cross_entropy").loss
    found = gradients(model, (x, y), "cross_entropy")
    assert all(torch.equal(t, before[name]) for name, t in forward.state().items())
    expected = resolve("cross_entropy")(forward(x), y) + forward.added_loss()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    for name, p in forward.parameters().items():
        assert torch.allclose(found[name], p.grad, rtol=1e-4, atol=1e-6), name


def test_memory_is_let_go():
    """Nothing that the sweep kept of the forward pass outlives it."""
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    seen: list[weakref.ref[Tensor]] = []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    backprop(model, (torch.randn(5, 3), torch.randn(5, 3)), "mse")
    handle.remove()
    gc.collect()
    assert [ref() for ref in seen] == [None]


# ── compiled models ──


def test_a_compiled_model_is_swept_as_the_one_it_was_made_from():
    made = case("dense")
    compiled = torch.compile(made.model, backend="eager")
    assert backprop(compiled, made.data, made.loss) == backprop(made.model, made.data, made.loss)
    found, expected = gradients(compiled, made.data, made.loss), gradients(made.model, made.data, made.loss)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], g) for name, g in expected.items())


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_compiled_part_is_swept():
    part = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    plain = nn.Sequential(part, nn.Linear(4, 2))
    data = torch.randn(5, 3), torch.randn(5, 2)
    found = backprop(nn.Sequential(torch.compile(part, backend="eager"), plain[1]), data, "mse")
    assert [row.name.replace("._orig_mod", "") for row in found.rows] == ["1", "0.1", "0.0"]
    assert found.growth == backprop(plain, data, "mse").growth
