"""Gradient norms of single examples: time and memory beside forward and backward, and beside the peers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from networks import CNN, MLP, OWN_TRANSFORMER, TRANSFORMER, Network
from passes import forward_and_backward
from timing import Effort, Row, interleaved, milliseconds, peak_bytes, ratio, reason
from torch import Tensor, nn

TARGET, MEMORY_TARGET = 1.3, 1.2
BASE, OURS = "forward and backward", "thalweg"
TIME, MEMORY, UNIT = "per-example norms", "per-example norms, peak memory", f"× {BASE}"
Norms = Callable[[], Any]


def _ours(network: Network) -> Norms:
    from thalweg.gradients.examples import per_example_norms

    model, batch = network.model(), network.data()
    return lambda: per_example_norms(model, batch, "cross_entropy")


def _backpack(network: Network) -> Norms:
    """BackPACK's squared norms of single gradients, which it adds up without forming them for dense layers."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model, loss_of, (x, y) = extend(network.model()), extend(nn.CrossEntropyLoss()), network.data()

    def call() -> Tensor:
        model.zero_grad()
        loss = loss_of(model(x), y)
        with backpack(BatchL2Grad()):
            loss.backward()
        without = [name for name, p in model.named_parameters() if not hasattr(p, "batch_l2")]
        if without:
            raise NotImplementedError(f"no norms for {', '.join(without)}")
        return torch.stack([p.batch_l2 for p in model.parameters()]).sum(0).sqrt() * len(x)

    return call


def _opacus(ghost: bool) -> Callable[[Network], Norms]:
    """Opacus' norms by ghost clipping, which does not form gradients where it can; or from gradients that it forms."""

    def make(network: Network) -> Norms:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

        (x, y), loss_of = network.data(), nn.CrossEntropyLoss()
        if ghost:
            model = GradSampleModuleFastGradientClipping(network.model(), use_ghost_clipping=True)
        else:
            model = GradSampleModule(network.model())

        def call() -> Tensor:
            model.zero_grad()
            loss_of(model(x), y).backward()
            if ghost:
                return model.get_norm_sample()
            return torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in model.parameters()]).sum(0).sqrt()

        return call

    return make


def _vmapped(network: Network) -> Norms:
    from torch.func import functional_call, grad, vmap

    model, (x, y) = network.model(), network.data()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: Any, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def call() -> Tensor:
        found = gradients(parameters, x, y).values()
        return torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()

    return call


PEERS: dict[str, Callable[[Network], Norms]] = {
    "BackPACK": _backpack,
    "Opacus, ghost": _opacus(ghost=True),
    "Opacus, formed": _opacus(ghost=False),
    "vmap(grad)": _vmapped,
}


def measure(effort: Effort) -> list[Row]:
    """Time and memory of every contender on every network."""
    return [row for network in (MLP, CNN, TRANSFORMER, OWN_TRANSFORMER) for row in _of(network, effort)]


def _of(network: Network, effort: Effort) -> list[Row]:
    model = network.model()
    contenders: dict[str, Callable[[], Any]] = {BASE: forward_and_backward(model, network.data()), OURS: _ours(network)}
    ours, away, rows = contenders[OURS](), {OURS: 0.0}, []
    for name, make in PEERS.items():
        try:
            call = make(network)
            away[name] = float(((call() - ours) / ours).abs().max())
            contenders[name] = call
        except Exception as error:  # whatever a peer cannot do is what its row says
            rows.append(Row(TIME, network.name, name, None, UNIT, note=reason(error)))
    times, held = interleaved(contenders, effort), _held(model, network)
    peaks = {}
    for name, call in contenders.items():
        model.zero_grad()
        peaks[name] = peak_bytes(call)
    for name in (name for name in contenders if name != BASE):
        ours_only = (TARGET, MEMORY_TARGET) if name == OURS else (None, None)
        seconds = {"ms": milliseconds(times[name]), f"{BASE} [ms]": milliseconds(times[BASE])}
        seconds["largest relative difference from ours"] = away[name]
        measured = ratio(times[name], times[BASE])
        rows.append(Row(TIME, network.name, name, unit=UNIT, target=ours_only[0], details=seconds, **measured))
        size = {"MB beyond what is held": peaks[name] / 1e6, f"{BASE} [MB]": peaks[BASE] / 1e6, "held [MB]": held / 1e6}
        value = round((held + peaks[name]) / (held + peaks[BASE]), 4)
        rows.append(Row(MEMORY, network.name, name, value, UNIT, target=ours_only[1], details=size))
    return rows


def _held(model: nn.Module, network: Network) -> int:
    """Bytes of parameters and data, which are there before and after."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *network.data()])
