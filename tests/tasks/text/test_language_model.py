import gzip
import math
import random

import pytest
import torch
from torch.nn import functional as F

import thalweg
from thalweg.tasks.text.language_model import build, example, make, overlapping, predict, windows
from thalweg.tasks.text.language_networks import LSTMLanguageModel, TransformerLanguageModel
from thalweg.tasks.text.sampling import continued
from thalweg.tasks.text.tokens import Characters

WORDS = ["mother", "father", "brother", "sister", "winter", "summer", "river", "mountain"]


@pytest.fixture
def text(tmp_path):
    """Words in a random order: only what follows within a word can be foreseen."""
    draw = random.Random(0)
    path = tmp_path / "words.txt"
    path.write_text("".join(draw.choice(WORDS) + (" " if i % 8 else "\n") for i in range(2000)))
    return path


def unigram(text):
    """Nats a character of one who knows how often each occurs, and nothing else."""
    return -sum(text.count(c) / len(text) * math.log(text.count(c) / len(text)) for c in set(text))


@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_it_learns_words_answers_and_comes_back(network, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"data": text, "network": network, "width": 32, "layers": 1, "length": 32}
    recipe = thalweg.recipe("language-model", **options)
    run = recipe.fit(epochs=4, run_dir="run", verbose=False, learning_rate=0.01, batch_size=16)
    # Of each word but its first letter nearly everything can be foreseen: far below what counting letters gives.
    assert run.metrics["validation_loss"] < 0.5 * unigram(text.read_text())
    assert run.metrics["perplexity"] == pytest.approx(math.exp(run.metrics["validation_loss"]))
    assert run.metrics["nats_per_character"] == pytest.approx(run.metrics["validation_loss"])
    titles = [section.title for section in run.sections]
    assert titles == ["Held-out text", "Samples"]
    assert "Samples" in run.report().read_text()

    text.unlink()  # a trained model is asked without its data
    again = thalweg.load("run")
    assert torch.equal(again.head.weight, run.model.head.weight)
    (tmp_path / "prompts.txt").write_text("mot\n\nwin\n")
    answers = list(thalweg.Task.answers("run", [tmp_path / "prompts.txt"]))
    assert [answer["line"] for answer in answers] == [1, 2, 3] and answers[1]["answer"] == ""
    assert all(answer["answer"].startswith(answer["prompt"]) for answer in answers)
    written = " ".join(answer["answer"] for answer in answers).split()
    assert sum(word in WORDS for word in written) > 0.4 * len(written)


def test_byte_pairs_are_counted_in_characters_too(text, tmp_path):
    recipe = thalweg.recipe("language-model", data=text, vocabulary=280, width=32, layers=1, length=16)
    run = recipe.fit(epochs=1, run_dir=tmp_path / "run", verbose=False)
    assert recipe.arguments["model"].head.out_features == 280
    assert run.metrics["nats_per_character"] < run.metrics["validation_loss"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("été, summer\n", encoding="utf-8")  # letters that the text does not have are bytes
    assert next(iter(predict(run.model.eval(), recipe.facts, [prompts])))["answer"].startswith("été, summer")


#: Muon times which arithmetic is faster, and two runs may each find another.
EXACT = {"optimizer_options": {"arithmetic": "exact"}}


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(text, tmp_path):
    options = {"data": text, "width": 32, "layers": 1, "length": 32, "dropout": 0.1}
    fixed = {
        "verbose": False,
        "learning_rate": 0.01,
        "batch_size": 64,
        "repair": "off",
        "schedule": "constant",
        **EXACT,
    }
    whole = thalweg.recipe("language-model", **options).fit(steps=12, run_dir=tmp_path / "whole", **fixed)
    thalweg.recipe("language-model", **options).fit(steps=7, run_dir=tmp_path / "half", **fixed)
    half = thalweg.resume(tmp_path / "half", steps=12, verbose=False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, half.model.state_dict()[name]), name


def test_weights_go_out(text, tmp_path):
    recipe = thalweg.recipe("language-model", data=text, width=32, layers=1, length=16)
    model = recipe.arguments["model"].eval()
    thalweg.export(model, tmp_path / "m.safetensors", "safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size > 4 * sum(p.numel() for p in model.parameters())
    assert model(example(recipe.facts)).shape == (2, 16, recipe.facts["vocabulary"])


# ── what comes next ──


def networks():
    torch.manual_seed(0)
    return [
        TransformerLanguageModel(11, 32, 2, 2, 0.0, 16).eval(),
        LSTMLanguageModel(11, 32, 2, 0.0, 16).eval(),
    ]


@pytest.mark.parametrize("model", networks(), ids=["transformer", "lstm"])
def test_nothing_is_seen_of_what_is_to_come(model):
    x = torch.randint(11, (3, 16))
    later = x.clone()
    later[:, 9:] = (later[:, 9:] + 1) % 11
    torch.testing.assert_close(model(x)[:, :9], model(later)[:, :9])
    assert not torch.allclose(model(x)[:, 9:], model(later)[:, 9:])


@pytest.mark.parametrize("model", networks(), ids=["transformer", "lstm"])
def test_read_token_by_token_it_says_the_same_as_at_once(model):
    x = torch.randint(11, (3, 16))
    said, state = model.read(x[:, :5])
    for place in range(5, 16):
        torch.testing.assert_close(said, model(x)[:, place - 1], rtol=1e-4, atol=1e-4)
        said, state = model.read(x[:, place : place + 1], state)


def test_a_continuation_outlasts_the_window_and_repeats():
    model = networks()[0]
    letters = Characters("abcdefghij")
    first = continued(model, letters, ["abc"], length=50, seed=1)
    assert len(first[0]) == 50 and first == continued(model, letters, ["abc"], length=50, seed=1)
    assert first != continued(model, letters, ["abc"], length=50, seed=2)


@pytest.mark.parametrize("count", [21, 22, 23, 6, 2])
def test_each_token_but_the_first_is_a_target_once(count):
    x, y = windows(torch.arange(count), 5)
    assert y[y >= 0].tolist() == list(range(1, count))
    assert torch.equal(x[y >= 0] + 1, y[y >= 0])


def test_windows_that_are_trained_on_overlap_and_take_no_memory():
    tokens = torch.arange(23)
    x, y = overlapping(tokens, 6, step=3)
    assert x[:, 0].tolist() == [0, 3, 6, 9, 12, 15] and torch.equal(x + 1, y)
    assert x.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()


def test_what_an_lstm_reads_first_reaches_the_end_and_so_does_its_gradient():
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, 64, 1, 0.0, 128)
    embedded = torch.randn(4, 128, 64, requires_grad=True)
    hidden, _ = model.recurrent(embedded)
    hidden[:, -1].square().sum().backward()
    norms = embedded.grad.norm(dim=-1).mean(0)
    assert norms[0] > 1e-3 * norms[-1]  # with forget biases of 0 it is 5e-22, of 1 it is 2e-7


def test_the_loss_of_a_batch_is_that_of_its_real_positions():
    x, y = windows(torch.randint(11, (23,)), 16)
    model = networks()[0]
    with torch.no_grad():
        real = [(model(x[i : i + 1])[0, : (y[i] >= 0).sum()], y[i][y[i] >= 0]) for i in (0, 1)]
    losses = [F.cross_entropy(*pair, reduction="sum") for pair in real]
    measured = thalweg.evaluate(model, (x, y), "cross_entropy")["loss"]
    assert measured == pytest.approx(float(sum(losses)) / 22, rel=1e-5)


# ── bad data ──


def test_gzipped_text_is_the_same_text(text, tmp_path):
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
    plain, packed = make(text, length=16), make(tmp_path / "words.txt.gz", length=16)
    assert torch.equal(plain["data"][0], packed["data"][0])


def test_what_is_not_utf_8_is_named_or_skipped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good line of text\n" * 20 + b"caf\xe9 au lait\n" + b"another line\n" * 20)
    with pytest.raises(ValueError, match=r"a.txt, line 21, byte 4: the text is not UTF-8"):
        make(path, length=8)
    made = make(path, length=8, on_bad_data="skip")
    assert made["notes"] == [f"Skipped 1: the text is not UTF-8 ({path}, line 21, byte 4)."]
    assert "caf" not in made["facts"]["tokens"]["characters"]


@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_refused(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="is empty"):
        make(tmp_path / "a.txt")


def test_a_damaged_archive_a_short_text_and_no_file_are_said(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text " * 1000)[:-12])
    with pytest.raises(ValueError, match="damaged or cut-off gzip"):
        make(tmp_path / "a.gz")
    (tmp_path / "short.txt").write_text("a few words only\n")
    with pytest.raises(ValueError, match="too short"):
        make(tmp_path / "short.txt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        make(tmp_path / "none.txt")


def test_a_width_that_heads_cannot_share_is_refused(text):
    with pytest.raises(ValueError, match="width 130 cannot be shared by 2 attention heads .* a multiple of 64"):
        make(text, width=130, length=16)


def test_the_network_is_made_again_from_its_facts(text):
    made = make(text, length=16, width=64, layers=2)
    shapes = {name: p.shape for name, p in made["model"].state_dict().items()}
    assert shapes == {name: p.shape for name, p in build(made["facts"]).state_dict().items()}
