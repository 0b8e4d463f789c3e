"""What the report shows of a recogniser: where it hears each letter, and which words it takes for others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from torch import Tensor, nn

import thalweg
from thalweg.tasks.speech.align import align
from thalweg.tasks.speech.examples import Examples
from thalweg.tasks.speech.recogniser import language_of, recognise, scored, word_errors
from thalweg.tasks.speech.units import decoded

#: Pairs of words in the table, utterances drawn.
PAIRS, DRAWN = 20, 3

#: Pixels of a band and of a frame in a drawn spectrogram, and of the line of letters below it.
BAND, FRAME, LINE = 4, 4, 22


class Pictures(thalweg.Callback):
    """At the end of a training: word errors on the test part with and without the language model, and pictures."""

    def __init__(self, facts: dict[str, Any], test: Examples) -> None:
        self.facts, self.test = facts, test

    def on_end(self, run: thalweg.Run) -> None:
        """Measure and show."""
        scores = list(scored(run.model, self.facts, self.test.utterances))
        said, fusion = self.test.sentences, language_of(self.facts)
        plain = [recognise(row, self.facts, None)[0] for row in scores]
        heard = plain if fusion is None else [recognise(row, self.facts, fusion)[0] for row in scores]
        errors, words, confused = word_errors(said, heard)
        numbers = {"test_word_error_rate": errors / words}
        if fusion is not None:
            numbers["test_word_error_rate_without_language_model"] = word_errors(said, plain)[0] / words
        if self.facts["single"]:
            numbers["test_accuracy"] = sum(a == b for a, b in zip(said, heard, strict=True)) / len(said)
        run.add_metrics(**numbers)
        run.show(_confusions(errors, words, confused, numbers))
        run.show(self._sentences(heard, plain))
        run.show(self._spectrograms(run.model, scores))

    def _sentences(self, heard: list[str], plain: list[str]) -> thalweg.Section:
        """What was said and heard, the first utterances of the test part."""
        with_model = heard is not plain
        columns = ["said", "heard", *(["without the language model"] if with_model else [])]
        rows = [list(row) for row in zip(self.test.sentences, heard, *([plain] if with_model else []), strict=True)]
        return thalweg.Section(
            "What was heard", "The first utterances of the test part.", [thalweg.Table(columns, rows[:12])]
        )

    def _spectrograms(self, model: nn.Module, scores: list[Tensor]) -> thalweg.Section:
        parts = []
        for number in np.linspace(0, len(scores) - 1, min(DRAWN, len(scores))).round().astype(int):
            utterance, labels = self.test.utterances[number], self.test.labels[number]
            spans = align(scores[number], labels)
            letters = [
                (first, last, decoded([label], self.facts)) for (first, last), label in zip(spans, labels, strict=True)
            ]
            png = spectrogram(log_mel(model, utterance), letters)
            parts.append(thalweg.Picture(png, f"“{self.test.sentences[number]}”: {self.test.places[number]}"))
        words = (
            "Energy in each band (low tones below) over time; under it each unit of what was said, where the network "
            "hears it in the likeliest alignment."
        )
        return thalweg.Section("Where each is heard", words, parts)


def _confusions(errors: int, words: int, confused: Any, numbers: dict[str, float]) -> thalweg.Section:
    rows = [[true or "(put in)", taken or "(left out)", count] for (true, taken), count in confused.most_common(PAIRS)]
    sentence = f"{errors:,} errors on {words:,} words that were said in the test part: {errors / words:.1%}."
    without = numbers.get("test_word_error_rate_without_language_model")
    if without is not None:
        sentence += f" Without the language model it is {without:.1%}."
    table = thalweg.Table(["said", "heard as", "times"], rows)
    return thalweg.Section("Most confused words", sentence, [table] if rows else [])


def log_mel(model: Any, utterance: Any) -> np.ndarray[Any, Any]:
    """What the network sees of an utterance, before it is normalised: `[frames, bands]`."""
    import torch

    device = next(model.parameters()).device
    sound = torch.as_tensor(utterance)[None].to(device)
    with torch.no_grad():
        found, frames = model.front(sound, torch.tensor([sound.shape[1]], device=device))
    return found[0, : int(frames[0])].cpu().numpy()


def spectrogram(energies: np.ndarray[Any, Any], letters: list[tuple[int, int, str]]) -> bytes:
    """A picture of `energies` `[frames, bands]` as PNG, low bands below; letters stand under their first frames.

    `letters` are first and last place and text, in steps of the network (4 frames).
    """
    from PIL import Image, ImageDraw

    low, high = np.quantile(energies, [0.02, 0.995])
    grey = ((energies - low) / max(high - low, 1e-9)).clip(0, 1).T[::-1]
    image = Image.fromarray((255 - 235 * grey).astype(np.uint8))
    width, height = energies.shape[0] * FRAME, energies.shape[1] * BAND
    drawn = Image.new("RGB", (max(width, 80), height + LINE), "white")
    drawn.paste(image.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"), (0, 0))
    pen = ImageDraw.Draw(drawn)
    for first, _, text in letters:
        if text.strip():
            x = 4 * first * FRAME
            pen.line([(x, height), (x, height + 4)], fill=(180, 60, 40), width=2)
            pen.text((x, height + 5), text, fill="black", font_size=14)
    content = io.BytesIO()
    drawn.save(content, format="PNG")
    return content.getvalue()
