"""What `fit` costs beside a hand-written loop over the same tensors: time a step, memory, start-up.

    python benchmarks/overhead.py [--blocks 7] [--peers]

Every contender trains the same network on the same tensors with Adam at the same rate, in turn within one process
(`--peers`: Keras and Lightning in processes of their own, each beside its own hand-written loop). A figure is the
median over blocks of contender ÷ hand-written loop, blocks alternating; the spread is the middle half of the ratios.
Results go to benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

RESULTS = Path(__file__).parent / "results" / "overhead.json"


@dataclass(frozen=True)
class Workload:
    """A network by its widths, a batch size, and the updates of one timed block."""

    name: str
    widths: tuple[int, ...]
    batch: int
    steps: int
    rows: int

    def model(self) -> Any:
        """The network, its first weights always the same."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        layers: list[Any] = []
        for i, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            layers += [nn.ReLU()] if i else []
            layers.append(nn.Linear(inputs, outputs))
        return nn.Sequential(*layers)

    def data(self) -> tuple[Any, Any]:
        """Inputs and labels, always the same."""
        import torch

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, self.widths[0], generator=generator)
        return x, torch.randint(0, self.widths[-1], (self.rows,), generator=generator)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("seed network 784-10-10, batch 32", (784, 10, 10), 32, 8_000, 16_000),
        Workload("MLP 784-512-512-10, batch 128", (784, 512, 512, 10), 128, 1_500, 12_800),
    )
}


def by_hand(workload: Workload, data: tuple[Any, Any]) -> float:
    """The loop everybody writes, with the fused rule; seconds a step."""
    import torch
    from torch import nn

    model, (x, y) = workload.model(), data
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    step = 0
    started = time.perf_counter()
    while step < workload.steps:
        order = torch.randperm(len(x))
        for i in range(0, len(x), workload.batch):
            rows = order[i : i + workload.batch]
            optimizer.zero_grad()
            loss = loss_of(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            step += 1
            if step == workload.steps:
                break
    return (time.perf_counter() - started) / workload.steps


def by_fit(workload: Workload, data: tuple[Any, Any]) -> float:
    """`thalweg.fit` with history, checkpoints and the live line of progress, on a terminal; seconds a step."""
    import thalweg

    with tempfile.TemporaryDirectory() as folder:
        model = workload.model()
        started = time.perf_counter()
        run = thalweg.fit(
            model, data, "cross_entropy", optimizer="adam", learning_rate=1e-3, batch_size=workload.batch,
            steps=workload.steps, patience=None, run_dir=folder, verbose=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        assert run.steps == workload.steps
        return seconds / workload.steps


def by_keras(workload: Workload, data: tuple[Any, Any]) -> float:
    """Keras `fit` on the torch backend; seconds a step."""
    import keras

    model = keras.Sequential(
        [keras.Input((workload.widths[0],))]
        + [keras.layers.Dense(width, activation="relu") for width in workload.widths[1:-1]]
        + [keras.layers.Dense(workload.widths[-1])]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    x, y = (t.numpy() for t in data)
    model.fit(x[:1024], y[:1024], batch_size=workload.batch, epochs=1, verbose=0)
    steps_an_epoch = -(-len(x) // workload.batch)
    epochs = max(1, workload.steps // 10 // steps_an_epoch)
    started = time.perf_counter()
    model.fit(x, y, batch_size=workload.batch, epochs=epochs, verbose=2)
    return (time.perf_counter() - started) / (epochs * steps_an_epoch)


def by_lightning(workload: Workload, data: tuple[Any, Any]) -> float:
    """Lightning's Trainer with its defaults (progress bar, logger, checkpoints) on a DataLoader; seconds a step."""
    import lightning
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss_of = workload.model(), nn.CrossEntropyLoss()

        def training_step(self, batch: Any, number: int) -> Any:
            loss = self.loss_of(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

    steps = max(200, workload.steps // 5)
    loader = DataLoader(TensorDataset(*data), batch_size=workload.batch, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder)
        module = Module()
        started = time.perf_counter()
        trainer.fit(module, loader)
        return (time.perf_counter() - started) / steps


CONTENDERS: dict[str, Callable[[Workload, tuple[Any, Any]], float]] = {
    "thalweg.fit": by_fit,
    "keras fit (torch)": by_keras,
    "lightning": by_lightning,
}


def side_by_side(contender: str, workload: Workload, blocks: int) -> dict[str, Any]:
    """Blocks of the contender and of the hand-written loop in turn; their ratios."""
    run, data = CONTENDERS[contender], workload.data()
    by_hand(workload, data), run(workload, data)
    ratios, loops, contenders = [], [], []
    for block in range(blocks):
        pair = [(by_hand, loops), (run, contenders)]
        for function, times in pair if block % 2 else reversed(pair):
            times.append(function(workload, data))
        ratios.append(contenders[-1] / loops[-1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(middle, 3),
        "middle_half": [round(low, 3), round(high, 3)],
        "loop_us": round(statistics.median(loops) * 1e6, 1),
        "contender_us": round(statistics.median(contenders) * 1e6, 1),
    }


def peak_megabytes(what: str, workload: Workload) -> float:
    """Peak resident memory of a process that does one thing."""
    function = {"by hand": by_hand, "thalweg.fit": by_fit}[what]
    function(workload, workload.data())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_up() -> dict[str, float]:
    """Importing, and asking for help: CPU seconds, best of five."""

    def cpu(*command: str) -> float:
        best = float("inf")
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return best

    torch_alone = cpu("-c", "import torch")
    return {
        "import thalweg / import torch": round(cpu("-c", "import thalweg") / torch_alone, 3),
        "import thalweg; thalweg.fit / import torch": round(cpu("-c", "import thalweg; thalweg.fit") / torch_alone, 3),
        "thalweg --help [CPU s]": round(cpu("-m", "thalweg", "--help"), 3),
    }


def _child(*arguments: str) -> Any:
    """Run one measurement in a process of its own, with a pseudo-terminal so that live progress is shown."""
    import pty

    out = tempfile.NamedTemporaryFile("r", suffix=".json")  # noqa: SIM115 (it lives as long as the child needs it)
    command = [sys.executable, __file__, "--child", out.name, *arguments]
    pid, terminal = pty.fork()
    if not pid:
        os.execvp(command[0], command)
    shown = bytearray()
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"{' '.join(command)} failed:\n{shown[-3000:].decode(errors='replace')}")
    return json.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7, help="timed blocks of each contender")
    parser.add_argument("--peers", action="store_true", help="Keras and Lightning too")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("task", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, contender, workload = options.task
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        measured = (
            side_by_side(contender, WORKLOADS[workload], options.blocks)
            if kind == "time"
            else peak_megabytes(contender, WORKLOADS[workload])
        )
        Path(options.child).write_text(json.dumps(measured))
        return
    os.environ.setdefault("KERAS_BACKEND", "torch")
    contenders = list(CONTENDERS) if options.peers else ["thalweg.fit"]
    flags = ["--blocks", str(options.blocks)] + (["--threads", str(options.threads)] if options.threads else [])
    table: dict[str, Any] = {
        "versions": machine("thalweg", "torch", "keras", "lightning"),
        "command": " ".join(sys.argv),
        "time": {},
        "memory": {},
    }
    for workload in WORKLOADS:
        for contender in contenders:
            measured = _child(*flags, "time", contender, workload)
            table["time"].setdefault(workload, {})[contender] = measured
            low, high = measured["middle_half"]
            print(f"{workload:36} {contender:18} {measured['ratio']:7.3f} × a loop by hand  ({low:.3f} to {high:.3f})")
        loop, ours = (_child("memory", what, workload) for what in ("by hand", "thalweg.fit"))
        table["memory"][workload] = {"by hand [MB]": round(loop), "thalweg.fit [MB]": round(ours)}
        print(f"{workload:36} peak memory        {ours - loop:+7.0f} MB over a loop by hand ({loop:.0f} MB)")
    table["start-up"] = start_up()
    for name, number in table["start-up"].items():
        print(f"{name:55} {number:7.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
