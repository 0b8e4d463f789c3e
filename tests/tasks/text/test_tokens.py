import json

import pytest

from thalweg.tasks.text.tokens import BEGIN, END, PADDING, SPECIAL, BytePairs, Characters, vocabulary_of

TEXTS = ["Two dogs run.", "Two men run fast.", "naïve café — 你好 🙂", "tabs\tand  spaces \n"]


def test_characters_are_numbered_and_unknown_ones_are_one():
    letters = Characters("hello wörld")
    assert letters.decode(letters.encode("hello wörld")) == "hello wörld"
    assert letters.encode("hez🙂") == [*letters.encode("he"), 0, 0]
    assert letters.decode([0]) == "\N{REPLACEMENT CHARACTER}"
    assert len(letters) == 1 + len(set("hello wörld"))
    assert letters.encode("") == []


def test_byte_pairs_write_anything_also_what_they_were_not_learned_from():
    tokens = BytePairs.learned(TEXTS[:2], 280)
    for text in [*TEXTS, "<end> <begin> <padding>", "\x00\x7f"]:
        numbers = tokens.encode(text)
        assert tokens.decode(numbers) == text
        assert not {PADDING, BEGIN, END} & set(numbers)  # no text can be mistaken for a special token
    assert tokens.encode_all(TEXTS) == [tokens.encode(text) for text in TEXTS]
    assert tokens.decode([BEGIN, *tokens.encode("run"), END]) == "run"
    assert max(max(tokens.encode(text)) for text in TEXTS) < len(tokens) <= 280
    assert tokens.pieces([END, tokens.encode("a")[0]]) == ["<end>", "a"]


def test_a_larger_vocabulary_shortens_what_it_was_learned_from():
    small, large = BytePairs.learned(TEXTS, 259), BytePairs.learned(TEXTS, 270)
    assert len(small.encode(TEXTS[0])) == len(TEXTS[0]) > len(large.encode(TEXTS[0]))


@pytest.mark.parametrize("tokens", [Characters("abc"), BytePairs.learned(TEXTS, 270)], ids=["characters", "bytes"])
def test_a_vocabulary_comes_back_from_its_facts(tokens):
    again = vocabulary_of(json.loads(json.dumps(tokens.facts())))
    assert len(again) == len(tokens) and again.encode("cab") == tokens.encode("cab")
    assert again.decode(again.encode("bca")) == "bca"


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=f"from {256 + len(SPECIAL)} on, got 100"):
        BytePairs.learned(TEXTS, 100)
