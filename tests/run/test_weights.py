from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import thalweg


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


@pytest.fixture
def run() -> thalweg.Run:
    return thalweg.fit(
        net(), data(), "cross_entropy", validation_data=data(), epochs=12, learning_rate=0.05, checkpoint_every=10,
        verbose=False, run_dir="run", patience=None,
    )  # fmt: skip


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_best_last_and_numbered_weights_come_back(run: thalweg.Run) -> None:
    best = thalweg.load("run", model=net())
    assert equal(best, run.model)
    assert not best.training
    assert equal(thalweg.load(run, model=net()), best)
    last = thalweg.load("run", "last", model=net())
    assert equal(thalweg.load("run", run.steps, model=net()), last)
    assert thalweg.evaluate(best, data(), "cross_entropy")["loss"] == pytest.approx(run.metrics["validation_loss"])


def test_what_cannot_be_loaded_is_said(run: thalweg.Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3.*there are"):
        thalweg.load("run", 3, model=net())
    with pytest.raises(ValueError, match="did you mean 'best'"):
        thalweg.load("run", "bset", model=net())
    with pytest.raises(ValueError, match=r"another model.*saved.*in the model"):
        thalweg.load("run", model=nn.Sequential(nn.Linear(4, 9), *list(net())[1:]))
    with pytest.raises(ValueError, match="give model="):
        thalweg.load("run")
    with pytest.raises(ValueError, match="no shapes yet.*model\\(x"):
        thalweg.load("run", model=nn.Sequential(nn.LazyLinear(8), *list(net())[1:]))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        thalweg.load("elsewhere", model=net())


def test_saved_weights_are_plain_safetensors(run: thalweg.Run) -> None:
    from safetensors.torch import load_file

    path = thalweg.save(run.model, "out/weights.safetensors")
    other = net()
    other.load_state_dict(load_file(path))
    assert equal(other, run.model)
    with pytest.raises(ValueError, match="cannot be written"):
        thalweg.save(run.model, "run/run.json/weights.safetensors")


def test_onnx_computes_the_same_for_any_number_of_rows(run: thalweg.Run) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = thalweg.export(run.model, "model.onnx", example=data()[0][:2])
    session = runtime.InferenceSession(str(path))
    for rows in (1, 7, 120):
        x = data()[0][:rows]
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(output, thalweg.predict(run.model, x).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="example="):
        thalweg.export(run.model, "model.onnx")
    with pytest.raises(ValueError, match="did you mean 'onnx'"):
        thalweg.export(run.model, "model.onnx", "onx")


def test_the_report_of_a_directory(run: thalweg.Run) -> None:
    path = thalweg.report("run", "elsewhere/page.html")
    assert path == Path("elsewhere/page.html")
    assert run.verdict is not None
    assert run.verdict.state in path.read_text().lower()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        thalweg.report("nowhere")
