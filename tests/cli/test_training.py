import json
import math
from pathlib import Path

import pytest

import thalweg
from thalweg.cli import main
from thalweg.cli.usage import print_json


def record(directory="runs/mine-1"):
    return json.loads(Path(directory, "run.json").read_text())


def test_one_json_object_and_everything_else_on_standard_error(call):
    code, out, err = call("fit", "mine.py:make", "--json")
    told = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert "the script speaks" in err and "make speaks" in err and "learning rate" in err
    assert set(told) >= {
        "metrics", "verdict", "findings", "actions", "learning_rate", "seconds", "steps", "stopped_because", "directory"
    }  # fmt: skip
    assert told["stopped_because"] == "epochs"
    assert told["directory"] == "runs/mine-1"
    assert set(told["verdict"]) == {"state", "sentence", "cause", "evidence"}
    assert told["metrics"]["loss"] > 0
    assert Path(told["report"]).read_text().startswith("<!")


def test_without_json_standard_output_stays_empty(call):
    code, out, err = call("fit", "mine.py:make")
    assert (code, out) == (0, "")
    assert "runs/mine-1/report.html" in err


def test_numbers_that_are_not_finite_are_null(capsys):
    print_json({"loss": math.nan, "deep": [math.inf, 1.0], "text": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "deep": [None, 1.0], "text": "NaN"}


def test_a_training_that_diverges_has_failed(fitted):
    told = fitted("mine.py:explodes", "--repair", "advise", code=1)
    assert told["stopped_because"] == "diverged"


def test_flags_go_before_the_config_and_the_config_before_the_script(fitted, folder):
    (folder / "c.yaml").write_text("epochs: 5\nlearning-rate: 0.25\nwidth: 7\n")
    told = fitted("mine.py:make", "--config", "c.yaml", "--epochs", "3")
    assert told["epochs"] == 3
    assert told["learning_rate"] == 0.25
    assert told["optimizer"] == "sgd"
    assert record()["source"]["options"] == {"width": 7}


def test_a_flag_goes_before_the_same_option_in_the_config(fitted, folder):
    (folder / "c.yaml").write_text("width: 7\n")
    fitted("mine.py:make", "--config=c.yaml", "--width", "5")
    assert record()["source"]["options"] == {"width": 5}


def test_a_word_that_both_know_goes_to_both(fitted):
    fitted("--seed", 4, "mine.py:make")
    assert record()["source"]["options"] == {"seed": 4}
    assert record()["asked"]["seed"] == 4


def test_a_word_of_another_library_is_taken_with_a_hint(fitted):
    told = fitted("mine.py:make", "--lr", "0.125")
    assert told["learning_rate"] == 0.125
    assert told["notes"] == ["lr is called learning_rate here; it was taken as that."]


def test_settings_of_every_kind_arrive(fitted):
    flags = ["--no-shuffle", "--optimizer", "adam", "--optimizer-options", "betas=(0.8,0.9)", "--target", "loss=1e-9"]
    fitted("mine.py:make", *flags, "--metrics", "mae,rmse", "--run-dir", "here", "--clip-norm", "none")
    asked = record("here")["asked"]
    assert asked["shuffle"] is False
    assert asked["optimizer_options"] == {"betas": [0.8, 0.9]}
    assert asked["target"] == {"loss": 1e-9}
    assert asked["metrics"] == ["mae", "rmse"]
    assert asked["clip_norm"] is None


def spoken(value):
    """The name of a case: its command."""
    return " ".join(value) if isinstance(value, list) else ""


USAGE = [
    (["fti"], "unknown command 'fti': did you mean fit?"),
    (
        ["zzz"],
        "unknown command 'zzz'; known are fit, find-lr, check, backprop, resume, predict, report, runs, export, doctor",
    ),
    (["--epochs"], "--epochs"),
    (["fit"], "fit needs a task (digits, image-classification, "),
    (["fit", "digts"], "unknown task 'digts': did you mean 'digits'?"),
    (["fit", "mine.py"], "mine.py lacks a function: give mine.py:make"),
    (["fit", "mien.py:make"], "there is no script mien.py: did you mean mine.py?"),
    (["fit", "mine.py:mkae"], "has no function mkae: did you mean make?"),
    (["fit", "digits", "--epohcs", "3"], "unknown flag --epohcs: did you mean --epochs?"),
    (["fit", "mine.py:make", "--widht", "3"], "unknown flag --widht: did you mean --width?"),
    (["fit", "mine.py:make", "--width", "wide"], "width takes a whole number, got 'wide'"),
    (["fit", "mine.py:make", "--validation-data", "x"], "validation_data takes objects"),
    (["fit", "mnist"], "mnist needs data: give --data VALUE"),
    (["fit", "digits", "--epochs"], "argument --epochs: expected one argument (see thalweg fit --help)"),
    (["fit", "digits", "--epochs", "-1"], "epochs must be at least 1, got -1"),
    (["fit", "digits", "--repair", "sfae"], "unknown repair 'sfae': did you mean 'safe'?"),
    (["fit", "digits", "--validation-split", "2"], "validation_split is a share in [0, 1), got 2.0"),
    (["fit", "digits", "mnist"], "unrecognized arguments: mnist"),
    (["fit", "digits", "--config", "wrong.yaml"], "unknown word 'epohcs' in wrong.yaml: did you mean epochs?"),
    (["fit", "digits", "--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
    (["resume"], "the following arguments are required: RUN (see thalweg resume --help)"),
    (["resume", "runs/x", "--epohcs", "3"], "unknown flag --epohcs: did you mean --epochs?"),
    (["resume", "runs/x", "--epochs", "0"], "epochs must be at least 1, got 0"),
    (["export", "runs/x", "y", "--format", "pickle"], "invalid choice: 'pickle'"),
    (["report", "runs/x", "--ouput", "y"], "unknown flag --ouput: did you mean --output?"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_usage_is_one_sentence_and_exit_2(call, folder, words, sentence):
    (folder / "wrong.yaml").write_text("epohcs: 3\n")
    code, out, err = call(*words)
    told = [line for line in err.splitlines() if line != "the script speaks"]
    assert code == 2
    assert out == ""
    assert len(told) == 1 and told[0].startswith("thalweg: ")
    assert sentence in told[0]
    assert not Path("runs").exists()


FAILED = [
    (["fit", "mine.py:make", "--bad"], "y holds NaN or Inf in 64 rows"),
    (["fit", "mine.py:fails"], "mine.py:fails failed at {folder}/mine.py:20: RuntimeError: the user's own"),
    (["fit", "mine.py:make", "--optimizer", "adamm"], "unknown optimizer 'adamm': did you mean 'adam'?"),
    (["fit", "mnist", "--data", "nowhere"], "there is no folder {folder}/nowhere"),
    (["fit", "broken.py:make"], "broken.py failed at {folder}/broken.py:1: ZeroDivisionError"),
    (["resume", "nowhere"], "nowhere holds no run"),
    (["report", "nowhere"], "nowhere holds no run"),
    (["export", "nowhere", "x.onnx"], "nowhere holds no run"),
    (["runs", "nowhere"], "there is no folder nowhere"),
    (["predict", "nowhere", "x.csv"], "there is no file x.csv"),
    (["predict", "nowhere", "one.csv"], "nowhere holds no run"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), FAILED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_failure_is_one_sentence_and_exit_1(call, folder, words, sentence):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "one.csv").write_text("1\n")
    code, out, err = call(*words)
    told = [line for line in err.splitlines() if "speaks" not in line]
    assert code == 1
    assert out == ""
    assert len(told) == 1 and told[0].startswith("thalweg: ")
    assert sentence.format(folder=folder) in told[0]


def test_a_fault_of_ours_is_a_traceback(folder, monkeypatch):
    monkeypatch.setattr(thalweg, "resume", lambda *_, **__: {}["no such key"])
    with pytest.raises(KeyError):
        main(["resume", "runs/x"])


def test_an_interrupted_training_is_kept_and_gone_on_with(fitted, call):
    told = fitted("mine.py:interrupted", code=130)
    assert told["stopped_because"] == "interrupted"
    code, out, _ = call("resume", told["directory"], "--json", "--steps", told["steps"])
    assert code == 0
    assert json.loads(out)["steps"] == told["steps"]


def test_a_terminated_training_leaves_with_143_after_a_checkpoint(folder, capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "mine.py:terminated"])
    assert left.value.code == 143
    assert Path("runs/mine-1/LATEST").read_text()


def test_resume_goes_on_with_changes(fitted, call):
    directory = fitted("mine.py:make", "--width", "2")["directory"]
    code, out, err = call("resume", directory, "--epochs", "4", "--json")
    assert code == 0
    assert json.loads(out)["epochs"] == 4
    assert "mine.py again" in err


def test_help_of_a_script_lists_its_own_options(call):
    code, out, err = call("fit", "mine.py:make", "--help")
    assert code == 0
    assert "--time-budget VALUE" in out
    assert "--width INT  (default 3)" in out
    assert "--bad BOOL  (default False)" in out
    assert "the script speaks" in err and "make speaks" not in err


def test_help_of_a_task_says_what_it_is(call):
    code, out, _ = call("fit", "mnist", "-h")
    assert code == 0
    assert "--data PATH  (required)" in out
    assert "The seed network on the IDX files" in out


def test_help_names_the_tasks(call):
    code, out, _ = call("fit", "--help")
    assert code == 0
    assert "tasks: digits, image-classification, " in out
