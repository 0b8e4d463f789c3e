"""What listening to a backward pass costs, beside the pass itself and beside others who do it.

    python benchmarks/gradients/run.py [--threads 1] [--quick] [--only signals sweep …]

Every program is a process of its own. Contenders run in turn, block by block, every second block the other way round; a
figure is the median over blocks of contender ÷ base, its spread the middle half of these ratios. `--threads` sets
torch's threads (else its default). Results go to benchmarks/results/gradients.json, under "1 thread" or "default
threads"; what another run measured there is kept. The peers are optional (requirements.txt).

- signals: a step of `fit` with its always-on signals ÷ the same without them. Bound: 1, no signals at all.
  Target: 1.02 where a step takes 1 ms or more, 1.10 on the seed network.
- examples: gradient norms of single examples ÷ forward and backward, in time and in peak memory. Bound: below 1, for
  the gradients of dense weights need not be formed. Target: 1.3, and 1.2 in memory.
- spectrum: products until λ_min and λ_max are known to 1 % of the larger magnitude, and a product ÷ a gradient. Bound:
  a product through a recorded graph goes twice through what a gradient goes through once forward and once back (twice
  the work of a forward): 4/3 and more. Target: 25 products, each at most 2.5 gradients.
- sweep: our own reverse sweep ÷ forward and backward. Bound: 1, the same operations. Target: 2.
- factors: Kronecker factors of all layers ÷ the passes and the matrix products they need, at the measured rate of
  matrix products. Bound: 1. Target: 1.3. Amortised, (period × step + factors) ÷ (period × step): 1.05.

How each is measured is said at the top of its program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
sys.path.append(str(BENCHMARKS))  # for what the benchmarks share
from machine import machine  # noqa: E402

RESULTS = BENCHMARKS / "results" / "gradients.json"
PROGRAMS = ("signals", "examples", "spectrum", "sweep", "factors")
PACKAGES = ("thalweg", "torch", "backpack-for-pytorch", "opacus", "curvlinops-for-pytorch", "pyhessian", "scipy")


def _measure(program: str, out: str, options: argparse.Namespace) -> None:
    """Run one program here and write its rows."""
    import warnings

    import torch
    from timing import Effort

    warnings.simplefilter("ignore")  # the peers', of torch's newer ways
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = Effort(blocks=3, seconds=0.02) if options.quick else Effort()
    rows = [row.to_dict() for row in import_module(program).measure(effort)]
    Path(out).write_text(json.dumps({"rows": rows, "threads": torch.get_num_threads()}))


def _child(program: str, options: argparse.Namespace) -> dict[str, Any]:
    """One program in a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        command = [sys.executable, __file__, "--child", program, out.name]
        command += ["--quick"] * options.quick + (["--threads", str(options.threads)] if options.threads else [])
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{program} failed:\n{done.stdout[-3000:]}")
        return json.load(out)


def line(row: dict[str, Any]) -> str:
    """A row of the table, for a person."""
    start = f"{row['figure']:36} {row['network']:19} {row['contender']:25}"
    if "value" not in row:
        return f"{start} {row['note']}"
    spread = "({:.3f} to {:.3f})".format(*row["middle_half"]) if "middle_half" in row else ""
    target = f"  target {row['target']}: {'met' if row['met'] else 'MISSED'}" if "target" in row else ""
    return f"{start} {row['value']:8.3f} {row['unit']:24} {spread:20}{target}  {row.get('note', '')}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; its own default where not given")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="some of the programs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        program, out = options.child
        _measure(program, out, options)
        return
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    part = f"{options.threads} thread{'s' * (options.threads > 1)}" if options.threads else "default threads"
    for program in options.only:
        started = time.perf_counter()
        measured = _child(program, options)
        seconds = round(time.perf_counter() - started)
        for row in measured["rows"]:
            print(line(row), flush=True)
        print(f"{program}: {seconds} s", flush=True)
        record = {"command": " ".join(sys.argv), "machine": machine(*PACKAGES), "seconds": seconds, **measured}
        table.setdefault(part, {})[program] = record
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
