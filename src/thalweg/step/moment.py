"""A forward pass that leaves nothing behind: what it draws, counts and writes down is put back."""

from __future__ import annotations

from thalweg.step.forward import Forward
from thalweg.step.refusals import attributes_kept
from thalweg.tensors.named import assign, copied
from thalweg.tensors.seeds import as_found


class Moment:
    """What a forward pass draws from, reads and changes beside the weights: random state, buffers, attributes."""

    def __init__(self, forward: Forward) -> None:
        trained = {id(p) for p in forward.parameters().values()}
        self._put_back_random = as_found()
        self._state = {name: t for name, t in forward.state().items() if id(t) not in trained}
        self._values = copied(self._state)
        self._put_back_attributes = attributes_kept(forward.model)

    def put_back(self) -> None:
        """All is as it was then."""
        self._put_back_random()
        assign(self._state, self._values)
        self._put_back_attributes()
