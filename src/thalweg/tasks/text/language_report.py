"""What the report shows of a language model: the held-out loss in its units, what context buys, samples."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.nn import functional as F

import thalweg
from thalweg.tasks.text.sampling import continued
from thalweg.tasks.text.tokens import Vocabulary

#: Samples shown, and windows that the loss along a window is taken from.
SAMPLES, WINDOWS = 3, 256


class LanguageReport(thalweg.Callback):
    """Numbers and samples at the end of a training.

    Args:
        tokens: the vocabulary.
        facts: those of the task.
        held_out: the text that was held out.
        windows: inputs and targets `[windows, length]` of the held-out text.
    """

    def __init__(self, tokens: Vocabulary, facts: dict[str, Any], held_out: str, windows: Any) -> None:
        self.tokens = tokens
        self.facts = facts
        self.held_out = held_out
        self.windows = windows

    def on_end(self, run: Any) -> None:
        """Show them."""
        loss = run.metrics.get("validation_loss")
        if loss is None or not math.isfinite(loss):
            return
        counted = int((self.windows[1] >= 0).sum())
        a_character = loss * counted / max(1, len(self.held_out) - 1)
        run.add_metrics(perplexity=math.exp(min(loss, 700)), nats_per_character=a_character)
        table = thalweg.Table(
            ("held-out text", "value"),
            (
                ("nats a token", round(loss, 4)),
                ("perplexity (of a token)", round(math.exp(min(loss, 700)), 3)),
                ("nats a character", round(a_character, 4)),
                ("bits a character", round(a_character / math.log(2), 4)),
                ("tokens", counted),
                ("kinds of tokens", len(self.tokens)),
            ),
        )
        words = "How well what comes next is foreseen in text that was not trained on."
        run.show(thalweg.Section("Held-out text", words, [table, self._along(run)]))
        run.show(self._samples(run))

    def _along(self, run: Any) -> thalweg.Curves:
        """The mean loss at each position of a window, in steps that double."""
        x, y = (part[:WINDOWS] for part in self.windows)
        device = next(run.model.parameters()).device
        model, mode = run.model, run.model.training
        with torch.no_grad():
            logits = model.eval()(x.to(device)).cpu()
        model.train(mode)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        length = y.shape[1]
        bounds = sorted({0, *(2**k for k in range(length.bit_length()) if 2**k < length), length})
        spans = [(a, b) for a, b in itertools.pairwise(bounds) if int((y[:, a:b] >= 0).sum())]
        means = [float(losses[:, a:b].sum() / (y[:, a:b] >= 0).sum()) for a, b in spans]
        return thalweg.Curves(
            "What context buys",
            "tokens before it, at most",
            "nats a token",
            {"held-out": ([b for _, b in spans], means)},
        )

    def _samples(self, run: Any) -> thalweg.Section:
        mode = run.model.training
        prompt = self.facts["prompt"]
        parts = []
        run.model.eval()
        for seed in range(SAMPLES):
            text = continued(run.model, self.tokens, [prompt], seed=seed)[0]
            parts.append(thalweg.Prose(prompt + text, monospace=True))
        run.model.train(mode)
        return thalweg.Section(
            "Samples", "Each goes on from the first line of the text, drawn token by token at temperature 0.8.", parts
        )
