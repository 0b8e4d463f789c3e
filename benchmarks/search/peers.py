"""How others find a learning rate: each function searches as its documentation says, and returns the rate it found.

Grid, random search and Optuna's searches look where the reference's grid does. Every full training in them is one of
the hand-written loop, from the same first weights, at its own rate.
"""

from __future__ import annotations

import logging
import math
import random
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import Case

from reference import SPAN, grid
from thalweg.optim import catalogue, schedules

GRID, DRAWS, TRIALS = 5, 5, 10


def default(case: Case) -> float:
    """No search: the rate that `thalweg` has for the rule (AdamW: PyTorch's own, and Keras's, 1e-3)."""
    return catalogue.RULES[case.rule].learning_rate


def by_grid(case: Case) -> float:
    """Five full trainings, a decade apart."""
    return min(grid(case.rule, GRID), key=case.by_rate)


def by_draws(case: Case) -> float:
    """Five full trainings at random, evenly by the logarithm."""
    drawn, (low, high) = random.Random(case.seed), SPAN[case.rule]
    return min((low * (high / low) ** drawn.random() for _ in range(DRAWS)), key=case.by_rate)


def _optuna(case: Case, pruner: Any, startup: int) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: Any) -> float:
        def after_epoch(epoch: int, loss: float) -> None:
            trial.report(loss if math.isfinite(loss) else 1e9, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        loss = case.by_rate(trial.suggest_float("rate", *SPAN[case.rule], log=True), after_epoch=after_epoch)
        return loss if math.isfinite(loss) else 1e9

    sampler = optuna.samplers.TPESampler(seed=case.seed, n_startup_trials=startup)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=TRIALS)
    return float(study.best_params["rate"])


def by_tpe(case: Case) -> float:
    """Optuna's TPE, ten full trainings; four of them at random, where its default would make all ten so."""
    import optuna

    return _optuna(case, optuna.pruners.NopPruner(), startup=4)


def by_asha(case: Case) -> float:
    """Optuna's asynchronous successive halving, ten trials, its defaults (sampler too); judged after every epoch."""
    import optuna

    return _optuna(case, optuna.pruners.SuccessiveHalvingPruner(), startup=10)


def by_lightning(case: Case) -> float:
    """Lightning's `Tuner.lr_find`, its defaults: 100 updates from 1e-8 to 1."""
    import lightning
    from lightning.pytorch.tuner import Tuner

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = case.model(), default(case)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return case.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return case.optimizer(self.model, self.lr)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=case.workload.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        finder = Tuner(trainer).lr_find(Module(), train_dataloaders=_loader(case))
    case.trace.steps += len(finder.results["lr"])
    return finder.suggestion() or default(case)


def by_torch_lr_finder(case: Case) -> float:
    """torch-lr-finder's steepest point of 100 updates from 1e-7 to 10 (its README ends at 100 for Adam)."""
    import matplotlib

    matplotlib.use("Agg")
    from torch_lr_finder import LRFinder

    model = case.model()
    optimizer = case.optimizer(model, 1e-7)
    for group in optimizer.param_groups:
        del group["initial_lr"]  # which it takes for another's schedule
    finder = LRFinder(model, optimizer, _Mean(case), device="cpu")
    finder.range_test(_loader(case), end_lr=10, num_iter=100)
    case.trace.steps += len(finder.history["lr"])
    try:
        _, rate = finder.plot(suggest_lr=True)
    except RuntimeError:  # it stopped too early to suggest anything
        return default(case)
    return float(rate)


class _Mean(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return self.case.loss(output, y)


def _loader(case: Case) -> DataLoader:
    return DataLoader(TensorDataset(*case.data[0]), batch_size=case.workload.batch_size, shuffle=True)


SEARCHES: dict[str, Callable[[Case], float]] = {
    "grid": by_grid,
    "random": by_draws,
    "lightning": by_lightning,
    "torch-lr-finder": by_torch_lr_finder,
    "tpe": by_tpe,
    "asha": by_asha,
    "default": default,
}


# ── rules that need no search, by their own account ──


def prodigy(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prodigy at 1, as its README has it for a cosine with a warm-up."""
    from prodigyopt import Prodigy

    model = case.model()
    rule = Prodigy(model.parameters(), lr=1.0, weight_decay=0.01, safeguard_warmup=True, use_bias_correction=True)
    case.train(model, rule, schedules.build("auto", rule, case.total), counts=True)
    return {"rate": float(f"{rule.param_groups[0]['d']:.5g}")}, {"seconds": 0.0, "steps": 0}


def schedule_free(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schedule-Free AdamW at its default rate, with a warm-up over a twentieth."""
    from schedulefree import AdamWScheduleFree

    model = case.model()
    rule = AdamWScheduleFree(model.parameters(), weight_decay=0.01, warmup_steps=case.total // 20)
    case.train(model, rule, counts=True)
    return {"rate": rule.param_groups[0]["lr"]}, {"seconds": 0.0, "steps": 0}


RULES = {"prodigy": prodigy, "schedule-free": schedule_free}


def searched(name: str, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """A search, then a training with what it found; what came of the search, and the clock when it was over."""
    warnings.simplefilter("ignore")
    if name in RULES:
        return RULES[name](case)
    rate = SEARCHES[name](case)
    clock = case.trace.now
    case.by_rate(rate, counts=True)
    return {"rate": float(f"{rate:.5g}")}, clock
