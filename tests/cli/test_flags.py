import argparse
from dataclasses import fields

import pytest

import thalweg
from thalweg.cli.flags import NAMES, OBJECTS, add_settings, flag, from_file, from_text, given, literal
from thalweg.cli.usage import Parser, Usage, guess, split, table

READ = [
    ("epochs", "20", 20),
    ("epochs", "none", None),
    ("patience", "auto", "auto"),
    ("patience", "None", None),
    ("patience", "7", 7),
    ("batch_size", "full", "full"),
    ("batch_size", "64", 64),
    ("learning_rate", "auto", "auto"),
    ("learning_rate", "1e-3", 1e-3),
    ("validation_split", "0.2", 0.2),
    ("time_budget", "90", 90.0),
    ("clip_norm", "none", None),
    ("optimizer", "adam", "adam"),
    ("run_dir", "3", "3"),
    ("run_dir", "none", "none"),
    ("device", "cuda:1", "cuda:1"),
    ("verbose", "false", False),
    ("verbose", "auto", "auto"),
    ("metrics", "accuracy, top5", ("accuracy", "top5")),
    ("metrics", "", ()),
    ("target", "validation_accuracy=0.97", {"validation_accuracy": 0.97}),
    ("target", "loss=1e-2,accuracy=1", {"loss": 0.01, "accuracy": 1.0}),
    ("target", "none", None),
    ("optimizer_options", "weight_decay=0.1,amsgrad=true", {"weight_decay": 0.1, "amsgrad": True}),
    ("optimizer_options", "betas=(0.9,0.95),eps=1e-7,mode=x", {"betas": (0.9, 0.95), "eps": 1e-7, "mode": "x"}),
]


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_text_becomes_what_the_keyword_takes(name, text, value):
    read = from_text(name, text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("epochs", "many", "--epochs takes a whole number or none, got 'many'"),
        ("epochs", "1.5", "--epochs takes a whole number or none, got '1.5'"),
        ("seed", "x", "--seed takes a whole number, got 'x'"),
        ("time_budget", "soon", "--time-budget takes a number or none, got 'soon'"),
        ("target", "0.97", "--target takes NAME=VALUE"),
        ("target", "loss=low", "--target takes numbers, got 'loss=low'"),
        ("optimizer_options", "=3", "--optimizer-options takes NAME=VALUE"),
    ],
)
def test_text_that_does_not_fit_is_a_sentence(name, text, sentence):
    with pytest.raises(Usage, match=sentence):
        from_text(name, text)


def test_every_keyword_has_a_flag_but_those_that_hold_objects():
    parser = Parser(prog="x")
    add_settings(parser)
    assert set(NAMES) | set(OBJECTS) == {setting.name for setting in fields(thalweg.Settings)}
    assert {flag(name) for name in NAMES} <= set(parser.flags)
    assert "--no-shuffle" in parser.flags
    assert not {flag(name) for name in OBJECTS} & set(parser.flags)
    text = " ".join(parser.format_help().split())
    assert all(" ".join(setting.metadata["meaning"].split()) in text for setting in fields(thalweg.Settings)[1:5])


def test_only_what_is_given_is_parsed():
    parser = Parser(prog="x")
    add_settings(parser)
    assert given(parser.parse_args([])) == {}
    words = given(parser.parse_args(["--no-shuffle", "--epochs", "3", "--time-budget=5", "--deterministic"]))
    assert words == {"shuffle": False, "epochs": 3, "time_budget": 5.0, "deterministic": True}


def test_every_default_passes_through_a_flag():
    for setting in fields(thalweg.Settings):
        if setting.name in NAMES and isinstance(setting.default, str | float | None) and setting.name != "run_dir":
            text = "none" if setting.default is None else str(setting.default)
            assert from_text(setting.name, text) == setting.default, setting.name


def config(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_holds_the_same_words(tmp_path):
    text = """
        time-budget: 90
        learning_rate: 1e-3
        patience: none
        repair: off
        metrics: [accuracy]
        target: {loss: 0.1}
        shuffle: false
        data: some/folder
    """
    assert from_file(config(tmp_path, text)) == {
        "time_budget": 90,
        "learning_rate": 1e-3,
        "patience": None,
        "repair": "off",
        "metrics": ["accuracy"],
        "target": {"loss": 0.1},
        "shuffle": False,
        "data": "some/folder",
    }


def test_an_empty_file_says_nothing(tmp_path):
    assert from_file(config(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- epochs\n", "config.yaml holds a list, but keywords with values were expected"),
        ("epochs: [1\n", "config.yaml is not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "config.yaml is not YAML: could not determine a constructor"),
        ("epochs: many\n", "--epochs takes a whole number"),
    ],
)
def test_a_file_that_is_wrong_is_a_sentence(tmp_path, text, sentence):
    with pytest.raises(Usage, match=sentence):
        from_file(config(tmp_path, text))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(Usage, match=r"there is no file .*nowhere.yaml: --config takes a YAML file"):
        from_file(str(tmp_path / "nowhere.yaml"))


def test_unknown_flags_take_their_values_along():
    parser = Parser(prog="x")
    parser.add_argument("--epochs")
    words = ["--data", "folder", "mnist", "--epochs", "3", "--width=5", "--shift", "-3", "--flip", "--deep"]
    assert split(words, parser) == (
        ["mnist", "--epochs", "3"],
        {"--data": "folder", "--width": "5", "--shift": "-3", "--flip": "true", "--deep": "true"},
    )


def test_half_a_flag_is_no_flag():
    parser = Parser(prog="x")
    parser.add_argument("--epochs")
    with pytest.raises(Usage, match="--epo"):
        parser.parse_args(["--epo", "3"])


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-3", 1e-3), ("True", True), ("none", None), ("a b", "a b"), (4, 4)]
)
def test_literal(text, value):
    assert literal(text) == value


def test_guess_names_the_nearest_or_all():
    assert guess("epohcs", ["epochs", "steps"]) == ": did you mean epochs?"
    assert guess("zzz", ["epochs", "steps"]) == "; known are epochs, steps"
    assert guess("zzz", []) == "; known are none"


def test_a_table_lines_up_and_cannot_steer_the_terminal():
    assert table(("run", "n"), [("long name", "1"), ("\x1b[2Jx", "22")]) == "run        n\nlong name  1\n?[2Jx      22"


def test_usage_is_no_argparse_exit():
    with pytest.raises(Usage, match="required: RUN .see x --help"):
        parser = Parser(prog="x")
        parser.add_argument("RUN")
        assert isinstance(parser.parse_args([]), argparse.Namespace)
