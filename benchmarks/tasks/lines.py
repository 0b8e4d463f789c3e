"""The applications' lines: each a task on real data, what it is to reach, and in what time on two cores."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One application on one data set; `data` is relative to the folder of data, an archive is unpacked first."""

    name: str
    task: str
    data: str
    metric: str
    goal: float
    """What the metric is to reach; NaN where it is held against another metric, `beside`."""
    minutes: float
    lower: bool = False
    """Whether a lower value is better."""
    inside: str = ""
    """The folder of an unpacked archive that is the data."""
    options: dict[str, Any] = field(default_factory=dict)
    beside: str = ""
    share: float = 1.0
    """How much of the metric beside is enough."""

    def aim(self, metrics: dict[str, float]) -> float:
        """What the metric is to reach, in a run with these numbers."""
        return self.share * metrics[self.beside] if self.beside else self.goal

    def reached(self, metrics: dict[str, float]) -> bool:
        """Whether the numbers of a run meet the line."""
        goal = self.aim(metrics)
        return metrics[self.metric] <= goal if self.lower else metrics[self.metric] >= goal

    def folder(self, data: Path, scratch: Path) -> Path:
        """Where the task finds its data."""
        source = data / self.data
        if not source.name.endswith((".tar.gz", ".tar.xz")):
            return source
        unpacked = scratch / source.name.split(".")[0]
        if not unpacked.exists():
            with tarfile.open(source) as archive:
                archive.extractall(unpacked, filter="data")
        return unpacked / self.inside


LINES = (
    Line("mnist", "image-classification", "images/mnist", "test_accuracy", 0.993, 5),
    Line("fashion", "image-classification", "images/fashion-mnist", "test_accuracy", 0.90, 8),
    Line(
        "cifar", "image-classification", "images/cifar10-jpeg-subset.tar.gz", "test_accuracy", 0.68, 15,
        inside="cifar10",
    ),
    Line("blood", "object-detection", "detection/bccd-voc.tar.gz", "mean_average_precision", 0.75, 40, inside="BCCD"),
    Line("shakespeare", "language-model", "text/tinyshakespeare.txt", "validation_loss", 1.60, 20, lower=True),
    Line(
        "shakespeare-lstm", "language-model", "text/tinyshakespeare.txt", "validation_loss", 1.65, 20, lower=True,
        options={"network": "lstm"},
    ),
    Line("multi30k", "translation", "text/multi30k", "bleu", 33, 45),
    Line("scitldr", "summarisation", "text/scitldr-a", "rougeL", float("nan"), 30, beside="lead1_rougeL"),
    Line(
        "digits", "speech-recognition", "speech/fsdd.tar.xz", "test_accuracy", 0.985, 8, inside="fsdd"
    ),
    Line(
        "an4", "speech-recognition", "speech/an4-mfcc-subset.tar.xz", "test_word_error_rate", 0.30, 40, lower=True,
        inside="an4",
    ),
    Line(
        "housing", "tabular", "tabular/california-housing.csv.gz", "test_rmse", float("nan"), 5, lower=True,
        options={"target_column": "median_house_value"}, beside="test_rmse_of_boosted_trees", share=1.05,
    ),
)  # fmt: skip

BY_NAME = {line.name: line for line in LINES}
