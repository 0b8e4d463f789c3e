"""Recurrent layers: backpropagation through time, written out (Werbos 1990).

Each cell's pre-activations are a = x W_ihᵀ + b_ih + h W_hhᵀ + b_hh, the products with x made for all times at once.
Backwards, the slopes that do not depend on the gradient are computed for all times at once too; the loop over time
holds only the recursion, dh_{t−1} = da_t W_hh (+ what skips the weights), and the weights' gradients are one product
over all times each: ∂J/∂W_ih = Σ da_tᵀ x_t, ∂J/∂W_hh = Σ da_tᵀ h_{t−1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function

from thalweg.gradients.rules.registry import Pull, composed, rule


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one layer in one direction: w_ih `[gates · hidden, inputs]`, w_hh `[gates · hidden, hidden]`, their biases."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    def shares(self, x: Tensor, before: Tensor, da_x: Tensor, da_h: Tensor) -> list[Any]:
        """What x and the weights get of ∂J/∂a `[time, batch, gates · hidden]`, on the side of x and of h."""
        rows_x, rows_h = da_x.flatten(0, 1), da_h.flatten(0, 1)
        return [
            (x, lambda: da_x @ self.w_ih),
            (self.w_ih, lambda: rows_x.T @ x.flatten(0, 1)),
            (self.w_hh, lambda: rows_h.T @ before.flatten(0, 1)),
            (self.b_ih, lambda: rows_x.sum(0)),
            (self.b_hh, lambda: rows_h.sum(0)),
        ]


def _times(x: Tensor, reverse: bool) -> list[int]:
    return list(range(len(x)))[::-1] if reverse else list(range(len(x)))


def _before(states: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The state that each time started from."""
    if reverse:
        return torch.cat([states[1:], first[None]])
    return torch.cat([first[None], states[:-1]])


def _or_zeros(g: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if g is None else g


@rule("lstm_layer")
def lstm_layer(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, reverse: bool
) -> tuple[Any, Pull]:
    """i, f, o = σ(a_i, a_f, a_o), u = tanh(a_u), c_t = f c_{t−1} + i u, h_t = o tanh(c_t).

    dc_t = dc_{t+1} f_{t+1} + dh_t o (1 − tanh²c_t); da_i = dc u i(1−i), da_f = dc c_{t−1} f(1−f), da_u = dc i (1−u²),
    da_o = dh tanh(c_t) o(1−o). x `[time, batch, inputs]`, h and c `[batch, hidden]` (Hochreiter & Schmidhuber 1997;
    the forget gate of Gers et al. 2000).
    """
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    a = F.linear(x, w_ih, b_ih) if b_hh is None else F.linear(x, w_ih, b_ih + b_hh)
    size = h.shape[-1]
    H, C, tanh_C = (x.new_empty(*x.shape[:2], size) for _ in range(3))
    h_t, c_t, w = h, c, w_hh.T
    for t in _times(x, reverse):
        a_t = torch.addmm(a[t], h_t, w, out=a[t])  # in place: a becomes the activations below, nothing is kept twice
        u = a_t[:, 2 * size : 3 * size].tanh()
        a_t.sigmoid_()[:, 2 * size : 3 * size] = u
        i, f, _, o = a_t.chunk(4, 1)
        c_t = torch.addcmul(f * c_t, i, u, out=C[t])
        h_t = torch.mul(o, torch.tanh(c_t, out=tanh_C[t]), out=H[t])

    def pull(g_H: Tensor | None, g_h: Tensor | None, g_c: Tensor | None) -> list[Any]:
        i, f, u, o = a.chunk(4, 2)
        slopes = torch.stack([u * i * (1 - i), _before(C, c, reverse) * f * (1 - f), i * (1 - u * u)], 2)
        slope_o, slope_c = tanh_C * o * (1 - o), o * (1 - tanh_C * tanh_C)
        g = _or_zeros(g_H, H)
        dh, dc = _or_zeros(g_h, h), _or_zeros(g_c, c)
        da = torch.empty_like(a)
        for t in reversed(_times(x, reverse)):
            dh = dh + g[t]
            dc = torch.addcmul(dc, dh, slope_c[t])
            torch.mul(dc[:, None], slopes[t], out=da[t, :, : 3 * size].unflatten(1, (3, size)))
            torch.mul(dh, slope_o[t], out=da[t, :, 3 * size :])
            dh, dc = da[t] @ w_hh, dc * f[t]
        return [(h, lambda: dh), (c, lambda: dc), *weights.shares(x, _before(H, h, reverse), da, da)]

    return (H, h_t.clone(), c_t.clone()), pull


@rule("gru_layer")
def gru_layer(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, reverse: bool
) -> tuple[Any, Pull]:
    """r, z = σ(a_r, a_z), m = h_{t−1} W_hnᵀ + b_hn, n = tanh(a_n + r m), h_t = (1 − z) n + z h_{t−1}.

    da_n = dh (1−z)(1−n²), da_z = dh (h_{t−1} − n) z(1−z), da_r = da_n m r(1−r); on the side of h, da_n is r da_n.
    x `[time, batch, inputs]`, h `[batch, hidden]` (Cho et al. 2014, with the reset gate after the product).
    """
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    a, size = F.linear(x, w_ih, b_ih), h.shape[-1]
    H, M = x.new_empty(*x.shape[:2], size), x.new_empty(*x.shape[:2], size)
    h_t = h
    for t in _times(x, reverse):
        b = F.linear(h_t, w_hh, b_hh)
        M[t] = b[:, 2 * size :]
        gates = a[t, :, : 2 * size].add_(b[:, : 2 * size]).sigmoid_()
        n = a[t, :, 2 * size :].addcmul_(gates[:, :size], M[t]).tanh_()
        h_t = torch.addcmul(n, gates[:, size:], h_t - n, out=H[t])

    def pull(g_H: Tensor | None, g_h: Tensor | None) -> list[Any]:
        r, z, n = a.chunk(3, 2)
        before = _before(H, h, reverse)
        slope_n = (1 - z) * (1 - n * n)
        slopes = torch.cat([slope_n * M * r * (1 - r), (before - n) * z * (1 - z), slope_n * r], 2)
        g, dh = _or_zeros(g_H, H), _or_zeros(g_h, h)
        da, DH = torch.empty_like(a), torch.empty_like(H)
        for t in reversed(_times(x, reverse)):
            dh = torch.add(dh, g[t], out=DH[t])
            torch.mul(dh[:, None], slopes[t].unflatten(1, (3, size)), out=da[t].unflatten(1, (3, size)))
            dh = torch.addmm(dh * z[t], da[t], w_hh)
        da_x = torch.cat([da[..., : 2 * size], DH * slope_n], 2)
        return [(h, lambda: dh), *weights.shares(x, before, da_x, da)]

    return (H, h_t.clone()), pull


@rule("rnn_layer")
def rnn_layer(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, reverse: bool, is_relu: bool
) -> tuple[Any, Pull]:
    """h_t = tanh(a) or max(a, 0): da = dh (1 − h_t²), or dh where h_t > 0 (Elman 1990)."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    H = F.linear(x, w_ih, b_ih) if b_hh is None else F.linear(x, w_ih, b_ih + b_hh)
    h_t = h
    for t in _times(x, reverse):
        H[t].addmm_(h_t, w_hh.T)
        h_t = H[t].relu_() if is_relu else H[t].tanh_()

    def pull(g_H: Tensor | None, g_h: Tensor | None) -> list[Any]:
        slope = (H > 0).to(H.dtype) if is_relu else 1 - H * H
        g, dh = _or_zeros(g_H, H), _or_zeros(g_h, h)
        da = torch.empty_like(H)
        for t in reversed(_times(x, reverse)):
            dh = torch.mul(dh + g[t], slope[t], out=da[t]) @ w_hh
        return [(h, lambda: dh), *weights.shares(x, _before(H, h, reverse), da, da)]

    return (H, h_t.clone()), pull


def _recorded(layer: Any, x: Tensor, *rest: Any) -> Any:
    """A layer's outputs, by way of the tape, which keeps the pull. `Any` as the rule by itself returns both."""
    return handle_torch_function(layer, (x,), x, *rest)


# ── several layers and directions ──


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers above each other, each in one direction or both, as torch's functions are told of them."""

    weights: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    def of(self, place: int) -> list[Any]:
        """The weights of one layer and direction."""
        count = 4 if self.has_biases else 2
        if len(self.weights) != count * self.num_layers * (1 + self.bidirectional):
            raise ValueError("a recurrent layer with projections (proj_size)")
        found = list(self.weights[place * count : (place + 1) * count])
        return found if self.has_biases else [*found, None, None]

    def run(self, layer: Any, x: Tensor, starts: Sequence[Tensor], *options: Any) -> tuple[Tensor, list[Tensor]]:
        """All layers on x from the states `[layers · directions, batch, hidden]`; the outputs, and the last states."""
        x = x.transpose(0, 1) if self.batch_first else x
        directions = 1 + self.bidirectional
        ends: list[list[Tensor]] = [[] for _ in starts]
        for number in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                place = number * directions + direction
                args = (x, *[start[place] for start in starts], *self.of(place), direction == 1, *options)
                output, *last = _recorded(layer, *args)
                outputs.append(output)
                for kept, state in zip(ends, last, strict=True):
                    kept.append(state)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and self.train and number < self.num_layers - 1:
                x = F.dropout(x, self.dropout, True)
        return x.transpose(0, 1) if self.batch_first else x, [torch.stack(kept) for kept in ends]


@composed("lstm")
def lstm(x: Tensor, states: Any, *description: Any) -> tuple[Tensor, Tensor, Tensor]:
    """torch.lstm: outputs, last h, last c."""
    if isinstance(states, Tensor):
        raise ValueError("a packed sequence")
    y, (h, c) = Stack(*description).run(lstm_layer, x, states)
    return y, h, c


@composed("gru")
def gru(x: Tensor, h: Tensor, *description: Any) -> tuple[Tensor, Tensor]:
    """torch.gru: outputs, last h."""
    y, (h,) = _unpacked(h, description).run(gru_layer, x, [h])
    return y, h


@composed("rnn_tanh")
def rnn_tanh(x: Tensor, h: Tensor, *description: Any) -> tuple[Tensor, Tensor]:
    """torch.rnn_tanh: outputs, last h."""
    y, (h,) = _unpacked(h, description).run(rnn_layer, x, [h], False)
    return y, h


@composed("rnn_relu")
def rnn_relu(x: Tensor, h: Tensor, *description: Any) -> tuple[Tensor, Tensor]:
    """torch.rnn_relu: outputs, last h."""
    y, (h,) = _unpacked(h, description).run(rnn_layer, x, [h], True)
    return y, h


def _unpacked(h: Tensor, description: Sequence[Any]) -> Stack:
    if not h.is_floating_point():
        raise ValueError("a packed sequence")
    return Stack(*description)


# ── single cells ──


@composed("lstm_cell")
def lstm_cell(x: Tensor, states: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
    """One step of an LSTM."""
    h, c = states
    _, h, c = _recorded(lstm_layer, x[None], h, c, w_ih, w_hh, b_ih, b_hh, False)
    return h, c


@composed("gru_cell")
def gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of a GRU."""
    return _recorded(gru_layer, x[None], h, w_ih, w_hh, b_ih, b_hh, False)[1]


@composed("rnn_tanh_cell")
def rnn_tanh_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of an Elman network."""
    return _recorded(rnn_layer, x[None], h, w_ih, w_hh, b_ih, b_hh, False, False)[1]


@composed("rnn_relu_cell")
def rnn_relu_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of an Elman network with max(a, 0)."""
    return _recorded(rnn_layer, x[None], h, w_ih, w_hh, b_ih, b_hh, False, True)[1]
