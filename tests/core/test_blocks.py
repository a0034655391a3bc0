"""Tasks on blocks of rows and how their results add: each against the whole table, however it is cut and in whatever order it comes."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from bayesgmm.core import blocks, quantiles
from bayesgmm.core.blocks import Draw, Gather, Subsample, Take


def table(N: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal([5.0, -100.0, 0.0], [1.0, 3.0, 1e-3], (N, 3))
    X[:, 2] += 1e-4 * X[:, 0]
    v = rng.uniform(0.2, 3, N)
    v[::7] = 0.0
    return X, v


CUTS = ([0, 200], [0, 1, 50, 50, 120, 200], [0, 199, 200])


def over(task, X, v, cuts, backwards=False):
    """The task's results on parts of the table, added."""
    parts = [
        task(X[a:b], None if v is None else v[a:b], block)
        for block, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]
    return reduce(add, parts[::-1] if backwards else parts)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_moments_are_the_tables(cuts, weighted, backwards):
    X, v = table()
    found = over(blocks.moments, X, v if weighted else None, cuts, backwards)
    w = v if weighted else np.ones(len(X))
    mean = w @ X / w.sum()
    assert found.n_rows == 200
    assert found.n_counted == np.count_nonzero(w)
    assert found.weight == pytest.approx(w.sum(), rel=1e-13)
    # Differences from means of 200 rows: rounding, in units of the features.
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.scatter, (X - mean).T @ ((X - mean) * w[:, None]), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.low, X.min(axis=0))
    np.testing.assert_array_equal(found.high, X.max(axis=0))


def test_moments_of_a_block_without_weight_are_nothing():
    X, v = table()
    empty = blocks.moments(X, np.zeros(200), 0)
    assert (empty.n_rows, empty.n_counted, empty.weight) == (200, 0, 0.0)
    both = empty + blocks.moments(X, v, 1)
    alone = blocks.moments(X, v, 1)
    np.testing.assert_allclose(both.mean, alone.mean, rtol=1e-14)
    np.testing.assert_allclose(both.scatter, alone.scatter, rtol=1e-12)
    np.testing.assert_array_equal(both.low, alone.low)
    assert both.n_rows == 400
    nothing = empty + empty
    assert nothing.weight == 0
    assert np.isfinite(nothing.scatter).all()


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("size", [1, 10, 60, 500])
def test_a_subsample_is_the_rows_of_the_smallest_keys(cuts, size):
    X, v = table()
    keys = np.concatenate(
        [
            np.random.default_rng([4, block]).random(b - a)
            for block, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
        ]
    )
    order = [i for i in np.argsort(keys) if v[i] > 0][:size]
    for backwards in (False, True):
        found = over(Draw(size, 4), X, v, cuts, backwards)
        np.testing.assert_array_equal(found.rows, X[order])
        np.testing.assert_array_equal(found.weights, v[order])
    some = over(Draw(size, 4, 0.5), X, v, cuts)
    below = [i for i in order if keys[i] < 0.5]
    np.testing.assert_array_equal(some.rows[: len(below)], X[below])
    assert len(some.rows) == len(below)
    everyone = over(Draw(size, 4), X, None, cuts)
    assert (everyone.weights == 1).all()


def test_a_subsample_does_not_pile_up_rows():
    X, v = table()
    total = reduce(add, [Draw(10, 1)(X, v, block) for block in range(50)])
    assert isinstance(total, Subsample)
    assert sum(len(keys) for _, _, keys in total.parts) < 20 + 10


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_taken_by_their_numbers(cuts, weighted):
    X, v = table()
    rows = np.array([0, 1, 2, 49, 50, 119, 120, 150, 198, 199])
    sizes = over(blocks.size, X, None, cuts, backwards=True)
    np.testing.assert_array_equal(sizes.values, np.diff(cuts))
    found = over(Take.of(rows, sizes), X, v if weighted else None, cuts, backwards=True).values
    np.testing.assert_array_equal(found[:, :3], X[rows])
    np.testing.assert_array_equal(found[:, 3], v[rows] if weighted else np.ones(len(rows)))


@pytest.mark.parametrize("cuts", CUTS)
def test_what_is_gathered_is_in_the_tables_order(cuts):
    X, v = table()
    found = over(Gather(lambda rows: rows[:, 0] ** 2), X, v, cuts, backwards=True)
    np.testing.assert_array_equal(found.values, X[:, 0] ** 2)


def second(X):
    return X[:, 1]


@pytest.mark.parametrize("cuts", CUTS)
def test_rows_are_counted_between_edges(cuts):
    X, v = table()
    edges = np.array([-105.0, -100.0, -99.0])
    found = over(quantiles._Count(second, edges), X, v, cuts)
    kept = v > 0
    bins = np.array([-np.inf, *edges, np.inf])
    inside = [(second(X) > a) & (second(X) <= b) & kept for a, b in zip(bins, bins[1:], strict=False)]
    np.testing.assert_allclose(found.weights, [v[i].sum() for i in inside], rtol=1e-13)
    np.testing.assert_array_equal(found.rows, [i.sum() for i in inside])
    assert (found.low, found.high) == (second(X)[kept].min(), second(X)[kept].max())
    plain = over(quantiles._Count(second, edges), X, None, cuts)
    np.testing.assert_array_equal(plain.weights, plain.rows)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_of_an_interval_and_the_next_one(cuts, weighted):
    X, v = table()
    w = v if weighted else np.ones(len(X))
    low, high = np.sort(second(X))[[60, 90]]
    found = over(quantiles._Collect(second, low, high), X, v if weighted else None, cuts)
    inside = np.flatnonzero((second(X) > low) & (second(X) <= high) & (w > 0))
    order = inside[np.argsort(second(X)[inside])]
    above = np.flatnonzero((second(X) > high) & (w > 0))
    # Each block has one of its own beyond; the smallest of all comes first after those inside.
    np.testing.assert_array_equal(found.values[: len(order)], second(X)[order])
    np.testing.assert_array_equal(found.weights[: len(order)], w[order])
    assert found.values[len(order)] == second(X)[above].min()
    assert (np.diff(found.values) >= 0).all()


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("few", [10, 100_000])
def test_weighted_quantiles_are_exact(share, few, monkeypatch):
    monkeypatch.setattr(quantiles, "FEW", few)
    monkeypatch.setattr(quantiles, "BINS", 7)
    X, v = table()

    class Blocks:
        def total(self, task):
            return over(task, X, v, CUTS[1])

    value, above = quantiles.around_quantile(Blocks(), second, share)
    kept = np.flatnonzero(v > 0)
    order = kept[np.argsort(second(X)[kept])]
    place = int(np.searchsorted(np.cumsum(v[order]), share * v.sum() * (1 - 1e-12)))
    assert value == second(X)[order[place]]
    assert above == second(X)[order[min(place + 1, len(order) - 1)]]
