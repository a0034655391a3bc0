"""Losses of partitions against scikit-learn and double loops; the search against all set partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import mutual_info_score, rand_score

from bayesgmm.core import partitions
from bayesgmm.core.allocations import best_draw, draw_allocations
from bayesgmm.core.partitions import LOSSES, _problem, canonical, losses, mean_coclustering, minimise
from tests.mixtures import random_mixture

ROUNDING = 1e-12
"""Sums of some hundred terms of order 10 in another order."""


def set_partitions(n_rows: int) -> Iterator[np.ndarray]:
    """All partitions of the rows, as labels in order of appearance."""

    def extended(labels: list[int]) -> Iterator[np.ndarray]:
        if len(labels) == n_rows:
            yield np.array(labels)
            return
        for label in range(max(labels, default=-1) + 2):
            yield from extended([*labels, label])

    return extended([])


def pairwise(labels: np.ndarray) -> np.ndarray:
    return labels[:, None] == labels


def loss_by_pairs(a: np.ndarray, b: np.ndarray, loss: str, v: np.ndarray) -> float:
    """Both losses from who is together with whom, without a table of intersections.

    VI is the mean over rows of log₂ of the weight together in a, times that in b, over the square of that in both.
    """
    in_a, in_b = pairwise(a), pairwise(b)
    if loss == "binder":
        return float(v @ (in_a != in_b) @ v / v.sum() ** 2)
    return float(v @ np.log2((in_a @ v) * (in_b @ v) / ((in_a & in_b) @ v) ** 2) / v.sum())


def noisy_draws(rng: np.random.Generator, n_rows: int, n_labels: int, n_draws: int, keep: float) -> np.ndarray:
    """Draws that keep a row's label with some probability; labels are permuted in every draw."""
    base = rng.integers(0, n_labels, n_rows)
    z = np.where(
        rng.random((n_rows, n_draws)) < keep, base[:, None], rng.integers(0, n_labels, (n_rows, n_draws))
    ).astype(np.uint8)
    return permuted(z, n_labels, rng)


def permuted(z: np.ndarray, n_labels: int, rng: np.random.Generator) -> np.ndarray:
    orders = np.argsort(rng.random((z.shape[1], n_labels)), axis=1).astype(np.uint8)
    return orders[np.arange(z.shape[1]), z]


# losses


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_those_of_pairs_of_rows(loss, weighted):
    rng = np.random.default_rng(1)
    z = noisy_draws(rng, 40, 5, 30, 0.5)
    labels = rng.integers(0, 7, 40)
    v = rng.uniform(0.1, 4, 40) if weighted else np.ones(40)
    got, n_clusters = losses(z, labels, loss, v if weighted else None)
    np.testing.assert_allclose(got, [loss_by_pairs(labels, z[:, s], loss, v) for s in range(30)], atol=ROUNDING)
    np.testing.assert_array_equal(n_clusters, [len(np.unique(z[:, s])) for s in range(30)])


def test_losses_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    z, labels, N = noisy_draws(rng, 60, 4, 20, 0.6), rng.integers(0, 3, 60), 60
    vi, _ = losses(z, labels, "vi")
    binder, _ = losses(z, labels, "binder")
    for s in range(20):
        entropies = mutual_info_score(labels, labels) + mutual_info_score(z[:, s], z[:, s])
        expected = (entropies - 2 * mutual_info_score(labels, z[:, s])) / np.log(2)
        assert vi[s] == pytest.approx(expected, abs=ROUNDING)
        # A share of the ordered pairs, each row with itself included.
        assert binder[s] == pytest.approx((1 - rand_score(labels, z[:, s])) * (N - 1) / N, abs=ROUNDING)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_metrics(loss):
    every = np.stack(list(set_partitions(5)), axis=1).astype(np.uint8)
    distance = np.stack([losses(every, every[:, p], loss)[0] for p in range(every.shape[1])])
    np.testing.assert_allclose(distance, distance.T, atol=ROUNDING)
    np.testing.assert_allclose(np.diag(distance), 0, atol=ROUNDING)
    assert np.all(distance[~np.eye(len(distance), dtype=bool)] > 1e-3)
    # Triangle: the direct way is no longer than any by a third partition.
    around = (distance[:, :, None] + distance[None]).min(axis=1)
    assert np.all(distance <= around + ROUNDING)


@pytest.mark.parametrize("loss", LOSSES)
def test_whole_weights_are_rows_that_many_times(loss):
    rng = np.random.default_rng(3)
    z, labels, v = noisy_draws(rng, 25, 3, 12, 0.5), rng.integers(0, 4, 25), rng.integers(1, 5, 25)
    expected, _ = losses(np.repeat(z, v, axis=0), np.repeat(labels, v), loss)
    np.testing.assert_allclose(losses(z, labels, loss, v)[0], expected, atol=ROUNDING)
    np.testing.assert_allclose(losses(z, labels, loss, 0.37 * v)[0], expected, atol=ROUNDING)


# the search


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.slow
def test_the_search_finds_the_best_of_all_partitions(loss, keep, weighted):
    rng = np.random.default_rng(4)
    for n_labels in (2, 3, 5):
        z = noisy_draws(rng, 7, n_labels, 20, keep)
        v = rng.uniform(0.3, 3, 7) if weighted else None
        best = min(losses(z, labels, loss, v)[0].mean() for labels in set_partitions(7))
        found = minimise(z, loss, np.random.default_rng(0), v, max_clusters=7)
        assert losses(z, found, loss, v)[0].mean() == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_search_finds_the_best_of_eight_rows_within_a_limit(loss):
    z = noisy_draws(np.random.default_rng(5), 8, 6, 25, 0.8)
    every = [(losses(z, labels, loss)[0].mean(), labels) for labels in set_partitions(8)]
    for limit in (1, 2, 3, 8):
        best = min(value for value, labels in every if labels.max() < limit)
        found = minimise(z, loss, np.random.default_rng(0), starts=[np.arange(8)], max_clusters=limit)
        assert found.max() < limit
        assert losses(z, found, loss)[0].mean() == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_move_of_a_row_helps_and_no_start_was_better(loss, weighted):
    rng = np.random.default_rng(6)
    z = noisy_draws(rng, 70, 4, 61, 0.55)
    v = rng.uniform(0.2, 3, 70) if weighted else None
    starts = [z[:, 0], rng.integers(0, 4, 70)]
    found = minimise(z, loss, np.random.default_rng(0), v, starts, n_restarts=4, max_clusters=70)
    at_found = losses(z, found, loss, v)[0].mean()
    for row in range(70):
        for label in range(found.max() + 2):
            moved = found.copy()
            moved[row] = label
            assert losses(z, moved, loss, v)[0].mean() >= at_found - 1e-9
    assert all(at_found <= losses(z, start, loss, v)[0].mean() + ROUNDING for start in starts)


@pytest.mark.parametrize("loss", LOSSES)
def test_permuting_labels_within_draws_changes_nothing(loss):
    rng = np.random.default_rng(7)
    z = noisy_draws(rng, 50, 5, 80, 0.6)
    other = permuted(z, 5, rng)
    assert np.any(z != other)
    labels = minimise(z, loss, np.random.default_rng(0))
    np.testing.assert_array_equal(minimise(other, loss, np.random.default_rng(0)), labels)
    np.testing.assert_allclose(losses(other, labels, loss)[0], losses(z, labels, loss)[0], atol=ROUNDING)
    np.testing.assert_allclose(mean_coclustering(other, labels), mean_coclustering(z, labels), atol=ROUNDING)
    assert best_draw(other, loss) == best_draw(z, loss)


def test_equal_draws_are_their_own_answer():
    truth = np.repeat([0, 1, 2], [9, 7, 5])
    for loss in LOSSES:
        z = np.repeat(truth[:, None], 10, axis=1).astype(np.uint8)
        np.testing.assert_array_equal(minimise(z, loss, np.random.default_rng(0)), truth)


def test_the_answer_depends_on_the_seed_alone():
    z = noisy_draws(np.random.default_rng(8), 300, 6, 200, 0.3)
    one, two = (minimise(z, "vi", np.random.default_rng(3), n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_rows_of_weight_zero_join_and_do_not_count():
    rng = np.random.default_rng(9)
    z = noisy_draws(rng, 40, 3, 50, 0.9)
    v = np.ones(40)
    v[:4] = 0
    found = minimise(z, "binder", np.random.default_rng(0), v)
    alone = minimise(z[4:], "binder", np.random.default_rng(0))
    np.testing.assert_array_equal(found[4:], alone)
    # Each goes where most rows share its component.
    shares = np.array([[np.mean(z[i] == z[4:][alone == a]) for a in range(alone.max() + 1)] for i in range(4)])
    np.testing.assert_array_equal(found[:4], shares.argmax(axis=1))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_weight_zero_join_clusters_that_there_are(loss):
    """Rows 0 to 4 count: four of them together in every draw, one alone; of the others one is with it, one with nobody."""
    z = np.repeat(np.array([[0, 0, 0, 0, 1, 1, 2]], dtype=np.uint8).T, 6, axis=1)
    v = np.array([1.0, 1, 1, 1, 1, 0, 0])
    found = minimise(z, loss, np.random.default_rng(0), v)
    np.testing.assert_array_equal(found[:6], [0, 0, 0, 0, 1, 1])
    assert found[6] in (0, 1)
    # One cluster alone takes whoever comes.
    np.testing.assert_array_equal(minimise(z[[0, 1, 2, 3, 6]], loss, np.random.default_rng(0), v[[0, 1, 2, 3, 6]]), 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_weight_zero_go_where_one_more_row_would_cost_least(loss):
    rng = np.random.default_rng(15)
    for _ in range(10):
        z = noisy_draws(rng, 9, 3, 20, 0.5)
        v = np.append(np.ones(8), 0.0)
        found = minimise(z, loss, np.random.default_rng(0), v)
        costs = []
        for label in range(found[:8].max() + 1):
            tried = np.append(found[:8], label)
            costs.append(losses(z, tried, loss)[0].mean())
        assert costs[found[8]] == pytest.approx(min(costs), abs=ROUNDING)


def test_labels_go_by_size_and_first_row():
    np.testing.assert_array_equal(canonical(np.array([7, 2, 2, 9, 9, 4])), [2, 0, 0, 1, 1, 3])
    np.testing.assert_array_equal(canonical(np.array([7, 2, 2]), np.array([5.0, 1.0, 1.0])), [0, 1, 1])


@pytest.mark.parametrize("call", [lambda z, loss: losses(z, z[:, 0], loss), best_draw])
def test_an_unknown_loss_lists_the_known(call):
    with pytest.raises(ValueError, match=r"loss must be one of 'vi', 'binder'; got 'rand'"):
        call(np.zeros((3, 2), dtype=np.uint8), "rand")


@pytest.fixture
def searched(monkeypatch):
    """What is handed to each search: where it begins, and how many clusters it may have."""
    seen = []

    def search(problem, start, max_clusters, rng):
        seen.append((start, max_clusters))
        return np.zeros(len(start), dtype=np.int64), 0.0

    monkeypatch.setattr(partitions, "_search", search)
    return seen


@pytest.mark.parametrize(
    ("starts", "asked", "expected"),
    [((), None, 3), (([0, 1, 2, 3, 4, 0],), None, 5), (([0, 0, 0, 1, 1, 1],), None, 3), (([0, 1, 2, 3, 4, 0],), 2, 2)],
)
def test_clusters_at_most(starts, asked, expected, searched):
    """As many as any draw or start has."""
    z = np.array([[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]], dtype=np.uint8).T.copy()
    minimise(z, "vi", np.random.default_rng(0), starts=[np.array(s) for s in starts], max_clusters=asked)
    assert {limit for _, limit in searched} == {expected}


def test_searches_begin_together_apart_and_at_random(searched):
    z = noisy_draws(np.random.default_rng(5), 30, 4, 10, 0.2)
    minimise(z, "vi", np.random.default_rng(0), n_restarts=400)
    starts = [start for start, _ in searched]
    np.testing.assert_array_equal(starts[0], np.zeros(30))
    for start in starts[1::2]:
        np.testing.assert_array_equal(start, np.full(30, -1))
    # Of two clusters to as many as asked for.
    assert {int(start.max()) + 1 for start in starts[2::2]} == {2, 3, 4}
    searched.clear()
    minimise(z, "vi", np.random.default_rng(0), n_restarts=1)
    assert len(searched) == 1


@pytest.mark.parametrize(
    ("n_labels", "n_rows", "asked", "most"), [(4, 30, 100, 8), (4, 6, 100, 6), (4, 30, 5, 5), (1, 30, 100, 2)]
)
def test_random_starts_have_up_to_twice_the_clusters_of_the_draws(n_labels, n_rows, asked, most, searched, monkeypatch):
    seen = set()

    def start(restart, N, up_to, rng):
        seen.add(up_to)
        return np.zeros(N, dtype=np.int64)

    monkeypatch.setattr(partitions, "_random_start", start)
    z = np.tile(np.arange(n_rows, dtype=np.uint8) % n_labels, (10, 1)).T.copy()
    minimise(z, "vi", np.random.default_rng(0), max_clusters=asked)
    assert seen == {most}


def test_threads_are_taken_by_rows_draws_and_searches(searched, monkeypatch):
    asked = []
    over_chunks = partitions.over_chunks
    monkeypatch.setattr(partitions, "over_chunks", lambda *args: asked.append(args[:4]) or over_chunks(*args))
    z = noisy_draws(np.random.default_rng(5), 30, 4, 10, 0.2)
    minimise(z, "vi", np.random.default_rng(0), n_restarts=7, n_threads=1)
    assert asked == [(7, 1, partitions.SWEEPING * 7 * 30 * 10, 1)]


def test_a_problem_has_weights_of_mean_one_and_no_more_than_it_needs():
    z = np.array([[0, 1], [2, 2], [1, 0], [0, 0]], dtype=np.uint8)
    for factor in (1e-9, 1.0, 1e9):
        problem = _problem(z, factor * np.array([1.0, 0.0, 3.0, 2.0]), "vi")
        np.testing.assert_allclose(problem.weight, [0.5, 0, 1.5, 1], rtol=1e-15)
        assert problem.n_labels == 3
        # Gains are tabled where all rows weigh the same.
        assert len(problem.gain) == 0
        assert len(_problem(z, np.full(4, factor), "vi").gain) == 5


def test_a_search_needs_a_start():
    with pytest.raises(ValueError, match="n_restarts"):
        minimise(np.zeros((3, 2), dtype=np.uint8), "vi", np.random.default_rng(0), n_restarts=0)


# single draws


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_rows", [5, 64, 130])
def test_the_best_draw_is_best_of_all(loss, n_rows):
    z = noisy_draws(np.random.default_rng(10), n_rows, 4, 90, 0.5)
    z[:, 3] = 0
    z[:, 41] = z[:, 40]
    means = np.array([losses(z, z[:, s], loss)[0].mean() for s in range(90)])
    draw, exact = best_draw(z, loss, n_threads=2)
    assert exact
    assert draw == np.flatnonzero(means <= means.min() + ROUNDING)[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_draw_that_stands_out_is_found_by_screening(loss, monkeypatch):
    rng = np.random.default_rng(11)
    truth = rng.integers(0, 4, 50)
    z = noisy_draws(rng, 50, 4, 300, 0.0)
    z[:, ::2] = truth[:, None]
    z[0, :] = 0
    z[:, 1] = truth
    # References are every tenth draw, about; weights leave the screening as it is.
    monkeypatch.setattr("bayesgmm.core.allocations.SCREENED", 300 * 16 * 17 * 30)
    v = rng.uniform(0.5, 2, 50)
    for weight in (None, v):
        draw, exact = best_draw(z, loss, weight)
        assert not exact
        means = [losses(z, z[:, s], loss, weight)[0].mean() for s in range(300)]
        assert means[draw] == pytest.approx(min(means), abs=ROUNDING)


# co-clustering with clusters


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_coclustering_is_that_of_pairs(weighted):
    rng = np.random.default_rng(12)
    z = noisy_draws(rng, 30, 4, 25, 0.5)
    labels = canonical(np.append(rng.integers(0, 3, 29), 3))
    v = rng.uniform(0.2, 3, 30) if weighted else np.ones(30)
    together = np.mean(z[:, None] == z[None], axis=2)
    got = mean_coclustering(z, labels, v if weighted else None)
    assert got.shape == (30, 4)
    for i in range(30):
        for a in range(4):
            members = np.flatnonzero((labels == a) & (np.arange(30) != i))
            expected = np.average(together[i, members], weights=v[members]) if len(members) else 1.0
            assert got[i, a] == pytest.approx(expected, abs=ROUNDING)


# allocations


def test_allocations_have_the_frequencies_of_the_responsibilities():
    rng = np.random.default_rng(13)
    truth = random_mixture(rng, 3, 2, spread=1.0)
    X, S = truth.sample(rng, 6), 20_000
    parts = [np.repeat(part[None], S, axis=0) for part in astuple(truth.parameters)]
    z = draw_allocations(X, *parts, np.random.default_rng(1))
    assert z.shape == (6, S)
    assert z.dtype == np.uint8
    joint = truth.weights * np.stack(
        [multivariate_normal(m, C).pdf(X) for m, C in zip(truth.means, truth.covariances)], axis=1
    )
    r = (joint / joint.sum(axis=1, keepdims=True))[:, np.argsort(-truth.weights)]
    frequencies = np.stack([np.mean(z == k, axis=1) for k in range(3)], axis=1)
    # Four and a half binomial standard deviations; rows are independent given the parameters.
    np.testing.assert_allclose(frequencies, r, atol=4.5 * 0.5 / np.sqrt(S))
    assert np.mean(z[0] == z[1]) == pytest.approx(r[0] @ r[1], abs=4.5 * 0.5 / np.sqrt(S))


def test_the_order_of_components_in_a_draw_changes_no_allocation():
    rng = np.random.default_rng(14)
    truth = random_mixture(rng, 4, 2, spread=1.0)
    X, S = rng.standard_normal((20, 2)), 30
    weights, means, factors = (np.repeat(part[None], S, axis=0) for part in astuple(truth.parameters))
    orders = np.argsort(rng.random((S, 4)), axis=1)
    s = np.arange(S)[:, None]
    one = draw_allocations(X, weights, means, factors, np.random.default_rng(0))
    two = draw_allocations(
        X, *(np.ascontiguousarray(part[s, orders]) for part in (weights, means, factors)), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("n_rows", [1, 2, 9])
def test_what_a_row_adds_to_a_cluster_is_known_for_every_size(n_rows):
    """Compiled code reads it without a look at its length: a cluster may be all rows."""
    z = np.zeros((2, n_rows), dtype=np.int64)
    sizes = np.arange(n_rows + 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        n_log_n = np.where(sizes > 0, sizes * np.log2(sizes), 0.0)
    for loss, f in (("binder", sizes**2), ("vi", n_log_n)):
        gain = _problem(z.T.copy(), None, loss).gain
        assert len(gain) >= n_rows
        np.testing.assert_allclose(gain[:n_rows], np.diff(f), atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_best_draw_under_weights_is_best_of_all(loss):
    rng = np.random.default_rng(12)
    z = rng.integers(0, 4, (15, 40))
    weight = rng.uniform(0.1, 5.0, 15)
    means = [losses(z, z[:, s], loss, weight)[0].mean() for s in range(40)]
    assert best_draw(z, loss, weight) == (int(np.argmin(means)), False)
