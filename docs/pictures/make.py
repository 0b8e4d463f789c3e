"""Make `report.png`, the picture in the README: `python docs/pictures/make.py`.

`thalweg fit digits` is run in a temporary folder, and its report photographed by a headless Chromium at the width of
a desk. It needs a browser: `chromium`, `chromium-browser` or `google-chrome` on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 900, 800
FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --blink-settings=preferredColorScheme=1"
PICTURE = Path(__file__).with_name("report.png")


def main() -> int:
    """Train, photograph, say where the picture is."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no browser found: install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fit = [sys.executable, "-m", "thalweg", "fit", "digits", "--run-dir", "digits-1"]
        subprocess.run(fit, cwd=folder, check=True)
        page = Path(folder, "digits-1", "report.html").resolve()
        photograph = [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}"]
        subprocess.run([browser, *FLAGS.split(), *photograph, page.as_uri()], check=True, capture_output=True)
    print(f"{PICTURE} ({PICTURE.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
