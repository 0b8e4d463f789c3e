"""The page in a real browser: laid out at the width of a phone and of a desk, with its script running."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path

import made_up
import pytest

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
  const text = [...page.querySelectorAll(".plot text")].map(words => words.getBoundingClientRect());
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
  document.querySelector("#seen").textContent = JSON.stringify(seen);
});
</script>"""


def browse(tmp_path: Path, *more: str) -> str:
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: /usr/bin/chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (1200, False)])
def test_the_page_fits_reads_and_answers(tmp_path: Path, width: int, dark: bool) -> None:
    wrapper, picture = tmp_path / "wrapper.html", tmp_path / "page.png"
    text = page(made_up.record(), made_up.history())
    wrapper.write_text(WRAPPER % (width, HEIGHT, escape(text)), encoding="utf-8")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shape = f"--window-size={max(width, 500)},{HEIGHT}"
    dumped = browse(tmp_path, theme, shape, f"--screenshot={picture}", "--dump-dom", wrapper.as_uri())
    found = re.search(r'<pre id="seen">(.+?)</pre>', dumped)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert seen["window"] == width
    assert seen["wide"] <= width
    assert seen["drawings"] == 4
    assert seen["plot"][0] > 230
    assert seen["plot"][1] == 200
    assert seen["smallest"] >= 11
    assert seen["outside"] == 0
    assert seen["ground"] == ("rgb(19, 21, 23)" if dark else "rgb(246, 246, 243)")
    assert seen["under"][-1] == "epoch 10"
    assert all(0.1 < float(value) < 1 for value in seen["under"][:-1])
    assert seen["spots"] == 2
    assert seen["before"] == seen["after"] != seen["under"]
    assert picture.stat().st_size > 20_000
