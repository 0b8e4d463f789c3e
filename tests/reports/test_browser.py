"""The page in a real browser: laid out at the width of a phone and of a desk, with its script running."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path

import made_up
import pytest

from thalweg.records.step import StepRecord
from thalweg.reports.page import page

CHROMIUM = Path("/usr/bin/chromium")
HEIGHT = 1600
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=3000"
)

#: Headless Chromium lays no window out below 500 px, so the page stands in a frame of the asked width; a frame given
#: by `srcdoc` can be read by the page around it.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0}iframe{border:0;display:block}</style>
<iframe width="%d" height="%d" srcdoc="%s"></iframe><pre id="seen"></pre><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const plot = page.querySelector(".plot"), box = plot.getBoundingClientRect();
  const legend = () => [...plot.parentNode.querySelectorAll("output, .at")].map(words => words.textContent);
  const text = [...page.querySelectorAll("svg text")].map(words => words.getBoundingClientRect());
  const seen = {
    wide: root.scrollWidth, window: root.clientWidth, drawings: page.querySelectorAll("svg.plot").length,
    plot: [box.width, box.height], ground: getComputedStyle(page.body).backgroundColor,
    smallest: Math.min(...text.map(words => words.height)),
    outside: text.filter(words => words.left < 0 || words.right > root.clientWidth).length, before: legend(),
  };
  const move = { clientX: box.left + box.width * 10 / 45, clientY: box.top + 20 };
  plot.dispatchEvent(new page.defaultView.PointerEvent("pointermove", move));
  seen.under = legend();
  seen.spots = plot.querySelectorAll(".spot.on").length;
  plot.dispatchEvent(new page.defaultView.PointerEvent("pointerleave"));
  seen.after = legend();
  const heat = page.querySelector(".heat"), field = heat.querySelector(".field");
  const area = field.getBoundingClientRect(), ends = field.querySelector("svg").getBoundingClientRect();
  const said = () => heat.querySelector("output").textContent;
  seen.rest = said();
  seen.field = [area.width, area.height, ends.width, ends.height, ends.top - area.top];
  seen.shades = ["h0", "h19"].map(shade => getComputedStyle(heat.querySelector(".ramp ." + shade)).color);
  field.scrollIntoView();
  const now = field.getBoundingClientRect(), touch = name => new page.defaultView.PointerEvent(name, {
    clientX: now.left + now.width * 10.01 / 45, clientY: now.bottom - 3,
  });
  field.dispatchEvent(touch("pointerdown"));
  const spot = heat.querySelector(".spot.on").getBoundingClientRect();
  seen.touched = [said(), heat.querySelector(".at").textContent, spot.width, spot.height];
  field.dispatchEvent(touch("pointerleave"));
  seen.released = [said(), heat.querySelector(".spot.on")];
  document.querySelector("#seen").textContent = JSON.stringify(seen);
});
</script>"""


#: Layers in forward order, one of them named longer than there is room for.
NAMES = ["encoder.layers.0.self_attention.out_proj", "encoder.layers.0.linear1", "encoder.head", "7"]


def rgb(colour: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", colour)]


def browse(tmp_path: Path, *more: str) -> str:
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: /usr/bin/chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (1200, False)])
def test_the_page_fits_reads_and_answers(tmp_path: Path, width: int, dark: bool) -> None:
    wrapper, picture = tmp_path / "wrapper.html", tmp_path / "page.png"
    history = made_up.layers(made_up.history(), 0.1, NAMES, range(10, 2026, 10))
    history.append(StepRecord(450, 10.0, 0.9, {f"gradient_norm/{NAMES[1]}": float("inf")}))
    text = page(made_up.record(), history)
    wrapper.write_text(WRAPPER % (width, HEIGHT, escape(text)), encoding="utf-8")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shape = f"--window-size={max(width, 500)},{HEIGHT}"
    dumped = browse(tmp_path, theme, shape, f"--screenshot={picture}", "--dump-dom", wrapper.as_uri())
    found = re.search(r'<pre id="seen">(.+?)</pre>', dumped)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert seen["window"] == width
    assert seen["wide"] <= width
    assert seen["drawings"] == 7
    assert seen["plot"][0] > 230
    assert seen["plot"][1] == 200
    assert seen["smallest"] >= 11
    assert seen["outside"] == 0
    assert seen["ground"] == ("rgb(19, 21, 23)" if dark else "rgb(246, 246, 243)")
    assert seen["under"][-1] == "epoch 10"
    assert all(0.1 < float(value) < 1 for value in seen["under"][:-1])
    assert seen["spots"] == 2
    assert seen["before"] == seen["after"] != seen["under"]
    told, at, wide, high = seen["touched"]
    value, name = told.split(" · layer ")
    assert (name, at) == (NAMES[0], "epoch 9.778–10.22")
    assert 1e-4 < float(value.removeprefix("≈ ")) < 1e-2
    assert 1 <= wide < 0.03 * seen["field"][0] + 3
    assert 20 < high < 28
    assert seen["field"] == [seen["field"][0], 22 * len(NAMES), seen["field"][0], 22 * (len(NAMES) - 1), 11]
    assert seen["released"] == [seen["rest"], None]
    assert (sum(rgb(seen["shades"][0])) < sum(rgb(seen["shades"][1]))) is dark
    assert picture.stat().st_size > 20_000
