from __future__ import annotations

import pytest
import torch

from thalweg.tensors.vector import Layout, dot, flat, norm

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(7.0), "bias": torch.tensor([8.0, 9.0])}


def test_there_and_back() -> None:
    layout = Layout.of(TENSORS)
    vector = layout.flatten(dict(reversed(TENSORS.items())))  # the layout's order counts, not the mapping's
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9] and layout.size == 9
    back = layout.unflatten(vector)
    assert list(back) == list(TENSORS)
    assert all(torch.equal(back[name], t) for name, t in TENSORS.items())


def test_flattening_copies_and_unflattening_does_not() -> None:
    layout = Layout.of({"bias": TENSORS["bias"]})
    vector = layout.flatten({"bias": TENSORS["bias"]})
    layout.unflatten(vector)["bias"].fill_(0)
    assert vector.tolist() == [0, 0] and TENSORS["bias"].tolist() == [8, 9]


def test_dot_and_norm_are_those_of_the_vector() -> None:
    other = {name: t + 1 for name, t in TENSORS.items()}
    a, b = flat(TENSORS.values()), flat(other.values())
    assert dot(TENSORS, dict(reversed(other.items()))).item() == torch.dot(a, b).item()
    assert norm(TENSORS).item() == pytest.approx(a.norm().item())


def test_what_does_not_fit_is_said() -> None:
    layout = Layout.of(TENSORS)
    with pytest.raises(ValueError, match=r"the vector is \[8\], the parameters need \[9\]"):
        layout.unflatten(torch.zeros(8))
    with pytest.raises(ValueError, match="'scale' is in one and not in both"):
        layout.flatten({name: t for name, t in TENSORS.items() if name != "scale"})
    with pytest.raises(ValueError, match=r"'bias' is \[2, 1\], the parameter is \[2\]"):
        layout.flatten({**TENSORS, "bias": TENSORS["bias"].unsqueeze(1)})
