"""The networks in Keras, for TensorFlow and for its PyTorch backend. Images come channels last, Keras' own layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from workloads import BLOCKS, CHARACTERS, CLASSES, HEADS, LAYERS, LEARNING_RATE, STAGES, WIDTH, WORKLOADS, Workload


def dense(*widths: int) -> keras.Model:
    hidden = [layers.Dense(width, activation="relu") for width in widths[1:-1]]
    return keras.Sequential([keras.Input((widths[0],)), *hidden, layers.Dense(widths[-1])])


def convolutional() -> keras.Model:
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(CLASSES),
    ])  # fmt: skip


def residual() -> keras.Model:
    def layer(x: Any, width: int, size: int, stride: int = 1) -> Any:
        x = layers.Conv2D(width, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    read = keras.Input((32, 32, 3))
    x, inputs = layers.ReLU()(layer(read, STAGES[0], 3)), STAGES[0]
    for outputs in STAGES:
        for block in range(BLOCKS):
            stride = 2 if block == 0 and outputs != STAGES[0] else 1
            y = layer(layers.ReLU()(layer(x, outputs, 3, stride)), outputs, 3)
            if inputs != outputs or stride > 1:
                x = layer(x, outputs, 1, stride)
            x, inputs = layers.ReLU()(layers.Add()([x, y])), outputs
    return keras.Model(read, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


class Positions(layers.Layer):
    """A learned vector for each position, added. (A layer called on constants would be a constant itself.)"""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal", name="vectors")

    def call(self, x: Any) -> Any:
        return x + self.vectors


def transformer() -> keras.Model:
    (length,) = WORKLOADS["transformer"].shape
    below = np.tril(np.ones((length, length), bool))

    def attention(x: Any) -> Any:
        split = layers.Reshape((length, 3, HEADS, WIDTH // HEADS))(layers.Dense(3 * WIDTH)(x))
        query, key, value = (ops.transpose(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
        weights = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * (WIDTH // HEADS) ** -0.5
        weights = ops.softmax(ops.where(below, weights, -1e9))
        y = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return layers.Dense(WIDTH)(layers.Reshape((length, WIDTH))(y))

    def norm() -> Any:
        return layers.LayerNormalization(epsilon=1e-5)

    read = keras.Input((length,), dtype="int32")
    x = layers.Embedding(CHARACTERS, WIDTH)(read)
    x = Positions()(x)
    for _ in range(LAYERS):
        x = x + attention(norm()(x))
        y = ops.gelu(layers.Dense(4 * WIDTH)(norm()(x)), approximate=False)
        x = x + layers.Dense(WIDTH)(y)
    return keras.Model(read, layers.Dense(CHARACTERS)(norm()(x)))


def recurrent() -> keras.Model:
    (length,) = WORKLOADS["lstm"].shape
    return keras.Sequential([
        keras.Input((length,), dtype="int32"), layers.Embedding(CHARACTERS, WIDTH),
        layers.LSTM(WIDTH, return_sequences=True), layers.Dense(CHARACTERS),
    ])  # fmt: skip


MODELS: dict[str, Callable[[], keras.Model]] = {
    "seed": lambda: dense(784, 10, CLASSES),
    "mlp": lambda: dense(784, 512, 512, CLASSES),
    "cnn": convolutional,
    "resnet": residual,
    "transformer": transformer,
    "lstm": recurrent,
}


def model(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    return MODELS[name]()


def loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizer() -> Any:
    return keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8)


def ring(workload: Workload) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches in Keras' layout."""
    kind = np.int32 if workload.reads_text else np.float32
    return [
        (np.ascontiguousarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x, kind), y.astype(np.int32))
        for x, y in workload.ring()
    ]
