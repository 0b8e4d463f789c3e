import numpy as np
import pytest
import torch

from thalweg.tasks.tabular import columns
from thalweg.tasks.tabular.network import Normal
from thalweg.tasks.tabular.table import Table
from thalweg.tasks.task import BadData


def table(**cells):
    return Table("t.csv", cells, list(range(2, 2 + len(next(iter(cells.values()))))))


MIXED = {
    "size": ["1", "2", "NA", "4", "1e3", "6"],
    "when": ["2024-01-31", "2024-02-01T12:00:00", "", "2024-03-01", "2023-01-01", "2024-02-01"],
    "colour": ["red", "blue", "?", "red", "red", "green"],
    "y": ["0", "1", "0", "1", "0", "1"],
}


def test_kinds_are_inferred_and_cells_become_numbers():
    facts, notes = columns.infer(table(**MIXED), "y", BadData())
    assert [(fact["name"], fact["kind"]) for fact in facts] == [
        ("size", "number"), ("when", "date"), ("colour", "category"),
    ]  # fmt: skip
    assert facts[2]["levels"] == ["red"] and notes == []  # what three rows have; rarer ones count as unseen
    numbers, missing, categories = columns.encode(table(**MIXED), facts)
    size = np.array([1, 2, 4, 1e3, 6])
    there = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(numbers[there, 0], (size - np.median(size)) / size.std(), rtol=1e-6)
    assert numbers[2].tolist() == [0, 0] and missing.tolist() == [[0, 0]] * 2 + [[1, 1]] + [[0, 0]] * 3
    scale = facts[1]["scale"]
    assert (numbers[1, 1] - numbers[5, 1]) * scale == pytest.approx(0.5, rel=1e-4)  # noon is half a day
    assert categories[:, 0].tolist() == [2, 0, 1, 2, 2, 0]


def test_what_was_learned_is_used_for_other_rows():
    facts, _ = columns.infer(table(**MIXED), "y", BadData())
    numbers, _, categories = columns.encode(table(size=["4"], when=["2024-01-31"], colour=["pink"]), facts)
    assert numbers[0, 0] == 0 and categories.tolist() == [[0]]  # the median; a word that was never seen
    with pytest.raises(ValueError, match="lacks the column 'colour': did you mean 'color'"):
        columns.encode(table(size=["4"], when=[""], color=["red"]), facts)


def test_constant_and_empty_columns_are_refused_or_left_out_and_named():
    cells = {"a": ["1", "2", "3"], "same": ["7", "7", "7"], "none": ["", "NA", "?"], "y": ["1", "2", "3"]}
    with pytest.raises(ValueError, match=r"t.csv: the column 'same' has the same value in every row \(7\)"):
        columns.infer(table(**cells), "y", BadData())
    del cells["same"]
    with pytest.raises(ValueError, match="the column 'none' is missing in every row"):
        columns.infer(table(**cells), "y", BadData())
    bad = BadData("skip")
    facts, _ = columns.infer(table(**cells, same=["7", "7", "7"]), "y", bad)
    assert [fact["name"] for fact in facts] == ["a"] and len(bad.notes()) == 2


def test_a_constant_with_holes_is_kept_for_its_holes():
    facts, _ = columns.infer(table(a=["7", "", "7"], y=["1", "2", "3"]), "y", BadData())
    assert facts[0]["missing"]
    assert np.isfinite(columns.encode(table(a=["7", "", "8"]), facts)[0]).all()


def test_names_of_rows_are_no_category():
    cells = {"a": [str(i) for i in range(60)], "name": [f"row {i}" for i in range(60)], "y": ["1", "2"] * 30}
    facts, notes = columns.infer(table(**cells), "y", BadData())
    assert [fact["name"] for fact in facts] == ["a"]
    assert notes == ["The column 'name' was left out: nearly every row has a word of its own there."]
    with pytest.raises(ValueError, match="no column to predict 'y' from"):
        columns.infer(table(name=cells["name"], y=cells["y"]), "y", BadData())


def test_a_word_among_numbers_is_a_fault_of_its_row():
    cells = {"a": [str(i) for i in range(40)], "y": ["1"] * 40}
    cells["a"][5] = "about 5"
    facts, _ = columns.infer(table(**cells), "y", BadData())
    assert facts[0]["kind"] == "number"
    with pytest.raises(ValueError, match="t.csv, line 7: 'about 5' stands in the column 'a', where a number was exp"):
        columns.faults(table(**cells), facts, BadData())
    bad = BadData("skip")
    assert columns.faults(table(**cells), facts, bad) == [i for i in range(40) if i != 5]
    assert len(bad.notes()) == 1


def test_numbers_are_mapped_onto_a_normal_distribution():
    values = np.random.default_rng(0).lognormal(0, 2, 4000)
    facts, _ = columns.infer(table(a=[repr(float(v)) for v in values], y=["1"] * 4000), "y", BadData())
    normal = Normal([facts[0]["knots"]], [facts[0]["places"]])
    x = torch.tensor((values - facts[0]["centre"]) / facts[0]["scale"], dtype=torch.float32)[:, None]
    z = normal(x)[:, 0]
    assert torch.equal(z.argsort(), x[:, 0].argsort())
    expected = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    assert torch.allclose(z.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])), expected, atol=0.05)
    ends = normal(torch.tensor([[-1e9], [1e9]]))[:, 0]
    assert ends[0] == z.min() and ends[1] == pytest.approx(z.max().item(), abs=1e-5)


def test_columns_with_few_and_with_many_values_stand_beside_each_other():
    facts, _ = columns.infer(table(a=["0", "1"] * 50, b=[str(i) for i in range(100)], y=["1"] * 100), "y", BadData())
    normal = Normal([fact["knots"] for fact in facts], [fact["places"] for fact in facts])
    z = normal(torch.tensor(columns.encode(table(a=["0", "1"], b=["0", "99"]), facts)[0]))
    assert z[:, 0].tolist() == pytest.approx([-0.6745, 0.6745], abs=1e-3)  # a quarter and three of the ranks
    assert z[0, 1] < -2 and z[1, 1] > 2
