import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import thalweg


@pytest.fixture
def run(fitted):
    def run(*words):
        return fitted("mine.py:make", *words)["directory"]

    return run


def test_predict_prints_one_line_of_numbers_a_row(call, run, folder):
    directory = run()
    (folder / "x.csv").write_text("0.5\n-1\n")
    code, out, err = call("predict", directory, "x.csv")
    model = thalweg.load(directory)
    expected = thalweg.predict(model, np.array([[0.5], [-1.0]], dtype=np.float32)).flatten().tolist()
    assert code == 0
    assert [float(line) for line in out.splitlines()] == pytest.approx(expected, rel=1e-6)
    assert "the script speaks" in err


def test_predict_prints_the_class_where_the_loss_is_a_classification(call, run):
    directory = run("--loss", "cross_entropy", "--epochs", "60", "--learning-rate", "0.5")
    np.save("x.npy", np.array([[-0.9], [0.9], [0.8]], dtype=np.float32))
    code, out, _ = call("predict", directory, "x.npy")
    assert code == 0
    assert out.splitlines() == ["0", "1", "1"]


def test_predict_takes_several_files_of_several_kinds(call, run):
    directory = run()
    np.save("x.npy", np.zeros((2, 1), dtype=np.float64))
    np.savez("x.npz", x=np.zeros((1, 1), dtype=np.float32))
    Path("x.idx").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0]))
    code, out, _ = call("predict", directory, "x.npy", "x.npz", "x.idx", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["files"] == ["x.npy", "x.npz", "x.idx"]
    assert len(told["predictions"]) == 5
    assert all(row == told["predictions"][0] and len(row) == 1 for row in told["predictions"])


def test_predict_writes_an_array(call, run):
    directory = run()
    np.save("x.npy", np.zeros((3, 1), dtype=np.float32))
    code, out, err = call("predict", directory, "x.npy", "--output", "y.npy")
    assert (code, out) == (0, "")
    assert "wrote 3 rows to y.npy" in err
    assert np.load("y.npy").shape == (3, 1)


def test_predict_names_the_file_that_does_not_fit(call, run, folder):
    directory = run()
    (folder / "x.csv").write_text("1,2,3\n")
    code, out, err = call("predict", directory, "x.csv")
    assert (code, out) == (1, "")
    assert "thalweg: x.csv: " in err and "cannot take inputs of shape [1, 3]" in err


def test_report_is_written_where_it_is_wanted(call, run):
    directory = run()
    code, out, _ = call("report", directory, "--output", "page.html")
    assert (code, out) == (0, "page.html\n")
    assert "mine-1" in Path("page.html").read_text()


def test_export_of_weights_by_the_end_of_the_name(call, run):
    directory = run("--width", "5")
    code, out, _ = call("export", directory, "w.safetensors")
    assert (code, out) == (0, "w.safetensors\n")
    assert load_file("w.safetensors")["0.weight"].shape == (5, 1)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter meets its own deprecations
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_of_the_computation(call, run):
    onnxruntime = pytest.importorskip("onnxruntime")
    directory = run()
    code, out, _ = call("export", directory, "m.onnx")
    assert (code, out) == (0, "m.onnx\n")
    session = onnxruntime.InferenceSession("m.onnx")
    x = np.array([[0.5], [-1.0], [0.25]], dtype=np.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, thalweg.predict(thalweg.load(directory), x).numpy(), rtol=1e-5)


def test_runs_lists_what_is_there(call, run, folder):
    run("--validation-split", "0.25")
    run()
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "run.json").write_text("{")
    code, out, err = call("runs")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["run", "started", "state", "best", "validation", "loss", "steps", "seconds"]
    assert {line.split()[0] for line in lines[1:]} == {"mine-1", "mine-2"}
    assert "(epochs)" in lines[1]
    assert "broken" in err
    code, out, _ = call("runs", "runs", "--json")
    first, second = json.loads(out)["runs"]
    assert first["best_validation_loss"] > 0
    assert second["best_validation_loss"] is None
    assert first["steps"] == 4


def test_runs_reads_a_run_that_has_not_ended(call, folder):
    directory = folder / "runs" / "cut-1"
    directory.mkdir(parents=True)
    thalweg.RunRecord(name="cut-1", started="2026-01-02T03:04:05+00:00").write(directory)
    history = thalweg.History(directory / "history.sqlite")
    history.append(thalweg.StepRecord(70, 1.0, 0.5, {"loss": 1.0}))
    for step, loss in ((40, 0.5), (60, 0.25), (80, float("nan"))):
        history.evaluate(thalweg.StepRecord(step, 1.0, 0.5, {"validation_loss": loss}))
    history.close()
    code, out, _ = call("runs")
    assert code == 0
    assert out.splitlines()[1].split() == ["cut-1", "2026-01-02", "03:04:05", "unfinished", "0.25", "80"]


def test_no_runs_yet(call):
    code, out, err = call("runs")
    assert (code, out) == (0, "")
    assert "no runs in runs yet" in err


def test_doctor_names_versions_and_what_is_missing(call, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, out, _ = call("doctor")
    rows = dict(line.split("  ", 1) for line in out.splitlines()[1:])
    found = {name: rest.strip() for name, rest in rows.items()}
    assert code == 0
    assert found["thalweg"] == thalweg.__version__
    assert found["torch"][0].isdigit()
    assert found["devices"].startswith("cpu")
    assert found["C++ compiler"] == "none (no-such-compiler looked for); not needed"
    assert "GB in " in found["free disk space"]
