"""Kronecker factors of a batch, or of its micro-batches; what is drawn for them follows from the step alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from thalweg.gradients.factors import FactorSampling, KroneckerFactors, kronecker_factors
from thalweg.optim.damping import parts_of
from thalweg.step.batches import Parts
from thalweg.step.data import Batch, num_examples
from thalweg.tensors.seeds import generator

#: Rows that a call of a layer is sampled down to for its factors.
MOST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Estimate:
    """Factors of a batch; of micro-batches their mean, by examples."""

    sampling: FactorSampling
    seed: int

    def __call__(self, model: nn.Module, batch: Batch | Parts, loss: Any, number: int) -> dict[str, KroneckerFactors]:
        """What is drawn follows from the number of the step."""
        rows = MOST_ROWS if self.sampling.sharing == "expand" else None
        source = generator(self.seed, "kfac", number)
        sampling = replace(self.sampling, rows=rows, generator=source)
        found: dict[str, KroneckerFactors] = {}
        count = 0
        for part in parts_of(batch):
            size = num_examples(part)
            count += size
            for name, new in kronecker_factors(model, part, loss, sampling).items():
                if name in found:
                    found[name].A.lerp_(new.A, size / count)
                    found[name].G.lerp_(new.G, size / count)
                else:
                    found[name] = new
        return found
