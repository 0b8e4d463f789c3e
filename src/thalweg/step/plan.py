"""How a step is run on this machine: what was chosen, when it is switched to, and what it gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

LAYOUTS = ("as_is", "channels_last")
ARITHMETICS = ("exact", "tf32", "bfloat16")
PRODUCTS = ("onednn", "small")


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a step, in words and numbers that JSON holds.

    `Plan()` is the plain eager step. `run.plan` is the one that a run has used: given to `fit(plan=…)` again, the same
    ways are switched to after the same updates, and nothing is tried or timed.

    Raises:
        ValueError: a word that is not known, or a number that cannot be.
    """

    layout: str = "as_is"
    """Memory order of images and of the weights that read them: as_is, or channels_last."""
    arithmetic: str = "exact"
    """What products are computed in: exact is the parameters' own dtype; tf32 (on a GPU) and bfloat16 keep sums and
    updates in it.
    """
    arithmetic_after: int = 0
    """Updates after which that arithmetic is taken."""
    threads: int | None = None
    """Threads of torch while training; None leaves them."""
    keep_memory: bool = False
    """Memory that a step frees stays with the process while training."""
    captured_after: int | None = None
    """Updates after which the whole step runs as one CUDA graph; None: never."""
    compiled_after: int | None = None
    """Updates after which the whole step runs as one compiled program; None: never."""
    batch: tuple[tuple[int, ...], ...] = ()
    """Shapes of the batches that the program is for; others are stepped on eagerly."""
    products: Mapping[str, str] = field(default_factory=dict)
    """The program's matrix products that do not go to torch's library, by shape and strides."""
    gain: float | None = None
    """Time of the plain eager step ÷ time of this one, as measured when it was chosen."""
    notes: tuple[str, ...] = ()
    """What was not taken, and why."""
    is_settled: bool = False
    """Whether nothing more was to be chosen; a run that ended before goes on choosing when it is resumed."""

    def __post_init__(self) -> None:
        for name, known in (("layout", LAYOUTS), ("arithmetic", ARITHMETICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"a plan's {name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("threads", 1), ("captured_after", 1), ("compiled_after", 1), ("arithmetic_after", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"a plan's {name} is a whole number of at least {least}, or None; got {value!r}")
        if not isinstance(self.gain, int | float | None):
            raise ValueError(f"a plan's gain is a number or None; got {self.gain!r}")
        if not isinstance(self.batch, tuple) or not all(isinstance(shape, tuple) for shape in self.batch):
            raise ValueError(f"a plan's batch is a shape for each tensor of it; got {self.batch!r}")
        if not isinstance(self.products, Mapping) or not set(self.products.values()) <= set(PRODUCTS):
            raise ValueError(f"a plan's products say {' or '.join(PRODUCTS)} for each; got {self.products!r}")

    @property
    def is_eager(self) -> bool:
        """Whether a step is just what the model's own code does, one operation after the other."""
        return self.layout == "as_is" and self.arithmetic == "exact" and self.program_after is None

    @property
    def program_after(self) -> int | None:
        """Updates after which a step is first run as one program, captured or compiled."""
        return min((n for n in (self.captured_after, self.compiled_after) if n is not None), default=None)

    def __str__(self) -> str:
        """In words: "channels last, compiled from step 12 on: 2.1 times as fast as eager".

        >>> str(Plan()), str(Plan(layout="channels_last", gain=1.5))
        ('eager', 'channels last: 1.5 times as fast as eager')
        """
        words = []
        if self.layout == "channels_last":
            words.append("channels last")
        if self.arithmetic != "exact":
            words.append(f"products in {self.arithmetic}")
        if self.threads is not None:
            words.append(f"{self.threads} thread{'s' * (self.threads > 1)}")
        if self.captured_after is not None:
            words.append(f"one CUDA graph from step {self.captured_after + 1} on")
        if self.compiled_after is not None:
            words.append(f"compiled from step {self.compiled_after + 1} on")
        gain = f": {self.gain:.2g} times as fast as eager" if words and self.gain is not None else ""
        return (", ".join(words) or "eager") + gain

    def to_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            **asdict(self),
            "words": str(self),
            "notes": list(self.notes),
            "products": dict(self.products),
            "batch": [list(s) for s in self.batch],
        }

    @classmethod
    def of(cls, value: Any) -> Plan:
        """A plan from what `run.json` holds, from `"eager"`, or from a plan.

        Raises:
            ValueError: it is none of these.
        """
        if isinstance(value, Plan):
            return value
        if value == "eager":
            return cls()
        if isinstance(value, Mapping):
            value = {name: part for name, part in value.items() if name != "words"}
            unknown = set(value) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(
                    f"a plan has no {sorted(unknown)[0]!r}; it has {', '.join(f.name for f in fields(cls))}"
                )
            return cls(**{**value, "notes": tuple(value.get("notes", ())), "batch": _tuples(value.get("batch", ()))})
        raise ValueError(f'plan takes "auto", "eager", or a plan such as run.plan; got {value!r}')


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
