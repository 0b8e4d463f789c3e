"""TensorFlow: the step of the guides (GradientTape, a Keras model and optimizer), eager, as a function, through XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras_models
import tensorflow as tf
from worker import Contender, Stepping
from workloads import Workload

Make = Callable[[], Contender]


def _stepping(workload: Workload, wrap: Callable[[Any], Any]) -> Make:
    ring = [(tf.constant(x), tf.constant(y)) for x, y in keras_models.ring(workload)]

    def make() -> Contender:
        model, loss_of, optimizer = keras_models.model(workload.name), keras_models.loss(), keras_models.optimizer()
        variables = model.trainable_variables
        optimizer.build(variables)

        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x, training=True))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        return Stepping(wrap(step), ring, wait=lambda loss: loss.numpy())

    return make


def eager(workload: Workload) -> Make:
    return _stepping(workload, lambda step: step)


def function(workload: Workload) -> Make:
    return _stepping(workload, tf.function)


def xla(workload: Workload) -> Make:
    return _stepping(workload, tf.function(jit_compile=True))
