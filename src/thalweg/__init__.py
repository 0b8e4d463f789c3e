"""Thalweg: gradient descent that chooses its rate, sees why a training goes wrong, and knows when it is done.

The public words, each loaded when it is first used; the rooms behind them, from the ground up:

    records      numbers that a run writes down
    tensors      named sets of tensors, seeds, devices
    step         forward, loss, backward, update
    gradients    what else a backward pass knows
    optim        rules by name, schedules, averages
    diagnosis    records → findings, verdict
    loop         one training: step, watch, stop, save
    signals      tensors → what a step reports
    reports      records → pictures
    search       which learning rate
    run          fit, resume, diagnose, watch, load, export
    tasks        ready applications
    cli          the command line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.gradients.chain import backprop
    from thalweg.gradients.check import check_gradients
    from thalweg.gradients.landscape import landscape
    from thalweg.loop.evaluate import evaluate, predict
    from thalweg.records.action import Action
    from thalweg.records.backprop import Backprop
    from thalweg.records.finding import Finding
    from thalweg.records.gradient_check import GradientCheck
    from thalweg.records.history import History
    from thalweg.records.landscape import Landscape
    from thalweg.records.learning_rate import LearningRate
    from thalweg.records.run import RunRecord
    from thalweg.records.section import Curves, Matrix, Picture, Prose, Section, Table
    from thalweg.records.settings import Settings
    from thalweg.records.step import StepRecord
    from thalweg.records.verdict import Verdict
    from thalweg.run.callback import Callback
    from thalweg.run.check import check
    from thalweg.run.diagnose import diagnose
    from thalweg.run.find_lr import find_lr
    from thalweg.run.fit import fit
    from thalweg.run.recipe import Recipe, Task, recipe, task_names
    from thalweg.run.resume import resume
    from thalweg.run.run import Run, report
    from thalweg.run.searches import Search
    from thalweg.run.trajectory import Trajectory
    from thalweg.run.watch import Watch, watch
    from thalweg.run.weights import export, load, save
    from thalweg.step.fast import FastStep, fast_step
    from thalweg.step.plan import Plan
    from thalweg.step.sequences import Sequences

__version__ = "0.1.0"

_WORDS = {
    "Action": "records.action",
    "Callback": "run.callback",
    "Curves": "records.section",
    "Finding": "records.finding",
    "History": "records.history",
    "FastStep": "step.fast",
    "Landscape": "records.landscape",
    "LearningRate": "records.learning_rate",
    "Matrix": "records.section",
    "Picture": "records.section",
    "Plan": "step.plan",
    "Prose": "records.section",
    "Recipe": "run.recipe",
    "Run": "run.run",
    "RunRecord": "records.run",
    "Search": "run.searches",
    "Section": "records.section",
    "Sequences": "step.sequences",
    "Settings": "records.settings",
    "StepRecord": "records.step",
    "Table": "records.section",
    "Task": "run.recipe",
    "Trajectory": "run.trajectory",
    "Verdict": "records.verdict",
    "Backprop": "records.backprop",
    "GradientCheck": "records.gradient_check",
    "backprop": "gradients.chain",
    "check": "run.check",
    "check_gradients": "gradients.check",
    "diagnose": "run.diagnose",
    "evaluate": "loop.evaluate",
    "export": "run.weights",
    "fast_step": "step.fast",
    "find_lr": "run.find_lr",
    "fit": "run.fit",
    "landscape": "gradients.landscape",
    "load": "run.weights",
    "predict": "loop.evaluate",
    "recipe": "run.recipe",
    "report": "run.run",
    "resume": "run.resume",
    "save": "run.weights",
    "task_names": "run.recipe",
    "Watch": "run.watch",
    "watch": "run.watch",
}

__all__ = [*sorted(_WORDS), "__version__"]


_ROOMS = ("gradients", "optim")
"""Rooms with words of their own: `thalweg.optim.KFAC`."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"thalweg.{name}")
    if name not in _WORDS:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    word = getattr(import_module(f"thalweg.{_WORDS[name]}"), name)
    globals()[name] = word  # replaces a submodule of the same name, and spares the next look-up
    return word


def __dir__() -> list[str]:
    return sorted(__all__)
