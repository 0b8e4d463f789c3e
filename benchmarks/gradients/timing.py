"""Contenders in turn, their ratios block by block, and the memory that a call needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    blocks: int = 7
    seconds: float = 0.15
    """Of one contender in one block, at least; one call where a call takes longer."""


@dataclass(frozen=True)
class Row:
    """One figure."""

    figure: str
    network: str
    contender: str
    value: float | None
    """None where there is none: `note` says why."""
    unit: str
    middle_half: tuple[float, float] | None = None
    target: float | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the results file, without what is empty; whether the target is met is written too."""
        kept = {name: value for name, value in asdict(self).items() if value not in (None, "", {})}
        if self.target is not None and self.value is not None:
            kept["met"] = self.value <= self.target
        return kept


def interleaved(contenders: Mapping[str, Callable[[], Any]], effort: Effort) -> Times:
    """Seconds a call of each contender, one number a block; in every second block they come the other way round."""
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(1, round(effort.seconds / _seconds(call, 1)))
    times: Times = {name: [] for name in contenders}
    for block in range(effort.blocks):
        for name in list(contenders) if block % 2 else reversed(list(contenders)):
            times[name].append(_seconds(contenders[name], calls[name]))
    return times


def _seconds(call: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def middle(values: Sequence[float]) -> dict[str, Any]:
    """The median and the middle half, as fields of a row."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"value": round(median, 4), "middle_half": (round(low, 4), round(high, 4))}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Block by block, `over` ÷ `under`: the median and the middle half, as fields of a row."""
    return middle([a / b for a, b in zip(over, under, strict=True)])


def milliseconds(times: Sequence[float]) -> float:
    return round(statistics.median(times) * 1e3, 4)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that torch's tensors take at one time during a call, beyond what was there before it.

    Every allocation that the profiler saw, added up in the order of time: exact, whatever the allocator keeps. What
    libraries allocate for themselves (oneDNN's scratch space) is not in it.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        now += size
        peak = max(peak, now)
    return peak


def reason(error: BaseException) -> str:
    """Why a contender has no figure, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"absent: no module {error.name}"
    lines = str(error).strip().splitlines() or [""]
    return f"cannot: {type(error).__name__}: {lines[0]}"[:160]
