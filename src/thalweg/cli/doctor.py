"""`thalweg doctor`: what this machine and this Python offer to a training."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import thalweg
from thalweg.cli.usage import table

_CORE = ("torch", "numpy", "safetensors", "scikit-learn", "rich", "plotly", "PyYAML")
_OPTIONAL = {"keras": "keras", "onnx": "export", "onnxscript": "export", "torchmetrics": "test"}

#: What a build of kernels would look for, in this order.
_COMPILERS = ("c++", "g++", "clang++")

_GIGABYTE = 1e9


def add_doctor(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg doctor`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.set_defaults(run=_doctor)


def _doctor(asked: argparse.Namespace) -> int:
    rows = [("thalweg", thalweg.__version__), ("python", platform.python_version()), ("system", platform.platform())]
    rows += [(name, _version(name) or "missing: install thalweg again") for name in _CORE]
    rows += [*_torch(), ("C++ compiler", _compiler()), ("free disk space", _disk())]
    for name, extra in _OPTIONAL.items():
        rows.append((name, _version(name) or f"not installed (pip install 'thalweg[{extra}]')"))
    print(table(("what", "found"), rows))
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> list[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        return [("devices", f"torch cannot be imported: {error}")]
    devices = ["cpu"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(f"cuda:{number} ({properties.name}, {properties.total_memory / _GIGABYTE:.0f} GB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return [("devices", ", ".join(devices)), ("torch threads", threads)]


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        return f"none ({', '.join(names)} looked for); not needed"
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}, which does not answer: {error}"
    return f"{path}: {answer.splitlines()[0] if answer else 'no version'}"


def _disk() -> str:
    return f"{shutil.disk_usage(os.getcwd()).free / _GIGABYTE:.1f} GB in {os.getcwd()}"
