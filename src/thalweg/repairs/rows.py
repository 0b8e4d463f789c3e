"""Examples that cannot be trained on are set aside: those with NaN or Inf, and those that the network makes such of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thalweg.repairs.change import Body, Undo, Words, names
from thalweg.repairs.passes import evaluating
from thalweg.step.data import COLUMNS, Batch, Data, Stream, cast
from thalweg.step.sequences import Sequences
from thalweg.tensors.named import leaves

#: Examples that are looked at together; and the share of bad ones from which on they are not what is wrong.
TOGETHER, MOST = 256, 0.5
#: Rows that are told one by one.
FEW = 20


class SetRowsAside:
    """The examples that are left are trained on; which were set aside is said by their numbers."""

    code = "set_rows_aside"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The numbers of the examples; None where all are sound, or most are not."""
        if body.data is None or isinstance(body.data, Stream) or body.kept is not None:
            return None
        bad = [i for i, good in enumerate(_sound(body, body.data)) if not good]
        if not 0 < len(bad) <= MOST * len(body.data):
            return None
        return {"count": float(len(bad)), "rows": " ".join(map(str, bad))}

    def apply(self, body: Body, words: Words) -> Undo:
        """Keep the others."""
        assert body.data is not None and not isinstance(body.data, Stream)
        gone = set(map(int, names(words["rows"])))
        before, body.kept = body.kept, [i for i in range(len(body.data)) if i not in gone]

        def undo() -> None:
            body.kept = before

        return undo

    def lines(self, words: Words) -> list[str]:
        """The same rows."""
        rows = names(words["rows"])
        if len(rows) > FEW:
            return ["kept = x.isfinite().flatten(1).all(1)  # and what else makes the network give no number"]
        return [f"kept = [i for i in range(len(x)) if i not in {{{', '.join(rows)}}}]"]


def _sound(body: Body, data: Data) -> list[bool]:
    """Of each example, whether it is finite and what the network makes of it too."""
    assert not isinstance(data, Stream)
    finite, kept = [], []
    state = next(iter(body.model.parameters()))
    with evaluating(body.model), torch.no_grad():
        for first in range(0, len(data), TOGETHER):
            batch = cast(data.take(torch.arange(first, min(len(data), first + TOGETHER))), state.dtype, state.device)
            rows = finite_rows(batch)
            outputs = [] if body.loss is None else list(leaves(body.forward(batch[0], False)))
            finite += rows.tolist()
            kept += (rows & _finite(outputs, len(rows))).tolist()
    # A network that has diverged makes NaN of everything: then only the data themselves say what is bad.
    return kept if sum(kept) > MOST * sum(finite) else finite


def finite_rows(batch: Batch) -> Tensor:
    """Whether each example of a batch, or of all data, is finite in inputs and target, bool `[examples]`."""
    columns = list(leaves(batch, COLUMNS))
    good = _finite([part for part in columns if isinstance(part, Tensor)], len(columns[0]))
    for part in columns:
        if isinstance(part, Sequences):
            good &= part.finite
    return good


def _finite(tensors: Iterable[Tensor], count: int) -> Tensor:
    good = torch.ones(count, dtype=torch.bool)
    for t in tensors:
        if t.is_floating_point() and t.ndim and len(t) == count:
            good &= torch.isfinite(t).reshape(count, -1).all(1).cpu()
    return good
