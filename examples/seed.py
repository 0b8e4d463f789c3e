"""The beginner's first network in Keras, trained by Thalweg on scikit-learn's handwritten digits.

Run it with `python examples/seed.py`; `docs/from-keras.md` shows it beside its TensorFlow form.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before the first import of keras

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import thalweg

# 1,797 scans of 8 × 8 pixels, scaled up to 28 × 28 as in MNIST; a fifth of them is held out.
images, labels = load_digits(return_X_y=True)
pixel = np.arange(28) * 8 // 28
images = images.reshape(-1, 8, 8)[:, pixel][:, :, pixel].reshape(-1, 784)
x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)

# Standardised by the training examples; targets as one-hot rows.
mean, deviation = x_train.mean(), x_train.std()
x_train, x_test = ((x - mean) / deviation for x in (x_train, x_test))
x_train, x_test = x_train.astype("float32"), x_test.astype("float32")
y_train, y_test = np.eye(10, dtype="float32")[y_train], np.eye(10, dtype="float32")[y_test]

keras.utils.set_random_seed(0)  # the first weights
model = keras.Sequential(
    [
        keras.Input((784,)),
        layers.Dense(10, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)

run = thalweg.fit(
    model,
    (x_train, y_train),
    "categorical_cross_entropy",
    optimizer="adam",
    metrics=("accuracy",),
    validation_data=(x_test, y_test),
)

print(run.verdict.sentence)
print(f"held-out accuracy: {run.metrics['validation_accuracy']:.3f}")
