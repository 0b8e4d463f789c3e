"""Update rules by name: name → optimizer of `torch.optim` or of this room, with the learning rate and range of each.

Letters: θ parameters, g gradient, α learning rate, λ weight decay, t number of the update from 1.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.optim.gauss_newton import GaussNewton
from thalweg.optim.kfac import KFAC
from thalweg.optim.lbfgs import LBFGS
from thalweg.optim.matrices import MatrixRule
from thalweg.optim.muon import Muon
from thalweg.optim.soap import SOAP
from thalweg.step.batches import automatic_size
from thalweg.step.losses import unknown


@dataclass(frozen=True, slots=True)
class Rule:
    """One update rule."""

    make: type[torch.optim.Optimizer]
    learning_rate: float
    """The rate that `"auto"` means."""
    range: tuple[float, float]
    """Outside of these a search need not look, for networks with inputs of about unit scale."""
    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What differs from torch's own defaults."""
    fused_on: frozenset[str] = frozenset()
    """Devices with a fused kernel."""
    of_model: bool = False
    """Made of (model, loss, …) instead of parameters."""
    is_searched: bool = True
    """Whether `"auto"` looks for a rate; not where it is a share of a step whose length the rule finds."""
    batch_size: Callable[[int | None], int | None] = automatic_size
    """Examples in all → what `batch_size="auto"` means; None is all of them."""


_EVERYWHERE = frozenset({"cpu", "cuda", "mps"})
_SGD, _ROBBINS = torch.optim.SGD, "Robbins & Monro 1951"

RULES: dict[str, Rule] = {
    "sgd": Rule(_SGD, 0.1, (1e-3, 10.0), "θ ← θ − αg.", _ROBBINS, fused_on=_EVERYWHERE),
    "momentum": Rule(
        _SGD,
        0.01,
        (1e-4, 3.0),
        "v ← 0.9 v + g; θ ← θ − αv.",
        "Polyak 1964; without the damping of g, as Sutskever et al. 2013",
        {"momentum": 0.9},
        _EVERYWHERE,
    ),
    "nesterov": Rule(
        _SGD,
        0.01,
        (1e-4, 3.0),
        "v ← 0.9 v + g; θ ← θ − α(g + 0.9 v).",
        "Nesterov 1983; Sutskever et al. 2013, section 2",
        {"momentum": 0.9, "nesterov": True},
        _EVERYWHERE,
    ),
    "adagrad": Rule(
        torch.optim.Adagrad,
        0.01,
        (1e-3, 0.3),
        "s ← s + g²; θ ← θ − αg/√s.",
        "Duchi, Hazan & Singer 2011",
        fused_on=frozenset({"cpu"}),
    ),
    "rmsprop": Rule(
        torch.optim.RMSprop,
        1e-3,
        (1e-5, 1e-2),
        "s ← 0.99 s + 0.01 g²; θ ← θ − αg/√s.",
        "Tieleman & Hinton 2012, lecture 6.5",
    ),
    "adadelta": Rule(
        torch.optim.Adadelta,
        1.0,
        (0.1, 10.0),
        "s ← 0.9 s + 0.1 g²; Δ = g√(u/s); u ← 0.9 u + 0.1 Δ²; θ ← θ − αΔ.",
        "Zeiler 2012",
    ),
    "adam": Rule(
        torch.optim.Adam,
        1e-3,
        (1e-5, 3e-2),
        "m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)g²; θ ← θ − α m̂/√ŝ, with m̂ = m/(1−β₁ᵗ), ŝ = s/(1−β₂ᵗ).",
        "Kingma & Ba 2015, algorithm 1",
        fused_on=_EVERYWHERE,
    ),
    "adamw": Rule(
        torch.optim.AdamW,
        1e-3,
        (1e-5, 3e-2),
        "Adam, and θ ← θ − αλθ apart from it, on tensors of two dimensions or more.",
        "Loshchilov & Hutter 2019, algorithm 2",
        fused_on=_EVERYWHERE,
    ),
    "adamax": Rule(
        torch.optim.Adamax,
        2e-3,
        (1e-5, 3e-2),
        "m ← β₁m + (1−β₁)g; u ← max(β₂u, |g|); θ ← θ − α m̂/u.",
        "Kingma & Ba 2015, algorithm 2",
    ),
    "nadam": Rule(
        torch.optim.NAdam,
        2e-3,
        (1e-5, 3e-2),
        "Adam with Nesterov's look ahead: m̂ is put together from the next m and g.",
        "Dozat 2016",
    ),
    "radam": Rule(
        torch.optim.RAdam,
        1e-3,
        (1e-5, 3e-2),
        "Adam that goes without √ŝ until its variance is known: θ ← θ − α r m̂/√ŝ, at first θ ← θ − α m̂.",
        "Liu et al. 2020, algorithm 2",
    ),
    "adafactor": Rule(
        torch.optim.Adafactor,
        1e-2,
        (1e-4, 0.1),
        "Adam's s as rows × columns / sum and no m; the step is min(α, 1/√t) of the size of θ.",
        "Shazeer & Stern 2018",
    ),
    "asgd": Rule(
        torch.optim.ASGD,
        0.01,
        (1e-3, 1.0),
        "θ ← θ − α_t(g + 1e-4 θ), α_t = α/(1 + 1e-4 αt)^0.75; the average of θ after update t0 lies in the state `ax`.",
        "Polyak & Juditsky 1992; t0 is a million unless given in the options",
    ),
    "rprop": Rule(
        torch.optim.Rprop,
        0.01,
        (1e-4, 0.1),
        "Each step size grows by 1.2 while g keeps its sign and halves when it turns; for whole batches.",
        "Riedmiller & Braun 1993",
    ),
    "lbfgs": Rule(
        LBFGS,
        1.0,
        (0.03, 3.0),
        "d = −H⁻¹g from the last pairs of θ and g; θ ← θ + td, t by line search from α on; for whole batches.",
        "Liu & Nocedal 1989",
        is_searched=False,
        batch_size=lambda count: None,
    ),
    "kfac": Rule(
        KFAC,
        1.0,
        (0.03, 3.0),
        "D = G⁻¹gA⁻¹, layer by layer; θ ← θ − αβD, β the best for the Gauss–Newton model of the loss.",
        "Martens & Grosse 2015",
        of_model=True,
        is_searched=False,
        batch_size=lambda count: max(128, automatic_size(count)),
    ),
    "gauss_newton": Rule(
        GaussNewton,
        1.0,
        (0.03, 3.0),
        "(JᵀHJ + λI)d = −g; θ ← θ + td, t = α or what of it lowers the loss; λ by Levenberg–Marquardt.",
        "Martens 2010; Marquardt 1963",
        of_model=True,
        is_searched=False,
        batch_size=lambda count: None if count is not None and count <= 2048 else 1024,
    ),
    "soap": Rule(
        SOAP,
        1e-3,
        (1e-5, 3e-2),
        "AdamW in the eigenbasis of GGᵀ and GᵀG, of large matrices along the leading directions; AdamW for vectors.",
        "Vyas et al. 2024, algorithm 3",
    ),
    "muon": Rule(
        Muon,
        1e-3,
        (1e-5, 3e-2),
        "W ← W − 0.2 α √max(m, n) O, O the momentum made orthogonal, rows of one size; AdamW for what is no matrix.",
        "Jordan et al. 2024; Li et al. 2025, algorithm 1",
    ),
}

AUTO = "adamw"
"""The rule that `"auto"` means."""


def build(
    name: str,
    named_parameters: Iterable[tuple[str, Tensor]],
    learning_rate: float | str = "auto",
    options: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    loss: Any = None,
) -> torch.optim.Optimizer:
    """The optimizer of a name over the parameters that require a gradient.

    AdamW's decay applies to tensors of two dimensions or more, so to no bias, norm or gain: two groups (the practice
    of GPT-2 and its descendants, as in nanoGPT's `configure_optimizers`). A group that sets its own "weight_decay" has
    it on all of its tensors.

    Args:
        name: a key of `RULES`, or "auto".
        named_parameters: as from `model.named_parameters()`.
        learning_rate: a number, or "auto" for the rule's own.
        options: further arguments of the torch class; and "groups", a dict of name patterns (`fnmatch`; the first
            that matches counts) to what differs there: {"head.*": {"learning_rate": 0.01, "weight_decay": 0.0}}.
        model: whose parameters they are: for rules that treat embeddings or the output layer by themselves, and for
            those that evaluate the loss, with which they are made.
        loss: of the rules that evaluate it by themselves.

    Raises:
        ValueError: an unknown rule, a rate out of range, a pattern that matches nothing, or nothing to train.
        TypeError: an unknown option.
    """
    name = AUTO if name == "auto" else name
    if name not in RULES:
        raise ValueError(unknown("optimizer", name, list(RULES)))
    rule = RULES[name]
    given = {**rule.options, **(options or {})}
    patterns = given.pop("groups", None) or {}
    known = options_of(name)
    _refuse_unknown(name, given, [*known, "groups"])
    for group in patterns.values():
        _refuse_unknown(name, group, ["learning_rate", *known])

    parameters = {word: p for word, p in named_parameters if p.requires_grad}
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    rate = rule.learning_rate if learning_rate == "auto" else _rate(learning_rate)
    arguments = {word: _argument(value) for word, value in given.items()}
    if rule.of_model:
        if patterns:
            raise ValueError(f"{name} makes its own groups of parameters: leave groups out of its options")
        made: Any = rule.make
        return _begun(made(model, loss, lr=rate, **arguments))
    is_split = issubclass(rule.make, torch.optim.AdamW | MatrixRule) and given.get("weight_decay") != 0
    apart = rule.make.apart(model) if issubclass(rule.make, MatrixRule) and model is not None else set()
    groups = _groups(parameters, patterns, is_split, apart)
    return _begun(rule.make(groups, lr=rate, **{**_kernel(rule, parameters, given), **arguments}))  # type: ignore[call-arg]


def _begun(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Each group knows the rate that schedules multiply."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def options_of(name: str) -> list[str]:
    """The further arguments that a rule takes.

    >>> "momentum" in options_of("sgd"), "momentum" in options_of("adamw")
    (True, False)
    """
    given = ("params", "lr", "model", "loss")
    return [word for word in inspect.signature(RULES[name].make).parameters if word not in given]


def _groups(
    parameters: dict[str, Tensor], patterns: Mapping[str, Any], is_split: bool, apart: Collection[Tensor]
) -> list[dict[str, Any]]:
    """Parameters by the first pattern that matches, by whether they decay and by whether they are for AdamW alone, each
    group in the model's order.
    """
    groups: dict[tuple[str | None, bool, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        options = {} if pattern is None else patterns[pattern]
        decays = not is_split or parameter.ndim >= 2 or "weight_decay" in options
        key = pattern, decays, parameter in apart and "adamw" not in options
        if key not in groups:
            group = {word: _argument(value) for word, value in options.items()}
            if "learning_rate" in group:
                group["lr"] = _rate(group.pop("learning_rate"))
            groups[key] = {"params": [], **group, **({} if decays else {"weight_decay": 0.0})}
            groups[key] |= {"adamw": True} if key[2] else {}
        groups[key]["params"].append(parameter)
    for pattern in patterns:
        if not any(pattern == matched for matched, *_ in groups):
            raise ValueError(
                f"the group {pattern!r} matches no trainable parameter that an earlier group has not taken; "
                f"the parameters are {', '.join(parameters)}"
            )
    return list(groups.values())


def _kernel(rule: Rule, parameters: dict[str, Tensor], given: Mapping[str, Any]) -> dict[str, bool]:
    """One kernel for all tensors where there is one: 3 times as fast as a loop over them on the CPU."""
    if given.keys() & {"fused", "foreach", "differentiable"}:
        return {}
    devices = {parameter.device.type for parameter in parameters.values()}
    is_floating = all(parameter.is_floating_point() for parameter in parameters.values())
    if is_floating and devices <= rule.fused_on:
        return {"fused": True}
    return {"foreach": True} if devices == {"cuda"} and rule.make.__module__.startswith("torch.") else {}


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f'a learning rate is a number above 0 (or "auto"), got {value!r}')
    return float(value)


def _argument(value: Any) -> Any:
    """A pair read from JSON or YAML is a list, where torch wants a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _refuse_unknown(name: str, given: Mapping[str, Any], known: list[str]) -> None:
    for word in given:
        if word not in known:
            raise TypeError(unknown(f"option of {name}", word, known))
