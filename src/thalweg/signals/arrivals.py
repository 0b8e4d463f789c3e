"""What arrives at the parameters in a loop that is not ours: gradients, by hooks on the parameters alone.

| series | unit | cost | when |
|---|---|---|---|
| `gradient_norm`, `gradient_norm/LAYER` | before clipping, unscaled | a pass over the gradients | every report |
| `clip_factor` | norm as the rule takes it ÷ as it came, 0 to 1 | another pass | every report, with an optimizer |
| `stale_gradient` | 1 where that of the last update was still there, else 0 | a pass over three | every report |
| `trained_in_eval` | 1 where it learned in evaluation mode and has layers that differ by it | none | every report |

Such hooks are called by autograd and not by the model: a compiled model stays as it was compiled. A gradient counts as
left over where nothing came to an empty place since the last update, so micro-batches that are added up on purpose do
not, nor a pass of another network's loss before the gradients are cleared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.signals import backward
from thalweg.signals.layers import Layers

#: Modules that do something else in evaluation mode.
MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
#: A gradient that comes out smaller by more than this was scaled up for half precision, not clipped; as was one that
#: comes out smaller by a power of two, to this accuracy.
SCALED, ACCURACY = 2.0**-10, 1e-3


class Arrivals:
    """Listens at the parameters between two updates; nothing waits for the device before `read`."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], layers: Layers) -> None:
        self._model = model
        self._parameters = parameters
        self._layers = layers
        self._knows_modes = any(isinstance(module, MODES) for module in model.modules())
        self._handles: list[RemovableHandle] = []
        self.listens = False
        self.reached: set[int] = set()
        """Places of the parameters that a gradient has come to, so far."""
        self._norms: dict[int, Tensor] = {}
        self._left: dict[int, Tensor] = {}
        self._in_eval = False
        self._taken: Tensor | None = None

    def attach(self) -> None:
        """Begin; the last, the middle and the first parameter are asked for what was left over."""
        count = len(self._parameters)
        for place, p in enumerate(self._parameters):
            self._handles.append(p.register_post_accumulate_grad_hook(partial(self._arrived, place)))
            if place in (0, count // 2, count - 1):
                self._handles.append(p.register_hook(partial(self._arrives, place)))

    def detach(self) -> None:
        """Leave no trace."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, listens: bool) -> None:
        """An update was made: what arrives from now on is for the next one, which is reported or not."""
        self.listens = listens
        self._norms.clear()
        self._left.clear()
        self._in_eval, self._taken = False, None

    def _arrives(self, place: int, gradient: Tensor) -> None:
        """A gradient is about to be added to what is there."""
        if not self.listens:
            return
        self._in_eval = not self._model.training
        there = self._parameters[place].grad
        size = gradient.new_zeros(()) if there is None else there.detach().abs().amax().to(gradient.dtype)
        before = self._left.get(place)
        self._left[place] = size if before is None else torch.minimum(before, size)

    def _arrived(self, place: int, p: Tensor) -> None:
        self.reached.add(place)
        if self.listens and p.grad is not None:
            self._norms[place] = torch.linalg.vector_norm(p.grad.detach(), dtype=_wide(p.grad))

    def taken(self) -> None:
        """The rule is about to take the gradients as they are now."""
        if self.listens and any(p.grad is not None for p in self._parameters):
            self._taken = backward.norms(self._parameters)

    def read(self) -> dict[str, float]:
        """What arrived since `begin`, by name of series."""
        if not self._norms:
            return {}
        none = next(iter(self._norms.values())).new_zeros(())
        arrived = torch.stack([self._norms.get(place, none) for place in range(len(self._parameters))])
        norms = arrived.tolist()
        found: dict[str, float] = {}
        if self._taken is not None:
            taken = self._taken.tolist()
            factor = math.hypot(*taken) / (math.hypot(*norms) or 1.0)
            if _was_scaled(factor) or (math.isfinite(math.hypot(*taken)) and not math.isfinite(math.hypot(*norms))):
                norms = taken
            elif factor <= 1 + ACCURACY:
                found["clip_factor"] = min(1.0, factor)
        found |= backward.series(self._layers, norms)
        if self._left:
            found["stale_gradient"] = float(torch.stack(list(self._left.values())).min() > 0)
        if self._knows_modes:
            found["trained_in_eval"] = float(self._in_eval)
        return found


def _wide(gradient: Tensor) -> torch.dtype | None:
    """Squares of half precision overflow."""
    return torch.float32 if gradient.dtype in (torch.float16, torch.bfloat16) else None


def _was_scaled(factor: float) -> bool:
    """Whether the gradients were divided by what a loss was multiplied with.

    >>> _was_scaled(2.0**-16), _was_scaled(0.125), _was_scaled(0.3), _was_scaled(1.0)
    (True, True, False, False)
    """
    if not 0 < factor < 1 - ACCURACY:
        return False
    power = round(math.log2(factor))
    return factor < SCALED or (power < 0 and abs(factor / 2.0**power - 1) < ACCURACY)
