"""What every test shares: a folder of its own to work in, the names that examples in docstrings use, and the CPU.

On a machine with a GPU the tests are of the CPU all the same, but for those that are marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

#: Asked for once, before any test hides GPUs: this process sees them from here on.
HAS_GPU = torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What tests compare with lies on the CPU. Fixtures of whole modules, doctests and processes see no GPU either."""
    with pytest.MonkeyPatch.context() as patch:
        if HAS_GPU and item.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        return (yield)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to `runs/` below the working directory: never into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled is kept for the session, and not among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace: dict[str, Any], tmp_path: Path) -> None:
    doctest_namespace["tmp"] = tmp_path / "run"
