"""What may be done to a case, in place: the parts that sicknesses, healthy and hard-healthy trainings are made of.

Each change is a function of the case and of numbers. A configuration names changes and numbers, so it can be told
whether a run was made by the code as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import networks
import torch
from families import Case, is_classes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from thalweg.optim import catalogue

_ACTIVATIONS = tuple(kind for kind in networks.ACTIVATIONS.values() if kind is not nn.Identity)
_WEIGHTED = (nn.Linear, nn.Conv2d)


def _drawn(seed: int = 0) -> torch.Generator:
    """Of what is drawn about the data: the same for every seed of a training."""
    return torch.Generator().manual_seed(seed)


# ── keywords ──


def words(case: Case, **given: Any) -> None:
    """Other keywords of the network."""
    case.words |= given


def fit(case: Case, **given: Any) -> None:
    """Other keywords of the training."""
    case.fit |= given


def rate(case: Case, factor: float) -> None:
    """A multiple of the tuned learning rate."""
    case.fit["learning_rate"] *= factor


def options(case: Case, **given: Any) -> None:
    """Options of the rule."""
    case.fit["optimizer_options"] = (case.fit.get("optimizer_options") or {}) | given


def small_batches(case: Case, size: int, updates: int) -> None:
    """This batch size, for whole epochs of about so many updates; at least two evaluations."""
    per_epoch = -(-len(case.train[0]) // size)
    case.fit |= {"batch_size": size, "epochs": max(2, round(updates / per_epoch))}


def full_batch(case: Case, updates: int, examples: int = 0) -> None:
    """Batch gradient descent; of the first examples where given."""
    if examples:
        case.train = tuple(part[:examples].clone() for part in case.train)
    case.fit |= {"batch_size": "full", "epochs": updates}


def epochs(case: Case, share: float) -> None:
    """A share of the epochs, at least one."""
    case.fit["epochs"] = max(1, round(case.fit["epochs"] * share))


def rate_factor(case: Case, factor: float, first: float, last: float) -> None:
    """The rate times a factor between two shares of the updates."""
    begin, end = (round(share * case.steps) for share in (first, last))

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor if begin <= step < end else 1.0)

    case.fit["schedule"] = schedule


# ── the network's first weights ──


def scaled(case: Case, factor: float) -> None:
    """All weight matrices times a factor."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.mul_(factor)

    case.after.append(change)


def constant(case: Case, value: float) -> None:
    """All weights and biases of one value: no unit differs from its neighbour. Norms stay."""

    def change(model: nn.Module) -> None:
        norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters()}
        with torch.no_grad():
            for p in model.parameters():
                if id(p) not in norms:
                    p.fill_(value if p.ndim > 1 else 0.0)

    case.after.append(change)


def tied(case: Case, distinct: int) -> None:
    """Of the first layer's units only so many differ, and no step will tell the others apart."""

    def change(model: nn.Module) -> None:
        first, *_, last = (m for m in model.modules() if isinstance(m, _WEIGHTED))
        with torch.no_grad():
            for p in (first.weight, first.bias):
                p.copy_(p[torch.arange(len(p)) % distinct])
            last.weight.copy_(last.weight[:, torch.arange(last.weight.shape[1]) % distinct])

    case.after.append(change)


def hidden(model: nn.Module) -> Iterator[nn.Module]:
    """Layers whose output goes into an activation, over a norm maybe."""
    before: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, _WEIGHTED):
            before = module
        elif isinstance(module, _ACTIVATIONS) and before is not None:
            yield before
            before = None


def biased(case: Case, value: float) -> None:
    """The biases of hidden layers."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for layer in hidden(model):
                if layer.bias is not None:
                    layer.bias.fill_(value)

    case.after.append(change)


def last_biased(case: Case, value: float) -> None:
    """The biases of the last layer."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            [m for m in model.modules() if isinstance(m, _WEIGHTED)][-1].bias.fill_(value)

    case.after.append(change)


# ── the network's parts ──


class Detached(nn.Module):
    """Passes its input on, and no gradient back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class AlwaysDropout(nn.Module):
    """Dropout that does not know of evaluation, as `F.dropout(x, p)` in a forward method."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


class Half(nn.Module):
    """In units of 1/scale, in half precision: above 65504 there is nothing."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).half().float() / self.scale


class Standardised(nn.Module):
    """Each example by its own mean and deviation, without a thought for one that is the same all over."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        mean, deviation = flat.mean(1), flat.std(1)
        shape = (-1, *[1] * (x.ndim - 1))
        return (x - mean.view(shape)) / deviation.view(shape)


class Noisy(nn.Module):
    """Adds noise to its input while training, as an augmentation does."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x) if self.training else x


def _inserted(model: nn.Module, part: nn.Module) -> None:
    """A part ahead of the last layer of any of the networks."""
    if isinstance(model, networks.Recurrent):
        model.head = nn.Sequential(part, *model.head)
    elif isinstance(model, networks.Transformer):
        model.norm = nn.Sequential(model.norm, part)
    else:
        assert isinstance(model, nn.Sequential)
        last = max(i for i, module in enumerate(model) if isinstance(module, nn.Linear))
        model.insert(last, part)


def detached(case: Case) -> None:
    """No gradient goes below the last layer."""
    case.after.append(lambda model: _inserted(model, Detached()))


def half(case: Case, scale: float) -> None:
    """What goes into the last layer is in half precision."""
    case.after.append(lambda model: _inserted(model, Half(scale)))


def ahead(case: Case, part: str, **numbers: float) -> None:
    """A part that the input goes through first."""
    kinds: dict[str, Callable[..., nn.Module]] = {"standardised": Standardised, "noisy": Noisy}
    case.after.append(lambda model: nn.Sequential(kinds[part](**numbers), model))


def always_dropout(case: Case, p: float) -> None:
    """Dropout behind each activation, in evaluation as well."""

    def change(model: nn.Module) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _ACTIVATIONS):
                    setattr(parent, name, nn.Sequential(child, AlwaysDropout(p)))

    case.after.append(change)


def frozen(case: Case, layers: int) -> None:
    """So many of the first layers are not trained (−1: all but the last)."""

    def change(model: nn.Module) -> None:
        owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
        for module in owners[:layers]:
            for p in module.parameters(recurse=False):
                p.requires_grad_(False)

    case.after.append(change)


def stuck_in_eval(case: Case, variance: float) -> None:
    """Norms normalise by what they were given (mean 0, this variance) and do not learn it; dropout drops nothing."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
                module.train = lambda mode=True, module=module: module
                if not isinstance(module, nn.Dropout):
                    module.running_var.fill_(variance)

    case.after.append(change)


# ── the update ──


def kept_gradients(case: Case, every: int) -> None:
    """Gradients are set to zero after every so many updates only; never where that is 0."""
    rule = case.fit["optimizer"]

    def make(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        optimizer = catalogue.build(rule, model.named_parameters(), rate)
        clear, calls = optimizer.zero_grad, [0]

        def zero_grad(set_to_none: bool = True) -> None:
            calls[0] += 1
            if every and calls[0] % every == 0:
                clear(set_to_none)

        optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
        return optimizer

    case.optimizer = make


# ── the data ──


def subset(case: Case, share: float) -> None:
    """A share of the training examples, for as many updates as before."""
    updates = case.steps
    kept = max(8, round(share * len(case.train[0])))
    case.train = tuple(part[:kept].clone() for part in case.train)
    per_epoch = -(-kept // min(case.fit["batch_size"], kept))
    case.fit["epochs"] = max(1, round(updates / per_epoch))
    if case.fit["epochs"] > 60:  # as many evaluations as that, by going over the examples several times an epoch
        times = -(-case.fit["epochs"] // 40)
        case.train = tuple(part.repeat(times, *[1] * (part.ndim - 1)) for part in case.train)
        case.fit["epochs"] = max(1, round(updates / (-(-kept * times // case.fit["batch_size"]))))


def held_out(case: Case, examples: int) -> None:
    """Validation on so few examples that it is noisy."""
    case.validation = tuple(part[:examples].clone() for part in case.validation)


def wrong_labels(case: Case, share: float) -> None:
    """A share of the training targets, drawn at random, goes to other examples."""
    x, y = case.train
    drawn = torch.randperm(len(y), generator=_drawn())[: round(share * len(y))]
    y = y.clone()
    if y.ndim == 2 and not y.is_floating_point():  # of sequences: each place by itself
        places = torch.rand(y.shape, generator=_drawn()) < share
        taken = y[places]
        y[places] = taken[torch.randperm(len(taken), generator=_drawn(1))]
    else:
        y[drawn] = y[drawn[torch.randperm(len(drawn), generator=_drawn(1))]]
    case.train = x, y


def inputs(case: Case, factor: float = 1.0, offset: float = 0.0) -> None:
    """Inputs in other units, of both parts: what a preprocessing that was left out would have put right."""
    case.train, case.validation = ((x * factor + offset, y) for x, y in (case.train, case.validation))


def one_feature(case: Case, factor: float) -> None:
    """The last feature in other units."""
    parts = []
    for x, y in (case.train, case.validation):
        x = x.clone()
        x[..., -1] *= factor
        parts.append((x, y))
    case.train, case.validation = parts


def targets(case: Case, factor: float, offset: float = 0.0) -> None:
    """Targets of a regression in other units."""
    case.train, case.validation = ((x, y * factor + offset) for x, y in (case.train, case.validation))


def imbalanced(case: Case, share: float) -> None:
    """The last class is this share of both parts; a network of classes is asked for two: this one or another."""
    parts = []
    for x, y in (case.train, case.validation):
        last = (y == y.max()).reshape(len(y))
        many, few = (~last).nonzero().flatten(), last.nonzero().flatten()
        few = few[: max(2, round(len(many) * share / (1 - share)))]
        kept = torch.cat((many, few))
        kept = kept[torch.randperm(len(kept), generator=_drawn())]
        parts.append((x[kept], (y[kept] == y.max()).to(y.dtype)))
    case.train, case.validation = parts


def blank(case: Case, share: float) -> None:
    """A share of the training examples, at least one, is zero all over."""
    x, y = case.train
    x = x.clone()
    x[torch.randperm(len(x), generator=_drawn())[: max(1, round(share * len(x)))]] = 0
    case.train = x, y


class _Items(Dataset):
    """Examples one by one: their values are not looked at before training."""

    def __init__(self, part: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = part

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def not_a_number(case: Case, share: float) -> None:
    """A share of the training examples, at least one, holds NaN in one place; not among the first that are tried."""
    x, y = case.train
    x = x.clone()
    rows = 64 + torch.randperm(len(x) - 64, generator=_drawn())[: max(1, round(share * len(x)))]
    x.view(len(x), -1)[rows, 0] = torch.nan
    case.train, case.dataset = (x, y), _Items


# ── the task ──


def _task(case: Case, make: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], train: int) -> None:
    case.train, case.validation = make(train, _drawn(0)), make(500, _drawn(1))


def parity(case: Case, bits: int, among: int, train: int = 600) -> None:
    """Class 1 where an odd number of the first bits is set; inputs ±1. Shalev-Shwartz et al. 2017, section 2."""

    def make(count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (count, among), generator=drawn).float() * 2 - 1
        return x, (x[:, :bits].prod(1, keepdim=True) > 0).float()

    _task(case, make, train)
    case.network, case.loss = partial(networks.even, among, 1), "binary_cross_entropy"


def exclusive_or(case: Case) -> None:
    """Four clouds of points, opposite ones of a class."""

    def make(count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
        corner = torch.randint(0, 2, (count, 2), generator=drawn).float() * 2 - 1
        return corner + 0.2 * torch.randn(count, 2, generator=drawn), (corner.prod(1, keepdim=True) > 0).float()

    _task(case, make, 400)
    case.network, case.loss = partial(networks.even, 2, 1), "binary_cross_entropy"


def wave(case: Case, frequency: float) -> None:
    """sin(frequency · x) of one number in [−1, 1], without noise."""

    def make(count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 1, generator=drawn) * 2 - 1
        return x * 1.7, torch.sin(frequency * x)

    _task(case, make, 400)
    case.network, case.loss = partial(networks.even, 1, 1), "mse"


def bent(case: Case) -> None:
    """A sum of two bends of two of eight numbers, which two units of a tanh could fit: without noise."""

    def make(count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 8, generator=drawn)
        return x, torch.tanh(2 * x[:, :1]) - torch.tanh(2 * x[:, 1:2])

    _task(case, make, 400)
    case.network, case.loss = partial(networks.even, 8, 1), "mse"


# ── loss and output ──


def loss(case: Case, name: str, threshold: float = 0.0) -> None:
    """Another loss by name."""
    case.loss, case.threshold = name, threshold


def squared_classes(case: Case) -> None:
    """Squared error of one-hot classes."""
    num_classes = int(case.train[1].max()) + 1
    case.train, case.validation = (
        (x, F.one_hot(y, num_classes).float()) if not y.is_floating_point() else (x, y)
        for x, y in (case.train, case.validation)
    )
    case.loss, case.threshold = "mse", 0.5


def smoothed(case: Case, share: float) -> None:
    """Cross-entropy of smoothed labels."""
    case.loss = nn.CrossEntropyLoss(label_smoothing=share)


def own_logarithm(case: Case) -> None:
    """Cross-entropy written as the logarithm of a softmax, which underflows."""

    def cross_entropy_by_hand(output: Tensor, target: Tensor) -> Tensor:
        p = output.softmax(-1)
        return -(p.log() * F.one_hot(target, p.shape[-1])).sum(-1).mean()

    case.loss = cross_entropy_by_hand


def certified(case: Case) -> None:
    """What kind of point it ends at is measured: for the truth, and as a diagnosis would that may ask."""
    assert is_classes(case.train[1]) or case.loss == "mse"
    case.certified = True
