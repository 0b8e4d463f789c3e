"""What a user may ask of `fit`: every keyword once, with its default, what it takes and what it means.

`fit`'s signature, the command line's flags, `run.json` and the error for an unknown word are all read from here.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from thalweg.records.learning_rate import LearningRate

SCHEDULES = (
    "auto",
    "constant",
    "cosine",
    "one_cycle",
    "warmup_stable_decay",
    "exponential",
    "step",
    "plateau",
    "warm_restarts",
)

#: Words of other libraries that are understood, each with ours.
OTHER_WORDS = {"lr": "learning_rate", "max_epochs": "epochs", "num_epochs": "epochs", "val_data": "validation_data"}


def _setting(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"meaning": meaning, "choices": choices})


@dataclass(frozen=True, slots=True)
class Settings:
    """The keywords of `fit`.

    Raises:
        ValueError: a value is outside what its keyword takes.
        TypeError: a value is of the wrong kind.
    """

    validation_data: Any = _setting(None, "held-out data, in any form that data takes")
    validation_split: float = _setting(0.0, "share of the training examples to hold out, in [0, 1)")
    optimizer: Any = _setting("auto", "a rule's name, or a torch.optim.Optimizer")
    learning_rate: Any = _setting("auto", "a number, auto, or what find_lr returned")
    schedule: Any = _setting("auto", "a schedule's name, or a torch scheduler factory", SCHEDULES)
    optimizer_options: Mapping[str, Any] | None = _setting(
        None, "further arguments of the rule; groups by name pattern"
    )
    batch_size: int | str = _setting("auto", "examples per update: a number, full, or auto")
    accumulate: int = _setting(1, "micro-batches that each batch is split into")
    shuffle: bool = _setting(True, "draw the examples in a new order each epoch")
    epochs: int | None = _setting(None, "at most this many passes over the data")
    steps: int | None = _setting(None, "at most this many updates")
    time_budget: float | None = _setting(None, "at most this many seconds")
    target: Mapping[str, float] | None = _setting(None, "stop when a metric is reached, as in validation_accuracy=0.97")
    patience: int | str | None = _setting("auto", "epochs without improvement: auto (converged), a number, or none")
    metrics: Any = _setting((), "names, callables (output, target), torchmetrics objects")
    clip_norm: float | None = _setting(None, "largest norm of the whole gradient")
    clip_value: float | None = _setting(None, "largest absolute value of a gradient's entry")
    weight_average: str | None = _setting(None, "average the weights over steps: ema or swa", ("ema", "swa"))
    repair: str = _setting("safe", "how much may be mended while training", ("off", "advise", "safe", "full"))
    precision: str = _setting(
        "exact", "exact keeps fp32; fast may use bfloat16 where it does no harm", ("exact", "fast")
    )
    plan: Any = _setting("auto", "how a step is run: auto, eager, or the plan of a run", ("auto", "eager"))
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = _setting(0, "of everything that is drawn at random while training")
    deterministic: bool = _setting(False, "refuse operations whose result depends on thread timing")
    run_dir: Any = _setting(None, "where the run is kept; default runs/NAME-N")
    checkpoint_every: int | str | None = _setting("auto", "steps between checkpoints; auto is every 30 s")
    resume: bool = _setting(False, "go on where the run directory left off, if it holds a run")
    callbacks: Any = _setting((), "objects with on_start, on_step, on_validate, on_event, on_end")
    verbose: bool | str = _setting("auto", "show progress: auto, true or false")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
        """Read keywords as users write them.

        Returns:
            The settings, and one hint for each word of another library that was understood.

        Raises:
            TypeError: an unknown keyword; the message names the nearest known one.
        """
        known = [setting.name for setting in fields(cls)]
        words: dict[str, Any] = {}
        said: dict[str, str] = {}
        hints = []
        for word, value in expanded(given).items():
            name = OTHER_WORDS.get(word, word)
            if name not in known:
                raise TypeError(unknown("keyword", word, [*known, *OTHER_WORDS]))
            if name in words:
                raise TypeError(f"{said[name]!r} and {word!r} mean the same: give one of them")
            if name != word:
                hints.append(f"{word} is called {name} here; it was taken as that.")
            words[name], said[name] = value, word
        return cls(**words), hints

    def __post_init__(self) -> None:
        for setting in fields(self):
            choices = setting.metadata["choices"]
            value = plain_number(getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
            if choices and isinstance(value, str) and value not in choices:
                raise ValueError(unknown(setting.name, value, choices))
        for name in ("weight_average", "repair", "precision", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "weight_average" and value is None):
                raise TypeError(f"{name} takes a word, got {shown(value)}")
        self._check_numbers()
        listed = self.callbacks if isinstance(self.callbacks, list | tuple) else [self.callbacks]
        for callback in listed:
            if isinstance(callback, type):
                raise TypeError(f"callbacks takes objects, and {callback.__name__} is a class: {instead(callback)}")
        if self.validation_data is not None and self.validation_split:
            raise ValueError("give validation_data or validation_split, not both")
        if self.target is not None and not (isinstance(self.target, Mapping) and self.target):
            raise TypeError(
                f"target takes a metric and its value, as {{'validation_accuracy': 0.97}}, got {shown(self.target)}"
            )
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("give clip_norm or clip_value, not both")

    def _check_numbers(self) -> None:
        whole("accumulate", self.accumulate)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"seed takes a whole number, got {shown(self.seed)}")
        for name in ("epochs", "steps"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        if self.batch_size not in ("auto", "full"):
            whole("batch_size", self.batch_size, ' (or "full", "auto")')
        if self.patience not in ("auto", None):
            whole("patience", self.patience, ' (or "auto", None)')
        if self.checkpoint_every not in ("auto", None):
            whole("checkpoint_every", self.checkpoint_every, ' (or "auto", None)')
        for name in ("time_budget", "clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if isinstance(self.learning_rate, str) and self.learning_rate != "auto":
            raise ValueError(f'learning_rate takes a number or "auto", got {self.learning_rate!r}')
        if isinstance(self.learning_rate, int | float):
            positive("learning_rate", self.learning_rate)
        split = self.validation_split
        if isinstance(split, bool) or not isinstance(split, int | float) or not 0 <= split < 1:
            raise ValueError(f"validation_split is a share in [0, 1), got {shown(split)}")


def expanded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords with a `LearningRate` among them → the same with its number, and the rule and options it was found with.

    What the user says goes before what was found; the rule cannot, since a rate means nothing for another one.

    Raises:
        ValueError: it was found for another rule than the one that is asked for.
    """
    word = next((w for w in given if OTHER_WORDS.get(w, w) == "learning_rate"), None)
    if word is None or not isinstance(given[word], LearningRate):
        return dict(given)
    found, words = given[word], {**given, word: given[word].value}
    options = dict(found.options)
    rule, asked = options.pop("optimizer", "auto"), given.get("optimizer", "auto")
    if asked != "auto" and asked != rule:
        name = asked if isinstance(asked, str) else f"a {type(asked).__name__}"
        raise ValueError(
            f"the learning rate was searched for {rule}, and optimizer is {name}: search for that one, "
            f"or give the number, learning_rate={found.value:.4g}"
        )
    words["optimizer"] = rule
    size = options.pop("batch_size", None)
    if size is not None and given.get("batch_size", "auto") == "auto":
        words["batch_size"] = size
    if options:
        words["optimizer_options"] = options | dict(given.get("optimizer_options") or {})
    return words


def whole(name: str, value: object, otherwise: str = "") -> None:
    """Refuse anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} takes a whole number{otherwise}, got {shown(value)}")
    if int(value) < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}, got {value}")


def positive(name: str, value: object) -> None:
    """Refuse anything but a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} takes a number, got {shown(value)}")
    if not (float(value) > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a number above 0, got {value}")


def plain_number(value: Any) -> Any:
    """A number of NumPy's as Python's own, which JSON holds; all else as it is.

    >>> import numpy as np
    >>> plain_number(np.int64(16)), plain_number(np.float32(0.5)), plain_number("auto")
    (16, 0.5, 'auto')
    """
    if isinstance(value, int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def shown(value: object) -> str:
    """A value as a message names it: what does not fit into half a line, as an array, by its kind."""
    words = repr(value)
    return words if len(words) <= 60 and "\n" not in words else f"a value of type {type(value).__name__}"


def instead(kind: type) -> str:
    """What to write where a class was given, and not what it makes."""
    return f"write {kind.__name__}()"


def unknown(kind: str, word: object, known: Any) -> str:
    """The sentence for a word that is not known, with the nearest one that is.

    >>> unknown("optimizer", "adma", ["adam", "sgd"])
    "unknown optimizer 'adma': did you mean 'adam'? Known are: adam, sgd"
    """
    nearest = difflib.get_close_matches(str(word), list(known), n=1)
    guess = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {word!r}:{guess} Known are: {', '.join(known)}"
