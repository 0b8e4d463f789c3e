import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.tasks.text.beam import search
from thalweg.tasks.text.tokens import BEGIN, END, PADDING
from thalweg.tasks.text.translation_networks import LSTMTranslator, TransformerTranslator

KINDS = 6


class Table(nn.Module):
    """Probabilities of the next token by the source and the last two tokens."""

    def __init__(self, seed, sharpness=2.0):
        super().__init__()
        logits = torch.randn(3, KINDS, KINDS, KINDS, generator=torch.Generator().manual_seed(seed)) * sharpness
        logits[..., [PADDING, BEGIN]] = -30.0
        self.logits = nn.Parameter(logits)

    def begin(self, source):
        return {"source kind": source[:, 0], "last": torch.full((len(source),), BEGIN)}

    def step(self, tokens, state):
        return self.logits[state["source kind"], state["last"], tokens], {**state, "last": tokens}

    def log_p(self, kind, answer):
        last, before, total = BEGIN, BEGIN, 0.0
        for token in answer:
            total += float(F.log_softmax(self.logits[kind, before, last].detach(), -1)[token])
            before, last = last, token
        return total


def best_of_all(model, kind, longest, power):
    """Every answer there is, one by one."""
    answers = ((*middle, END) for n in range(1, longest) for middle in itertools.product(range(3, KINDS), repeat=n))
    scored = [(model.log_p(kind, answer) / len(answer) ** power, list(answer[:-1])) for answer in answers]
    return max(scored)


@pytest.mark.parametrize("power", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_with_room_for_all_it_finds_the_best_answer_there_is(seed, power):
    model, longest = Table(seed), 4
    found = search(model, torch.tensor([[0], [2], [1]]), longest, beams=60, power=power)
    for kind, tokens, score in zip((0, 2, 1), found.tokens, found.scores, strict=True):
        expected = best_of_all(model, kind, longest, power)
        assert tokens == expected[1]
        assert score == pytest.approx(expected[0], abs=1e-4)


def test_one_beam_takes_the_likeliest_token_each_time():
    model = Table(5)
    found = search(model, torch.tensor([[1]]), 12, beams=1)
    answer, last, before = [], BEGIN, BEGIN
    first = [token for token in range(KINDS) if token != END]  # an empty answer is none
    while (token := max(first if not answer else range(KINDS), key=model.logits[1, before, last].__getitem__)) != END:
        answer.append(token)
        before, last = last, token
    assert found.tokens[0] == answer


def test_more_beams_never_lose_and_sources_do_not_disturb_each_other():
    better = 0
    for seed in range(8):
        model = Table(seed, sharpness=1.0)
        source = torch.tensor([[0], [1], [2]])
        narrow, wide = (search(model, source, 8, beams=beams, power=0.0) for beams in (1, 16))
        assert all(a <= b + 1e-6 for a, b in zip(narrow.scores, wide.scores, strict=True))
        better += sum(a < b - 1e-3 for a, b in zip(narrow.scores, wide.scores, strict=True))
        alone = search(model, source[1:2], 8, beams=16, power=0.0)
        assert alone.tokens[0] == wide.tokens[1]
    assert better > 0


def test_an_answer_without_an_end_is_cut():
    model = Table(0)
    with torch.no_grad():
        model.logits[..., END] = -math.inf
    found = search(model, torch.tensor([[0]]), 5, beams=2)
    assert len(found.tokens[0]) == 5 and END not in found.tokens[0]


def test_each_source_has_a_limit_of_its_own():
    """Beside others an answer is the one that it is alone, whether it has ended or is cut."""
    for seed in range(6):
        model, source, limits = Table(seed, sharpness=1.0), torch.tensor([[0], [1], [2], [1]]), [2, 9, 4, 3]
        found = search(model, source, torch.tensor(limits), beams=3)
        for row, limit in enumerate(limits):
            alone = search(model, source[row : row + 1], limit, beams=3)
            assert (alone.tokens[0], alone.scores[0]) == (found.tokens[row], pytest.approx(found.scores[row]))
            assert len(found.tokens[row]) <= limit
    with torch.no_grad():
        model.logits[..., END] = -math.inf
    found = search(model, source, torch.tensor(limits), beams=2)
    assert [len(tokens) for tokens in found.tokens] == limits
    assert found.scores[0] == pytest.approx(model.log_p(0, found.tokens[0]) / 2, abs=1e-4)


@pytest.mark.parametrize("kind", [TransformerTranslator, LSTMTranslator])
def test_answers_do_not_depend_on_the_padding_of_their_source(kind):
    torch.manual_seed(1)
    model = (kind(30, 32, 2, 2, 0.0) if kind is TransformerTranslator else kind(30, 32, 2, 0.0)).eval()
    short = torch.tensor([[5, 6, 7, END]])
    padded = torch.cat((F.pad(short, (0, 5), value=PADDING), torch.randint(3, 30, (1, 9))))
    alone, beside = search(model, short, 10), search(model, padded, 10)
    assert alone.tokens[0] == beside.tokens[0]
    assert alone.scores[0] == pytest.approx(beside.scores[0], abs=1e-4)


@pytest.mark.parametrize("kind", [TransformerTranslator, LSTMTranslator])
def test_step_by_step_a_network_says_the_same_as_at_once(kind):
    torch.manual_seed(2)
    model = (kind(30, 32, 2, 2, 0.0) if kind is TransformerTranslator else kind(30, 32, 2, 0.0)).eval()
    source, answer = torch.randint(3, 30, (3, 7)), torch.randint(3, 30, (3, 6))
    source[1, 4:] = PADDING
    at_once, state = model(source, answer), model.begin(source)
    for place in range(6):
        said, state = model.step(answer[:, place], state)
        torch.testing.assert_close(said, at_once[:, place], rtol=1e-4, atol=1e-4)
    looks = model.attention(source, answer)
    torch.testing.assert_close(looks.sum(-1), torch.ones(3, 6))
    assert float(looks[1, :, 4:].detach().abs().max()) == 0.0
