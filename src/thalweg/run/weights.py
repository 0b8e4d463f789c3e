"""Weights out of a run and into files."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from thalweg.loop.checkpoint import Checkpoint, Checkpoints
from thalweg.loop.evaluate import evaluating, model_device
from thalweg.loop.failures import first_line
from thalweg.records.run import RunRecord
from thalweg.records.settings import unknown
from thalweg.repairs.network import fold
from thalweg.run.lazy import has_lazy
from thalweg.run.mending import rebuilt
from thalweg.run.recipe import model_of
from thalweg.run.run import Run
from thalweg.step.forward import Forward
from thalweg.tensors.named import assign, mapped

FORMATS = ("onnx", "safetensors")


def load(run_dir: Run | str | os.PathLike[str], which: str | int = "best", model: nn.Module | None = None) -> nn.Module:
    """The model of a run with the weights of its best, last or numbered checkpoint, in evaluation mode.

    The run is named by its directory, or is what `fit` returned.
    Without validation there is no best one, and the last is taken. `model` is needed unless the run came from a task
    or a script; its weights are replaced.

    Raises:
        FileNotFoundError: no run, or no such checkpoint.
        ValueError: the weights are of another model, or damaged; or the model has no shapes yet.
    """
    directory = run_dir.directory if isinstance(run_dir, Run) else Path(run_dir)
    record = RunRecord.read(directory)
    if model is None:
        if record.source is None:
            raise ValueError(f"{directory} was not started from a task or script: give model=")
        model = model_of(record.source, directory)
    if has_lazy(model):
        raise ValueError("the model has no shapes yet: run a batch through it first, model(x[:1])")
    checkpoint = _checkpoint(directory, which)
    mended = int(checkpoint.state["standing"].get("mended", 0))
    if mended:
        try:
            rebuilt(model, record, mended)
        except RuntimeError as error:
            words = f"inputs such as the run has saved fail in the model given ({first_line(error)})"
            raise ValueError(f"the saved weights are of another model: {words}") from error
    assign(Forward(model).state(), checkpoint.model)
    if mended:
        fold(model)
    return model.eval()


def _checkpoint(directory: Path, which: str | int) -> Checkpoint:
    said: list[str] = []
    checkpoints = Checkpoints(directory, said.append)
    if isinstance(which, int):
        return checkpoints.at(which)
    if which not in ("best", "last"):
        raise ValueError(unknown("checkpoint", which, ("best", "last")) + ", or the number of a step")
    found = checkpoints.best() if which == "best" else None
    found = found or checkpoints.latest()
    if found is None:
        raise FileNotFoundError(" ".join([f"{directory} holds no whole checkpoint.", *said]))
    for sentence in said:
        print(f"thalweg: {sentence} Taken: step {found.step}.", file=sys.stderr)
    return found


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's weights as safetensors: tensors by name, nothing that could run.

    Raises:
        ValueError: the file cannot be written.
    """
    target = Path(path)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in Forward(model).state().items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target)
    except Exception as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    return target


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    example: Any = None,
    any_length: bool = False,
) -> Path:
    """Write a model for use elsewhere: `onnx` (its computation, any number of rows) or `safetensors` (its weights).

    `example` is an input batch `[rows, …]` (a tuple for several inputs), needed for ONNX. With `any_length` it is of
    sequences `[rows, length, …]`, and each input of the exported model may have any length, not only the example's.

    Raises:
        ValueError: an unknown format, or no example where one is needed; ImportError: the extra `export` is missing.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    if format == "safetensors":
        return save(model, path)
    if example is None:
        raise ValueError("an ONNX export follows one input through the model: give example=, a batch of two rows")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('an ONNX export needs two more packages: pip install "thalweg[export]"') from error
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    given = example if isinstance(example, tuple) else (example,)
    inputs = tuple(mapped(lambda t: t.to(model_device(model)), part) for part in given)
    rows = torch.export.Dim("rows")
    axes = [{0: rows, **({1: torch.export.Dim(f"length_{n}")} if any_length else {})} for n in range(len(inputs))]
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about torch itself: nothing a user could act on
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple(axes))
    assert program is not None
    if any_length and any(isinstance(part, nn.RNNBase) for part in model.modules()):
        # Such a part takes any length, but torch's exporter notes the example's beside all that is computed after it.
        for node in program.model.graph:
            for value in node.outputs:
                value.shape = None
    program.save(str(target))
    return target
