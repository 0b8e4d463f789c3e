"""Numbers and names as a person reads them, the same on the page and on the terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping

VALIDATION = "validation_"

#: Metrics that are shares of one, said in percent.
SHARES = ("accuracy", "top5")

#: Why a training stopped, to follow "stopped because".
STOPPED = {
    "converged": "it converged",
    "epochs": "the number of epochs was reached",
    "steps": "the number of steps was reached",
    "time": "the time budget was used up",
    "target": "the target was reached",
    "patience": "patience ran out: no better validation for that many epochs",
    "diverged": "the loss diverged",
    "interrupted": "it was interrupted",
}


def number(value: float) -> str:
    """Four significant digits, whole numbers in groups of three.

    >>> [number(v) for v in (0.123456, 1438, 12345.6, 3e-7, 0.0, float("nan"), float("-inf"))]
    ['0.1235', '1,438', '12,346', '3e-7', '0', 'not a number', '-infinity']
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    if abs(value) < 1e15 and (abs(value) >= 1e4 or value == int(value)):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.4g}".replace("e+", "e")
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def brief(value: float) -> str:
    """A round number in few letters, for an axis.

    >>> [brief(v) for v in (0.0, 2.505, 1000.0, 25000.0, 1.5e6, -2e9, 1e-05, 1e17)]
    ['0', '2.505', '1000', '25k', '1.5M', '-2G', '1e-5', '1e17']
    """
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e12:
            return f"{value / unit:.10g}{letter}"
    mantissa, _, exponent = f"{value:.10g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def rounded(value: float, digits: int) -> str:
    """A number that needs no more than so many significant digits.

    >>> rounded(0.00098765, 2), rounded(12345.6, 3)
    ('0.00099', '12,300')
    """
    return number(float(f"{value:.{digits}g}"))


def share(name: str) -> bool:
    """Whether a series is a share of one, to be said in percent."""
    return name.removeprefix(VALIDATION) in SHARES


def of_layer(name: str) -> bool:
    """Whether a series is a signal of one layer, not a metric: `gradient_norm/encoder.0`."""
    return "/" in name


def measured(name: str, value: float) -> str:
    """The value of a series, in percent where it is a share.

    >>> measured("validation_accuracy", 0.9612), measured("loss", 0.9612)
    ('96.1 %', '0.9612')
    """
    return f"{100 * value:.1f} %" if share(name) and math.isfinite(value) else number(value)


def spoken(name: str) -> str:
    """A name of a field as words: `validation_loss` → "validation loss"."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """A time span in the two units that matter.

    >>> [duration(s) for s in (0.21, 4.25, 59.96, 83, 7500)]
    ['0.2 s', '4.2 s', '1 min 00 s', '1 min 23 s', '2 h 05 min']
    """
    if not math.isfinite(seconds):
        return number(seconds)
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """The time that is left, as a clock shows it.

    >>> clock(7.2), clock(3700)
    ('0:08', '1:01:40')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(count: float, thing: str) -> str:
    """A number of things: "1 epoch", "45 epochs", "1,350 steps"."""
    return f"{number(count)} {thing}" if count == 1 else f"{number(count)} {thing}s"


def changed(before: Mapping[str, float | str], after: Mapping[str, float | str]) -> str:
    """What an action changed: each setting once, from what to what.

    >>> changed({"learning_rate": 0.1}, {"learning_rate": 0.05, "clip_norm": 5})
    'learning rate from 0.1 to 0.05, clip norm to 5'
    """
    return ", ".join(
        spoken(name)
        + (f" from {plain(before[name])}" if name in before else "")
        + (f" to {plain(after[name])}" if name in after else "")
        for name in {**before, **after}
    )


def listed(values: Mapping[str, float | str]) -> str:
    """Names with their values in one line, as in "learning rate 0.1, clip norm 5"."""
    return ", ".join(f"{spoken(name)} {plain(value)}" for name, value in values.items())


def plain(value: object) -> str:
    """Any value of a record as text: numbers as people read them, the rest as it is.

    >>> plain(0.001), plain(None), plain(True), plain({"momentum": 0.9}), plain(["accuracy"])
    ('0.001', 'none', 'yes', 'momentum 0.9', 'accuracy')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{spoken(str(name))} {plain(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def pairs(metrics: Iterable[str]) -> list[str]:
    """The metrics behind a list of names, each once without its validation twin, the loss last; no signal of a layer.

    >>> pairs(["loss", "validation_loss", "accuracy", "validation_accuracy", "gradient_norm/0"])
    ['accuracy', 'loss']
    """
    names = dict.fromkeys(name.removeprefix(VALIDATION) for name in metrics if not of_layer(name))
    return sorted(names, key=lambda name: name == "loss")


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal: Chinese letters take two, combining marks none.

    >>> width_of("loss"), width_of("损失")
    (4, 4)
    """
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def printable(text: str) -> str:
    r"""Without control characters: a name must not move the cursor.

    >>> printable("a\x1b[2Jb")
    'a [2Jb'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)
