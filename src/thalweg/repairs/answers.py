"""Finding → changes that may answer it: the table that trials choose from.

The name of a prescription begins with `-` where it goes back to the last good state. Each of its steps is a change by
its code, with what takes its words from the finding where the change does not find them itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from thalweg.records.finding import Finding
from thalweg.repairs.change import Body, Words

#: Rules whose rates are of AdamW's kind.
ALIKE = ("auto", "adam", "adamw", "nadam", "radam")

#: A change by its code, with its words where the finding gives them: finding, body → words.
Step = tuple[str, Callable[[Finding, Body], Words | None] | None]


def _times(factor: float) -> Step:
    """The rate in force, times a factor."""
    return "set_learning_rate", lambda finding, body: {"learning_rate": body.rate * factor}


def _suggested(finding: Finding, body: Body) -> Words | None:
    rate = finding.evidence.get("suggested_learning_rate")
    return {"learning_rate": rate} if rate is not None and rate > 0 else None


def _rule(rate: float) -> Step:
    """AdamW at a rate; where one was too high for a rule like it, at most at the one to use instead."""

    def words(finding: Finding, body: Body) -> Words:
        instead = finding.evidence.get("suggested_learning_rate", 0.0)
        is_bounded = finding.code == "learning_rate_too_high" and instead > 0 and body.settings.optimizer in ALIKE
        return {"optimizer": "adamw", "learning_rate": min(rate, instead) if is_bounded else rate}

    return "change_rule", words


def _clip(finding: Finding, body: Body) -> Words | None:
    """At the gradients' own usual norm, where it is known; no bound of the user's is loosened."""
    norm, settings = float(f"{finding.evidence.get('typical_norm') or 1.0:.2g}"), body.settings
    is_bounded = settings.clip_value is not None or (settings.clip_norm or math.inf) <= norm
    return None if is_bounded else {"clip_norm": norm}


def _not_finite(finding: Finding, body: Body) -> Words | None:
    """A bad batch comes again in each epoch: what answers it leaves it out, whatever else is changed."""
    return {"skipped": "not finite"} if finding.code == "non_finite" and not body.skips else None


RATE: Step = ("set_learning_rate", _suggested)
RULE, MIDDLE, FAST = _rule(1e-3), _rule(2e-3), _rule(1e-2)
CLIP: Step = ("clip_gradients", _clip)
AGAIN: Step = ("restart_schedule", None)
SKIP: Step = ("skip_batches", _not_finite)


def _plain(code: str) -> Step:
    return code, None


INITIALISE, SWAP, NORM = _plain("initialise"), _plain("swap_activation"), _plain("insert_norm")
RESIDUAL, STANDARDISE, TARGETS = _plain("insert_residual"), _plain("standardise_inputs"), _plain("scale_targets")
MODE = _plain("train_mode")
HEAD, MOMENTS, PERTURB = _plain("drop_head"), _plain("reset_moments"), _plain("perturb")
DOWN = _plain("follow_curvature")

#: What every stuck training may be given at `full`: all that commonly helps, at once. It is also what people do.
RENEW: dict[str, tuple[Step, ...]] = {
    name: (MODE, SKIP, STANDARDISE, SWAP, INITIALISE, rule, ("clip_gradients", None), AGAIN)
    for name, rule in (("-renew", MIDDLE), ("-renew, fast", FAST))
}

#: Finding → prescriptions, in the order in which they are thought of; `-` before a name begins from the last good
#: state.
TABLE: dict[str, dict[str, tuple[Step, ...]]] = {
    "learning_rate_too_high": {
        "rate": (RATE, AGAIN),
        "-rate": (RATE, MOMENTS, AGAIN),
        "-rule": (MIDDLE, AGAIN),
        "initialise, rate": (INITIALISE, RATE, MOMENTS, AGAIN),
    },
    "learning_rate_too_low": {
        "rate": (RATE, AGAIN),
        "rule": (RULE, AGAIN),
        "rule, fast": (FAST, AGAIN),
        "rate × 10": (_times(10.0), AGAIN),
        "-rule": (MIDDLE, AGAIN),
    },
    "optimizer_misconfigured": {
        "-rule": (MIDDLE, AGAIN),
        "-rule, fast": (FAST, AGAIN),
        "rule": (RULE, AGAIN),
        "initialise, rule": (INITIALISE, MIDDLE, AGAIN),
    },
    "batch_too_small": {
        "batch": (_plain("change_batch"), AGAIN),
        "rate / 8": (_times(1 / 8), AGAIN),
    },
    "exploding_gradient": {
        "initialise": (INITIALISE, MOMENTS),
        "swap, initialise": (SWAP, INITIALISE, MOMENTS),
        "initialise, norm": (INITIALISE, NORM, MOMENTS),
        "-clip, rate": (CLIP, _times(0.1), MOMENTS),
    },
    "vanishing_gradient": {
        "swap, initialise, rule": (SWAP, INITIALISE, MIDDLE),
        "swap, initialise": (SWAP, INITIALISE, MOMENTS),
        "initialise, norm": (INITIALISE, NORM, MOMENTS),
        "initialise, residual": (INITIALISE, RESIDUAL, MOMENTS),
        "rule": (RULE,),
    },
    "dead_units": {
        "initialise": (INITIALISE, MOMENTS),
        "swap, initialise": (SWAP, INITIALISE, MOMENTS),
        "initialise, rule": (INITIALISE, MIDDLE),
        "rule": (RULE,),
        "-rule": (MIDDLE, AGAIN),
    },
    "saturated_units": {
        "initialise": (INITIALISE, MOMENTS),
        "head, initialise": (HEAD, INITIALISE, MOMENTS),
        "initialise, rule": (INITIALISE, MIDDLE),
        "rule": (RULE,),
        "-rule": (MIDDLE, AGAIN),
    },
    "bad_initialization": {
        "initialise": (INITIALISE, MOMENTS),
        "initialise, rule": (INITIALISE, MIDDLE),
        "rule": (RULE,),
        "perturb": (PERTURB,),
    },
    "loss_output_mismatch": {
        "head": (HEAD, MOMENTS),
        "head, initialise": (HEAD, INITIALISE, MOMENTS),
    },
    "unscaled_inputs": {
        "standardise": (STANDARDISE, MOMENTS),
        "standardise, initialise": (STANDARDISE, INITIALISE, MOMENTS),
        "standardise, initialise, rule": (STANDARDISE, INITIALISE, MIDDLE),
        "rule": (RULE,),
    },
    "unscaled_targets": {
        "targets": (TARGETS, MOMENTS),
        "targets, initialise": (TARGETS, INITIALISE, MOMENTS),
        "rule": (RULE,),
    },
    "frozen_parameters": {"unfreeze": (_plain("unfreeze"),), "swap": (SWAP,)},
    "wrong_mode": {
        "mode": (MODE, MOMENTS),
        "mode, initialise": (MODE, INITIALISE),
        "mode, initialise, rule": (MODE, INITIALISE, FAST),
    },
    "class_imbalance": {"weigh": (_plain("weigh_classes"),)},
    "stale_gradients": {"rule": (RULE, AGAIN), "-rule": (MIDDLE, AGAIN), "initialise, rule": (INITIALISE, MIDDLE)},
    "overfitting": {
        "decay": (_plain("decay_weights"),),
        "dropout": (_plain("add_dropout"),),
        "augment": (_plain("augment_images"),),
    },
    "saddle_point": {
        "down": (DOWN, MOMENTS),
        "perturb": (PERTURB, MOMENTS),
        "initialise": (INITIALISE, MOMENTS),
        "rule": (RULE,),
    },
    "local_minimum": {
        "perturb, rule": (PERTURB, RULE, AGAIN),
        "initialise, rule": (INITIALISE, MIDDLE, AGAIN),
        "swap, initialise": (SWAP, INITIALISE, MOMENTS, AGAIN),
    },
    "non_finite": {
        "-rows": (_plain("set_rows_aside"), MOMENTS),
        "-skip": (SKIP, MOMENTS),
        "-rule": (SKIP, MIDDLE, ("clip_gradients", None)),
        "initialise, rule": (SKIP, INITIALISE, MIDDLE, ("clip_gradients", None)),
    },
    "diverging_loss": {
        "-rate / 10": (_times(0.1), MOMENTS),
        "-rule": (MIDDLE, ("clip_gradients", None)),
    },
    "oscillating_loss": {"rate / 10": (_times(0.1), AGAIN), "batch": (_plain("change_batch"),)},
    "noise_floor": {"rate / 10": (_times(0.1), AGAIN), "batch": (_plain("change_batch"),)},
    "plateau": {
        "initialise": (INITIALISE, MOMENTS),
        "rule": (RULE,),
        "rule, fast": (FAST,),
        "rate × 10": (_times(10.0),),
        "rate / 10": (_times(0.1),),
        "-rule": (MIDDLE, AGAIN),
    },
    "slow_convergence": {
        "rate × 10": (_times(10.0), AGAIN),
        "rule": (RULE, AGAIN),
        "-rule": (MIDDLE, AGAIN),
    },
    "underfitting": {
        "rate × 10": (_times(10.0), AGAIN),
        "rule": (RULE, AGAIN),
        "-rule": (MIDDLE, AGAIN),
        "initialise": (INITIALISE, MOMENTS),
    },
    "collapsed_output": {"initialise": (INITIALISE, MOMENTS), "rule": (RULE,)},
}  # fmt: skip
