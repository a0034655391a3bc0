from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from bayesgmm.core import kernel
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.inference import relabel_rows
from bayesgmm.inference.relabel import relabel
from bayesgmm.inference.relabel_rows import METHODS, agreement, classification, ecr, relabel_by, stephens
from tests.label_switching import switched

DRAWS = 600


def by_all_methods(data) -> dict[str, np.ndarray]:
    start = relabel(data.weights, data.means, data.covariances, covariance_type="full")
    return {
        "mode": start,
        "ecr": ecr(data.X, data.flat, start=start),
        "stephens": stephens(data.X, data.flat, start=start),
    }


@pytest.mark.parametrize(
    ("case", "least"),
    [("separated", 0.99), ("crossing", 0.99), ("crossing, like weights", 0.99), ("heavy overlap", 0.98)],
)
def test_shuffled_draws_are_brought_back(case, least):
    data = switched(case, DRAWS, seed=1)
    # The order along the first feature changes from draw to draw: ordering by it is no way out.
    assert data.share_right(data.by_coordinate()) < 0.95
    best = data.share_right(data.best_orders())
    for method, found in by_all_methods(data).items():
        assert data.share_right(found) >= least, method
        # No rule is right more often than the most probable order, but for chance: 3 binomial errors of a few draws.
        assert data.share_right(found) <= best + 3 * np.sqrt(2 / DRAWS)


@pytest.fixture(scope="module")
def overlapping():
    return switched("heavy overlap, few rows", 40, seed=3)


def test_each_step_is_the_minimum_over_all_orders(overlapping):
    """Both at rest: no order of any draw lowers its cost against the classification that all orders make together."""
    data, K = overlapping, 3
    p = np.stack(
        [kernel.responsibilities(data.X, MixtureParameters(w, m, P))[0] for w, m, P in zip(*data.flat, strict=True)]
    )
    for function in (ecr, stephens):
        found = function(data.X, data.flat)
        q = np.mean([p[s][:, found[s]] for s in range(len(p))], axis=0)
        for s in range(len(p)):
            costs = {}
            for order in permutations(range(K)):
                mine = p[s][:, list(order)]
                if function is stephens:
                    costs[order] = np.sum(mine * (np.log(mine) - np.log(q)))
                else:
                    costs[order] = -np.sum(mine[np.arange(len(q)), q.argmax(axis=1)])
            assert costs[tuple(found[s])] == pytest.approx(min(costs.values()), rel=1e-9)


def test_pivot_gives_the_order_with_most_rows_in_common(overlapping):
    data = overlapping
    pivot = np.repeat(np.arange(3), (60, 40, 40))
    found = ecr(data.X, data.flat, pivot=pivot)
    p = classification(data.X, *data.flat)
    for s in range(len(p)):
        common = {o: p[s][np.arange(len(pivot)), np.array(o)[pivot]].sum() for o in permutations(range(3))}
        assert tuple(found[s]) == max(common, key=common.__getitem__)


def test_classification_is_the_kernels_responsibilities(overlapping):
    data = overlapping
    X = np.concatenate([data.X, [[1e4, -3e3], [1e200, 1e200]]])
    found = classification(X, *data.flat)
    for s in (0, 17):
        expected, _ = kernel.responsibilities(X, MixtureParameters(*(part[s] for part in data.flat)))
        # Rounding of exponents of some 1e7, for the row far out.
        np.testing.assert_allclose(found[s][:-1], expected[:-1], atol=1e-8)
    # Where all densities are 0 there is nothing to tell.
    np.testing.assert_array_equal(found[:, -1], 0.0)


@pytest.mark.parametrize("function", [ecr, stephens])
def test_blocks_of_draws_and_rows_change_nothing(monkeypatch, overlapping, function):
    whole = function(overlapping.X, overlapping.flat)
    monkeypatch.setattr(relabel_rows, "BLOCK_ELEMENTS", 500)
    monkeypatch.setattr(relabel_rows, "BLOCK_ROWS", 37)
    np.testing.assert_array_equal(function(overlapping.X, overlapping.flat), whole)


@pytest.mark.parametrize("function", [ecr, stephens])
def test_weights_are_copies_of_rows(overlapping, function):
    data = overlapping
    v = np.random.default_rng(0).integers(0, 4, len(data.X)).astype(float)
    np.testing.assert_array_equal(
        function(data.X, data.flat, sample_weight=v), function(np.repeat(data.X, v.astype(int), axis=0), data.flat)
    )


@pytest.mark.parametrize("method", METHODS)
def test_components_stay_in_their_blocks(overlapping, method):
    data = overlapping
    reference = (data.weights[0], data.means[0], data.covariances[0])
    blocks = (slice(0, 2), slice(2, 3))
    found = relabel_by(method, data.X, data.flat, data.covariances, reference, blocks=blocks)
    assert (found[:, 2] == 2).all()
    np.testing.assert_array_equal(np.sort(found[:, :2], axis=1), np.broadcast_to([0, 1], (len(found), 2)))


def test_agreement_counts_the_draws_that_two_methods_order_alike(monkeypatch):
    data = switched("heavy overlap, few rows", 150, seed=4)
    reference = tuple(part[0][data.undo[0]] for part in (data.weights, data.means, data.covariances))
    found = agreement(data.X, data.flat, data.covariances, reference)
    each = {m: relabel_by(m, data.X, data.flat, data.covariances, reference) for m in METHODS}
    # Fewer rows and draws than are compared: all of them are.
    for pair, share in found.items():
        one, other = pair.split(", ")
        assert share == np.mean((each[one] == each[other]).all(axis=1))
    assert len(found) == 3
    assert min(found.values()) < 1
    monkeypatch.setattr(relabel_rows, "COMPARED_ROWS", 30)
    some = agreement(data.X, data.flat, data.covariances, reference)
    assert some == agreement(data.X, data.flat, data.covariances, reference)
