from __future__ import annotations

import base64
import hashlib
import os
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import made_up
import pytest

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.reports.page import page, write

METRIC = "<img src=x onerror=alert(1)>"
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_report_says_what_happened(tmp_path: Path) -> None:
    path = write(made_up.record(), made_up.history(), tmp_path / "deep" / "report.html")
    text = path.read_text(encoding="utf-8")
    for words in (
        "Converged at epoch 38: validation loss has been flat within its noise for 7 epochs.",
        "Stopped because it converged.",
        "✓ converged",
        "<dd>96.1 %<small>training 98.8 %</small></dd>",
        "2,025 steps",
        "The loss jumped to nine times its course",
        "Clip the gradient&#x27;s norm at 5, or halve the learning rate.",
        "loss 3.1, usual loss 0.34",
        "clip norm from off to 5",
        "The batch size was chosen from the number of examples.",
        "<tr><th>validation split</th><td>0.2</td></tr>",
        "<tr><th>torch</th><td>2.13.0</td></tr>",
        "2026-03-01 14:05 UTC",
    ):
        assert words in text
    assert text.count("<figure") == 5  # four curves, and the one behind the warning
    assert text.index("oscillating loss · ") < text.index("unscaled inputs · ")


def test_a_report_is_small_and_loads_nothing() -> None:
    text = page(made_up.record(), made_up.history())
    assert len(text.encode()) < 100_000
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    for tag, attributes in Elements(text).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "href", "style", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]


def test_a_long_run_makes_no_long_report() -> None:
    history = History()
    for step in range(60_000):
        values = {"loss": 2 + (step * 7919 % 1000) / 1000, "learning_rate": 1 / (step + 1), "gradient_norm": 1.5}
        history.append(StepRecord(step, step / 100, 0.1, values))
    for number in range(500):
        history.found(Finding("plateau", "warning", number, f"Flat number {number}."), number)
    text = page(RunRecord("long", asked={"model": "Linear()\n" * 100_000}), history)
    assert len(text.encode()) < 150_000
    assert "and 450 more" in text


def test_the_flow_of_the_gradient_stands_below_the_curves() -> None:
    history = made_up.layers(made_up.history(), 0.5, ["0", "2", "4"], range(10, 2026, 10))
    text = page(made_up.record(), history)
    places = [
        text.index(words) for words in ("<h3>Loss", "<h2>Gradient flow by layer", "<h3>Update-to-weight", "<h2>Find")
    ]
    assert places == sorted(places)
    assert text.count("<figure") == 7
    assert "the output on top and the input at the bottom" in text
    assert "Gradient flow" not in page(made_up.record(), made_up.history())


def test_the_policy_names_the_style_and_the_script() -> None:
    text = page(made_up.record(), made_up.history())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    for tag in ("style", "script"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_names_of_users_stay_text() -> None:
    history = History()
    history.append(
        StepRecord(1, 0.1, 0.1, {"loss": 1.0, METRIC: 0.5, f"gradient_norm/{HOSTILE}": 0.5, "gradient_norm/": 1})
    )
    history.found(Finding(HOSTILE, "critical", 1, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: 1.0}), 1)
    history.acted(Action(HOSTILE, 1, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, False, HOSTILE))
    rows = {HOSTILE: HOSTILE}
    record = RunRecord(
        name=HOSTILE,
        asked={**rows, "list": [HOSTILE]},
        decided={**rows, "learning_rate": HOSTILE, "optimizer": HOSTILE},
        source=rows,
        versions={**rows, "thalweg": HOSTILE},
        machine=rows,
        started=HOSTILE,
        notes=[HOSTILE],
        stopped_because=HOSTILE,
        verdict={"state": HOSTILE, "sentence": HOSTILE, "cause": HOSTILE},
        metrics={METRIC: 0.5, f"validation_{METRIC}": 0.5},
        steps=1,
    )
    text = page(record, history, [(HOSTILE, "<p>safe</p>")])
    assert text.count(escape(METRIC)) >= 4
    assert text.count(escape(HOSTILE)) > 20
    assert "Gradient flow by layer" in text
    tags = [tag for tag, _ in Elements(text).tags]
    assert tags.count("script") == 1
    shortened = 1
    assert tags.count("title") == 1 + text.count('<g class="mark') + shortened
    assert "img" not in tags
    assert "<p>safe</p>" in text


def test_a_run_that_has_only_begun_has_a_report() -> None:
    text = page(RunRecord("begun"), History())
    assert "Still training when this was written, after 0 steps." in text
    assert "Nothing was recorded yet." in text
    assert "<figure" not in text


def test_a_run_of_one_step_has_a_report() -> None:
    history = History()
    history.append(StepRecord(1, 1.0, 0.1, {"loss": 2.5, "learning_rate": 0.1}))
    text = page(RunRecord("one", steps=1, epochs=1.0, stopped_because="interrupted"), history)
    assert "There was too little to judge by." in text
    assert text.count("<figure") == 2
    assert "Stopped because it was interrupted." in text


def test_a_diverged_run_shows_where() -> None:
    history = History()
    for step, loss in enumerate([2.0, 9.0, float("inf"), float("nan")], start=1):
        history.append(StepRecord(step, step / 4, 0.1, {"loss": loss}))
    verdict = {"state": "diverged", "sentence": "Diverged at step 3.", "cause": None}
    text = page(RunRecord("lost", verdict=verdict, metrics={"loss": float("nan")}, stopped_because="diverged"), history)
    assert '<span class="badge diverged">✕ diverged</span>' in text
    assert "loss not finite" in text
    assert "<dd>not a number" in text


def test_an_older_report_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(source: object, target: object) -> None:
        assert Path(str(source)).read_text(encoding="utf-8").endswith("</html>\n")
        assert path.read_text(encoding="utf-8") == "old"
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write(made_up.record(), made_up.history(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["report.html"]
    assert write(made_up.record(), made_up.history(), path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["report.html"]
