"""Texts continued by a language model, a token at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.tasks.text.tokens import Vocabulary

#: Tokens that a prompt is continued by.
CONTINUED = 300

#: Logits are divided by this before a token is drawn: below 1, likely tokens become likelier yet.
TEMPERATURE = 0.8


@torch.no_grad()
def continued(
    model: Any,
    tokens: Vocabulary,
    prompts: list[str],
    length: int = CONTINUED,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[str]:
    """What a model makes of each prompt, `length` tokens drawn from what it says.

    A Transformer is never asked about more positions than it was trained on: when its window is full, it reads the last
    half of it again and goes on from there.

    Args:
        model: in evaluation mode, with `read(tokens, state)`, `span(state)` and `length`.
        prompts: none of them empty.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [_one(model, tokens, prompt, length, temperature, generator, device) for prompt in prompts]


def _one(
    model: Any,
    tokens: Vocabulary,
    prompt: str,
    length: int,
    temperature: float,
    generator: torch.Generator,
    device: torch.device,
) -> str:
    read = tokens.encode(prompt)
    given = len(read)
    logits, state = model.read(_row(read[-model.length :], device))
    for _ in range(length):
        probabilities = (logits[0].float().cpu() / temperature).softmax(-1)
        read.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        if model.span(state) >= model.length:
            logits, state = model.read(_row(read[-(model.length // 2) :], device))
        else:
            logits, state = model.read(_row(read[-1:], device), state)
    return tokens.decode(read[given:])


def _row(tokens: list[int], device: torch.device) -> Tensor:
    return torch.tensor([tokens], device=device)
