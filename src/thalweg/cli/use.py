"""What is done with a run that is there: `thalweg predict`, `report`, `export`."""

from __future__ import annotations

import argparse
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
    parser.add_argument("files", metavar="FILE", nargs="+", help="examples, one a row: .npy, .npz, .csv or IDX")
    parser.add_argument("--output", metavar="FILE.npy", type=Path, help="write an array instead of lines")
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
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{file}: the model cannot take rows of shape {list(x.shape[1:])}: {first}") from error
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
        inputs = thalweg.RunRecord.read(asked.directory).decided["inputs"]
        try:
            thalweg.export(model, asked.path, form, example=_zeros(inputs) if form == "onnx" else None)
        except ImportError as error:
            raise ValueError(str(error)) from error
    print(asked.path)
    return 0


def _zeros(inputs: Any) -> Any:
    """Two rows like the inputs that the run was trained on: an export to ONNX follows them through the model."""
    import torch

    if isinstance(inputs, list):
        return tuple(_zeros(part) for part in inputs)
    if "names" in inputs:
        raise ValueError("the model takes inputs by name: call thalweg.export from Python, with an example")
    return torch.zeros([2, *inputs["shape"]], dtype=getattr(torch, inputs["dtype"]))
