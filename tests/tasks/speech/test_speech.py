import io
import json
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from voices import RATE, WORDS, beside, cepstra, digits, sentences, speak, sphinx, write

import thalweg
from thalweg.tasks.speech.corpus import find, normalised
from thalweg.tasks.speech.pictures import spectrogram
from thalweg.tasks.speech.recogniser import WordErrors, word_errors
from thalweg.tasks.speech.task import _groups, _split, example, make
from thalweg.tasks.speech.units import choose, decoded, encoded
from thalweg.tasks.task import BadData

DATA = Path(thalweg.__file__).parents[3] / "shared" / "data" / "speech"
SMALL = {"width": 48, "layers": 1, "dropout": 0.0}
QUICK = {"learning_rate": 0.005, "plan": "eager", "verbose": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences of one or two words, a letter a chord."""
    path = tmp_path_factory.mktemp("speech")
    beside(path, 180, longest=2)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    recipe = thalweg.recipe("speech-recognition", data=str(folder), **SMALL)
    return recipe.fit(run_dir=tmp_path_factory.mktemp("run") / "run", epochs=24, **QUICK)


def test_sentences_are_learned_letter_by_letter(run):
    assert run.metrics["test_word_error_rate"] < 0.2  # silence has 1; a guess of the five words about as much
    assert run.metrics["validation_word_error_rate"] < 0.3
    assert run.metrics["test_word_error_rate"] <= run.metrics["test_word_error_rate_without_language_model"]


def test_the_report_shows_where_letters_are_heard_and_what_is_confused(run):
    titles = [section.title for section in run.sections]
    assert titles == ["Most confused words", "What was heard", "Where each is heard"]
    pictures = run.sections[2].parts
    assert len(pictures) == 3 and all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    page = Path(run.report()).read_text()
    assert all(title in page for title in titles)


def test_a_run_answers_without_its_data(run, tmp_path):
    draw = np.random.default_rng(9)
    said = sentences(20, draw, longest=2)
    files = [write(tmp_path / f"{i}.wav", speak(sentence, draw)) for i, sentence in enumerate(said)]
    answers = list(thalweg.Task.answers(run.directory, files))
    assert jiwer.wer(said, [answer["answer"] for answer in answers]) < 0.2
    assert answers[0]["file"] == str(files[0]) and json.dumps(answers)
    double = write(tmp_path / "double.wav", speak(said[0], np.random.default_rng(1), 2 * RATE), 2 * RATE)
    assert next(iter(thalweg.Task.answers(run.directory, [double])))["answer"] == said[0]  # resampled
    quiet = write(tmp_path / "quiet.wav", np.zeros(4000, np.float32))
    with pytest.raises(ValueError, match="quiet.wav: the recording is silent"):
        list(thalweg.Task.answers(run.directory, [quiet]))
    with pytest.raises(ValueError, match="x.mfc: the recogniser was trained on sound"):
        list(thalweg.Task.answers(run.directory, [cepstra(tmp_path / "x.mfc", np.ones((9, 13)))]))


@pytest.mark.parametrize("network", ["recurrent", "conformer"])
def test_single_words_are_told_apart_as_wholes(tmp_path, network):
    digits(tmp_path / "data", takes=15)
    recipe = thalweg.recipe("speech-recognition", data=str(tmp_path / "data"), network=network, **SMALL)
    run = recipe.fit(run_dir=tmp_path / "run", batch_size=10, epochs=25, **QUICK | {"learning_rate": 0.003})
    assert run.metrics["test_accuracy"] > 0.8  # of five words
    assert run.metrics["test_word_error_rate"] == pytest.approx(1 - run.metrics["test_accuracy"])
    draw = np.random.default_rng(5)
    files = [write(tmp_path / f"{i}.wav", speak(word, draw)) for i, word in enumerate(4 * WORDS)]
    answers = list(thalweg.Task.answers(run.directory, files))
    assert sum(answer["answer"] == word for answer, word in zip(answers, 4 * WORDS, strict=True)) >= 15
    assert all(0.2 < answer["probability"] <= 1 for answer in answers)


class Interrupted(thalweg.Callback):
    """Presses Ctrl-C after the first epoch."""

    def on_validate(self, run, record):
        signal.raise_signal(signal.SIGINT)


def test_goes_on_exactly_where_it_was_stopped(folder, tmp_path):
    settings = {"epochs": 2, **QUICK}
    recipe = lambda: thalweg.recipe("speech-recognition", data=str(folder), **SMALL)  # noqa: E731
    whole = recipe().fit(run_dir=tmp_path / "whole", **settings)
    begun = recipe().fit(run_dir=tmp_path / "parts", **settings, callbacks=[Interrupted()])
    assert begun.stopped_because == "interrupted" and begun.steps < whole.steps
    parts = thalweg.resume(tmp_path / "parts", verbose=False)
    assert whole.metrics == parts.metrics
    for one, other in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def run_facts(run):
    return json.loads((run.directory / "facts.json").read_text())


def test_the_network_goes_to_onnx(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    given = example(run_facts(run))
    thalweg.export(run.model, tmp_path / "heard.onnx", example=given)
    session = onnxruntime.InferenceSession(tmp_path / "heard.onnx")
    draw = np.random.default_rng(2)
    sounds = [speak(sentence, draw) for sentence in ("ab cd", "dab", "ba cad")]
    lengths = torch.tensor([len(sound) for sound in sounds])
    padded = np.stack([np.pad(sound, (0, given[0].shape[1] - len(sound))) for sound in sounds])
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, dict(zip(names, (padded, lengths.numpy()), strict=True)))[0]
    expected = run.model.eval()(torch.from_numpy(padded), lengths).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_cepstra_in_sphinx_layout_train_too(tmp_path):
    sphinx(tmp_path / "data")
    recipe = thalweg.recipe("speech-recognition", data=str(tmp_path / "data"), **SMALL)
    run = recipe.fit(run_dir=tmp_path / "run", epochs=1, **QUICK)
    assert run.metrics["test_word_error_rate"] > 0 and len(run.sections) == 3
    file = next((tmp_path / "data").rglob("*.mfc"))
    assert len(list(thalweg.Task.answers(run.directory, [file]))) == 1
    assert thalweg.predict(thalweg.load(run.directory), example(run_facts(run))).shape[:2] == (2, 250)


def test_parts_do_not_overlap_and_the_seed_decides(folder):
    made, again, other = (make(folder, **SMALL, seed=seed) for seed in (1, 1, 2))
    test = made["callbacks"][0].test
    parts = [len(made["data"][0][1]), len(made["validation_data"][0][1]), len(test)]
    assert parts == [146, 16, 18]
    sums = [[float(row.abs().sum()) for row in made[part][0][0]] for part in ("data", "validation_data")]
    sums.append([float(np.abs(row).sum()) for row in test.utterances])
    assert len({round(total, 4) for part in sums for total in part}) == 180
    assert torch.equal(made["data"][0][1], again["data"][0][1]) and made["facts"] == again["facts"]
    assert not torch.equal(made["data"][0][1], other["data"][0][1])
    assert made["facts"]["language"]["sentences"] == [
        decoded(row.tolist(), made["facts"]) for row in made["data"][1][0]
    ]  # of what is learned from, not of what is judged by


def test_speakers_are_held_out_as_wholes_where_each_has_a_folder(tmp_path):
    for number in range(10):
        beside(tmp_path / f"speaker {number}", 3, seed=number)
    found, _ = find(tmp_path, BadData())
    parts = _split(found, None, 0.2, seed=0)
    assert [len(part) for part in parts] == [21, 3, 6]
    speakers = [{said.path.parent for said in part} for part in parts]
    assert not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])
    named = [replace(said, words=normalised(said.path.parent.name)) for said in found]
    assert len(_groups(named)) == 30 and len(_groups(found)) == 10


# ── bad data ──


def spoiled(folder, number, sound=None, rate=RATE, words=None):
    path = folder / f"{number:03}.wav"
    if sound is not None:
        write(path, np.asarray(sound, np.float32), rate)
    if words is not None:
        path.with_suffix(".txt").write_text(words)
    return path.name


LONG = speak("ab", np.random.default_rng(0))
BAD = {
    "empty": (lambda f: spoiled(f, 4, []), "the recording is empty"),
    "silent": (lambda f: spoiled(f, 4, np.zeros(5000)), "the recording is silent"),
    "clipped": (lambda f: spoiled(f, 4, (30 * LONG).clip(-1, 1)), "the recording is clipped"),
    "too short": (lambda f: spoiled(f, 4, LONG[:900]), "the recording is too short for its transcript"),
    "no sound": (lambda f: (f / "004.wav").write_bytes(b"RIFF"), "the recording cannot be read as sound"),
    "no transcript": (lambda f: (f / "004.txt").unlink(), "its transcript is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings_are_refused_or_skipped_and_counted(tmp_path, case):
    spoil, sentence = BAD[case]
    beside(tmp_path, 20)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=f"004.wav: {sentence}"):
        make(tmp_path, **SMALL)
    made = make(tmp_path, **SMALL, on_bad_data="skip")
    left = [len(made["data"][0][1]), len(made["validation_data"][0][1]), len(made["callbacks"][0].test)]
    assert sum(left) == 19
    (note,) = made["notes"]
    assert note.startswith(f"Skipped 1: {sentence}") and "004.wav" in note


def test_letters_that_training_never_saw(tmp_path):
    beside(tmp_path, 20)
    held = make(tmp_path, **SMALL)["callbacks"][0].test.places[0]
    (tmp_path / held).with_suffix(".txt").write_text("ab x")
    with pytest.raises(ValueError, match=f"{held}: the transcript has letters that training never saw: x"):
        make(tmp_path, **SMALL)
    (note,) = make(tmp_path, **SMALL, on_bad_data="skip")["notes"]
    assert held in note


def test_another_rate_is_brought_to_that_of_most_and_said(tmp_path):
    beside(tmp_path, 20)
    name = spoiled(tmp_path, 7, speak("ab", np.random.default_rng(0), 2 * RATE), 2 * RATE)
    made = make(tmp_path, **SMALL)
    assert made["facts"]["rate"] == RATE
    (note,) = made["notes"]
    assert note.startswith("Resampled 1 from 16,000 to 8,000 samples a second") and name in note


def test_a_text_for_the_language_model(tmp_path):
    beside(tmp_path, 20)
    text = tmp_path / "more.text"
    text.write_text("Cab dab.\n\nzoo\n")
    with pytest.raises(ValueError, match="more.text, line 3: the transcript has letters that training never saw: o z"):
        make(tmp_path, **SMALL, text=text)
    made = make(tmp_path, **SMALL, text=text, on_bad_data="skip")
    assert made["facts"]["language"]["sentences"][-1] == "cab dab"
    assert make(tmp_path, **SMALL, language_model=False)["facts"]["language"] is None


WRONG = {
    "network": ({"network": "lstm"}, "network takes recurrent, conformer, got 'lstm'"),
    "units": ({"units": "phones"}, "units takes auto, letters, words, got 'phones'"),
    "share": ({"held_out": 1.0}, "held_out is a share"),
    "bad data": ({"on_bad_data": "ignore"}, "on_bad_data takes refuse or skip"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_are_not_understood(tmp_path, case):
    options, sentence = WRONG[case]
    beside(tmp_path, 3)
    with pytest.raises(ValueError, match=sentence):
        make(tmp_path, **options)


def test_too_few_recordings_and_none_that_are_sound(tmp_path):
    beside(tmp_path, 2)
    with pytest.raises(ValueError, match="2 recordings are too few"):
        make(tmp_path)
    beside(tmp_path, 3)
    for path in tmp_path.glob("*.wav"):
        write(path, np.zeros(900, np.float32))
    with pytest.raises(ValueError, match="holds no sound recording to learn from: Skipped"):
        make(tmp_path, on_bad_data="skip")
    for path in tmp_path.glob("*.wav"):
        path.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="none of the recordings can be read as sound"):
        make(tmp_path, on_bad_data="skip")


# ── units and errors ──


def test_units_are_words_where_each_recording_is_one_of_a_few():
    assert choose(["one", "two", "one"], "auto") == (["one", "two"], " ")
    assert choose(["one", "two one"], "auto") == ([" ", "e", "n", "o", "t", "w"], "")
    assert choose(["one", "two"], "letters")[0] == ["e", "n", "o", "t", "w"]
    assert len(choose([f"w{i}" for i in range(101)], "auto")[0]) == 11
    facts = {"units": ["one", "two"], "joint": " "}
    assert decoded(encoded("two one", facts), facts) == "two one"
    with pytest.raises(ValueError, match="the transcript has words that training never saw: six"):
        encoded("one six", facts)
    assert decoded([1, 2, 1, 1, 3], {"units": [" ", "a", "b"], "joint": ""}) == "a b"


def test_word_errors_are_counted_as_jiwer_counts_them():
    said, heard = ["a b c", "d", "e f", "g"], ["a x c", "", "e f", "g h"]
    errors, words, confused = word_errors(said, heard)
    assert (errors, words) == (3, 7) and errors / words == pytest.approx(jiwer.wer(said, heard))
    assert dict(confused) == {("b", "x"): 1, ("", "h"): 1, ("d", ""): 1}


def test_the_metric_is_exact_over_uneven_batches():
    facts = {"units": [" ", "a", "b"], "joint": ""}
    metric = WordErrors(facts)

    def batch(heard, said):
        labels = [encoded(sentence, facts) for sentence in said]
        counts = torch.tensor([len(row) for row in labels])
        paths = [[unit for label in encoded(sentence, facts) for unit in (label, 0)] for sentence in heard]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(path, dtype=torch.int64) for path in paths], True)
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in labels], True)
        return torch.nn.functional.one_hot(padded, 4).float(), (labels, counts, counts)

    metric.update(*batch(["a b", "b"], ["a a", "b"]))
    metric.update(*batch(["ab b a"], ["b a"]))
    assert metric.compute() == pytest.approx(2 / 5)


def test_a_picture_shows_frames_and_letters():
    energies = np.linspace(-10, 0, 60 * 40).reshape(60, 40)
    png = spectrogram(energies, [(2, 4, "a"), (9, 11, "b")])
    image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert image.shape == (40 * 4 + 22, 60 * 4)
    below = image[165:]
    assert below[:, 2 * 16 : 2 * 16 + 12].min() < 100 and below[:, 9 * 16 : 9 * 16 + 12].min() < 100
    assert below[:, 5 * 16 : 8 * 16].min() == 255
    assert image[:160, -20:].mean() < image[:160, :20].mean()  # louder is darker


# ── real data ──


@pytest.mark.skipif(not DATA.is_dir(), reason="the real recordings are not here")
def test_real_recordings_are_read(tmp_path):
    for name in ("fsdd", "an4-mfcc-subset", "ljspeech-sample"):
        with tarfile.open(DATA / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
    made = make(tmp_path / "fsdd")
    assert len(made["facts"]["units"]) == 10 and made["facts"]["single"] and not made["notes"]
    assert len(made["data"][0][1]) == 2430 and len(made["callbacks"][0].test) == 300
    made = make(tmp_path / "an4")
    assert made["facts"]["rate"] is None and len(made["facts"]["units"]) == 27 and not made["notes"]
    assert len(made["data"][0][1]) == 419 and len(made["callbacks"][0].test) == 130
    made = make(tmp_path / "ljspeech", held_out=0.2, on_bad_data="skip")
    assert made["facts"]["rate"] == 22050
    assert soundfile.info(str(next(tmp_path.rglob("LJ*.wav")))).samplerate == 22050
