import gzip
import random
import signal
import sys

import pytest
import torch

import thalweg
from thalweg.tasks.task import BadData
from thalweg.tasks.text.aligned import read_pairs, read_parts
from thalweg.tasks.text.tokens import BytePairs, vocabulary_of
from thalweg.tasks.text.translation import build, coded, example, make, predict, translated
from thalweg.tasks.text.translation_report import corpus_bleu, sentence_bleu

WORDS = {"red": "rot", "blue": "blau", "green": "gruen", "small": "klein", "big": "gross", "old": "alt"}
THINGS = {"house": "haus", "tree": "baum", "dog": "hund", "car": "auto"}


def sentence(draw):
    """An adjective stands before its thing here and after it there."""
    pairs = [(draw.choice(list(WORDS)), draw.choice(list(THINGS))) for _ in range(draw.choice((1, 2)))]
    there = " und ".join(f"{THINGS[thing]} {WORDS[word]}" for word, thing in pairs)
    return " and ".join(f"{word} {thing}" for word, thing in pairs), there


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)
    data = tmp_path / "data"
    data.mkdir()
    for part, count in (("train", 600), ("val", 40), ("test_a", 30)):
        pairs = [sentence(draw) for _ in range(count)]
        for ending, side in (("en", 0), ("de", 1)):
            (data / f"{part}.{ending}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    return data


SMALL = {"vocabulary": 360, "width": 32, "layers": 1}


@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_it_learns_to_translate_and_answers(network, folder, tmp_path):
    recipe = thalweg.recipe("translation", data=folder, network=network, **SMALL)
    run = recipe.fit(epochs=20, run_dir=tmp_path / "run", verbose=False, learning_rate=0.01, batch_size=16)
    # Words in the source's order, or the right words of other sentences, come to less than half of this.
    assert run.metrics["bleu"] > 80
    assert run.metrics["bleu"] == run.metrics["bleu_test_a"] and "bleu_validation" in run.metrics
    assert [section.title for section in run.sections] == ["Translations", "What a translation looks at"]
    report = run.report().read_text()
    assert "What a translation looks at" in report and "nrefs:1|case:mixed|eff:no|tok:13a" in report

    for path in folder.iterdir():
        path.unlink()  # a trained model is asked without its data
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("big dog\n\nold house and red tree\n")
    answers = list(thalweg.Task.answers(tmp_path / "run", [sentences]))
    assert [answer["answer"] for answer in answers][:2] == ["hund gross", ""]
    assert answers[2]["answer"].startswith("haus alt und ")
    assert [answer["line"] for answer in answers] == [1, 2, 3]


#: Muon times which arithmetic is faster, and two runs may each find another.
EXACT = {"optimizer_options": {"arithmetic": "exact"}}


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(folder, tmp_path):
    fixed = {"verbose": False, "batch_size": 64, "repair": "off", "schedule": "constant", **EXACT}
    recipe = thalweg.recipe("translation", data=folder, **SMALL)
    whole = recipe.fit(steps=14, run_dir=tmp_path / "whole", **fixed)
    thalweg.recipe("translation", data=folder, **SMALL).fit(steps=8, run_dir=tmp_path / "half", **fixed)
    half = thalweg.resume(tmp_path / "half", steps=14, verbose=False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, half.model.state_dict()[name]), name


def test_one_who_interrupts_need_not_wait_for_scores(folder, tmp_path):
    class Stop(thalweg.Callback):
        def on_step(self, run, record):
            signal.raise_signal(signal.SIGINT)

    recipe = thalweg.recipe("translation", data=folder, **SMALL)
    run = recipe.fit(run_dir=tmp_path / "run", verbose=False, callbacks=[Stop()])
    assert run.stopped_because == "interrupted" and "bleu" not in run.metrics and not run.sections


def test_micro_batches_give_the_gradient_of_the_whole(folder, tmp_path):
    """Sentences of a batch have different lengths: each micro-batch counts for the positions that it has."""
    made = {}
    for accumulate in (1, 3):
        recipe = thalweg.recipe("translation", data=folder, **SMALL, dropout=0.0)
        fixed = {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": None, "repair": "off", "schedule": "constant"}
        run = recipe.fit(
            steps=1, batch_size=600, accumulate=accumulate, run_dir=tmp_path / str(accumulate), verbose=False, **fixed
        )
        made[accumulate] = run.history.series("loss")[1][0], run.model.state_dict()
    assert made[1][0] == pytest.approx(made[3][0], rel=1e-5)


def test_weights_go_out_and_the_network_is_made_again_from_its_facts(folder, tmp_path):
    recipe = thalweg.recipe("translation", data=folder, **SMALL)
    model = recipe.arguments["model"].eval()
    thalweg.export(model, tmp_path / "m.safetensors", "safetensors")
    again = build(recipe.facts)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}
    assert model(*example(recipe.facts)).shape == (2, 8, recipe.facts["vocabulary"])


def test_inputs_and_targets_are_one_token_apart(folder):
    pairs = read_parts(folder, "en", "de", 1000, BadData(), 0).train[:20]
    tokens = BytePairs.learned((text for pair in pairs for text in pair), 300)
    (source, answer), target = coded(tokens, pairs)
    for number, pair in enumerate(pairs):
        assert answer[number].tolist()[1:] == target[number].tolist()[:-1]
        assert (tokens.decode(source[number].tolist()), tokens.decode(target[number].tolist())) == pair


def test_scores_are_sacrebleus():
    assert corpus_bleu(["ein Hund läuft über die Wiese ."], ["ein Hund läuft über die Wiese ."])[0] == pytest.approx(
        100
    )
    # Three of four words, two of three pairs, one of two triples, none of four (smoothed to 1/2): by hand.
    score, ratio, signature = corpus_bleu(["a b c x"], ["a b c d"])
    assert score == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25, rel=1e-6) and ratio == 1
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert sentence_bleu(["a b"], ["a b"]) == [pytest.approx(100)]


# ── bad data ──


def write(folder, part, here, there, pack=bytes):
    (folder / f"{part}.en").write_bytes(pack(here))
    (folder / f"{part}.de").write_bytes(pack(there))


CASES = {
    "no partner": (b"a\nb\nc\n", b"x\ny\n", r"en, line 3: the line has no partner: its other file ends at line 2", 2),
    "no partner there": (b"a\n", b"x\ny\n", r"de, line 2: the line has no partner", 1),
    "not UTF-8": (b"a\nb\nc\n", b"x\n\xff\nz\n", r"de, line 2, byte 1: the text is not UTF-8", 2),
    "empty": (b"a\n \nc\n", b"x\ny\nz\n", r"en, line 2: the line is empty", 2),
    "too long": (b"a\n" + b"b" * 41 + b"\nc\n", b"x\ny\nz\n", r"en, line 2: the line is longer than 40 characters", 2),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_lines_are_named_or_skipped(case, tmp_path):
    here, there, words, left = CASES[case]
    write(tmp_path, "train", here, there)
    files = tmp_path / "train.en", tmp_path / "train.de"
    with pytest.raises(ValueError, match=words):
        read_pairs(*files, 40, BadData("refuse"))
    bad = BadData("skip")
    pairs = read_pairs(*files, 40, bad)
    assert len(pairs) == left and len(bad.notes()) == 1
    assert all((ord(b) - ord(a)) == ord("x") - ord("a") for a, b in pairs)  # those that are left still belong together


def test_an_empty_file_a_missing_one_and_no_folder_are_said(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        make(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"lacks train.en\[.gz\] or train.fr\[.gz\]"):
        make(folder, target_language="fr")
    (folder / "val.de").write_bytes(b"")
    with pytest.raises(ValueError, match="val.de is empty"):
        make(folder)


def test_archives_are_read_and_a_part_is_held_out_where_there_is_none(folder):
    plain = read_parts(folder, "en", "de", 1000, BadData(), 0)
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_parts(folder, "en", "de", 1000, BadData(), 0) == plain
    for path in folder.glob("val*"):
        path.unlink()
    parts = read_parts(folder, "en", "de", 1000, BadData(), 0)
    assert len(parts.validation) == 30 and len(parts.train) == 570
    assert sorted(parts.train + parts.validation) == sorted(plain.train)


@pytest.mark.parametrize("part", ["val", "test_a"])
def test_a_part_without_a_usable_pair_is_named_before_the_training(part, folder):
    write(folder, part, b"a\n \n", b" \ny\n")
    with pytest.raises(ValueError, match=f"the part {part} has no pair that can be used"):
        read_parts(folder, "en", "de", 1000, BadData("skip"), 0)


def test_a_missing_scorer_is_said_before_the_training(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match="needs the package sacrebleu"):
        make(folder, **SMALL)


@pytest.mark.parametrize("name", ["val.en", "test_b.en", "test_b.de"])
def test_a_file_without_its_partner_is_refused_or_counted(name, folder):
    stem = name.split(".")[0]
    for path in folder.glob(f"{stem}.*"):
        path.unlink()
    (folder / name).write_text("big dog\n")
    with pytest.raises(ValueError, match=f"{name}: the file has no partner in the other language"):
        read_parts(folder, "en", "de", 1000, BadData(), 0)
    bad = BadData("skip")
    read_parts(folder, "en", "de", 1000, bad, 0)
    assert bad.counts == {"the file has no partner in the other language": 1}


def test_an_answer_does_not_depend_on_its_neighbours(folder):
    made = make(folder, **SMALL, seed=1)
    tokens, model = vocabulary_of(made["facts"]["tokens"]), made["model"].eval()
    texts = ["dog", "big dog and old house and small tree and red car"]
    together, alone = translated(model, tokens, texts), translated(model, tokens, texts[:1])
    assert together[0][:2] == alone[0][:2]
    # An untrained network finds no end: the limit is 2 · own length + 10.
    assert len(alone[0][1]) == 2 * (len(tokens.encode("dog")) + 1) + 10


def test_lines_are_asked_as_they_were_learned_and_an_empty_one_stays_empty(folder, tmp_path):
    made = make(folder, **SMALL, longest=40)
    model, asked = made["model"].eval(), tmp_path / "asked.txt"
    asked.write_text("big dog\n \n  big dog\t\n")
    plain, empty, spaced = predict(model, made["facts"], [asked])
    assert plain["answer"] == spaced["answer"] and plain["score"] == pytest.approx(spaced["score"])
    assert (empty["answer"], empty["line"], spaced["line"]) == ("", 2, 3)

    asked.write_text("big dog\n" + "big dog " * 9 + "\n")
    with pytest.raises(ValueError, match=f"{asked}, line 2: the line is longer than 40 characters"):
        next(predict(model, made["facts"], [asked]))
    old = {name: fact for name, fact in made["facts"].items() if name != "longest"}
    assert len(list(predict(model, old, [asked]))) == 2  # runs of earlier versions say no limit
