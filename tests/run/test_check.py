"""`check`: faults made on purpose, and sound trainings of each kind."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import thalweg


def table(rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3


def dense(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3), *last)


def grave(*arguments: Any, **words: Any) -> list[str]:
    return [finding.code for finding in thalweg.check(*arguments, **words) if finding.severity != "note"]


def digits() -> tuple[nn.Module, Any, str]:
    x, y = load_digits(return_X_y=True)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), (x.astype("float32"), y), "cross_entropy"


def convolution() -> tuple[nn.Module, Any, str]:
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(288, 4)
    )
    return model, (x, torch.arange(64) % 4), "cross_entropy"


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x)))


def tokens() -> tuple[nn.Module, Any, str]:
    x = torch.randint(20, (64, 9), generator=torch.Generator().manual_seed(0))
    return Sentences(), (x[:, :-1], x[:, 1:]), "cross_entropy"


def regression() -> tuple[nn.Module, Any, str]:
    x, _ = table()
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), (x, x[:, :1].sin()), "mse"


@pytest.mark.parametrize("case", [digits, convolution, tokens, regression])
def test_a_sound_training_has_nothing_above_a_note(case: Any) -> None:
    torch.manual_seed(0)
    model, data, loss = case()
    assert grave(model, data, loss) == []


class Residual(nn.Module):
    """A branch and a last layer that begin as zeros, as is often done."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        for layer in (self.branch, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.head(x + self.branch(x))


def test_zeros_that_a_step_undoes_are_sound_and_those_that_stay_are_not() -> None:
    torch.manual_seed(0)
    assert "bad_initialization" not in grave(Residual(), table(), "cross_entropy")
    stuck = dense()
    for p in stuck.parameters():
        nn.init.zeros_(p)
    assert "bad_initialization" in grave(stuck, table(), "cross_entropy")
    alike = dense()
    nn.init.constant_(alike[0].weight, 0.1)
    nn.init.zeros_(alike[0].bias)
    nn.init.zeros_(alike[2].weight)  # which hides at the first step that its units are one
    before = {name: t.clone() for name, t in alike.state_dict().items()}
    assert "bad_initialization" in grave(alike, table(), "cross_entropy")
    assert all(torch.equal(before[name], t) for name, t in alike.state_dict().items())


def test_a_scale_that_keeps_a_batch_from_being_learned_is_a_warning() -> None:
    x, _ = table()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    assert grave(model, (x, 150 + 80 * x[:, :1].sin()), "mse") == ["unscaled_targets"]


def test_examples_that_cannot_be_told_apart_are_not_to_be_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(2, (400, 2), generator=generator), torch.randint(2, (400,), generator=generator)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    assert grave(model, (x.float(), y), "cross_entropy") == []


def test_features_that_say_nothing_and_labels_that_follow_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    x = torch.nn.functional.one_hot(y, 4).float() + 0.3 * torch.randn(600, 4, generator=generator)
    sound = {finding.code for finding in thalweg.check(dense(), (x, y), "cross_entropy")}
    assert not sound & {"bad_labels", "idle_features"}
    shuffled = y[torch.randperm(600, generator=generator)]
    assert "bad_labels" in {finding.code for finding in thalweg.check(dense(), (x, shuffled), "cross_entropy")}
    twice = torch.cat([x[:, :2], x[:, :1], torch.ones(600, 1)], 1)
    told = next(f for f in thalweg.check(dense(), (twice, y), "cross_entropy") if f.code == "idle_features")
    assert told.evidence == {"constant": 1, "repeated": 1}


def test_faults_are_named_the_gravest_first() -> None:
    x, y = table()
    model = dense(nn.Softmax(1))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    told = grave(model, (300 * x, y), "cross_entropy", validation_data=(300 * x[:60], y[:60]))
    assert set(told) >= {"loss_output_mismatch", "bad_initialization", "data_leak"}


def test_a_network_that_cannot_learn_a_batch_by_heart() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.mean(0, keepdim=True).expand(len(x), -1))

    assert "underfitting" in grave(Blind(), table(), "cross_entropy")


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.run.check.free_bytes", lambda device: 1000)
    told = thalweg.check(dense(), table(), "cross_entropy")
    assert told[0].code == "out_of_memory"
    assert told[0].evidence["needed_bytes"] > 1000


def test_model_gradients_modes_and_random_state_are_left_alone() -> None:
    model = dense(nn.BatchNorm1d(3)).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    thalweg.check(model, table(), "cross_entropy")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def holed() -> Tensor:
    x = table()[0].clone()
    x[7, 2] = torch.nan
    return x


def far_down() -> tuple[Tensor, Tensor]:
    x, y = table()
    y = y.clone()
    y[190] = -1
    return x, y


#: What fit refuses → model, data, loss, the code, and words of the sentence.
REFUSED: dict[str, tuple[Any, Any, str, str, str]] = {
    "lengths": (dense, lambda: (table()[0], table()[1][:-1]), "cross_entropy", "wrong_shape", "differ in length"),
    "width": (dense, lambda: (table()[0][:, :3], table()[1]), "cross_entropy", "wrong_shape", r"layer '0' \(Linear\)"),
    "broadcast": (dense, lambda: (table()[0], table()[0][:, :1]), "mse", "wrong_shape", "must be equal"),
    "label too large": (dense, lambda: (table()[0], table()[1] + 1), "cross_entropy", "bad_labels", "label 3 .* 3 cl"),
    "label far down": (dense, far_down, "cross_entropy", "bad_labels", "label -1 .*row 190"),
    "labels not whole": (dense, lambda: (table()[0], table()[1] + 0.5), "cross_entropy", "bad_labels", "integers"),
    "gap": (dense, lambda: (holed(), table()[1]), "cross_entropy", "non_finite", "the first is row 7"),
    "frozen": (lambda: dense().requires_grad_(False), table, "cross_entropy", "frozen_parameters", "is frozen"),
    "no probabilities": (dense, table, "categorical_cross_entropy", "loss_output_mismatch", "must be probabilities"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_fit_refuses_is_a_finding_in_its_words(case: str) -> None:
    make, data, loss, code, words = REFUSED[case]
    told = thalweg.check(make(), data(), loss)
    assert [(finding.code, finding.severity) for finding in told] == [(code, "critical")]
    assert re.search(words, told[0].sentence) and told[0].advice
    with pytest.raises(ValueError, match=words):
        thalweg.fit(make(), data(), loss, verbose=False)


def test_what_is_no_question_about_a_training_is_raised() -> None:
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        thalweg.check(dense(), table(), "cross_entrpy")
    with pytest.raises(TypeError, match="is a string"):
        thalweg.check(dense(), "table", "cross_entropy")
