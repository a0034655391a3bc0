"""Quantiles found by passes over blocks are those of the sorted numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bayesgmm.core import quantiles
from bayesgmm.tables import open_blocks


def first_column(X):
    return X[:, 0]


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.99999])
@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.standard_cauchy(5000),
        lambda rng: rng.integers(0, 4, 5000).astype(float),
        lambda rng: np.full(5000, 2.5),
        lambda rng: -(10.0 ** rng.uniform(-3, 12, 5000)),
    ],
    ids=["heavy tails", "ties", "constant", "many scales"],
)
def test_exact_and_the_next_one(make, share, monkeypatch):
    monkeypatch.setattr(quantiles, "FEW", 20)
    monkeypatch.setattr(quantiles, "BINS", 9)
    values = make(np.random.default_rng(0))
    found = quantiles.around_quantile(open_blocks(values[:, None], block_rows=700), first_column, share)
    ordered = np.sort(values)
    last = int(np.searchsorted(np.arange(1, 5001), share * 5000 * (1 - 1e-12)))
    assert found == (ordered[last], ordered[min(last + 1, 4999)])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_few_rows_are_sorted_at_once(share):
    values = np.random.default_rng(1).standard_normal(50)
    ordered = np.sort(values)
    last = min(int(np.ceil(share * 50)), 50) - 1
    found = quantiles.around_quantile(open_blocks(values[:, None], block_rows=20), first_column, share)
    assert found == (ordered[last], ordered[min(last + 1, 49)])


class Blocks:
    """Weighted rows in blocks; keeps what each pass gave."""

    def __init__(self, values, v, size):
        self.parts = [(values[a : a + size, None], v[a : a + size]) for a in range(0, len(values), size)]
        self.passes = []

    def total(self, task):
        results = [task(X, v, i) for i, (X, v) in enumerate(self.parts)]
        total = results[0]
        for result in results[1:]:
            total = total + result
        self.passes.append((task, total))
        return total


@pytest.mark.parametrize("share", [0.001, 0.2, 0.7, 0.999])
def test_weights_are_rows_that_many_times(share, monkeypatch):
    monkeypatch.setattr(quantiles, "FEW", 20)
    monkeypatch.setattr(quantiles, "BINS", 9)
    rng = np.random.default_rng(2)
    values, v = rng.standard_normal(2000).round(2), rng.integers(0, 4, 2000).astype(float)
    # The extremes do not count.
    v[[values.argmin(), values.argmax()]] = 0
    v[3], values[3], v[4], values[4] = 0, -90, 0, 90
    ordered = np.sort(np.repeat(values, v.astype(int)))
    last = int(np.searchsorted(np.arange(1, len(ordered) + 1), share * len(ordered) * (1 - 1e-12)))
    value, above = quantiles.around_quantile(Blocks(values, v, 300), first_column, share)
    assert value == ordered[last]
    # The next number, whether the same one again where it has more weight than is needed or a larger one.
    distinct = np.unique(ordered)
    assert above in (value, distinct[min(np.searchsorted(distinct, value) + 1, len(distinct) - 1)])


@pytest.mark.parametrize("share", [1e-3, 0.5, 0.999])
def test_few_numbers_are_collected_after_a_handful_of_passes(share, monkeypatch):
    monkeypatch.setattr(quantiles, "FEW", 20)
    monkeypatch.setattr(quantiles, "BINS", 9)
    values = np.random.default_rng(3).uniform(0, 1, 4000) ** 1.5
    blocks = Blocks(values, np.ones(4000), 500)
    quantiles.around_quantile(blocks, first_column, share)
    *counts, (_, few) = blocks.passes
    assert len(counts[0][0].edges) == 0
    assert all(len(task.edges) == 10 for task, _ in counts[1:])
    # All rows are in one bin or another, each time.
    assert [found.rows.sum() for _, found in counts] == [4000] * len(counts)
    # Of 4000 rows a ninth, or a few times that where they are dense, is left by each pass: 20 after five at most, beside the first.
    assert 3 <= len(counts) <= 6
    # And the smallest number above the interval, of each block.
    assert len(few.values) <= 20 + 8
    np.testing.assert_array_equal(few.values, np.sort(few.values))


def test_numbers_on_the_edges_of_bins_count_once(monkeypatch):
    monkeypatch.setattr(quantiles, "FEW", 10)
    monkeypatch.setattr(quantiles, "BINS", 9)
    # The bins' edges are 10, 20, …, 90.
    values = np.arange(91.0)
    for rank in range(90):
        found = quantiles.around_quantile(Blocks(values, np.ones(91), 30), first_column, (rank + 0.5) / 91)
        assert found == (rank, rank + 1)
