"""Eight trainings on real data, of about five seconds each on one thread: network, data, loss, batch size, epochs.

    python benchmarks/search/workloads.py [--data ../shared/data] [--cache FOLDER] [--only digits …]

prints how large each is and how long it would take, by the processor's time over a fifth of it. The data folder is as
../shared/data/README.md describes it; what is decoded from the spoken digits is kept in the cache folder.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import tarfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DATA = Path("../shared/data")
CACHE = Path.home() / ".cache" / "thalweg-bench"
CHARACTERS, WIDTH, HEADS = 65, 64, 4
RATE, FFT, HOP, BANDS, FRAMES = 8000, 256, 128, 32, 64
"""Of the spoken digits: samples a second, of a window, between windows; mel bands; windows of an example, a second."""
RULES = ("momentum", "adamw")

DISTRICTS = 8000
"""Of California that are trained on."""

Part = tuple[Tensor, Tensor]
Data = tuple[Part, Part]
"""Training and validation part, each `(x [examples, …], y [examples, …])`."""
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda output, y: F.cross_entropy(output.flatten(0, -2), y.flatten()),
    "mse": F.mse_loss,
}
"""What `thalweg`'s losses of these names compute, for a loop that is written by hand."""


@dataclass(frozen=True)
class Workload:
    """One training."""

    network: Callable[[], nn.Module]
    read: Callable[[Path, Path], Data]
    """Data and cache folder -> data, the same each time."""
    loss: str
    batch_size: int
    epochs: int

    def make_model(self, seed: int) -> nn.Module:
        """In training mode, PyTorch's own first weights; the global random state is as the seed left it."""
        torch.manual_seed(seed)
        return self.network()

    def data(self, folder: Path = DATA, cache: Path = CACHE) -> Data:
        return self.read(folder, cache)

    def steps(self, train: Part, epochs: int | None = None) -> int:
        """Updates of a training of so many epochs, or a whole one."""
        return (epochs or self.epochs) * -(-len(train[0]) // self.batch_size)


# ── networks ──


def dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip


def over_speech() -> nn.Module:
    """Mel bands are the channels, time is convolved over."""
    return nn.Sequential(
        nn.Conv1d(BANDS, 32, 5, padding=2, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 5, padding=2, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A causal Transformer block, norms first, dropout after both halves."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.drop = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(dropout)
        self.projection, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.projection(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.drop(self.dense(self.norm2(x)))


class Transformer(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(self, length: int = 32, blocks: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*(Block(dropout) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x)))


class Recurrent(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


# ── data ──


def digits(folder: Path, cache: Path) -> Data:
    """The scans that scikit-learn carries, a fifth held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.from_numpy(found.data).float() / 16, torch.from_numpy(found.target).long()
    return _split(x, y, held_out=360)


def _split(x: Tensor, y: Tensor, held_out: int) -> Data:
    """In an order drawn once for all."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[:held_out], order[held_out:]
    return (x[kept], y[kept]), (x[held], y[held])


def images(name: str, train: int, validation: int, shape: tuple[int, ...]) -> Callable[[Path, Path], Data]:
    """The first so many images of each part, in units of the training part's deviation, about its mean."""

    def read(folder: Path, cache: Path) -> Data:
        (x, y), (held_x, held_y) = (
            tuple(_idx(folder / "images" / name, f"{part}*-{kind}-idx*.gz", count) for kind in ("images", "labels"))
            for part, count in (("train", train), ("t10k", validation))
        )
        x, held_x = x.float(), held_x.float()
        mean, deviation = x.mean(), x.std()
        x, held_x = ((part - mean) / deviation for part in (x, held_x))
        return (x.reshape(-1, *shape), y.long()), (held_x.reshape(-1, *shape), held_y.long())

    return read


def _idx(folder: Path, pattern: str, count: int) -> Tensor:
    from thalweg.tasks.idx import read_idx

    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}: give the folder of the data sets by --data")
    return torch.from_numpy(read_idx(found[0])[:count].copy())


def pictures(train: int, validation: int) -> Callable[[Path, Path], Data]:
    """MNIST, flat, each image its own target; grey levels 0 to 1."""

    def read(folder: Path, cache: Path) -> Data:
        x, held = (
            _idx(folder / "images" / "mnist", f"{part}-images-idx*.gz", count).flatten(1).float() / 255
            for part, count in (("train", train), ("t10k", validation))
        )
        return (x, x), (held, held)

    return read


def housing(folder: Path, cache: Path) -> Data:
    """California, 8 numbers of a district and where the ocean is; log of counts, everything standardised."""
    with gzip.open(folder / "tabular" / "california-housing.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["total_bedrooms"]]
    target, place = "median_house_value", "ocean_proximity"
    counts = ("total_rooms", "total_bedrooms", "population", "households")
    columns = [
        [np.log(float(row[word])) if word in counts else float(row[word]) for row in rows]
        for word in rows[0]
        if word not in (target, place)
    ]
    columns += [[float(row[place] == kind) for row in rows] for kind in sorted({row[place] for row in rows})]
    x, y = torch.tensor(columns).T.contiguous(), torch.tensor([[float(row[target])] for row in rows])
    (x, y), (held_x, held_y) = _split(x, y, held_out=4000)
    moments = [(part.mean(0), part.std(0)) for part in (x, y)]
    (x, held_x), (y, held_y) = (
        [(part - mean) / deviation for part in parts]
        for parts, (mean, deviation) in zip(((x, held_x), (y, held_y)), moments, strict=True)
    )
    return (x[:DISTRICTS], y[:DISTRICTS]), (held_x, held_y)


def characters(length: int, train: int, validation: int) -> Callable[[Path, Path], Data]:
    """Windows of Shakespeare side by side, training from the beginning and validation from the last tenth.

    The target is the character that follows each.
    """

    def read(folder: Path, cache: Path) -> Data:
        text = np.frombuffer((folder / "text" / "tinyshakespeare.txt").read_bytes(), np.uint8)
        symbols, coded = np.unique(text, return_inverse=True)
        assert len(symbols) == CHARACTERS
        coded, last_tenth = torch.from_numpy(coded).long(), len(text) * 9 // 10
        return _windows(coded[: train * length + 1], length), _windows(
            coded[last_tenth:][: validation * length + 1], length
        )

    return read


def _windows(coded: Tensor, length: int) -> Part:
    return coded[:-1].reshape(-1, length), coded[1:].reshape(-1, length)


def speech(folder: Path, cache: Path) -> Data:
    """Spoken digits, `[examples, bands, frames]`, logs of mel energies standardised band by band; the official split.

    The first second counts; what is shorter is followed by silence.
    """
    file = cache / "spoken-digits.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".tmp.npz")
        np.savez(written, **_decoded(folder / "speech" / "fsdd.tar.xz"))
        written.replace(file)
    with np.load(file) as found:
        parts = {name: torch.from_numpy(found[name]) for name in found.files}
    x = parts["train_x"]
    mean, deviation = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True)
    train, held = ((parts[f"{name}_x"] - mean) / deviation for name in ("train", "test"))
    return (train, parts["train_y"]), (held, parts["test_y"])


def _decoded(archive: Path) -> dict[str, np.ndarray]:
    with tarfile.open(archive) as tar:
        files = {m.name.removeprefix("fsdd/"): tar.extractfile(m).read() for m in tar if m.isfile()}
    found: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        names = files[f"{part}.txt"].decode().split()
        sounds = torch.stack([_sound(files[name]) for name in names])
        found[f"{part}_x"] = torch.cat([_log_mel(some) for some in sounds.split(100)]).numpy()
        found[f"{part}_y"] = np.array([int(Path(name).name[0]) for name in names])
    return found


def _sound(content: bytes) -> Tensor:
    """16-bit mono to `[samples]` in [-1, 1], of one length."""
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (RATE, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    length = (FRAMES - 1) * HOP
    return F.pad(torch.from_numpy(samples[:length].copy()), (0, max(0, length - len(samples))))


def _log_mel(sounds: Tensor) -> Tensor:
    """`[examples, samples]` to `[examples, bands, frames]`; the floor is a thousandth of a quiet sound's energy."""
    spectrum = torch.stft(sounds, FFT, HOP, window=torch.hann_window(FFT), return_complex=True).abs().square()
    return torch.log(_filters() @ spectrum + 1e-5)


def _filters() -> Tensor:
    """Triangles `[bands, frequencies]` whose corners lie evenly on the mel scale 2595 lg(1 + f/700) (O'Shaughnessy)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, FFT // 2 + 1)
    low, middle, high = (corners[i : BANDS + i, None] for i in range(3))
    return torch.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)).clamp_min(0)


# ── the table ──

WORKLOADS = {
    "digits": Workload(lambda: dense(64, 32, 10), digits, "cross_entropy", 16, 120),
    "fashion_mlp": Workload(
        lambda: dense(784, 256, 128, 10), images("fashion-mnist", 10_000, 2000, (784,)), "cross_entropy", 64, 20
    ),
    "mnist_cnn": Workload(convolutional, images("mnist", 3000, 2000, (1, 28, 28)), "cross_entropy", 32, 12),
    "housing": Workload(lambda: dense(13, 64, 64, 64, 1), housing, "mse", 64, 60),
    "mnist_autoencoder": Workload(lambda: dense(784, 128, 32, 128, 784), pictures(6000, 1000), "mse", 64, 25),
    "char_transformer": Workload(Transformer, characters(32, 1000, 300), "cross_entropy", 16, 12),
    "char_lstm": Workload(Recurrent, characters(32, 2000, 400), "cross_entropy", 32, 18),
    "speech_cnn": Workload(over_speech, speech, "cross_entropy", 32, 15),
}


def main() -> None:
    import tempfile

    import thalweg

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        workload = WORKLOADS[name]
        train, validation = workload.data(options.data, options.cache)
        model = workload.make_model(0)
        epochs = max(1, round(workload.epochs / 20))
        took = []
        for few in (1, epochs, 4 * epochs):  # the first imports; the difference is free of what a training costs once
            with tempfile.TemporaryDirectory() as folder:
                started = time.process_time()
                thalweg.fit(
                    model, train, workload.loss, validation_data=validation, optimizer="adamw", epochs=few,
                    batch_size=workload.batch_size, patience=None, plan="eager", run_dir=folder, verbose=False,
                )  # fmt: skip
                took.append(time.process_time() - started)
        whole = took[1] + (took[2] - took[1]) / 3 * (workload.epochs / epochs - 1)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{name:18} {size:8,} parameters, {len(train[0]):6,} + {len(validation[0]):5,} examples, "
            f"{workload.steps(train):6,} steps in {workload.epochs:3} epochs: about {whole:4.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
