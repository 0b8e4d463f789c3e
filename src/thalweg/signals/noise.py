"""How much the gradient varies from example to example, against its size.

| series | unit | cost | when |
|---|---|---|---|
| `noise_scale` | examples: tr Σ / |G|², B_simple of McCandlish et al. 2018 | one to two steps | one step in `EVERY` |

A batch far below it is mostly noise; a batch far above it wastes examples. Taken where the norms of single examples
come from the pass itself (`gradients.examples`): not with batch norm, whose examples depend on each other, and not of
recurrent layers, where it would cost a loop.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg.gradients.examples import noise_scale
from thalweg.gradients.layers import kind
from thalweg.gradients.layouts import check_independent
from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward
from thalweg.tensors.named import leaves
from thalweg.tensors.seeds import untouched

#: Steps between two looks.
EVERY = 1000
#: Fewer examples do not tell a variance.
EXAMPLES = 8


class Noise:
    """Takes the noise scale of a batch, without a trace in the model or in the random state."""

    def __init__(self, model: Forward) -> None:
        self._model = model
        self._is_cheap: bool | None = None

    def taken(self, batch: Batch, loss: Any) -> Tensor | None:
        """The noise scale at the weights as they are, a scalar on the device; None where it is not to be had."""
        if self._is_cheap is None:
            self._is_cheap = self._found_cheap()
        if not self._is_cheap or num_examples(batch) < EXAMPLES or not any(True for _ in leaves(batch[1])):
            return None
        try:
            with untouched():
                return noise_scale(self._model.model, batch, loss).simple
        except (ValueError, RuntimeError):  # examples of this model do not come apart after all
            self._is_cheap = False
            return None

    def _found_cheap(self) -> bool:
        """Whether every trained parameter belongs to a layer whose examples come apart in the pass."""
        if self._model.is_keras:
            return False
        modules = [m for m in self._model.model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        try:
            check_independent(self._model.model)
        except ValueError:
            return False
        return all(kind(module) for module in modules)
