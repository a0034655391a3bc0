"""Where EM begins, how it begins again and how it jumps: EM forgives an error in any of these, so each is held against its definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from bayesgmm.core.priors import ConjugatePrior
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

BLOCK = 65536
"""Rows that the starts are summed in."""


def rows(seed: int = 0, N: int = 60, D: int = 2) -> np.ndarray:
    return random_mixture(np.random.default_rng(seed), 3, D, spread=1.0).sample(np.random.default_rng(seed), N)


def by_definition(X, v, resp, covariance_type, extra=0.0, prior=None):
    """Weights, means and packed covariances of an assignment, groups of few rows smoothed by D + 2 rows of the pooled covariance."""
    v = np.ones(len(X)) if v is None else v
    D, K = X.shape[1], resp.shape[1]
    r = resp * v[:, None]
    counts = r.sum(axis=0)
    centre = v @ X / v.sum()
    means = np.stack([r[:, k] @ X / counts[k] if counts[k] > 0 else centre for k in range(K)])
    scatter = np.stack([(r[:, k, None] * (X - means[k])).T @ (X - means[k]) for k in range(K)])
    floor = 1e-6 * np.diag(v @ (X - centre) ** 2 / v.sum())
    if prior is not None:
        floor = floor + np.diag(np.diag(prior.resolved_scale)) / (prior.resolved_degrees_of_freedom + D + 2)
    pooled = scatter.sum(axis=0) / v.sum() + floor
    thin = counts <= 2 * (D + 1)
    smoothed = np.where(thin[:, None, None], scatter + (D + 2) * pooled, scatter)
    divisor = np.where(thin, counts + D + 2, counts)
    packed = {
        "full": smoothed / divisor[:, None, None],
        "tied": smoothed.sum(axis=0) / divisor.sum(),
        "diag": np.diagonal(smoothed, axis1=1, axis2=2) / divisor[:, None],
        "spherical": np.trace(smoothed, axis1=1, axis2=2) / divisor / D,
    }[covariance_type]
    weights = np.maximum(counts, 1e-3 * v.sum() / K)
    return weights / weights.sum(), means, packed


def assert_is(found, expected):
    parameters, packed = found
    weights, means, covariances = expected
    # Sums of some 1e5 rows in another order: rounding.
    np.testing.assert_allclose(parameters.weights, weights, rtol=1e-11)
    np.testing.assert_allclose(parameters.means, means, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(packed, covariances, rtol=1e-9, atol=1e-12)
    K, D = means.shape
    kind = {(K, D, D): "full", (D, D): "tied", (K, D): "diag", (K,): "spherical"}[packed.shape]
    matrices = oracles.expand_covariances(packed, kind, K, D)
    np.testing.assert_allclose(parameters.covariances, matrices, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_start_from_labels_is_each_groups_own_moments(covariance_type, weighted):
    """Groups of 6 rows = 2 (D + 1) and fewer, and one without any, borrow from the others; 7 rows stand for themselves."""
    X = rows()
    labels = np.repeat([0, 1, 2, 4, 5], [29, 7, 6, 2, 16])
    v = np.random.default_rng(0).uniform(0.9, 1.1, len(X)) if weighted else None
    if weighted:
        v[29:36], v[36:42] = 1.0, 1.0
    found = em.start_from_labels(em.Problem(X, structure(covariance_type), None, v), labels, 6)
    assert_is(found, by_definition(X, v, np.eye(6)[labels], covariance_type))


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_start_from_responsibilities_is_one_m_step(covariance_type, weighted):
    X, rng = rows(1), np.random.default_rng(1)
    resp = rng.dirichlet([3.0, 1.0, 0.1, 1.0], len(X))
    resp[:, 3] = 0.0
    v = rng.uniform(0.5, 2, len(X)) if weighted else None
    found = em.start_from_responsibilities(em.Problem(X, structure(covariance_type), None, v), resp)
    assert_is(found, by_definition(X, v, resp, covariance_type))


@pytest.mark.parametrize("weighted", [False, True])
def test_starts_are_the_same_over_several_blocks(weighted):
    N = BLOCK + 5000
    X, rng = rows(2, N), np.random.default_rng(2)
    labels = rng.integers(0, 3, N)
    labels[-2000:] = 2
    v = rng.uniform(0.5, 2, N) if weighted else None
    problem = em.Problem(X, structure("full"), None, v)
    expected = by_definition(X, v, np.eye(3)[labels], "full")
    assert_is(em.start_from_labels(problem, labels, 3), expected)
    assert_is(em.start_from_responsibilities(problem, np.eye(3)[labels]), expected)
    only = np.zeros(N, int)
    assert_is(em.start_from_labels(problem, only, 1), by_definition(X, v, np.ones((N, 1)), "full"))


def test_under_a_prior_a_start_borrows_from_its_scale_too():
    X = rows(3)
    prior = ConjugatePrior.fraley_raftery(X, 3)
    labels = np.repeat([0, 1, 2], [50, 8, 2])
    found = em.start_from_labels(em.Problem(X, structure("full"), prior), labels, 3)
    # One's own counts and means, not the prior's mode: only the floor of the pooled covariance knows the prior.
    assert_is(found, by_definition(X, None, np.eye(3)[labels], "full", prior=prior))


def test_a_start_of_groups_without_variance_is_positive_definite():
    X = np.repeat([[0.0, 0.0], [3.0, 1.0]], 20, axis=0)
    parameters, packed = em.start_from_labels(em.Problem(X, structure("full")), np.repeat([0, 1], 20), 2)
    assert (np.linalg.eigvalsh(packed) > 0).all()
    # The pooled covariance is the floor alone, 1e-6 of the variances, given twice: once as pooled, once as floor.
    np.testing.assert_allclose(packed, np.broadcast_to(2e-6 * np.diag(X.var(axis=0)), (2, 2, 2)), rtol=1e-9)
    np.testing.assert_allclose(parameters.means, [[0, 0], [3, 1]])


@pytest.mark.parametrize("weighted", [False, True])
def test_feature_scale_is_the_standard_deviation(weighted):
    rng = np.random.default_rng(0)
    X = np.column_stack(
        [rng.normal(1e3, 2.0, BLOCK + 3000), np.full(BLOCK + 3000, 7.5), rng.normal(0, 1e-3, BLOCK + 3000)]
    )
    v = rng.uniform(0, 3, len(X)) if weighted else None
    w = np.ones(len(X)) if v is None else v
    centre = w @ X / w.sum()
    expected = np.sqrt(w @ (X - centre) ** 2 / w.sum())
    expected[1] = 1.0
    np.testing.assert_allclose(em.Problem(X, structure("full"), None, v).feature_scale(), expected, rtol=1e-10)


def test_total_weight_is_the_sum_of_the_weights():
    X = rows()
    assert em.Problem(X, structure("full")).total_weight == len(X)
    assert em.Problem(X, structure("full"), None, np.full(len(X), 0.5)).total_weight == len(X) / 2


@pytest.mark.parametrize("K", [2, 3])
def test_lost_components_begin_anew_at_the_rows_of_lowest_density(K):
    rng = np.random.default_rng(K)
    X = np.vstack([rng.standard_normal((600, 2)), rng.uniform(20, 30, (30, 2))])
    v = np.ones(len(X))
    v[-5:] = 0.0
    parameters = MixtureParameters(np.full(K, 1 / K), np.zeros((K, 2)), np.stack([np.eye(2)] * K))
    lost = np.arange(K) > 0
    seen = set()
    for weights in (None, v):
        problem = em.Problem(X, structure("full"), None, weights)
        n = len(X) if weights is None else len(X) - 5
        density = oracles.mixture_log_density(X, [1.0], np.zeros((1, 2)), np.eye(2)[None])
        order = [i for i in np.argsort(density) if weights is None or v[i] > 0]
        worst = set(order[: max(10 * K, n // 20)])
        for seed in range(40):
            found = problem.badly_fitted(parameters, lost, np.random.default_rng(seed))
            assert found.shape == (K - 1,)
            assert set(found) <= worst
            seen |= set(found)
    # 80 draws and more of 31 rows: nearly every one of them is drawn.
    assert len(seen) > 20


def test_of_few_rows_ten_for_each_component_count_as_badly_fitted():
    X = np.arange(100.0)[:, None]
    problem = em.Problem(X, structure("full"))
    parameters = MixtureParameters(np.full(3, 1 / 3), np.zeros((3, 1)), np.ones((3, 1, 1)))
    drawn = {
        int(row)
        for seed in range(300)
        for row in problem.badly_fitted(parameters, np.array([True, True, False]), np.random.default_rng(seed))
    }
    # 600 draws of 30 rows: each is missed with probability (29/30)^600 = 1e-9.
    assert drawn == set(range(70, 100))


def at(X, v, parameters, covariance_type):
    problem = em.Problem(X, structure(covariance_type), None, v)
    return problem, problem.e_step(parameters)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_an_empty_component_is_restarted_with_the_pooled_covariance_of_the_others(covariance_type):
    X = np.vstack([rows(4, 80), rows(5, 60) + 30])
    means = np.array([[0.0, 0.0], [30.0, 30.0], [1e5, 1e5]])
    parameters = MixtureParameters(np.array([0.5, 0.3, 0.2]), means, np.stack([np.eye(2)] * 3))
    problem, sums = at(X, None, parameters, covariance_type)
    r = oracles.responsibilities(X, parameters.weights, means, parameters.covariances)
    counts = r.sum(axis=0)
    assert counts[2] == 0
    assert counts.min() < counts[1]
    found, packed = em.restarted(problem, sums, parameters, np.random.default_rng(0))
    groups = by_definition(X, None, r[:, :2], "full")
    pooled = np.einsum("k,kij->ij", counts[:2], groups[2]) / len(X) + 1e-6 * np.diag(X.var(axis=0))
    matrices = np.stack([*groups[2], pooled])
    # The lost one stands for a third of the rows.
    full = np.array([*counts[:2], len(X) / 3])
    expected = {
        "full": matrices,
        "tied": np.einsum("k,kij->ij", full, matrices) / full.sum(),
        "diag": np.diagonal(matrices, axis1=1, axis2=2),
        "spherical": np.trace(matrices, axis1=1, axis2=2) / 2,
    }[covariance_type]
    np.testing.assert_allclose(packed, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.weights, full / full.sum(), rtol=1e-11)
    np.testing.assert_allclose(found.means[:2], groups[1], rtol=1e-10, atol=1e-12)
    assert (found.means[2] == X).all(axis=1).any()


def test_a_component_on_a_line_is_restarted_and_where_none_is_lost_the_smallest_is():
    rng = np.random.default_rng(6)
    line = np.column_stack([np.linspace(0, 1, 20), np.linspace(0, 1, 20)]) + 50
    X = np.vstack([rng.standard_normal((60, 2)), line])
    parameters = MixtureParameters(
        np.array([0.7, 0.3]), np.array([[0.0, 0.0], [50.5, 50.5]]), np.stack([np.eye(2)] * 2)
    )
    problem, sums = at(X, None, parameters, "full")
    found, packed = em.restarted(problem, sums, parameters, np.random.default_rng(0))
    np.testing.assert_allclose(found.means[0], X[:60].mean(axis=0), atol=1e-12)
    assert (found.means[1] == X).all(axis=1).any()
    assert (np.linalg.eigvalsh(packed) > 1e-4).all()
    # Not because it is the smallest: here it has most of the rows.
    most = MixtureParameters(np.array([0.3, 0.7]), parameters.means, parameters.precision_factors)
    X = np.vstack([X[:10], np.repeat(line, 4, axis=0)])
    problem, sums = at(X, None, most, "full")
    found, packed = em.restarted(problem, sums, most, np.random.default_rng(0))
    np.testing.assert_allclose(found.means[0], X[:10].mean(axis=0), atol=1e-12)
    assert (np.linalg.eigvalsh(packed) > 1e-4).all()
    whole = np.vstack(
        [rng.standard_normal((60, 2)), rng.standard_normal((20, 2)) + 50, rng.standard_normal((30, 2)) - 50]
    )
    means = np.array([[0.0, 0.0], [50.0, 50.0], [-50.0, -50.0]])
    parameters = MixtureParameters(np.full(3, 1 / 3), means, np.stack([np.eye(2)] * 3))
    problem, sums = at(whole, None, parameters, "full")
    found, _ = em.restarted(problem, sums, parameters, np.random.default_rng(0))
    np.testing.assert_allclose(
        found.means[[0, 2]], [whole[:60].mean(axis=0), whole[80:].mean(axis=0)], rtol=1e-9, atol=1e-12
    )
    assert not np.allclose(found.means[1], whole[60:80].mean(axis=0))


def test_a_component_counts_as_empty_below_a_ten_billionth_of_the_rows():
    X = rows(7, 100)
    problem = em.Problem(X, structure("diag"))
    sums = problem.e_step(MixtureParameters(np.array([0.5, 0.5]), X[:2], np.stack([np.eye(2)] * 2)))
    for count, empty in ((0.9e-8, True), (1.1e-8, False)):
        thin = dataclasses.replace(
            sums, counts=np.array([100 - count, count]), second=np.ones((2, 2)), first=np.zeros((2, 2))
        )
        if empty:
            with pytest.raises(np.linalg.LinAlgError, match="empty"):
                problem.m_step(thin, X[:2])
        else:
            problem.m_step(thin, X[:2])


def mixture_at(point, K, D):
    """Parameters from log weights, means and log-diagonal factors: the coordinates of the jumps, written once more."""
    weights = np.exp(point["log_weights"])
    factors = np.zeros((K, D, D))
    for k in range(K):
        for i in range(D):
            for j in range(i):
                factors[k, i, j] = point["off"][k, i, j]
            factors[k, i, i] = np.exp(point["log_diagonal"][k, i])
    return MixtureParameters(weights / weights.sum(), point["means"], factors)


def geometric(rate: float, seed: int = 0, K: int = 3, D: int = 2):
    """A point, and three mixtures that come nearer to it by a constant rate in every coordinate."""
    rng = np.random.default_rng(seed)
    shapes = {"log_weights": (K,), "means": (K, D), "off": (K, D, D), "log_diagonal": (K, D)}
    goal = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    away = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    # Weights are normalised, which is not linear in their logs: they stay.
    away["log_weights"] = np.zeros(K)
    path = [mixture_at({n: goal[n] + rate**t * away[n] for n in goal}, K, D) for t in range(3)]
    return mixture_at(goal, K, D), path, goal, away


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.1, 30.0]])
def test_a_jump_along_a_geometric_sequence_lands_at_its_limit(rate, scale):
    """a = |r| / |v| = 1 / (1 − rate), and start + 2 a r + a² v = start + r / (1 − rate)."""
    scale = np.array(scale)
    limit, path, *_ = geometric(rate)
    jumped = em._jump(*path, scale, 64.0)
    np.testing.assert_allclose(jumped.weights, limit.weights, rtol=1e-9)
    np.testing.assert_allclose(jumped.means, limit.means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(jumped.precision_factors, limit.precision_factors, rtol=1e-8, atol=1e-10)
    assert jumped.precision_factors.flags.c_contiguous


def test_a_jump_is_no_longer_than_it_may_be():
    _, path, goal, away = geometric(0.99)
    jumped = em._jump(*path, np.ones(2), 4.0)
    # r = −0.01 away, v = 1e-4 away: start + 8 r + 16 v.
    point = {name: goal[name] + away[name] * (1 - 0.08 + 0.0016) for name in goal}
    expected = mixture_at(point, 3, 2)
    np.testing.assert_allclose(jumped.means, expected.means, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(jumped.precision_factors, expected.precision_factors, rtol=1e-9, atol=1e-11)


def test_no_jump_where_it_is_no_further_than_the_steps():
    _, path, *_ = geometric(0.5)
    # Turned round, the second step is twice the first: a = 1.
    assert em._jump(*path[::-1], np.ones(2), 64.0) is None
    assert em._jump(path[0], path[0], path[0], np.ones(2), 64.0) is None
    straight = [dataclasses.replace(path[0], means=path[0].means + t) for t in range(3)]
    # Equal steps have no limit, and rounding alone decides how far: nowhere, or as far as is allowed.
    far = em._jump(*straight, np.ones(2), 64.0)
    assert far is None or np.isfinite(far.means).all()


def test_a_jump_extrapolates_log_weights():
    factors, means = np.stack([np.eye(1)] * 2), np.zeros((2, 1))
    logs = [np.log([0.5, 0.5]), np.log([0.4, 0.6]), np.log([0.35, 0.65])]
    one, two, three = logs
    r, v = two - one, three - two - (two - one)
    a = np.linalg.norm(r) / np.linalg.norm(v)
    expected = np.exp(one + 2 * a * r + a**2 * v)
    jumped = em._jump(*(MixtureParameters(np.exp(w), means, factors) for w in logs), np.ones(1), 64.0)
    np.testing.assert_allclose(jumped.weights, expected / expected.sum(), rtol=1e-12)


def test_a_jump_survives_a_weight_of_zero_and_factors_out_of_range():
    factors = [
        np.exp(t)[None, None, None] * np.ones((2, 1, 1)) for t in (np.array(0.0), np.array(200.0), np.array(398.0))
    ]
    path = [MixtureParameters(np.array([1.0, 0.0]), np.zeros((2, 1)), f) for f in factors]
    jumped = em._jump(*path, np.ones(1), 64.0)
    np.testing.assert_allclose(jumped.weights, [1.0, 0.0], atol=1e-290)
    # Logs are held to 300, which e^300 = 2e130 is.
    np.testing.assert_allclose(jumped.precision_factors, np.exp(300.0))


def run_at(parameters, objective=0.0, counts=(50.0, 50.0), **fields) -> em.EMRun:
    covariances = parameters.covariances
    given = {"lower_bounds": (objective,), "n_iter": 0, "converged": True} | fields
    return em.EMRun(parameters, covariances, objective, objective, np.array(counts), **given)


def two(means=(0.0, 4.0), variances=(1.0, 1.0), weights=(0.5, 0.5)) -> MixtureParameters:
    matrices = np.array(variances)[:, None, None] * np.ones((2, 1, 1))
    return MixtureParameters(np.array(weights), np.array(means)[:, None], factors_from_covariances(matrices))


def test_matched_distance_is_the_largest_difference_after_the_best_matching():
    scale = np.array([2.0])
    base = two()
    assert em.matched_distance(base, base, scale) == 0.0
    crossed = two((4.0, 0.0))
    assert em.matched_distance(base, crossed, scale) == pytest.approx(0.0, abs=1e-15)
    assert em.matched_distance(base, two((4.0, 0.3)), scale) == pytest.approx(0.15)
    assert em.matched_distance(base, two(variances=(1.0, 1.21)), scale) == pytest.approx(0.05)
    assert em.matched_distance(base, two(weights=(0.4, 0.6)), scale) == pytest.approx(0.1)
    assert em.matched_distance(base, two((0.3, 4.1), (1.0, 1.0), (0.4, 0.6)), scale) == pytest.approx(0.15)


def test_half_a_nat_is_the_same_optimum():
    assert em.same_optimum(run_at(two(), 0.0), run_at(two(), 0.5), np.array([2.0]), 1.0)
    assert not em.same_optimum(run_at(two(), 0.0), run_at(two(), 0.5000001), np.array([2.0]), 1.0)


@pytest.mark.parametrize(
    ("nats", "shift", "same"),
    [(0.4, 0.0, True), (0.6, 0.0, False), (-0.6, 0.0, False), (0.0, 0.03, True), (0.0, 0.05, False)],
)
def test_the_same_optimum_is_within_half_a_nat_and_a_fiftieth_of_the_spread(nats, shift, same):
    one, other = run_at(two(), 0.0), run_at(two((4.0 + shift, 0.0)), nats / 100)
    assert em.same_optimum(one, other, np.array([2.0]), 100.0) is same


def test_equal_optima_are_merged_and_the_best_run_stays():
    low, high, other = run_at(two(), -0.001), run_at(two((4.0, 0.0)), 0.0), run_at(two((0.0, 8.0)), 0.001)
    kept = em._distinct([(low, 2), (high, 3), (other, 4)], np.array([2.0]), 100.0)
    assert [(run is other, run is high, n) for run, n in kept] == [(True, False, 4), (False, True, 5)]


def described(variance, count, total=1000.0, prior=None, scale=1.0):
    problem = em.Problem(np.zeros((int(total), 1)), structure("full"), prior)
    run = run_at(two((0.0, 4.0), (scale**2, variance * scale**2)), counts=(total - count, count))
    return em.describe(problem, run, 7, np.array([scale]))


def test_an_optimum_is_spurious_where_a_small_component_is_near_singular():
    """Near-singular: 1e-3 of the data's variance, and 1e-2 of the variance within; small: 5 % of the rows, or 10 (D + 1)."""
    assert described(0.9e-3, 40.0).spurious
    assert not described(1.1e-3, 40.0).spurious
    assert not described(0.9e-3, 51.0).spurious
    assert described(0.9e-3, 49.0).spurious
    assert described(0.9e-3, 19.0, 100.0).spurious
    assert not described(0.9e-3, 21.0, 100.0).spurious
    assert described(0.9e-3, 40.0, scale=1e3).spurious
    X = rows(0, 50, 1)
    assert not described(0.9e-3, 40.0, prior=ConjugatePrior.fraley_raftery(X, 2)).spurious
    mode = described(0.25, 40.0, scale=3.0)
    assert (mode.n_starts, mode.smallest_count) == (7, 40.0)
    assert mode.smallest_eigenvalue == pytest.approx(0.25)


def test_small_against_the_data_but_not_against_the_others_is_not_spurious():
    # Both components have 1e-4 of the data's variance: clusters far apart.
    run = run_at(two((0.0, 4.0), (1e-4, 1e-4)), counts=(960.0, 40.0))
    problem = em.Problem(np.zeros((1000, 1)), structure("full"))
    assert not em.describe(problem, run, 1, np.array([1.0])).spurious


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_a_climb_goes_on_where_it_was_left(covariance_type):
    """In two parts: the same path, the iterations counted on, and the callback too."""
    X = rows(8, 150)
    problem = em.Problem(X, structure(covariance_type), tol=0.0, max_iter=9)
    begin = em.start_from_labels(problem, np.arange(150) % 2, 2)
    seen: list[int] = []

    def callback(iteration, *_):
        seen.append(iteration)

    whole = em.climb(problem, *begin, np.random.default_rng(0), keep_history=True)
    part = em.climb(dataclasses.replace(problem, max_iter=4), *begin, np.random.default_rng(0), callback, True)
    rest = em._continued(problem, dataclasses.replace(part, n_reseeded=1), np.random.default_rng(0), callback, True)
    assert (rest.n_iter, rest.n_reseeded, len(rest.history)) == (9, 1, 10)
    assert rest.lower_bounds == whole.lower_bounds
    assert seen == list(range(10))
    np.testing.assert_array_equal(rest.parameters.means, whole.parameters.means)
    assert not rest.converged
    # Nothing is left to do: what it was stays.
    again = em._continued(problem, rest, np.random.default_rng(0), None, False)
    assert again.n_iter == 9
    assert not again.converged


def test_settled_is_the_last_step_under_a_tolerance():
    run = run_at(two(), 1.0, lower_bounds=(0.0, 0.9, 1.0))
    assert em._settled(run, 0.11)
    assert not em._settled(run, 0.09)
    assert not em._settled(dataclasses.replace(run, converged=False), 0.11)


def test_a_climb_to_a_loose_tolerance_is_not_accelerated_and_one_to_a_tight_is():
    X = rows(9, 200)
    problem = em.Problem(X, structure("full"), tol=em.SLOW, max_iter=2000)
    begin = em.start_from_labels(problem, np.arange(200) % 2, 2)
    loose = em.ascend(problem, *begin, np.random.default_rng(0))
    plain = em.climb(problem, *begin, np.random.default_rng(0))
    assert loose.lower_bounds == plain.lower_bounds
    looser = dataclasses.replace(problem, tol=10 * em.SLOW)
    assert (
        em.ascend(looser, *begin, np.random.default_rng(0)).n_iter
        == em.climb(looser, *begin, np.random.default_rng(0)).n_iter
    )
    tight = dataclasses.replace(problem, tol=1e-12)
    fast, slow = em.ascend(tight, *begin, np.random.default_rng(0)), em.climb(tight, *begin, np.random.default_rng(0))
    assert fast.lower_bounds[: len(plain.lower_bounds)] == plain.lower_bounds
    assert fast.converged
    assert fast.n_iter < slow.n_iter
    # A plain climb that ends with a step of 1e-12 at a rate of 0.99 is 1e-10 short.
    assert fast.objective == pytest.approx(slow.objective, abs=1e-9)


def test_an_accelerated_climb_keeps_to_max_iter_and_tells_every_pass():
    X = rows(9, 200)
    problem = em.Problem(X, structure("full"), tol=1e-14, max_iter=40)
    begin = em.start_from_labels(problem, np.arange(200) % 2, 2)
    run = em.climb(dataclasses.replace(problem, tol=1e-3), *begin, np.random.default_rng(0))
    for last in (run.n_iter, run.n_iter + 1, run.n_iter + 2, run.n_iter + 3):
        seen: list[tuple[int, float]] = []

        def callback(i, p, o, seen=seen):
            seen.append((i, o))

        ended = em.accelerate(
            dataclasses.replace(problem, max_iter=last),
            run,
            np.random.default_rng(0),
            callback,
        )
        assert ended.n_iter == len(ended.lower_bounds) - 1 == last
        assert [i for i, _ in seen] == list(range(run.n_iter + 1, last + 1))
        assert tuple(o for _, o in seen) == ended.lower_bounds[run.n_iter + 1 :]
        assert not ended.converged
        sums = problem.e_step(ended.parameters)
        assert ended.objective == pytest.approx(problem.objective(sums, ended.parameters), abs=1e-12)
        assert ended.log_likelihood == pytest.approx(200 * ended.objective)
        np.testing.assert_allclose(ended.counts, sums.counts, rtol=1e-9)
        np.testing.assert_allclose(ended.covariances, ended.parameters.covariances, rtol=1e-8, atol=1e-12)


def test_starts_that_fail_are_told_by_name_and_the_others_counted():
    X = rows(10, 100)
    problem = em.Problem(X, structure("full"), tol=1e-6)
    good = em.start_from_labels(problem, np.arange(100) % 2, 2)

    def bad(rng):
        raise np.linalg.LinAlgError("nothing there")

    found = em.fit_problem(
        problem,
        [("bad", bad), ("good", lambda rng: good), ("twin", lambda rng: good)],
        np.random.default_rng(0),
        counts=[1, 2, 5],
    )
    assert found.failures == ("bad start: nothing there",)
    assert [mode.n_starts for mode in found.modes] == [7]
    with pytest.raises(
        em.DegenerateFitError, match=r"positive definite covariances: bad start: nothing there\. Use fewer"
    ):
        em.fit_problem(problem, [("bad", bad), ("bad", bad)], np.random.default_rng(0))


def test_one_start_for_one_component():
    X = rows(11, 50)
    found = em.fit(X, 1, n_init=10, rng=np.random.default_rng(0))
    assert [mode.n_starts for mode in found.modes] == [1]


def test_a_log_likelihood_out_of_range_is_an_error():
    X = rows(12, 50)
    problem = em.Problem(X, structure("full"))
    parameters = MixtureParameters(np.ones(1), np.full((1, 2), 1e200), 1e200 * np.eye(2)[None])
    with pytest.raises(em.DegenerateFitError, match="float64"):
        em.climb(problem, parameters, np.eye(2)[None], np.random.default_rng(0))


def test_a_race_climbs_as_many_optima_to_the_end_as_are_asked_for():
    X = rows(13, 200)
    problem = em.Problem(X, structure("full"), tol=1e-9, max_iter=4000)
    rng = np.random.default_rng(0)
    begins = [em.start(problem, 4, method, rng) for method in ("random_from_data", "patchwork", "kmeans", "random") * 3]
    for n_kept in (1, 2):
        found = em.race(problem, begins, np.random.default_rng(0), n_kept=n_kept)
        assert len(found.modes) <= n_kept or found.modes[0].spurious
        assert all(mode.run.converged for mode in found.modes)
        order = [(mode.spurious, -mode.objective) for mode in found.modes]
        assert order == sorted(order)
        assert found.best is found.modes[0].run


def test_a_race_goes_past_near_singular_optima():
    """The best of the last stage is a pair of rows: the race climbs on with what waits, and tells both."""
    rng = np.random.default_rng(5)
    X = np.vstack([rng.standard_normal((60, 1)), rng.standard_normal((60, 1)) + 4, [[8.0], [8.0 + 1e-9]]])
    problem = em.Problem(X, structure("full"), tol=1e-9)
    kind = structure("full")

    def begin(means, variances):
        packed = np.array(variances)[:, None, None]
        return MixtureParameters(np.full(2, 0.5), np.array(means)[:, None], kind.factors(packed, 2, 1)), packed

    spurious, honest = begin([2.0, 8.0], [5.0, 1e-10]), begin([0.0, 4.0], [1.0, 1.0])
    found = em.race(problem, [spurious, honest], rng)
    assert [mode.spurious for mode in found.modes] == [False, True] or [mode.spurious for mode in found.modes] == [
        False
    ]
    # The two rows apart from all are the second cluster's now, and it is the wider one.
    np.testing.assert_allclose(np.sort(found.best.counts), [60, 62], atol=8)
