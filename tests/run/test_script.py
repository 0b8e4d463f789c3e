import hashlib
import sys

import pytest

from thalweg.run.script import Script


@pytest.fixture
def script(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return Script.read(tmp_path / name)

    return write


def test_what_was_hashed_is_what_runs(script, tmp_path):
    read = script("def make():\n    return 1\n")
    (tmp_path / "mine.py").write_text("def make():\n    return 2\n")
    assert read.function("make")() == 1
    assert read.sha256 == hashlib.sha256(b"def make():\n    return 1\n").hexdigest()


def test_no_cached_bytecode_is_run_or_written(script, tmp_path):
    script("def make():\n    return 1\n").function("make")
    assert not (tmp_path / "__pycache__").exists()


def test_its_folder_can_be_imported_from_while_it_runs_only(script, tmp_path):
    (tmp_path / "beside_the_script.py").write_text("number = 41\n")
    before = list(sys.path)
    read = script("import beside_the_script\ndef make():\n    return beside_the_script.number + 1\n")
    assert read.function("make")() == 42
    assert sys.path == before
    del sys.modules["beside_the_script"]


def test_two_scripts_of_one_name_are_two_modules_and_none_is_main(tmp_path):
    modules = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "same.py"
        path.write_text(
            "from dataclasses import dataclass\n@dataclass\nclass C:\n    x: 'int' = 1\ndef make():\n    return C\n"
        )
        modules.add(Script.read(path).function("make")().__module__)
    assert len(modules) == 2
    assert not modules & {"__main__", "same"}
    assert all(hasattr(sys.modules[name], "make") for name in modules)


WRONG = {
    "exits": (
        "import sys\nsys.exit(3)\n",
        r"ended Python .*put what it does by itself under if __name__ == \"__main__\"",
    ),
    "fails": ("x = 1\nx / 0\n", r"mine.py failed at .*mine.py:2: ZeroDivisionError: division by zero"),
    "syntax": ("def make(:\n", r"mine.py failed at .*mine.py:1: SyntaxError"),
    "import": ("import no_such_package\n", r"mine.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
    "near": ("def make_model(): ...\n", "has no function mak_model: did you mean make_model"),
    "others": ("def train(): ...\ndef _x(): ...\n", "has no function mak_model: it has train[.]$"),
    "none": ("x = 1\n", "has no function mak_model: it has none"),
    "no function": ("mak_model = 3\n", "mak_model in .*mine.py is a int, not a function"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_script_is_one_sentence(script, case):
    text, sentence = WRONG[case]
    before = set(sys.modules)
    with pytest.raises(ValueError, match=sentence) as raised:
        script(text).function("mak_model")
    assert "\n" not in str(raised.value)
    left = {name for name in set(sys.modules) - before if name.startswith("thalweg_script")}
    assert bool(left) == (case in ("near", "others", "none", "no function")), "a script that fails leaves no module"


def test_the_scripts_own_exception_is_chained(script):
    with pytest.raises(ValueError) as raised:
        script("{}['key']\n").function("make")
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_missing_script_offers_the_nearest(script, tmp_path):
    script("", "train.py")
    with pytest.raises(FileNotFoundError, match=r"there is no script .*trian.py: did you mean .*train.py\?"):
        Script.read(tmp_path / "trian.py")
    with pytest.raises(FileNotFoundError, match="give the path of a Python file"):
        Script.read(tmp_path / "nowhere" / "x.py")
