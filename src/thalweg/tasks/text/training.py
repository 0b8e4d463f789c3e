"""How each kind of network is trained, where nothing else is asked for."""

from __future__ import annotations

from typing import Any

#: Rule and rate. Muon for a Transformer, whose weights are matrices that every position goes through alike; the maps of
#: an LSTM, applied again and again, learn faster by AdamW. Of a few rates tried on short trainings of a text's first
#: part, the best, brought down by T^−0.32 to trainings of T updates as the race does (docs/learning-rate.md). The race
#: itself is left out: it may take 0.3 trainings, and these trainings take minutes.
RULES: dict[str, dict[str, Any]] = {
    "transformer": {"optimizer": "muon", "learning_rate": 0.004, "clip_norm": 1.0},
    "lstm": {"optimizer": "adamw", "learning_rate": 0.005, "clip_norm": 1.0},
}
