"""Who takes part: each rule made of a model, a loss and a rate; in the middle of its grid the rate its authors name.

A rule whose package is absent says so in its cells. Peers run in the environment that environments.sh makes.
An averaged rule is read out at the exponential average of its weights (torch's, from `torch.optim.swa_utils`), whose
updates count as its time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

PEERS = Path(os.environ.get("THALWEG_PEERS", Path(__file__).resolve().parents[3] / "thalweg-peers"))
"""Where environments.sh put the peers' environment: beside the checkout."""
POINTS, MORE = 7, 2
"""Of the grid of rates, half decades about the middle; and beyond each end, where the end is the best."""
DECAY = 0.01
"""Of weights, by both Muons: what ours and AdamW decay by."""


@dataclass(frozen=True)
class Entrant:
    """A rule."""

    title: str
    make: Callable[[nn.Module, str, float], Any]
    """(model, name of the loss, rate) → optimizer."""
    rate: float
    way: str = "gradient"
    """How it is driven: "gradient", "closure" or "batch"."""
    is_full: bool = False
    """It takes all examples in every step."""
    is_averaged: bool = False
    package: str | None = None
    ours: bool = False

    @property
    def rates(self) -> list[float]:
        """The grid, from its middle outwards: a half decade from one to the next."""
        return [self._at(i) for i in sorted(range(-(POINTS // 2), POINTS // 2 + 1), key=abs)]

    @property
    def beyond(self) -> list[float]:
        """Rates beyond the ends of the grid."""
        return [self._at(side * (POINTS // 2 + i)) for i in range(1, MORE + 1) for side in (-1, 1)]

    def _at(self, half_decades: int) -> float:
        return float(f"{self.rate * 10 ** (half_decades / 2):.4g}")

    @property
    def module(self) -> str | None:
        """What its package is imported as."""
        return self.package and self.package.removesuffix("-for-pytorch")

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.ours or self.package is None else PEERS / "rules" / "bin" / "python"


def _split(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """What Muon is for, as for ours: matrices and convolutions, but embeddings and the last layer; and the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    apart = [p for m in model.modules() if "Embedding" in type(m).__name__ for p in m.parameters(recurse=False)]
    apart += [p for p in trained if p.ndim >= 2][-1:]
    apart_ids = {id(p) for p in apart}
    inner = [p for p in trained if p.ndim >= 2 and 1 not in (len(p), p.numel() // len(p)) and id(p) not in apart_ids]
    taken = {id(p) for p in inner}
    return inner, [p for p in trained if id(p) not in taken]


class AsMatrices:
    """A rule that takes matrices only, on views `[out, in·k·k]` of parameters."""

    def __init__(self, parameters: list[Any], make: Callable[[list[Any]], torch.optim.Optimizer]) -> None:
        self.parameters = parameters
        self.views = [nn.Parameter(p.data.flatten(1)) for p in parameters]
        self.optimizer = make(self.views)

    def step(self) -> None:
        for p, view in zip(self.parameters, self.views, strict=True):
            view.grad = p.grad.view_as(view)
        self.optimizer.step()

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @property
    def state(self) -> dict[Any, Any]:
        return self.optimizer.state


class Both:
    """Two optimizers as one."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    @property
    def state(self) -> dict[Any, Any]:
        return {p: kept for part in self.parts for p, kept in part.state.items()}


def _with_adamw(muon: Callable[[list[Any], float], Any]) -> Callable[[nn.Module, str, float], Any]:
    """Muon for what it is for, AdamW at the same rate for the rest."""

    def make(model: nn.Module, loss: str, rate: float) -> Any:
        inner, rest = _split(model)
        adamw = torch.optim.AdamW(rest, rate, fused=True)
        return Both(muon(inner, rate), adamw) if inner else adamw

    return make


class Flat(nn.Module):
    """A model whose outputs are in rows, as curvlinops' losses want them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x).flatten(0, -2)


class Curvlinops:
    """K-FAC of curvlinops, as one would drive it: factors of every tenth batch, their inverse before SGD with momentum.

    One label is drawn for each example; the damping is split between the two factors as Martens & Grosse do. Dense
    layers and convolutions are all it knows: other parameters are moved by SGD.
    """

    EVERY, DAMPING = 10, 1e-2

    def __init__(self, model: nn.Module, loss: str, rate: float) -> None:
        self.model = Flat(model)
        self.loss = nn.MSELoss() if loss == "mse" else nn.CrossEntropyLoss()
        taken = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.parameters = [p for module in taken for p in module.parameters(recurse=False)]
        self.rule = torch.optim.SGD(model.parameters(), rate, momentum=0.9, fused=True)
        self.number = 0

    @property
    def state(self) -> Any:
        return self.rule.state

    def step(self, x: Any, y: Any) -> None:
        from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

        y = y if y.is_floating_point() else y.flatten()
        if self.number % self.EVERY == 0:
            of = {"check_deterministic": False, "separate_weight_and_bias": False, "seed": self.number}
            of |= {"num_per_example_loss_terms": len(y) // len(x), "num_data": len(x), "batch_size_fn": len}
            factors = KFACLinearOperator(self.model, self.loss, self.parameters, [(x, y)], **of)
            self.inverse = KFACInverseLinearOperator(factors, damping=self.DAMPING, use_heuristic_damping=True)
        self.number += 1
        self.rule.zero_grad()
        self.loss(self.model(x), y).backward()
        for p, along in zip(self.parameters, self.inverse @ [p.grad for p in self.parameters], strict=True):
            p.grad = along
        self.rule.step()


class Free:
    """A rule of ours without a schedule: between `eval` and `train` the weights are what it is measured at."""

    def __init__(self, rule: torch.optim.Optimizer) -> None:
        from thalweg.optim import ScheduleFree

        self.rule = ScheduleFree(rule)
        self.step, self.zero_grad = self.rule.step, self.rule.zero_grad

    @property
    def state(self) -> Any:
        return self.rule.state

    def eval(self) -> None:
        self._measured = self.rule.averaged()
        self._measured.__enter__()

    def train(self) -> None:
        if hasattr(self, "_measured"):
            self._measured.__exit__(None, None, None)
            del self._measured


def _free_soap(model: nn.Module, loss: str, rate: float) -> Free:
    """The momentum is that of the average alone, as in the schedule-free AdamW of others."""
    from thalweg.optim import SOAP

    return Free(SOAP(model, rate, betas=(0.0, 0.95)))


def _ours(name: str) -> Callable[[nn.Module, str, float], Any]:
    def make(model: nn.Module, loss: str, rate: float) -> Any:
        from thalweg.optim import catalogue

        return catalogue.build(name, model.named_parameters(), rate, model=model, loss=loss)

    return make


def _of(name: str, **options: Any) -> Callable[[nn.Module, str, float], Any]:
    def make(model: nn.Module, loss: str, rate: float) -> Any:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(model.parameters(), lr=rate, **options)

    return make


def _torch_muon(inner: list[Any], rate: float) -> Any:
    return AsMatrices(inner, lambda ps: torch.optim.Muon(ps, rate, DECAY, adjust_lr_fn="match_rms_adamw"))


def _po_muon(inner: list[Any], rate: float) -> Any:
    import pytorch_optimizer

    groups = [{"params": inner, "use_muon": True}]
    return pytorch_optimizer.Muon(groups, lr=rate, weight_decay=DECAY, use_adjusted_lr=True)


def _torch(name: str, **options: Any) -> Callable[[nn.Module, str, float], Any]:
    return lambda model, loss, rate: getattr(torch.optim, name)(model.parameters(), lr=rate, **options)


ENTRANTS = {
    "kfac": Entrant("thalweg K-FAC", _ours("kfac"), 1.0, "batch", ours=True),
    "gauss_newton": Entrant("thalweg Gauss–Newton", _ours("gauss_newton"), 1.0, "batch", ours=True),
    "lbfgs": Entrant("thalweg L-BFGS", _ours("lbfgs"), 1.0, "closure", is_full=True, ours=True),
    "soap": Entrant("thalweg SOAP", _ours("soap"), 3e-3, ours=True),
    "muon": Entrant("thalweg Muon", _ours("muon"), 3e-3, ours=True),
    "kfac-averaged": Entrant("thalweg K-FAC, averaged", _ours("kfac"), 1.0, "batch", is_averaged=True, ours=True),
    "soap-averaged": Entrant("thalweg SOAP, averaged", _ours("soap"), 3e-3, is_averaged=True, ours=True),
    "soap-free": Entrant("thalweg SOAP, schedule-free", _free_soap, 3e-3, ours=True),
    "muon-averaged": Entrant("thalweg Muon, averaged", _ours("muon"), 3e-3, is_averaged=True, ours=True),
    "adamw": Entrant("torch AdamW, fused", _torch("AdamW", fused=True), 1e-3),
    "adamw-averaged": Entrant("torch AdamW, fused, averaged", _torch("AdamW", fused=True), 1e-3, is_averaged=True),
    "nadamw": Entrant("torch NadamW", _torch("NAdam", decoupled_weight_decay=True, weight_decay=0.01), 2e-3),
    "momentum": Entrant("torch SGD, momentum 0.9", _torch("SGD", momentum=0.9, fused=True), 0.03),
    "torch-lbfgs": Entrant(
        "torch L-BFGS, strong Wolfe", _torch("LBFGS", line_search_fn="strong_wolfe"), 1.0, "closure", is_full=True
    ),
    "torch-muon": Entrant("torch Muon, AdamW beside", _with_adamw(_torch_muon), 3e-3),
    "torch-muon-averaged": Entrant("torch Muon, averaged", _with_adamw(_torch_muon), 3e-3, is_averaged=True),
    "po-soap": Entrant("pytorch_optimizer SOAP", _of("SOAP"), 3e-3, package="pytorch_optimizer"),
    "po-soap-averaged": Entrant(
        "pytorch_optimizer SOAP, averaged", _of("SOAP"), 3e-3, is_averaged=True, package="pytorch_optimizer"
    ),
    "po-muon": Entrant(
        "pytorch_optimizer Muon, AdamW beside", _with_adamw(_po_muon), 3e-3, package="pytorch_optimizer"
    ),
    "po-muon-averaged": Entrant(
        "pytorch_optimizer Muon, averaged", _with_adamw(_po_muon), 3e-3, is_averaged=True, package="pytorch_optimizer"
    ),
    "shampoo": Entrant(
        "pytorch_optimizer Shampoo, every 10th", _of("Shampoo", preconditioning_compute_steps=10), 1e-2,
        package="pytorch_optimizer",
    ),
    "dash": Entrant("pytorch_optimizer DASH", _of("DASH"), 1e-3, package="pytorch_optimizer"),
    "schedule-free": Entrant(
        "pytorch_optimizer Schedule-Free AdamW", _of("ScheduleFreeAdamW"), 2.5e-3, package="pytorch_optimizer"
    ),
    "prodigy": Entrant("pytorch_optimizer Prodigy", _of("Prodigy"), 1.0, package="pytorch_optimizer"),
    "curvlinops": Entrant("curvlinops K-FAC", Curvlinops, 0.03, "batch", package="curvlinops-for-pytorch"),
}  # fmt: skip
