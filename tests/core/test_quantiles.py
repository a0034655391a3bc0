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
