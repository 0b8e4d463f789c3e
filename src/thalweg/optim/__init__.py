"""Update rules by name, learning-rate schedules, weight averages; and the rules that `torch.optim` lacks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.optim.cautious import CautiousDecay as CautiousDecay
    from thalweg.optim.gauss_newton import GaussNewton as GaussNewton
    from thalweg.optim.kfac import KFAC as KFAC
    from thalweg.optim.lbfgs import LBFGS as LBFGS
    from thalweg.optim.muon import Muon as Muon
    from thalweg.optim.schedule_free import ScheduleFree as ScheduleFree
    from thalweg.optim.soap import SOAP as SOAP

_WORDS = {
    "CautiousDecay": "cautious",
    "GaussNewton": "gauss_newton",
    "KFAC": "kfac",
    "LBFGS": "lbfgs",
    "Muon": "muon",
    "SOAP": "soap",
    "ScheduleFree": "schedule_free",
}

__all__ = sorted(_WORDS)


def __getattr__(name: str) -> Any:
    if name not in _WORDS:
        raise AttributeError(f"module 'thalweg.optim' has no attribute {name!r}")
    return getattr(import_module(f"thalweg.optim.{_WORDS[name]}"), name)
