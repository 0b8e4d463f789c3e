"""What is done with a run that is there: `thalweg predict`, `report`, `export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import thalweg
from thalweg.cli.usage import output_aside, print_json, say

#: Losses whose outputs are scores of classes.
_CLASSIFICATION = ("cross_entropy", "categorical_cross_entropy", "nll")


def add_predict(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg predict`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("directory", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="what the run's task reads; else rows of .npy, .npz, .csv or IDX"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write there instead: an array as .npy, or lines")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(run=_predict)


def add_report(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg report`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("directory", metavar="RUN", help="the run's folder")
    parser.add_argument("--output", metavar="FILE", help="where to; default RUN/report.html")
    parser.set_defaults(run=_report)


def add_export(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg export`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("directory", metavar="RUN", help="the run's folder")
    parser.add_argument("path", metavar="PATH", type=Path, help="the file to write")
    parser.add_argument("--format", choices=("onnx", "safetensors"), help="default: by the end of PATH, else onnx")
    parser.set_defaults(run=_export)


def _predict(asked: argparse.Namespace) -> int:
    for file in asked.files:
        if not Path(file).exists():
            raise FileNotFoundError(f"there is no file {file}")
    with output_aside():
        answers = thalweg.Task.answers(asked.directory, [Path(file) for file in asked.files])
    return _rows(asked) if answers is None else _answers(asked, answers)


def _answers(asked: argparse.Namespace, answers: Iterable[Mapping[str, Any]]) -> int:
    """Print what a task answers, each as soon as it is there."""
    if asked.json:
        with output_aside():
            found = [dict(answer) for answer in answers]
        print_json({"run": asked.directory, "files": asked.files, "predictions": found})
        return 0
    with open(asked.output, "w", encoding="utf-8") if asked.output else nullcontext(sys.stdout) as out:
        for answer in answers:
            print(answer["answer"], file=out, flush=True)
    if asked.output:
        say(f"wrote {asked.output}")
    return 0


def _rows(asked: argparse.Namespace) -> int:
    """Predict rows of arrays."""
    import numpy as np

    from thalweg.tasks.arrays import read_array

    arrays = [(file, read_array(file)) for file in asked.files]
    loss = thalweg.RunRecord.read(asked.directory).decided.get("loss")
    with output_aside():
        model = thalweg.load(asked.directory)
        outputs = [_outputs(model, file, array) for file, array in arrays]
    if loss in _CLASSIFICATION and all(o.ndim == 2 and o.shape[1] > 1 and o.dtype.kind == "f" for o in outputs):
        outputs = [output.argmax(axis=1) for output in outputs]
    rows = [row for output in outputs for row in output.tolist()]
    if asked.output:
        with open(asked.output, "wb") as file:
            np.save(file, np.concatenate(outputs), allow_pickle=False)
        say(f"wrote {len(rows)} rows to {asked.output}")
    if asked.json:
        print_json({"run": asked.directory, "files": asked.files, "predictions": rows})
    elif not asked.output:
        print("\n".join(" ".join(_words(row)) for row in rows))
    return 0


def _outputs(model: Any, file: str, array: Any) -> Any:
    """`[rows, …]` of one file; bytes become floating, as images are kept in bytes."""
    x = array.astype("float32") if array.dtype.kind in "ub" else array
    try:
        output = thalweg.predict(model, x)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not hasattr(output, "numpy"):
        raise ValueError(f"the model returns a {type(output).__name__}, no tensor: use thalweg.predict from Python")
    return output.numpy()


def _words(row: Any) -> list[str]:
    """The numbers of one row; nested ones follow each other."""
    if isinstance(row, list):
        return [word for part in row for word in _words(part)]
    return [f"{row:.8g}" if isinstance(row, float) else str(row)]


def _report(asked: argparse.Namespace) -> int:
    print(thalweg.report(asked.directory, asked.output))
    return 0


def _export(asked: argparse.Namespace) -> int:
    form = asked.format or ("safetensors" if asked.path.suffix == ".safetensors" else "onnx")
    with output_aside():
        model = thalweg.load(asked.directory)
        try:
            example, any_length = _example(asked.directory) if form == "onnx" else (None, False)
            thalweg.export(model, asked.path, form, example=example, any_length=any_length)
        except ImportError as error:
            raise ValueError(str(error)) from error
    print(asked.path)
    return 0


def _example(directory: str) -> tuple[Any, bool]:
    """What an export follows through the model, and whether it may have any length: as the run's task says, else like
    what it was trained on.
    """
    example, any_length = thalweg.Task.inputs(directory)
    if example is None:
        return _zeros(thalweg.RunRecord.read(directory).decided["inputs"]), False
    return example, any_length


def _zeros(inputs: Any) -> Any:
    """Two rows like the inputs that the run was trained on: an export to ONNX follows them through the model."""
    import torch

    if isinstance(inputs, list):
        return tuple(_zeros(part) for part in inputs)
    if "names" in inputs:
        raise ValueError("the model takes inputs by name: call thalweg.export from Python, with an example")
    return torch.zeros([2, *inputs["shape"]], dtype=getattr(torch, inputs["dtype"]))
