"""The product kernel, products replaced in a graph, images in memory, and memory that is kept."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from thalweg.step.kernels import allocator, layout, products
from thalweg.step.update import Update

# ── products ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("kernel") / "small.so"
    products.compile_small(library)
    assert [path.name for path in library.parent.iterdir()] == ["small.so"]
    return library


def rows(m: int, n: int) -> Tensor:
    return torch.randn(m, n)


def columns(m: int, n: int) -> Tensor:
    return torch.randn(n, m).t()


def apart(m: int, n: int) -> Tensor:
    """No axis is contiguous."""
    return torch.randn(m, 2, n, 3)[:, 1, :, 1]


def wide(m: int, n: int) -> Tensor:
    """Rows lie further apart than they are long, and begin in the midst."""
    return torch.randn(m, n + 5)[:, 3 : n + 3]


def tall(m: int, n: int) -> Tensor:
    return wide(n, m).t()


def alike(m: int, n: int) -> Tensor:
    """One row for all, as a gradient of a sum is."""
    return torch.randn(n).expand(m, n)


def same(m: int, n: int) -> Tensor:
    return torch.randn(()).expand(m, n)


ORDERS = (rows, columns, apart, wide, tall, alike, same)
#: [m, k, n]: below, at and past the widths that the loops are unrolled by (16 or 8 numbers, 5 and 4 rows, 5 columns).
SHAPES = [
    (1, 1, 1), (1, 16, 16), (5, 1, 32), (2, 3, 4), (4, 16, 5), (5, 7, 31), (9, 33, 15), (11, 17, 49), (32, 100, 10),
    (10, 32, 100), (3, 250, 65), (64, 31, 16), (7, 5, 0), (0, 3, 8), (3, 0, 40), (6, 0, 3),
]  # fmt: skip


@pytest.mark.parametrize("of_b", ORDERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("of_a", ORDERS, ids=lambda f: f.__name__)
def test_the_small_product_is_the_product(of_a: Callable, of_b: Callable, small: Path) -> None:
    product = products._small(small)
    torch.manual_seed(0)
    for m, k, n in SHAPES:
        a, b = of_a(m, k), of_b(k, n)
        found = product(a, b)
        assert found.shape == (m, n)
        exact = a.double() @ b.double()
        # A sum of k products in any order: off by at most k roundings of the sum of their sizes.
        bound = (k + 1) * 2**-24 * (a.double().abs() @ b.double().abs())
        assert bool(((found.double() - exact).abs() <= bound).all()), (m, k, n)


def test_the_small_product_keeps_what_is_not_a_number(small: Path) -> None:
    a, b = torch.ones(6, 20), torch.ones(20, 40)
    a[2, 3], b[4, 7] = float("nan"), float("inf")
    found = products._small(small)(a, b)
    assert bool(found[2].isnan().all())
    assert bool(found[[0, 1, 3, 4, 5], 7].isinf().all())
    assert int(found.isfinite().sum()) == 5 * 39


def test_loading_the_kernel_changes_no_arithmetic_elsewhere(small: Path) -> None:
    products.load_small(small)
    assert (torch.tensor([1e-39]) * 0.5).item() > 0, "denormal numbers stay"
    assert 1e-320 * 0.5 > 0


@pytest.mark.parametrize("way", [products.ONEDNN, products.SMALL])
def test_a_graph_with_replaced_products_computes_the_same(way: str) -> None:
    def function(a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        h = torch.addmm(bias, a, b).relu()
        return h, h.t() @ a, (a @ b).sum(), (a.double() @ b.double())

    torch.manual_seed(0)
    a, b, bias = torch.randn(6, 4), torch.randn(4, 9), torch.randn(9)
    graph = make_fx(function, tracing_mode="fake")(a, b, bias)
    keys = {products._key(*pair) for node in graph.graph.nodes if (pair := products._values(node)) is not None}
    assert keys == {"6x4:4,1 4x9:9,1", "9x6:1,9 6x4:4,1"}
    products.replace(graph, dict.fromkeys(keys, way))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(f"thalweg.product_{way}.default") == 3
    assert "aten.addmm.default" not in called
    assert called.count("aten.mm.default") == 1, "the product in float64 stays"
    for found, expected in zip(graph(a, b, bias), function(a, b, bias), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_products_that_were_not_chosen_stay() -> None:
    graph = make_fx(torch.mm, tracing_mode="fake")(torch.ones(2, 3), torch.ones(3, 2))
    code = graph.code
    products.replace(graph, {"3x3:3,1 3x2:2,1": "onednn"})
    assert graph.code == code


def test_each_product_is_timed_once_and_only_those_that_gain_are_chosen(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b).t() @ (a @ b)

    graph = make_fx(function, tracing_mode="fake")(torch.ones(3, 2), torch.ones(2, 3))
    timed: list[str] = []

    def fastest(key: str, kernels: object) -> str:
        timed.append(key)
        return products.SMALL if key.startswith("3x2") else products.DEFAULT

    monkeypatch.setattr(products, "fastest", fastest)
    assert products.chosen(graph, small) == {"3x2:2,1 2x3:3,1": products.SMALL}
    assert timed == ["3x2:2,1 2x3:3,1", "3x3:1,3 3x3:3,1"]


@pytest.mark.parametrize("of", [rows, columns, wide, alike])
def test_a_product_is_made_again_from_its_words(of: Callable) -> None:
    a, b = of(6, 7), of(7, 4)
    found = [products._made(part) for part in products._key(a, b).split()]
    assert [(t.shape, t.stride()) for t in found] == [(a.shape, a.stride()), (b.shape, b.stride())]


def test_a_large_product_is_not_for_the_small_kernel() -> None:
    sizes = {"1x2000:2000,1 2000x1000:1000,1": True, "2x2000:2000,1 2000x1000:1000,1": False}
    for key, fits in sizes.items():
        a, b = (products._made(part) for part in key.split())
        assert products._fits(products.SMALL, a, b) is fits
        assert products._fits(products.ONEDNN, a, b)


# ── layout ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(50, 2))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, last: bool = False) -> None:
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).to(model[0].weight.dtype)
    model(layout.images_last(x) if last else x).square().mean().backward()
    Update(optimizer)()


@pytest.mark.parametrize(
    "rule", [lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)]
)
def test_images_lie_channels_last_and_come_back(rule: Callable) -> None:
    model = network()
    optimizer = rule(model.parameters())
    stepped(model, optimizer, 0)
    model(torch.ones(1, 3, 6, 6)).sum().backward()  # gradients are there as well

    def held() -> dict[str, Tensor]:
        found = {f"{i} {name}": t for i, p in enumerate(model.parameters()) for name, t in optimizer.state[p].items()}
        found |= dict(model.named_parameters())
        return found | {f"{name}.grad": p.grad for name, p in model.named_parameters()}

    values = {name: t.detach().clone() for name, t in held().items()}
    strides = {name: t.stride() for name, t in held().items()}
    parameters = list(model.parameters())
    laid = layout.Layout(model.parameters(), optimizer)
    laid.apply()
    moved = {name for name, t in held().items() if t.stride() != strides[name]}
    assert moved == {name for name, t in held().items() if t.ndim == 4}
    assert all(held()[name].is_contiguous(memory_format=torch.channels_last) for name in moved)
    assert all(torch.equal(t, values[name]) for name, t in held().items())
    laid.undo()
    assert {name: t.stride() for name, t in held().items()} == strides
    assert all(torch.equal(t, values[name]) for name, t in held().items())
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True)), "they are the same objects"


def test_a_training_in_the_other_order_is_the_same_training() -> None:
    def trained(last: bool) -> nn.Module:
        model = network().double()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        laid = layout.Layout(model.parameters(), optimizer)
        for i in range(5):
            if last and i == 2:
                laid.apply()
            if last and i == 4:
                laid.undo()
            stepped(model, optimizer, i, last and 2 <= i < 4)
        return model

    plain, other = trained(False), trained(True)
    for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-12, msg=name)
        assert q.stride() == p.stride()


def test_state_that_was_loaded_follows() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    stepped(model, optimizer, 0)
    saved = dict(optimizer.state_dict().items())
    laid = layout.Layout(model.parameters(), optimizer)
    laid.apply()
    optimizer.load_state_dict(torch.load(_stored(saved), weights_only=True))
    weight = model[0].weight
    optimizer.state[weight]["exp_avg"] = optimizer.state[weight]["exp_avg"].contiguous()
    assert optimizer.state[weight]["exp_avg"].stride() != weight.stride()
    laid.follow()
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert torch.equal(optimizer.state[weight]["exp_avg"], saved["state"][0]["exp_avg"])


def _stored(state: dict) -> Path:
    path = Path("state.pt")
    torch.save(state, path)
    return path


def test_a_weight_that_was_channels_last_stays_so_afterwards() -> None:
    model = network().to(memory_format=torch.channels_last)
    found = [p.stride() for p in model.parameters()]
    laid = layout.Layout(model.parameters(), torch.optim.Adam(model.parameters()))
    laid.apply()
    laid.undo()
    assert [p.stride() for p in model.parameters()] == found


def test_images_of_a_batch_in_any_form() -> None:
    image, row = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    (found, left), named = layout.images_last(((image, row), {"a": image, "b": row}))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, image)
    assert left is row
    assert named["a"].stride() == found.stride()
    assert layout.images_last(found) is found, "what lies so already is not copied"
    assert layout.has_images(network())
    assert not layout.has_images(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """What is set of the C library, in order, and nothing of it in truth."""
    seen: list[dict[int, int]] = []

    class Library:
        def malloc_trim(self, pad: int) -> None:
            seen.append({})

    monkeypatch.setattr(allocator, "_library", Library)
    monkeypatch.setattr(allocator, "_set", lambda library, values: seen.append(values))
    return seen


def test_memory_is_kept_until_the_last_one_leaves(thresholds: list[dict[int, int]]) -> None:
    first, second = allocator.kept(), allocator.kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # in any order
    assert thresholds == [allocator._RAISED] * 2
    second.__exit__(None, None, None)
    assert thresholds[2:] == [allocator._LOWERED, {}]
    with allocator.kept(), allocator.kept():
        pass
    assert thresholds[4:] == [allocator._RAISED] * 2 + [allocator._LOWERED, {}]


def test_memory_goes_back_after_an_error(thresholds: list[dict[int, int]]) -> None:
    with pytest.raises(RuntimeError), allocator.kept():
        raise RuntimeError
    assert thresholds == [allocator._RAISED, allocator._LOWERED, {}]


def test_without_glibc_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_library", lambda: None)
    monkeypatch.setattr(allocator, "_set", lambda *_: pytest.fail("there is nothing to set"))
    assert not allocator.is_available()
    with allocator.kept():
        pass


@pytest.mark.skipif(not allocator.is_available(), reason="another C library")
def test_memory_that_is_kept_goes_back_in_the_end() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    gc.collect()
    with allocator.kept():
        large = [torch.ones(1 << 18) for _ in range(256)]  # 256 MiB, in blocks of one
        del large
        kept = resident()
    assert kept - resident() > 128 << 20


def test_a_process_that_does_not_close_its_step_ends_without_a_word() -> None:
    script = """
import torch, thalweg
model = torch.nn.Linear(2, 1)
step = thalweg.fast_step(model, "mse", torch.optim.SGD(model.parameters(), 0.1), plan=thalweg.Plan(keep_memory=True))
step(torch.ones(4, 2), torch.ones(4, 1))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
