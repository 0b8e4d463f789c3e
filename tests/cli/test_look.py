from __future__ import annotations

import json
from pathlib import Path

import pytest

from thalweg.cli import main

SIGMOIDS = """
import torch
from torch import nn

def make(depth: int = 8):
    torch.manual_seed(0)
    layers = [module for _ in range(depth) for module in (nn.Linear(4, 4), nn.Sigmoid())]
    return {"model": nn.Sequential(*layers, nn.Linear(4, 2)), "data": (torch.randn(32, 4), torch.arange(32) % 2),
            "loss": "cross_entropy"}
"""


@pytest.fixture(autouse=True)
def _script() -> None:
    Path("deep.py").write_text(SIGMOIDS)


def test_a_vanishing_gradient_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backprop", "deep.py:make", "--depth", "12", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    linear = [row for row in rows if row["kind"] == "Linear"]
    assert len(linear) == 13
    assert linear[-1]["weight_gradient"] < 1e-4 * linear[0]["weight_gradient"]


def test_the_table_has_a_row_a_layer_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backprop", "deep.py:make"]) == 0
    out = capsys.readouterr().out
    assert out.count("Linear") == 9
    assert "∂J/∂y" in out
    assert "vanish" in out.lower()


def test_the_picture_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backprop", "deep.py:make", "--plot", "flow.html"]) == 0
    assert "<html" in Path("flow.html").read_text()
    assert "flow.html" in capsys.readouterr().err


def test_an_option_that_the_script_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backprop", "deep.py:make", "--dept", "3"]) == 2
    assert "did you mean --depth?" in capsys.readouterr().err


def test_check_names_what_is_wrong_with_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    Path("squeezed.py").write_text(SIGMOIDS.replace("nn.Linear(4, 2))", "nn.Linear(4, 2), nn.Softmax(1))"))
    assert main(["check", "squeezed.py:make", "--depth", "1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert (first["code"], first["severity"]) == ("loss_output_mismatch", "warning")
    assert main(["check", "squeezed.py:make", "--depth", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"warning: {first['sentence']}")
    assert first["advice"] in out


def test_check_of_digits_finds_nothing_above_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits", "--json"]) == 0
    assert {finding["severity"] for finding in json.loads(capsys.readouterr().out)} <= {"note"}
