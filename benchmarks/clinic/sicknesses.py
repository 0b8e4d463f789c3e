"""What is done to a training to make it sick: the seventeen kinds, each mild and severe.

Whether a configuration is sick in fact is for outcomes to say (truth.py); a fault that does no harm is none. Causes are
codes of findings: of a group each is right, since a fault may be put right in more than one way; symptoms are what the
numbers are expected to show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configurations import Change, Configuration, Group, change
from families import FAMILIES, RULES

TOYS = ("blob_mlp", "circle_mlp")
MLPS = (*TOYS, "fashion_mlp")
DENSE = (*MLPS, "housing_mlp", "autoencoder")
WITH_CNN = (*DENSE, "plain_cnn")
IMAGES = ("plain_cnn", "residual_cnn")
CLASSES = ("blob_mlp", "fashion_mlp", "plain_cnn", "residual_cnn", "speech_gru", "char_transformer")
FLOATS = tuple(name for name in FAMILIES if name != "char_transformer")
ALL = tuple(FAMILIES)

SCALE: Group = ("bad_initialization",)
VANISHING: Group = ("vanishing_gradient", "bad_initialization", "saturated_units")
EXPLODING: Group = ("exploding_gradient", "bad_initialization")
DEAD: Group = ("dead_units", "bad_initialization")
FAST: Group = ("learning_rate_too_high",)
SLOW: Group = ("learning_rate_too_low",)
PAIRING: Group = ("loss_output_mismatch",)
INPUTS: Group = ("unscaled_inputs",)
LABELS: Group = ("bad_labels",)


@dataclass(frozen=True)
class Fault:
    """One way of making trainings sick."""

    number: int
    title: str
    families: tuple[str, ...]
    mild: tuple[Change, ...]
    severe: tuple[Change, ...]
    causes: tuple[Group, ...]
    symptoms: Group = ()
    rules: tuple[str, ...] = RULES
    is_divergent: bool = False
    reach: float | None = None
    by_family: dict[str, tuple[tuple[Change, ...], tuple[Change, ...]]] = field(default_factory=dict)
    """Mild and severe, where a family needs other numbers."""


def one(name: str, word: str, mild: object, severe: object, /, **same: object) -> tuple[tuple[Change, ...], ...]:
    """Mild and severe that differ in one number."""
    return (change(name, **{word: mild}, **same),), (change(name, **{word: severe}, **same),)


_TAIL = change("certified")
_TANH = change("words", activation="tanh")
_ZERO = change("constant", value=0.0)
_ALIKE = (_TANH, change("words", depth=1, width=12))
_TO_THE_END = (change("epochs", share=2.0), change("fit", schedule="cosine"))
"""As far as it goes: only then does a training stand still."""


def few_units(
    title: str, families: tuple[str, ...], task: Change, mild: tuple[str, int], severe: tuple[str, int]
) -> Fault:
    """A task that one hidden layer of so few units can learn, and from most first weights does not."""
    grades = (
        (task, change("words", depth=1, width=w, activation=a), change("rate", factor=5.0), *_TO_THE_END, _TAIL)
        for a, w in (mild, severe)
    )
    return Fault(11, title, families, *grades, (), ("local_minimum",), reach=1.0)


FAULTS = [
    # 1 · vanishing gradient
    Fault(
        1,
        "deep-sigmoid",
        (*MLPS, "housing_mlp"),
        *one("words", "depth", 6, 12, activation="sigmoid"),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "deep-sigmoid",
        ("plain_cnn",),
        *one("words", "depth", 8, 14, activation="sigmoid"),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "deep-sigmoid-head",
        ("speech_gru",),
        *one("words", "depth", 3, 8, activation="sigmoid"),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "shrinking-relu",
        (*MLPS, "housing_mlp"),
        *one("words", "gain", 0.8, 0.5, depth=12),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "shrinking-relu",
        ("plain_cnn",),
        *one("words", "gain", 0.8, 0.4, depth=14),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "shrinking-tanh",
        (*TOYS, "autoencoder"),
        *one("words", "gain", 0.3, 0.1, activation="tanh"),
        (VANISHING,),
        ("vanishing_gradient", "plateau"),
    ),
    Fault(
        1,
        "shrinking-memory",
        ("speech_gru",),
        *one("words", "gain", 0.5, 0.15, cell="tanh"),
        (VANISHING,),
        ("vanishing_gradient",),
    ),
    # 2 · exploding gradient
    Fault(
        2,
        "growing-relu",
        (*MLPS, "housing_mlp"),
        *one("words", "gain", 1.6, 3.0, init="he", depth=8),
        (EXPLODING,),
        ("exploding_gradient", "diverging_loss", "non_finite"),
        is_divergent=True,
    ),
    Fault(
        2,
        "growing-relu",
        ("plain_cnn",),
        *one("words", "gain", 1.6, 3.0, init="he", depth=9),
        (EXPLODING,),
        ("exploding_gradient", "diverging_loss", "non_finite"),
        is_divergent=True,
    ),
    Fault(
        2,
        "growing-relu",
        ("autoencoder", "speech_gru"),
        *one("words", "gain", 3.0, 8.0),
        (EXPLODING,),
        ("exploding_gradient", "diverging_loss"),
        is_divergent=True,
        by_family={"speech_gru": one("words", "gain", 2.5, 5.0, cell="relu")},
    ),
    Fault(
        2,
        "exponential",
        MLPS,
        *one("words", "depth", 2, 3, activation="exponential", gain=1.5),
        (EXPLODING,),
        ("exploding_gradient", "diverging_loss", "non_finite"),
        is_divergent=True,
    ),
    Fault(
        2,
        "without-norm",
        ("char_transformer",),
        *one("words", "gain", 3.0, 8.0, norm=False),
        (EXPLODING,),
        ("exploding_gradient", "diverging_loss"),
        is_divergent=True,
    ),
    # 3 · dying ReLU
    Fault(3, "negative-bias", WITH_CNN, *one("biased", "value", -1.0, -5.0), (DEAD,), ("dead_units",)),
    Fault(
        3,
        "negative-bias",
        ("char_transformer", "residual_cnn"),
        *one("biased", "value", -2.0, -10.0),
        (DEAD,),
        ("dead_units",),
        by_family={
            "char_transformer": tuple(
                (change("words", activation="relu"), change("biased", value=v)) for v in (-2.0, -10.0)
            )
        },
    ),
    Fault(
        3,
        "burst",
        (*MLPS, "plain_cnn", "housing_mlp"),
        *one("rate_factor", "factor", 30.0, 300.0, first=0.0, last=0.03),
        (("learning_rate_too_high", "dead_units"),),
        ("dead_units",),
    ),
    # 4 · oscillating loss
    Fault(
        4,
        "noisy-and-fast",
        ALL,
        (change("small_batches", size=4, updates=1000), change("rate", factor=5.0)),
        (change("small_batches", size=2, updates=1200), change("rate", factor=10.0)),
        (("learning_rate_too_high", "batch_too_small"),),
        ("oscillating_loss",),
        by_family={
            name: (
                (change("small_batches", size=4, updates=500), change("rate", factor=5.0)),
                (change("small_batches", size=2, updates=1000), change("rate", factor=10.0)),
            )
            for name in (*IMAGES, "speech_gru", "char_transformer")
        },
    ),
    # 5 · rate too high
    Fault(
        5,
        "rate-too-high",
        ALL,
        *one("rate", "factor", 12.0, 100.0),
        (FAST,),
        ("diverging_loss", "oscillating_loss", "non_finite"),
        is_divergent=True,
    ),
    Fault(
        5,
        "rate-too-high-later",
        (*MLPS, "plain_cnn", "housing_mlp", "speech_gru"),
        *one("rate_factor", "factor", 20.0, 150.0, first=0.4, last=1.0),
        (FAST,),
        ("diverging_loss", "oscillating_loss", "non_finite"),
        is_divergent=True,
    ),
    # 6 · rate too low
    Fault(
        6,
        "rate-too-low",
        ALL,
        *one("rate", "factor", 1e-2, 1e-4),
        (SLOW,),
        ("slow_convergence",),
        by_family={
            name: ((change("rate", factor=1e-2), _TAIL), (change("rate", factor=1e-4), _TAIL))
            for name in (*TOYS, "housing_mlp")
        },
    ),
    Fault(
        6,
        "rate-falls-too-soon",
        (*DENSE, "plain_cnn", "speech_gru"),
        *one("rate_factor", "factor", 1e-3, 1e-4, first=0.03, last=1.0),
        (SLOW,),
        ("slow_convergence",),
    ),
    # 7 · rule
    Fault(
        7,
        "momentum",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "housing_mlp", "residual_cnn"),
        *one("options", "momentum", 0.99, 0.999),
        (("optimizer_misconfigured", "learning_rate_too_high"),),
        ("oscillating_loss",),
        ("momentum",),
    ),
    Fault(
        7,
        "epsilon",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "char_transformer", "autoencoder"),
        *one("options", "eps", 1.0, 100.0),
        (("optimizer_misconfigured", "learning_rate_too_low"),),
        ("slow_convergence",),
        ("adam", "rmsprop"),
    ),
    Fault(
        7,
        "decay",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "char_transformer", "housing_mlp"),
        *one("options", "weight_decay", 0.1, 1.0),
        (("optimizer_misconfigured",),),
        ("underfitting",),
    ),
    Fault(
        7,
        "betas",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "housing_mlp", "char_transformer"),
        (change("options", betas=(0.99, 0.9)),),
        (change("options", betas=(0.999, 0.5)),),
        (("optimizer_misconfigured", "learning_rate_too_high"),),
        ("oscillating_loss",),
        ("adam",),
    ),
    # 8 · first weights
    Fault(
        8,
        "alike",
        (*WITH_CNN, "speech_gru"),
        (change("constant", value=0.1),),
        (change("constant", value=0.0),),
        (SCALE,),
        ("plateau", "saddle_point", "collapsed_output"),
    ),
    Fault(
        8, "too-large", ALL, *one("scaled", "factor", 8.0, 40.0), (SCALE,), ("exploding_gradient", "saturated_units")
    ),
    Fault(
        8,
        "too-small",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "autoencoder"),
        *one("scaled", "factor", 0.1, 0.01),
        (SCALE,),
        ("vanishing_gradient", "plateau"),
    ),
    # 9 · plateau
    Fault(
        9,
        "saturated",
        (*TOYS, "fashion_mlp", "housing_mlp", "autoencoder"),
        (_TANH, change("scaled", factor=15.0), _TAIL),
        (_TANH, change("scaled", factor=60.0), _TAIL),
        (("saturated_units", "bad_initialization"),),
        ("plateau", "saturated_units"),
        by_family={
            name: ((_TANH, change("scaled", factor=15.0)), (_TANH, change("scaled", factor=60.0)))
            for name in ("fashion_mlp", "autoencoder")
        },
    ),
    Fault(
        9,
        "saturated-output",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "speech_gru"),
        *(
            ((change("words", head="sigmoid"), change("squared_classes"), change("last_biased", value=v)))
            for v in (-8.0, -20.0)
        ),
        (("saturated_units", "bad_initialization", "loss_output_mismatch"),),
        ("plateau", "collapsed_output"),
    ),
    Fault(
        9,
        "parity",
        ("circle_mlp", "housing_mlp"),
        (change("parity", bits=6, among=12), change("words", width=32, depth=2), _TAIL),
        (change("parity", bits=10, among=20), change("words", width=32, depth=2), _TAIL),
        (),
        ("plateau", "saddle_point"),
        reach=1.0,
    ),
    Fault(
        9,
        "shut-output",
        (*TOYS, "housing_mlp"),
        (change("words", head="sigmoid"), change("squared_classes"), change("last_biased", value=-25.0), _TAIL),
        (change("words", head="relu"), change("squared_classes"), change("last_biased", value=-10.0), _TAIL),
        (("saturated_units", "bad_initialization", "loss_output_mismatch", "dead_units"),),
        ("plateau", "collapsed_output"),
        by_family={
            "housing_mlp": (
                (change("words", head="tanh"), change("last_biased", value=15.0), _TAIL),
                (change("words", head="relu"), change("last_biased", value=-15.0), _TAIL),
            )
        },
    ),
    # 10 · saddle point
    Fault(
        10,
        "zero-tanh",
        (*TOYS, "housing_mlp"),
        (_TANH, change("words", depth=2), _ZERO, _TAIL),
        (_TANH, change("words", depth=1), _ZERO, _TAIL),
        (SCALE,),
        ("saddle_point",),
    ),
    Fault(
        10,
        "zero-deep",
        (*TOYS, "housing_mlp"),
        (change("words", activation="gelu"), _ZERO, _TAIL),
        (change("words", activation="linear"), _ZERO, _TAIL),
        (SCALE,),
        ("saddle_point", "plateau"),
    ),
    Fault(
        10,
        "twins",
        ("circle_mlp",),
        (*_ALIKE, change("tied", distinct=2), *_TO_THE_END, _TAIL),
        (*_ALIKE, change("constant", value=0.1), *_TO_THE_END, _TAIL),
        (SCALE,),
        ("saddle_point",),
    ),
    Fault(
        10,
        "twins-of-a-task",
        (*TOYS, "housing_mlp"),
        (change("exclusive_or"), *_ALIKE, change("tied", distinct=2), *_TO_THE_END, _TAIL),
        (change("exclusive_or"), *_ALIKE, change("tied", distinct=1), *_TO_THE_END, _TAIL),
        (SCALE,),
        ("saddle_point",),
        reach=1.0,
        by_family={
            "housing_mlp": tuple(
                (
                    change("wave", frequency=6.0),
                    *_ALIKE,
                    change("tied", distinct=d),
                    change("epochs", share=3.0),
                    *_TO_THE_END,
                    _TAIL,
                )
                for d in (2, 1)
            )
        },
    ),
    # 11 · local minimum
    few_units("exclusive-or", TOYS, change("exclusive_or"), ("tanh", 2), ("relu", 2)),
    few_units("wave", (*TOYS, "housing_mlp"), change("wave", frequency=6.0), ("relu", 4), ("relu", 3)),
    few_units("bends", (*TOYS, "housing_mlp"), change("bent"), ("tanh", 2), ("relu", 2)),
    Fault(
        11,
        "dead-layer",
        (*TOYS, "housing_mlp"),
        (change("words", depth=1), change("biased", value=-6.0), _TAIL),
        (change("words", depth=2), change("biased", value=-20.0), _TAIL),
        (DEAD,),
        ("local_minimum", "plateau", "dead_units"),
    ),
    # 12 · overfitting
    Fault(
        12,
        "few-examples",
        (
            "fashion_mlp",
            "plain_cnn",
            "residual_cnn",
            "speech_gru",
            "char_transformer",
            "housing_mlp",
            "autoencoder",
            "circle_mlp",
        ),
        *one("subset", "share", 0.1, 0.03),
        (("overfitting",),),
        ("overfitting",),
    ),
    Fault(
        12,
        "noise-learned",
        ("fashion_mlp", "plain_cnn", "residual_cnn", "housing_mlp", "circle_mlp"),
        (change("subset", share=0.3), change("wrong_labels", share=0.2)),
        (change("subset", share=0.3), change("wrong_labels", share=0.4)),
        (("overfitting", "bad_labels"),),
        ("overfitting",),
    ),
    # 13 · loss and output
    Fault(
        13,
        "softmax-twice",
        CLASSES,
        (change("words", head="softmax"),),
        (change("words", head="softmax"), change("words", depth=5)),
        (PAIRING,),
        ("underfitting",),
        by_family={
            name: ((change("words", head="softmax"),), (change("words", head="relu"),))
            for name in ("residual_cnn", "char_transformer", "plain_cnn", "speech_gru")
        },
    ),
    Fault(
        13,
        "sigmoid-before",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "residual_cnn", "char_transformer"),
        (change("words", head="sigmoid"),),
        (change("words", head="sigmoid"), change("squared_classes")),
        (PAIRING,),
        ("underfitting",),
        by_family={"char_transformer": ((change("words", head="tanh"),), (change("words", head="sigmoid"),))},
    ),
    Fault(
        13,
        "sigmoid-twice",
        ("circle_mlp",),
        (change("words", head="sigmoid"), change("loss", name="binary_cross_entropy", threshold=0.5)),
        (change("words", head="softmax"), change("loss", name="binary_cross_entropy", threshold=0.5)),
        (PAIRING,),
        ("underfitting", "collapsed_output"),
    ),
    Fault(
        13,
        "relu-output",
        ("circle_mlp", "housing_mlp", "autoencoder"),
        (change("words", head="relu"),),
        (change("words", head="sigmoid"),),
        (PAIRING,),
        ("underfitting",),
        by_family={
            "circle_mlp": ((change("words", head="tanh"),), (change("words", head="relu"),)),
            "autoencoder": ((change("words", head="relu"),), (change("words", head="softmax"),)),
        },
    ),
    # 14 · scale of data
    Fault(14, "inputs-times", FLOATS, *one("inputs", "factor", 30.0, 1000.0), (INPUTS,), ("exploding_gradient",)),
    Fault(
        14,
        "inputs-offset",
        ("blob_mlp", "circle_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "housing_mlp"),
        *one("inputs", "offset", 10.0, 100.0),
        (INPUTS,),
        ("plateau", "oscillating_loss"),
    ),
    Fault(
        14,
        "inputs-tiny",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "housing_mlp"),
        *one("inputs", "factor", 0.03, 0.001),
        (INPUTS,),
        ("slow_convergence", "plateau"),
    ),
    Fault(
        14,
        "one-feature",
        ("blob_mlp", "circle_mlp", "housing_mlp", "speech_gru"),
        *one("one_feature", "factor", 100.0, 3000.0),
        (INPUTS,),
        ("oscillating_loss",),
    ),
    Fault(
        14,
        "raw-bytes",
        ("fashion_mlp", "plain_cnn", "residual_cnn"),
        *one("inputs", "factor", 40.0, 80.0, offset=70.0),
        (INPUTS,),
        ("oscillating_loss",),
    ),
    Fault(
        14,
        "targets",
        ("housing_mlp", "autoencoder"),
        *one("targets", "factor", 30.0, 10_000.0),
        (("unscaled_targets",),),
        ("exploding_gradient", "diverging_loss"),
    ),
    Fault(
        14,
        "targets-offset",
        ("housing_mlp", "autoencoder"),
        *one("targets", "factor", 1.0, 10.0, offset=100.0),
        (("unscaled_targets",),),
        ("slow_convergence",),
    ),
    # 15 · NaN and Inf
    Fault(
        15,
        "nan-in-data",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "housing_mlp", "autoencoder"),
        *one("not_a_number", "share", 1e-4, 0.1),
        (("non_finite",),),
        ("non_finite",),
        is_divergent=True,
    ),
    Fault(
        15,
        "half-overflow",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "speech_gru"),
        *one("half", "scale", 3e4, 1e5),
        (("non_finite",),),
        ("non_finite",),
        is_divergent=True,
    ),
    Fault(
        15,
        "blank-example",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "housing_mlp", "residual_cnn"),
        (change("blank", share=1e-4), change("ahead", part="standardised")),
        (change("blank", share=0.05), change("ahead", part="standardised")),
        (("non_finite",),),
        ("non_finite",),
        is_divergent=True,
    ),
    Fault(
        15,
        "underflow",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "speech_gru"),
        (change("own_logarithm"), change("scaled", factor=4.0)),
        (change("own_logarithm"), change("inputs", factor=300.0)),
        (("non_finite",), ("bad_initialization", "unscaled_inputs")),
        ("non_finite",),
        is_divergent=True,
    ),
    # 16 · code
    Fault(
        16,
        "gradients-kept",
        ("blob_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "char_transformer", "housing_mlp"),
        *one("kept_gradients", "every", 20, 0),
        (("stale_gradients",),),
        ("oscillating_loss", "diverging_loss"),
    ),
    Fault(
        16,
        "frozen",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "char_transformer", "autoencoder"),
        *one("frozen", "layers", 1, -1),
        (("frozen_parameters",),),
        ("underfitting",),
    ),
    Fault(
        16,
        "detached",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "char_transformer", "housing_mlp"),
        (change("words", init="he"), change("detached")),
        (change("detached"),),
        (("frozen_parameters",),),
        ("underfitting",),
    ),
    Fault(
        16,
        "stuck-in-eval",
        ("residual_cnn", "plain_cnn", "fashion_mlp", "housing_mlp"),
        *one("stuck_in_eval", "variance", 1.0, 0.003),
        (("wrong_mode",),),
        (),
        by_family={
            name: tuple((change("words", norm="batch"), change("stuck_in_eval", variance=v)) for v in (1.0, 0.003))
            for name in ("plain_cnn", "fashion_mlp", "housing_mlp")
        },
    ),
    Fault(
        16,
        "dropout-at-evaluation",
        ("circle_mlp", "fashion_mlp", "plain_cnn", "housing_mlp", "char_transformer"),
        *one("always_dropout", "p", 0.5, 0.8),
        (("wrong_mode",),),
        ("underfitting",),
    ),
    Fault(
        16,
        "labels-shuffled",
        tuple(name for name in ALL if name not in ("blob_mlp", "autoencoder")),
        *one("wrong_labels", "share", 0.3, 1.0),
        (LABELS,),
        ("underfitting",),
    ),
    Fault(
        16,
        "too-few-epochs",
        tuple(name for name in ALL if name not in ("blob_mlp", "residual_cnn")),
        *one("epochs", "share", 0.1, 0.03),
        (("underfitting", "slow_convergence"),),
        ("slow_convergence",),
    ),
]

_FIRST = {
    "sigmoid": ((change("words", depth=8, activation="sigmoid"),), VANISHING, (*MLPS, "housing_mlp")),
    "sigmoid-cnn": ((change("words", depth=10, activation="sigmoid"),), VANISHING, ("plain_cnn",)),
    "growing": ((change("words", init="he", gain=2.0, depth=6),), EXPLODING, (*MLPS, "plain_cnn")),
    "dead": ((change("biased", value=-5.0),), DEAD, ("fashion_mlp", "plain_cnn", "circle_mlp")),
    "alike": ((change("constant", value=0.1),), SCALE, ("fashion_mlp", "circle_mlp", "speech_gru", "autoencoder")),
    "large": ((change("scaled", factor=20.0),), SCALE, ("char_transformer", "residual_cnn", "speech_gru", "blob_mlp")),
}
_SECOND = {
    "too-fast": (((change("rate", factor=10.0),), (change("rate", factor=50.0),)), FAST, ALL),
    "too-slow": (((change("rate", factor=0.03),), (change("rate", factor=1e-3),)), SLOW, ALL),
    "softmax-twice": (
        ((change("words", head="softmax"),), (change("words", head="softmax"),)),
        PAIRING,
        ("blob_mlp", "fashion_mlp", "plain_cnn", "speech_gru", "residual_cnn", "char_transformer"),
    ),
    "raw": (
        ((change("inputs", factor=30.0, offset=30.0),), (change("inputs", factor=300.0, offset=300.0),)),
        INPUTS,
        FLOATS,
    ),
}
"""Of double faults, 17: one of the first and one of the second; mild and severe in the second."""


def doubles() -> list[Fault]:
    """Every first fault with two of the second in each of its families, by turns."""
    found = []
    for i, (first, (done, cause, names)) in enumerate(_FIRST.items()):
        for j, family in enumerate(names):
            fitting = [word for word, (_, _, of) in _SECOND.items() if family in of]
            for k in range(2):
                word = fitting[(i + j + 2 * k + k * (len(fitting) % 2)) % len(fitting)]
                (mild, severe), other, _ = _SECOND[word]
                found.append(
                    Fault(
                        17,
                        f"{first}-and-{word}",
                        (family,),
                        done + mild,
                        done + severe,
                        (cause, other),
                        is_divergent=False,
                    )
                )
    return found


def table() -> list[Configuration]:
    """Every fault in its families, both grades, rules by turns."""
    found = []
    for i, fault in enumerate([*FAULTS, *doubles()]):
        for j, family in enumerate(fault.families):
            grades = fault.by_family.get(family, (fault.mild, fault.severe))
            for k, (grade, done) in enumerate(zip(("mild", "severe"), grades, strict=True)):
                rule = fault.rules[(i + j + k) % len(fault.rules)]
                found.append(
                    Configuration(
                        family,
                        rule,
                        "sick",
                        f"{fault.number:02}-{fault.title}",
                        tuple(done),
                        fault.number,
                        grade,
                        fault.causes,
                        fault.symptoms,
                        fault.is_divergent,
                        fault.reach,
                    )
                )
    kept = [c for i, c in enumerate(found) if _is_kept(i, c)]
    return sorted(kept, key=lambda c: (ALL.index(c.family) * 7 + c.sickness * 5 + len(c.title)) % 97)  # well mixed


def _is_kept(i: int, c: Configuration) -> bool:
    """Double faults in one grade each; of the kinds that are many a part, which can be recorded in the time."""
    if c.sickness == 17:
        return bool((i // 2 + i) % 2)
    if c.sickness in (9, 10, 11):
        return True
    return bool(i % 6) and not (c.sickness in (7, 8, 13, 14, 15, 16) and i % 4 == 1)
