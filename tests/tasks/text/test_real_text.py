"""The data sets at hand, where they are: what is read of them, and first steps on it."""

from pathlib import Path

import pytest
import torch

import thalweg
from thalweg.tasks.task import BadData
from thalweg.tasks.text import aligned, papers
from thalweg.tasks.text.tokens import BytePairs
from thalweg.tasks.text.translation_report import corpus_bleu

DATA = Path(__file__).parents[4] / "shared" / "data" / "text"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}")


def test_tiny_shakespeare(tmp_path):
    recipe = thalweg.recipe("language-model", data=DATA / "tinyshakespeare.txt", width=64, layers=1, length=64)
    facts, (x, _) = recipe.facts, recipe.arguments["data"]
    assert facts["vocabulary"] == 66  # 65 characters, and what stands for any other
    assert x.shape == ((1_003_854 - 1 - 64) // 32 + 1, 64)
    held_out = recipe.arguments["validation_data"][1]
    assert int((held_out >= 0).sum()) == 111_540 - 1
    x, y = recipe.arguments["data"]
    some = tuple(part[::40] for part in recipe.arguments["validation_data"])
    run = recipe.fit(data=(x[:1600], y[:1600]), validation_data=some, epochs=1, run_dir=tmp_path / "run", verbose=False)
    assert run.metrics["validation_loss"] < 3.0  # one who counts characters comes to 3.3


def test_multi30k():
    parts = aligned.read_parts(DATA / "multi30k", "en", "de", 1000, BadData("refuse"), seed=0)
    assert (len(parts.train), len(parts.validation)) == (29_000, 1_014)
    assert {name: len(pairs) for name, pairs in parts.tests.items()} == {
        "test_2016_flickr": 1000,
        "test_2017_flickr": 1000,
    }
    sentences = [text for pair in parts.validation for text in pair]
    tokens = BytePairs.learned(sentences, 1000)
    assert [tokens.decode(row) for row in tokens.encode_all(sentences)] == sentences
    references = [target for _, target in parts.validation]
    assert corpus_bleu(references, references)[0] == pytest.approx(100)
    assert corpus_bleu([source for source, _ in parts.validation], references)[0] < 10


def test_scitldr():
    parts = papers.read_parts(DATA / "scitldr-a", ("source", "target"), 20_000, BadData("refuse"), seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (1992, 619, 618)
    assert sum(len(paper.summaries) for paper in parts.test) == 1967
    assert torch.tensor([len(paper.sentences) for paper in parts.train]).float().mean() == pytest.approx(7.17, abs=0.01)
