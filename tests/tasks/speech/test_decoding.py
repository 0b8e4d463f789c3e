"""The search, the alignment and the language model, each beside a slow twin that tries everything."""

import itertools
import math

import numpy as np
import pytest
import torch

from thalweg.tasks.speech.align import align, needed
from thalweg.tasks.speech.beam import Fusion, greedy, search, single
from thalweg.tasks.speech.language import EDGE, LanguageModel

UNITS = ["a", "b"]


def collapsed(path):
    return tuple(unit for unit, _ in itertools.groupby(path) if unit)


def by_hand(scores, fusion=None):
    """log p of every sentence, summed over all paths, and what the language model adds."""
    log_p = scores.double().log_softmax(-1)
    found = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        value = sum(log_p[t, unit].item() for t, unit in enumerate(path))
        said = collapsed(path)
        found[said] = np.logaddexp(found.get(said, -math.inf), value)
    if fusion is not None:
        for said in found:
            words = [UNITS[unit - 1] for unit in said]
            line = (*words, EDGE)
            found[said] += fusion.bonus * len(words)
            found[said] += fusion.weight * sum(
                fusion.model.log_probability(unit, line[:place]) for place, unit in enumerate(line)
            )
    return found


LANGUAGE = LanguageModel(UNITS, [["a", "b", "b"], ["b", "a"]], order=3)


@pytest.mark.parametrize("fusion", [None, Fusion(LANGUAGE, 0.7, 0.4)], ids=["sound", "with language"])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_summing_over_all_paths_finds(seed, fusion):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    found, value = search(scores, UNITS, width=200, fusion=fusion)
    expected = by_hand(scores, fusion)
    best = max(expected, key=expected.get)
    assert tuple(found) == best and value == pytest.approx(expected[best], abs=1e-9)


def test_a_language_model_overrules_the_sound_where_that_is_in_doubt():
    doubt = torch.full((3, 3), -9.0)
    doubt[0, 1] = doubt[1, 0] = 0
    doubt[2, 1], doubt[2, 2] = 0.1, 0.0
    assert search(doubt, UNITS)[0] == [1, 1]
    model = LanguageModel(UNITS, [["a", "b"]] * 9)
    assert search(doubt, UNITS, fusion=Fusion(model, 0.5, 0.0))[0] == [1, 2]


def test_one_word_is_judged_over_all_its_alignments():
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = by_hand(scores)
    assert single(scores).tolist() == pytest.approx([expected[(1,)], expected[(2,)]])


def test_greedy_joins_what_repeats_and_leaves_out_blanks():
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [2, 2, 2, 1, 0, 0, 0, 0]])
    assert greedy(torch.nn.functional.one_hot(path, 3).float()) == [[1, 1, 2], [2, 1]]


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2]])
@pytest.mark.parametrize("seed", range(3))
def test_the_alignment_is_the_likeliest_path(labels, seed):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    log_p = scores.double().log_softmax(-1)
    paths = [p for p in itertools.product(range(3), repeat=6) if list(collapsed(p)) == labels]
    best = max(paths, key=lambda path: sum(log_p[t, unit].item() for t, unit in enumerate(path)))
    runs, place = [], 0
    for unit, run in itertools.groupby(best):
        length = len(list(run))
        runs += [(place, place + length)] if unit else []
        place += length
    assert align(scores, labels) == runs


def test_equal_neighbours_need_a_blank_between():
    assert [needed(labels) for labels in ([], [1], [1, 2], [1, 1, 1])] == [0, 1, 2, 5]
    with pytest.raises(ValueError, match="2 units need at least 3 frames, there are 2"):
        align(torch.zeros(2, 3), [1, 1])


def test_probabilities_of_what_comes_next_sum_to_one():
    model = LanguageModel(["a", "b", "c"], ["abab", "bac", "a"], order=4)
    for past in ("", "a", "ab", "xyz", "bab", "cc"):
        total = sum(math.exp(model.log_probability(unit, past)) for unit in ["a", "b", "c", EDGE])
        assert total == pytest.approx(1)


def test_a_history_that_was_shortened_gives_the_same_probability():
    model = LanguageModel(["a", "b", "c"], ["abab", "bac", "a"], order=4)
    for sentence in ("abcab", "ccc", "babab"):
        history = model.start()
        for place, unit in enumerate(sentence):
            assert model.after(history, unit) == pytest.approx(model.log_probability(unit, sentence[:place]))
            history = model.next(history, unit)


def test_the_bigram_by_hand():
    model = LanguageModel(["a", "b"], ["ab", "aa"], order=2)
    # After a came b, a and the end once each; of all six units, ends among them, a came 3 times, b once, the end twice.
    b = (1 + 3 * (1 / 3)) / (6 + 3)
    assert math.exp(model.log_probability("b", "a")) == pytest.approx((1 + 3 * b) / (3 + 3))
    assert model.perplexity(["ab"]) < model.perplexity(["bb"])
