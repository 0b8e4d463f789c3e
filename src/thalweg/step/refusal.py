"""What a training cannot begin with, told apart by what is wrong, so that `check` may say it as a finding."""

from __future__ import annotations


class Refusal(ValueError):
    """Model, data or loss as they are given cannot be trained; `code` is that of the finding which says the same.

    >>> raise Refusal("bad_labels", "label 7 is out of range")
    Traceback (most recent call last):
    thalweg.step.refusal.Refusal: label 7 is out of range
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
