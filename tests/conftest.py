"""On a machine with a GPU the tests are of the CPU all the same, but for those that are marked `gpu`."""

from __future__ import annotations

import pytest
import torch

#: Asked for once, before any test hides GPUs: this process sees them from here on.
HAS_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests compare with lies there. Processes that they start see no GPU."""
    if HAS_GPU and request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
