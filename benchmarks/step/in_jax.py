"""JAX: the whole step under jit, one at a time and fifty in a scan. Plain functions of parameters in dicts.

Images come channels last, as XLA's convolutions on CPUs want them; the LSTM projects its inputs before the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from worker import AtOnce, Contender, Stepping
from workloads import BLOCKS, CHARACTERS, CLASSES, HEADS, LAYERS, LEARNING_RATE, STAGES, WIDTH, Workload

Tree = Any
Make = Callable[[], Contender]
SCANNED = 50


class Weights:
    """First weights, drawn one after the other."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def normal(self, *shape: int, scale: float) -> np.ndarray:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def dense(self, inputs: int, outputs: int) -> Tree:
        return {"w": self.normal(inputs, outputs, scale=inputs**-0.5), "b": np.zeros(outputs, np.float32)}

    def convolution(self, size: int, inputs: int, outputs: int) -> np.ndarray:
        return self.normal(size, size, inputs, outputs, scale=(2 / (size * size * inputs)) ** 0.5)

    def norm(self, width: int) -> Tree:
        return {"scale": np.ones(width, np.float32), "shift": np.zeros(width, np.float32)}


def dense(p: Tree, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def convolve(w: jax.Array, x: jax.Array, stride: int = 1) -> jax.Array:
    pad = (w.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def layer_norm(p: Tree, x: jax.Array) -> jax.Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["scale"] + p["shift"]


def batch_norm(p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "variance": 0.9 * state["variance"] + 0.1 * variance}
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["scale"] + p["shift"], new


class Dense:
    """Dense layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        self.widths = widths

    def weights(self, draw: Weights) -> Tree:
        return [draw.dense(i, o) for i, o in zip(self.widths, self.widths[1:], strict=False)]

    def __call__(self, p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        for layer in p[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(p[-1], x), state


class Convolutional:
    """Two convolutions with pooling, two dense layers."""

    def weights(self, draw: Weights) -> Tree:
        convolutions = [{"w": draw.convolution(3, i, o), "b": np.zeros(o, np.float32)} for i, o in ((1, 32), (32, 64))]
        return {"convolutions": convolutions, "dense": [draw.dense(64 * 7 * 7, 128), draw.dense(128, CLASSES)]}

    def __call__(self, p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        for layer in p["convolutions"]:
            x = pool(jax.nn.relu(convolve(layer["w"], x) + layer["b"]))
        x = jax.nn.relu(dense(p["dense"][0], x.reshape(len(x), -1)))
        return dense(p["dense"][1], x), state


class Residual:
    """The residual network; its state: what batch norm keeps, by layer."""

    def shapes(self) -> list[tuple[int, int, int]]:
        found, inputs = [], STAGES[0]
        for outputs in STAGES:
            for block in range(BLOCKS):
                found.append((inputs, outputs, 2 if block == 0 and outputs != STAGES[0] else 1))
                inputs = outputs
        return found

    def weights(self, draw: Weights) -> Tree:
        def layer(size: int, inputs: int, outputs: int) -> Tree:
            return {"w": draw.convolution(size, inputs, outputs), "norm": draw.norm(outputs)}

        blocks = [
            {"first": layer(3, i, o), "second": layer(3, o, o)}
            | ({"shortcut": layer(1, i, o)} if (i, s) != (o, 1) else {})
            for i, o, s in self.shapes()
        ]
        return {"stem": layer(3, 3, STAGES[0]), "blocks": blocks, "head": draw.dense(STAGES[-1], CLASSES)}

    def state(self) -> Tree:
        def kept(width: int) -> Tree:
            return {"mean": np.zeros(width, np.float32), "variance": np.ones(width, np.float32)}

        blocks = [
            {"first": kept(o), "second": kept(o)} | ({"shortcut": kept(o)} if (i, s) != (o, 1) else {})
            for i, o, s in self.shapes()
        ]
        return {"stem": kept(STAGES[0]), "blocks": blocks}

    def __call__(self, p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        def layer(q: Tree, kept: Tree, x: jax.Array, stride: int = 1) -> tuple[jax.Array, Tree]:
            return batch_norm(q["norm"], kept, convolve(q["w"], x, stride))

        new: Tree = {"blocks": []}
        x, new["stem"] = layer(p["stem"], state["stem"], x)
        x = jax.nn.relu(x)
        for (_, _, stride), q, kept in zip(self.shapes(), p["blocks"], state["blocks"], strict=True):
            found = {}
            y, found["first"] = layer(q["first"], kept["first"], x, stride)
            y, found["second"] = layer(q["second"], kept["second"], jax.nn.relu(y))
            if "shortcut" in q:
                x, found["shortcut"] = layer(q["shortcut"], kept["shortcut"], x, stride)
            x = jax.nn.relu(x + y)
            new["blocks"].append(found)
        return dense(p["head"], x.mean((1, 2))), new


class Transformer:
    """Causal, norms first."""

    def weights(self, draw: Weights) -> Tree:
        blocks = [
            {
                "norm1": draw.norm(WIDTH), "projection": draw.dense(WIDTH, 3 * WIDTH), "out": draw.dense(WIDTH, WIDTH),
                "norm2": draw.norm(WIDTH), "up": draw.dense(WIDTH, 4 * WIDTH), "down": draw.dense(4 * WIDTH, WIDTH),
            }
            for _ in range(LAYERS)
        ]  # fmt: skip
        return {
            "embedding": draw.normal(CHARACTERS, WIDTH, scale=1.0), "position": draw.normal(128, WIDTH, scale=1.0),
            "blocks": blocks, "norm": draw.norm(WIDTH), "head": draw.dense(WIDTH, CHARACTERS),
        }  # fmt: skip

    def __call__(self, p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        x = p["embedding"][x] + p["position"]
        for q in p["blocks"]:
            projected = dense(q["projection"], layer_norm(q["norm1"], x))
            query, key, value = (t.reshape(*t.shape[:2], HEADS, -1) for t in jnp.split(projected, 3, -1))
            y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            x = x + dense(q["out"], y.reshape(x.shape))
            y = jax.nn.gelu(dense(q["up"], layer_norm(q["norm2"], x)), approximate=False)
            x = x + dense(q["down"], y)
        return dense(p["head"], layer_norm(p["norm"], x)), state


class Recurrent:
    """An LSTM over characters."""

    def weights(self, draw: Weights) -> Tree:
        return {
            "embedding": draw.normal(CHARACTERS, WIDTH, scale=1.0), "input": draw.dense(WIDTH, 4 * WIDTH),
            "hidden": draw.dense(WIDTH, 4 * WIDTH), "head": draw.dense(WIDTH, CHARACTERS),
        }  # fmt: skip

    def __call__(self, p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        projected = dense(p["input"], p["embedding"][x]).swapaxes(0, 1)
        start = jnp.zeros((x.shape[0], WIDTH))

        def moment(carried: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
            h, c = carried
            i, f, g, o = jnp.split(x + dense(p["hidden"], h), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        _, outputs = lax.scan(moment, (start, start), projected)
        return dense(p["head"], outputs.swapaxes(0, 1)), state


MODELS = {
    "seed": Dense(784, 10, CLASSES),
    "mlp": Dense(784, 512, 512, CLASSES),
    "cnn": Convolutional(),
    "resnet": Residual(),
    "transformer": Transformer(),
    "lstm": Recurrent(),
}


def adam(p: Tree, m: Tree, v: Tree, g: Tree, t: jax.Array) -> tuple[Tree, Tree, Tree]:
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    rate, second = LEARNING_RATE / (1 - 0.9**t), 1 - 0.999**t
    p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v / second) + 1e-8), p, m, v)
    return p, m, v


def train(model: Any, carried: Tree, batch: tuple[jax.Array, jax.Array]) -> tuple[Tree, jax.Array]:
    """One step: what is carried from step to step, and the loss."""
    p, m, v, t, state = carried
    x, y = batch

    def loss_of(p: Tree) -> tuple[jax.Array, Tree]:
        scores, new = model(p, state, x)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], -1)
        return -chosen.mean(), new

    (loss, state), g = jax.value_and_grad(loss_of, has_aux=True)(p)
    p, m, v = adam(p, m, v, g, t + 1.0)
    return (p, m, v, t + 1.0, state), loss


def start(name: str) -> Tree:
    model = MODELS[name]
    p = jax.tree.map(jnp.asarray, model.weights(Weights()))
    zeros = jax.tree.map(jnp.zeros_like, p)
    state = jax.tree.map(jnp.asarray, model.state() if hasattr(model, "state") else {})
    return p, zeros, jax.tree.map(jnp.zeros_like, p), jnp.zeros(()), state


def batches(workload: Workload, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A ring of batches, stacked, in JAX's own layout and kinds."""
    x, y = (np.stack(part) for part in zip(*workload.ring(size), strict=True))
    if workload.reads_text:
        return x.astype(np.int32), y.astype(np.int32)
    return np.ascontiguousarray(np.moveaxis(x, 2, -1)) if x.ndim == 5 else x, y.astype(np.int32)


def jit(workload: Workload) -> Make:
    xs, ys = batches(workload, 64)
    ring = [(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(xs, ys, strict=True)]

    def make() -> Contender:
        compiled = jax.jit(partial(train, MODELS[workload.name]), donate_argnums=0)
        carried = start(workload.name)

        def step(x: jax.Array, y: jax.Array) -> jax.Array:
            nonlocal carried
            carried, loss = compiled(carried, (x, y))
            return loss

        return Stepping(step, ring, wait=lambda loss: jax.block_until_ready((carried, loss)))

    return make


class Scanned(AtOnce):
    """Fifty steps in one program."""

    number = SCANNED

    def __init__(self, workload: Workload) -> None:
        self.batches = tuple(jnp.asarray(part) for part in batches(workload, SCANNED))
        self.carried = start(workload.name)
        step = partial(train, MODELS[workload.name])
        self.compiled = jax.jit(lambda carried, batches: lax.scan(step, carried, batches), donate_argnums=0)

    def call(self) -> jax.Array:
        self.carried, losses = self.compiled(self.carried, self.batches)
        return losses

    def wait(self, losses: jax.Array) -> None:
        jax.block_until_ready((self.carried, losses))


def scan(workload: Workload) -> Make:
    return lambda: Scanned(workload)
