"""What kind of point a training stands at, measured where it is asked for and not before.

| fact | unit |
|---|---|
| `landscape_kind` | slope, plateau, saddle or minimum |
| `landscape_step`, `landscape_examples` | the step at which, and the examples of training on which it was measured |
| `landscape_loss`, `landscape_scale` | the loss there, and what is much for it |
| `landscape_gradient`, `landscape_gradient_error` | the norm of the gradient, and its standard error |
| `largest_curvature`, `smallest_curvature` | ends of the Hessian's spectrum, loss per square of the weight's unit |
| `flatness` | share of the scale by which it would change, to second order, if all weights changed by their own size |
| `landscape_symmetric` | the layers at least half of whose units do the same as another one at that point |
| `landscape_layers` | the layers that have weights to multiply by |
| `neighbour_loss` | the loss of giving each example the answer of its nearest neighbour among them |
| `descent`, `escape` | shares of the scale by which the loss falls along the gradient, and along the lowest curvature |

A look costs about `GRADIENTS` gradients of the examples it is taken on. So many are taken that this is a hundredth of
what the training has computed, or what half a second allows; both are counted, not timed, so that a run repeats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from thalweg.gradients.landscape import surveyed
from thalweg.step.batches import Batches
from thalweg.step.data import Batch, Stream, cast, num_examples
from thalweg.step.forward import Forward
from thalweg.tensors import seeds

#: Products of a look at most; with the gradients, losses and steps around them it costs about so many gradients.
PRODUCTS = 30
GRADIENTS = 120
#: Of the gradients that the training has computed, a look may cost this share.
SHARE = 0.01
#: Or so much arithmetic: half a second on a core that does two thousand million operations a second on small matrices.
OPERATIONS = 1e9
FEWEST, MOST = 16, 2048
#: Units of a layer up to which they are compared; tables of more are no layers of units.
UNITS = 4096
#: Parts of a unit's weights to which another's must agree.
ALIKE = 1e3
#: Examples among which neighbours are looked for: all pairs are compared.
NEIGHBOURS = 512


def looked(forward: Forward, batches: Batches, loss: Any, step: int) -> dict[str, Any] | None:
    """The facts of the point at which the model stands after so many updates; None where it would cost too much.

    Model, random state and buffers are left as they are. The caller keeps the state of data that draw.
    """
    if forward.is_keras:
        return None
    count = _affordable(forward, batches, step)
    if count < FEWEST and (batches.num_examples is None or count < batches.num_examples):
        return None
    examples = _examples(batches, count)
    try:
        found = surveyed(
            forward.model,
            examples,
            loss,
            examples=count,
            picture=False,
            seed=0,
            max_products=PRODUCTS,
            trace_probes=0,
        )
    except (ValueError, RuntimeError, NotImplementedError):  # a loss or layer that has no second derivative
        return None
    # A summed loss is told per example, as in training.
    per = found.num_examples if getattr(loss, "reduction", "mean") == "sum" else 1
    return {
        "landscape_kind": found.kind,
        "landscape_step": step,
        "landscape_examples": found.num_examples,
        "landscape_loss": found.loss / per,
        "landscape_scale": found.loss_scale / per,
        "landscape_gradient": found.gradient_norm,
        "landscape_gradient_error": found.gradient_error,
        "largest_curvature": found.largest_eigenvalue,
        "smallest_curvature": found.smallest_eigenvalue,
        "descent": found.descent,
        "escape": found.escape,
        "flatness": found.flatness,
        "landscape_symmetric": _symmetric(forward),
        "landscape_layers": sum(p.ndim > 1 for p in forward.parameters().values()),
        **_of_neighbours(examples, loss),
    }


def _symmetric(forward: Forward) -> list[str]:
    """Layers at least half of whose units have the weights of another one: no gradient tells such units apart."""
    return [
        name.rpartition(".")[0] or name
        for name, p in forward.parameters().items()
        if p.ndim > 1 and 1 < len(p) <= UNITS and 2 * _num_different(p.detach().flatten(1)) <= len(p)
    ]


def _num_different(rows: Tensor) -> int:
    """Of rows `[units, inputs]`, but for what rounding does to units that get the same gradient."""
    size = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    direction = rows / size.clamp_min(torch.finfo(torch.float64).tiny)
    length = size.clamp_min(1e-30).log()  # so that units of all sizes are compared alike
    return len(torch.unique((torch.cat([direction, length], 1) * ALIKE).round(), dim=0))


def _of_neighbours(batch: Batch, loss: Any) -> dict[str, float]:
    """The loss of copying the nearest neighbour's answer: for labels of a calibrated answer that is right as often as
    that one, H(a) + (1 − a) ln(C − 1); for numbers half their mean squared difference, which is the variance of the
    noise where neighbours are close (the delta test; Pi and Peterson 1994).
    """
    x, y = batch
    name = getattr(loss, "name", None)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.is_floating_point() and len(x) >= FEWEST):
        return {}
    rows = x.detach()[:NEIGHBOURS].flatten(1).double()
    y = y[: len(rows)]
    apart = torch.cdist(rows, rows).fill_diagonal_(math.inf)
    other = y[apart.argmin(1)]
    if name == "mse" and y.is_floating_point():
        return {"neighbour_loss": float((y - other).double().square().mean()) / 2}
    if name == "binary_cross_entropy" and y[0].numel() == 1 and bool(((y == 0) | (y == 1)).all()):
        y, other, name = y.flatten().long(), other.flatten().long(), "cross_entropy"
    if name in ("cross_entropy", "nll") and not y.is_floating_point() and y.ndim == 1:
        right = (int((y == other).sum()) + 1) / (len(y) + 2)
        wrong, others = 1 - right, max(1, int(y.max()))
        return {"neighbour_loss": -right * math.log(right) - wrong * math.log(wrong / others)}
    return {}


def _examples(batches: Batches, count: int) -> Batch:
    """So many, spread evenly over the data: its own order may be that of the classes."""
    data = batches.data
    if isinstance(data, Stream):
        return batches.first(count)
    rows = torch.linspace(0, len(data) - 1, min(count, len(data))).round().long()
    return cast(data.take(rows), batches.dtype, batches.device)


def _affordable(forward: Forward, batches: Batches, step: int) -> int:
    """Examples that a look may be taken on."""
    size = batches.order.batch_size or batches.num_examples or 1
    by_share = int(SHARE * step * size / GRADIENTS)
    by_operations = int(OPERATIONS / (3 * GRADIENTS * _operations(forward, batches)))
    return min(MOST, max(by_share, by_operations))


def _operations(forward: Forward, batches: Batches) -> float:
    """Of a forward pass, an example; a parameter counts for two at least."""
    batch = batches.first(4)
    modes = [(module, module.training) for module in forward.model.modules()]
    forward.model.eval()
    try:
        with seeds.untouched(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(batch[0], training=False)
    finally:
        for module, mode in modes:
            module.training = mode
    parameters = sum(p.numel() for p in forward.parameters().values())
    return max(counter.get_total_flops() / num_examples(batch), 2.0 * parameters, 1.0)
