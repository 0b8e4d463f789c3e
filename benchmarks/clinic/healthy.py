"""Trainings that nothing is wrong with: the tuned references, and what people change about them without harm."""

from __future__ import annotations

from configurations import Change, Configuration, change
from families import FAMILIES, RULES


def references() -> list[Configuration]:
    return [Configuration(family, rule, "reference", "reference") for family in FAMILIES for rule in RULES]


VARIANTS: dict[str, tuple[dict[str, tuple[Change, ...]], tuple[str, ...]]] = {
    "cosine": ({"": (change("fit", schedule="cosine"),)}, tuple(FAMILIES)),
    "half-rate": ({"": (change("rate", factor=0.5),)}, tuple(FAMILIES)),
    "double-rate": ({"": (change("rate", factor=2.0),)}, tuple(FAMILIES)),
    "small-batches": (
        {"": (change("fit", batch_size=16), change("epochs", share=0.5))},
        ("blob_mlp", "circle_mlp", "fashion_mlp", "housing_mlp"),
    ),
    "large-batches": (
        {"": (change("fit", batch_size=128), change("rate", factor=1.5))},
        ("blob_mlp", "fashion_mlp", "housing_mlp", "autoencoder"),
    ),
    "wider": (
        {
            "": (change("words", width=48),),
            "plain_cnn": (change("words", channels=12),),
            "residual_cnn": (change("words", channels=12),),
        },
        tuple(name for name in FAMILIES if name not in ("char_transformer",)),
    ),
    "smooth-activation": (
        {
            "": (change("words", activation="tanh"),),
            "plain_cnn": (change("words", activation="gelu"),),
            "residual_cnn": (change("words", activation="silu"),),
            "char_transformer": (change("words", activation="relu"),),
            "speech_gru": (change("words", cell="lstm"), change("epochs", share=2.0)),
        },
        tuple(FAMILIES),
    ),
    "he-init": (
        {"": (change("words", init="he"),)},
        ("blob_mlp", "circle_mlp", "fashion_mlp", "plain_cnn", "residual_cnn", "housing_mlp", "autoencoder"),
    ),
    "normalised": (
        {"": (change("words", norm="layer"),), "plain_cnn": (change("words", norm="batch"),)},
        ("blob_mlp", "fashion_mlp", "plain_cnn", "housing_mlp", "autoencoder"),
    ),
    "batch-norm": (
        {"": (change("words", norm="batch"),)},
        ("circle_mlp", "fashion_mlp", "housing_mlp", "autoencoder"),
    ),
    "light-dropout": (
        {"": (change("words", dropout=0.1),)},
        ("fashion_mlp", "char_transformer", "housing_mlp", "autoencoder"),
    ),
    "clipped": ({"": (change("fit", clip_norm=5.0),)}, ("plain_cnn", "speech_gru", "char_transformer", "housing_mlp")),
    "weight-decay": (
        {"": (change("options", weight_decay=1e-4),)},
        ("blob_mlp", "fashion_mlp", "plain_cnn", "residual_cnn", "autoencoder", "housing_mlp"),
    ),
    "averaged": ({"": (change("fit", weight_average="ema"),)}, ("fashion_mlp", "plain_cnn", "char_transformer")),
    "longer": (
        {"": (change("epochs", share=1.5),)},
        ("blob_mlp", "circle_mlp", "housing_mlp", "plain_cnn", "autoencoder"),
    ),
    "smoothed-labels": (
        {"": (change("smoothed", share=0.1),)},
        ("blob_mlp", "fashion_mlp", "plain_cnn", "residual_cnn"),
    ),
    "nesterov": (
        {"": (change("fit", optimizer="nesterov"),)},
        ("fashion_mlp", "plain_cnn", "residual_cnn", "housing_mlp"),
    ),
    "adamw": ({"": (change("fit", optimizer="adamw"),)}, ("blob_mlp", "speech_gru", "char_transformer", "autoencoder")),
}
"""Title -> changes by family ("" for those that are not named), families."""

_MEASURED = ("blob_mlp", "circle_mlp", "housing_mlp")
_OF = {"nesterov": "momentum", "adamw": "adam"}
"""Rules whose tuned rate serves."""


def variants() -> list[Configuration]:
    found = []
    for i, (title, (by_family, names)) in enumerate(VARIANTS.items()):
        for j, family in enumerate(names):
            rule = _OF.get(title, RULES[(i + j) % len(RULES)])
            if title == "weight-decay" and rule == "adam":
                rule = "momentum"
            made = by_family.get(family, by_family.get("", ()))
            if title == "cosine" and family in _MEASURED:
                made += (change("certified"),)
            found.append(Configuration(family, rule, "healthy", title, made))
    return found
