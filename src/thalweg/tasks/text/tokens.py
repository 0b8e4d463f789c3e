"""Text → whole numbers and back: one a character, or byte pairs that were learned from a text.

A vocabulary is a plain dict, as JSON holds it, so that a run can be asked without its training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

#: The first numbers of every byte-pair vocabulary: padding, the beginning of an answer, its end.
PADDING, BEGIN, END = 0, 1, 2
SPECIAL = ("<padding>", "<begin>", "<end>")

#: Stands for a character that the training text does not have.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(Protocol):
    """What can be turned into numbers and back."""

    def __len__(self) -> int:
        """How many different tokens there are."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; the special ones are left out."""
        ...

    def facts(self) -> dict[str, Any]:
        """The vocabulary as JSON holds it."""
        ...


class Characters:
    """A token a character; number 0 is any character that is not among them.

    >>> letters = Characters("abc")
    >>> letters.encode("cabz"), letters.decode([3, 1, 2])
    ([3, 1, 2, 0], 'cab')
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = [UNKNOWN, *sorted(set(characters) - {UNKNOWN})]
        self._codes = np.array([ord(character) for character in self.characters[1:]], dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The numbers of its characters."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        places = np.searchsorted(self._codes, codes).clip(max=max(0, len(self._codes) - 1))
        found: list[int] = np.where(self._codes[places] == codes, places + 1, 0).tolist()
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters of these numbers."""
        return "".join(self.characters[token] for token in tokens)

    def facts(self) -> dict[str, Any]:
        """The vocabulary as JSON holds it."""
        return {"kind": "characters", "characters": "".join(self.characters[1:])}


class BytePairs:
    """Pairs of bytes that often stand together, joined again and again (Sennrich et al. 2016), over the bytes of UTF-8:
    there is nothing that it cannot write, and decoding gives back the very text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def learned(cls, texts: Iterable[str], size: int) -> BytePairs:
        """The vocabulary of so many tokens that shortens these texts the most.

        Raises:
            ValueError: it is to be smaller than the 256 bytes and the special tokens.
            ImportError: tokenizers is not installed.
        """
        least = 256 + len(SPECIAL)
        if size < least:
            raise ValueError(f"vocabulary takes a number of byte pairs from {least} on, got {size}")
        tokenizers = _tokenizers()
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        return cls(made)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size()) + len(SPECIAL)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, the special ones not among them."""
        return _shifted(self._tokenizer.encode(text).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts."""
        return [_shifted(found.ids) for found in self._tokenizer.encode_batch(texts)]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text by itself."""
        return [self.decode([token]) if token >= len(SPECIAL) else SPECIAL[token] for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; the special ones are left out."""
        return str(self._tokenizer.decode([token - len(SPECIAL) for token in tokens if token >= len(SPECIAL)]))

    def facts(self) -> dict[str, Any]:
        """The vocabulary as JSON holds it."""
        return {"kind": "byte pairs", "tokenizer": self._tokenizer.to_str()}


def _shifted(numbers: Iterable[int]) -> list[int]:
    """The tokenizer knows nothing of the special tokens, so that no text can be mistaken for one."""
    return [number + len(SPECIAL) for number in numbers]


def vocabulary_of(facts: dict[str, Any]) -> Any:
    """The vocabulary that these facts describe: `Characters`, or `BytePairs`."""
    if facts["kind"] == "characters":
        return Characters(facts["characters"])
    return BytePairs(_tokenizers().Tokenizer.from_str(facts["tokenizer"]))


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError('byte pairs need the package tokenizers: pip install "thalweg[tasks]"') from error
    return tokenizers
