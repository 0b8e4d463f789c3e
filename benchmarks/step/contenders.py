"""Who takes part: which environment each runs in, and which function makes its step."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(os.environ.get("THALWEG_PEERS", Path(__file__).resolve().parents[3] / "thalweg-peers"))
"""Where environments.sh put the peers' environments: beside the checkout."""

PACKAGES = ("thalweg", "torch", "tensorflow-cpu", "tensorflow", "keras", "jax", "jaxlib", "lightning", "numpy")


@dataclass(frozen=True)
class Contender:
    """A way to train, by a function of a framework's module: workload -> (() -> worker.Contender)."""

    title: str
    module: str
    function: str
    environment: str | None = None
    """A folder of PEERS; None: the one that runs this."""
    ours: bool = False
    same_weights: bool = False
    """Its first weights are the reference's, so its losses must be."""
    environ: tuple[tuple[str, str], ...] = ()

    @property
    def python(self) -> Path:
        return PEERS / self.environment / "bin" / "python" if self.environment else Path(sys.executable)


TF, TORCH = (("KERAS_BACKEND", "tensorflow"),), (("KERAS_BACKEND", "torch"),)

CONTENDERS = {
    "thalweg": Contender("thalweg.fast_step", "in_thalweg", "exact", ours=True, same_weights=True),
    "thalweg-several": Contender(
        "thalweg.fast_step, 50 batches a call", "in_thalweg", "several", ours=True, same_weights=True
    ),
    "thalweg-fast": Contender(
        'thalweg.fast_step, precision="fast"', "in_thalweg", "fast", ours=True, same_weights=True
    ),
    "torch-eager": Contender(
        "PyTorch eager, fused Adam (the reference itself)", "in_torch", "eager", same_weights=True
    ),
    "torch-adam": Contender("PyTorch eager, Adam as it comes", "in_torch", "default_adam", same_weights=True),
    "torch-compile": Contender("torch.compile(model), fused Adam", "in_torch", "compiled", same_weights=True),
    "torch-max-autotune": Contender(
        'torch.compile(mode="max-autotune"), fused Adam', "in_torch", "max_autotune", same_weights=True
    ),
    "lightning": Contender("Lightning Trainer", "in_lightning", "trainer", "torch", same_weights=True),
    "keras-torch": Contender("Keras fit (PyTorch)", "in_keras", "fit", "torch", environ=TORCH),
    "keras-tensorflow": Contender("Keras fit (TensorFlow)", "in_keras", "fit", "tensorflow", environ=TF),
    "tf-eager": Contender("TensorFlow eager, GradientTape", "in_tensorflow", "eager", "tensorflow", environ=TF),
    "tf-function": Contender("tf.function", "in_tensorflow", "function", "tensorflow", environ=TF),
    "tf-xla": Contender("tf.function(jit_compile=True)", "in_tensorflow", "xla", "tensorflow", environ=TF),
    "jax-jit": Contender("JAX jit", "in_jax", "jit", "jax"),
    "jax-scan": Contender("JAX scan of 50 steps", "in_jax", "scan", "jax"),
}
ON_GPU = {
    "torch-reduce-overhead": Contender(
        'torch.compile(mode="reduce-overhead"), fused Adam', "in_torch", "reduce_overhead", same_weights=True
    ),
}
"""Who takes part on a GPU alone: what they are for is the cost of launching kernels."""
EVERYONE = CONTENDERS | ON_GPU
REFERENCE = "torch-eager"
