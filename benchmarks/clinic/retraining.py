"""AUTOTRAINER's way with a sick training (Zhang et al. 2021): for the symptom that its monitor sees first, solutions in
its order, each trained anew from first weights, until the monitor is silent.

Told in its favour: every solution begins from fresh weights, where the tool often goes on from damaged ones, and where
none silences the monitor, the training of the best validation score counts. As its monitor, it says nothing without an
accuracy (regression). Noise on the inputs and batches grown step by step are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import networks
import peers
import torch
from families import Case, is_classes
from torch import nn

Words = dict[str, Any]
#: What is changed before a training: the model, and words of `fit`.
Solution = Callable[[Case, nn.Module], tuple[nn.Module, Words]]
#: Change or none, number → the run and its outcome.
Trained = Callable[[Solution | None, int], tuple[Any, dict[str, Any]]]
_HIDDEN = tuple(kind for kind in networks.ACTIVATIONS.values() if kind is not nn.Identity)
_FIRST: dict[str, Callable[[torch.Tensor], Any]] = {
    "lecun": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "glorot": nn.init.xavier_uniform_,
}


def _drawn(model: nn.Module, init: str) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            _FIRST[init](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def activation(kind: type[nn.Module], init: str, case: Case, model: nn.Module) -> tuple[nn.Module, Words]:
    """Another activation everywhere, with first weights to match. The last module, a head, stays."""
    modules = [name for name, module in model.named_modules() if isinstance(module, _HIDDEN)]
    last = list(model.named_modules())[-1][0]
    for name in modules:
        if name != last:
            model.set_submodule(name, kind())
    _drawn(model, init)
    return model, {}


def initialised(init: str, case: Case, model: nn.Module) -> tuple[nn.Module, Words]:
    """Other first weights."""
    _drawn(model, init)
    return model, {}


def words(given: Words, case: Case, model: nn.Module) -> tuple[nn.Module, Words]:
    """Other words of `fit`; another rule without the options of the old one."""
    return model, ({"optimizer_options": None} if "optimizer" in given else {}) | given


def rate(factor: float, case: Case, model: nn.Module) -> tuple[nn.Module, Words]:
    """A multiple of the rate."""
    return model, {"learning_rate": case.fit["learning_rate"] * factor}


def body_of(case: Case, model: nn.Module) -> Any:
    """What this package's changes are made to."""
    from thalweg.records.settings import Settings
    from thalweg.repairs.change import Body
    from thalweg.step.forward import Forward
    from thalweg.step.losses import resolve

    sample = tuple(p[:512].float() if p.is_floating_point() else p[:512] for p in case.train)
    return Body(Forward(model), resolve(case.loss), Settings(), sample, 1e-3)


def ours(code: str, case: Case, model: nn.Module) -> tuple[nn.Module, Words]:
    """A change that this package has, too."""
    from thalweg.repairs.network import CHANGES

    body = body_of(case, model)
    found = CHANGES[code].words(body)
    if found is not None:
        CHANGES[code].apply(body, found)
        case.threshold = 0.0 if code == "drop_head" else case.threshold
    return model, {}


_SELU, _RELU = partial(activation, nn.SELU, "lecun"), partial(activation, nn.ReLU, "he")
_NORM = partial(ours, "insert_norm")
_REDRAWN = tuple(partial(initialised, init) for init in _FIRST)


def _rules(drawn: random.Random) -> list[Solution]:
    """Three of the rules that there are, drawn."""
    rules = [("adam", 1e-3), ("rmsprop", 1e-3), ("sgd", 1e-2), ("momentum", 1e-2), ("nadam", 1e-3), ("adagrad", 1e-2)]
    return [partial(words, {"optimizer": name, "learning_rate": at}) for name, at in drawn.sample(rules, 3)]


def solutions(code: str, drawn: random.Random) -> list[Solution]:
    """What is tried against a symptom, in the tool's order."""
    table: dict[str, list[Solution]] = {
        "vanishing_gradient": [_SELU, _RELU, _NORM],
        "exploding_gradient": [
            _SELU, _RELU, partial(words, {"clip_value": drawn.uniform(9, 10)}),
            partial(activation, nn.Tanh, "glorot"), _NORM,
        ],
        "dead_units": [_SELU, _NORM, *_REDRAWN, *(partial(activation, k, "he") for k in (nn.LeakyReLU, nn.ELU))],
        "oscillating_loss": [
            partial(words, {"optimizer": "adam", "learning_rate": 1e-3}),
            *(partial(rate, 0.1**j) for j in (1, 2)), partial(words, {"schedule": "plateau"}),
            *(partial(words, {"batch_size": 32 * 2**j}) for j in (1, 2)), *_REDRAWN,
        ],
        "slow_convergence": [*_rules(drawn), *(partial(rate, 10.0**j) for j in (1, 2)), *_REDRAWN],
        "loss_output_mismatch": [partial(ours, "drop_head")],
        "unscaled_inputs": [partial(ours, "standardise_inputs")],
    }  # fmt: skip
    return table.get(code, [])


def treated(case: Case, seed: int, trained: Trained) -> dict[str, Any]:
    """The training, and each solution's until the monitor is silent; the updates of all of them are counted."""
    run, first = trained(None, 0)
    if not is_classes(case.validation[1]):
        return first
    said, outcomes, actions = [f.code for f in peers.autotrainer(run.history)], [first], []
    for number, solution in enumerate(solutions(said[0], random.Random(seed)) if said else [], 1):
        try:
            run, outcome = trained(solution, number)
        except (RuntimeError, ValueError, TypeError):  # what cannot be done to this network is no solution
            continue
        outcomes.append(outcome)
        left = peers.autotrainer(run.history)
        actions.append([said[0], number, not left, {}])
        if not left:
            return _all(outcome, outcomes, actions)
    best = max(outcomes, key=lambda outcome: max(outcome["scores"], default=float("-inf")))
    return _all(best, outcomes, actions)


def _all(taken: dict[str, Any], outcomes: list[dict[str, Any]], actions: list[Any]) -> dict[str, Any]:
    spent = sum(outcome["updates"] for outcome in outcomes) - taken["updates"]
    return taken | {"tried_steps": spent, "actions": actions}
