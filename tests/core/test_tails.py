from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import kernel
from bayesgmm.core.tails import (
    PredictiveTail,
    TailCurve,
    batch_error,
    draw_quantiles,
    inflation,
    mean_over_batches,
    simulate,
)
from tests.mixtures import random_mixture
from tests.oracles import mixture_log_density


def one_normal(n_features):
    """A standard normal as a single draw."""
    return np.ones((1, 1)), np.zeros((1, 1, n_features)), np.eye(n_features)[None, None]


@pytest.mark.parametrize("n_features", [1, 2, 5, 20])
@pytest.mark.parametrize("probability", [0.5, 0.05, 1e-3, 1e-5])
def test_tail_probability_of_one_normal_is_that_of_a_chi_squared_variable(n_features, probability):
    tail = PredictiveTail.simulate(*one_normal(n_features), 20_000, np.random.default_rng(n_features))
    radius = stats.chi2.isf(probability, n_features)
    at = np.array([-0.5 * radius - 0.5 * n_features * np.log(2 * np.pi)])
    found, error = tail.curve.probability(at)[0], tail.curve.error(at)[0]
    # Importance weights keep the relative error at some percent far out, where a thousand times as many plain rows would be needed.
    assert error < 0.07 * probability
    # 16 cases at 4 standard errors: one false alarm in 1,000 runs; the seed is fixed.
    assert abs(found - probability) < 4 * error
    assert tail.curve.quantile(probability) == pytest.approx(at[0], abs=4 * error / probability)


def test_tail_probability_of_a_mixture_against_a_grid():
    truth = random_mixture(np.random.default_rng(4), 3, 1)
    p = truth.parameters
    tail = PredictiveTail.simulate(
        p.weights[None], p.means[None], p.precision_factors[None], 40_000, np.random.default_rng(0)
    )
    deviation = np.sqrt(truth.covariances[:, 0, 0])
    low, high = (truth.means[:, 0] - 12 * deviation).min(), (truth.means[:, 0] + 12 * deviation).max()
    grid = np.linspace(low, high, 400_001)
    log_density = mixture_log_density(grid[:, None], truth.weights, truth.means, truth.covariances)
    mass = np.exp(log_density) * (grid[1] - grid[0])
    for level in np.quantile(log_density, [0.3, 0.6, 0.9, 0.97]):
        exact = mass[log_density <= level].sum()
        at = np.array([level])
        # The grid's own error is about one cell's mass, 1e-5.
        assert abs(tail.curve.probability(at)[0] - exact) < 4 * tail.curve.error(at)[0] + 1e-4


def test_error_is_the_scatter_over_repetitions():
    at = np.array([stats.norm.logpdf(3.0)])
    found = [PredictiveTail.simulate(*one_normal(1), 500, np.random.default_rng(seed)).curve for seed in range(200)]
    scatter = np.std([curve.probability(at)[0] for curve in found])
    reported = np.mean([curve.error(at)[0] for curve in found])
    # 200 repetitions know a standard deviation to 5 %.
    assert reported == pytest.approx(scatter, rel=0.2)


def test_simulated_rows_with_their_weights_have_the_moments_of_the_mixture():
    truth = random_mixture(np.random.default_rng(1), 2, 3)
    p = truth.parameters
    rows, importance = simulate(
        p.weights[None], p.means[None], p.precision_factors[None], 200_000, np.random.default_rng(2)
    )
    assert importance.min() >= 0
    assert importance.max() <= 2
    mean = truth.weights @ truth.means
    spread = truth.means - mean
    covariance = np.einsum("k,kij->ij", truth.weights, truth.covariances + spread[:, :, None] * spread[:, None, :])
    # Errors of a mean of 200,000 rows of which the weights leave about 100,000: 0.004 standard deviations.
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.average(rows, axis=0, weights=importance), mean, atol=0.02 * deviation.max())
    found = np.cov(rows.T, aweights=importance)
    np.testing.assert_allclose(found, covariance, atol=0.03 * deviation.max() ** 2)
    # Half of the rows are inflated.
    assert inflation(3) > 2


def test_every_draw_has_its_share_of_rows_of_either_kind():
    weights, means, factors = (np.repeat(each, 50, axis=0) for each in one_normal(2))
    means[:, 0, 0] = 1000.0 * np.arange(50)
    rows, importance = simulate(weights, means, factors, 5000, np.random.default_rng(0))
    draw = np.rint(rows[:, 0] / 1000).astype(int)
    np.testing.assert_array_equal(np.bincount(draw), 100)
    # Each draw's rows stand for a fiftieth of the mass: mean weight 1, with an error of 0.06.
    assert np.abs(np.bincount(draw, importance) / 100 - 1).max() < 0.3


def test_values_beyond_what_can_be_told_are_given_as_the_smallest():
    curve = PredictiveTail.simulate(*one_normal(2), 2000, np.random.default_rng(0)).curve
    assert curve.probability(np.array([-np.inf, -1e6])).tolist() == [curve.resolution] * 2
    assert 0 < curve.resolution < 1e-4
    assert curve.probability(np.array([0.0]))[0] == 1.0


def test_batches_average_to_the_whole_and_give_the_error():
    rng = np.random.default_rng(0)
    log_density = rng.normal(size=(20, 4))
    edges = np.array([0, 1, 3, 6, 10])
    plain = np.log(np.exp(log_density) @ (np.diff(edges) / 10))
    np.testing.assert_allclose(mean_over_batches(log_density, edges), plain, rtol=1e-12)
    assert mean_over_batches(np.full((1, 4), -np.inf), edges)[0] == -np.inf
    np.testing.assert_allclose(batch_error(log_density), stats.sem(log_density, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(batch_error(log_density[:, :1]), 0.0)


def test_quantiles_of_draws():
    rng = np.random.default_rng(3)
    scale = np.array([0.5, 1.0, 4.0])
    factors = (np.eye(2) / scale[:, None, None])[:, None]
    means = rng.normal(size=(3, 1, 2))
    found = draw_quantiles(np.ones((3, 1)), means, factors, 0.02, rng, n_rows=20_000)
    exact = -0.5 * stats.chi2.isf(0.02, 2) - np.log(2 * np.pi) - 2 * np.log(scale)
    # 20,000 weighted rows: some 3 % of the probability, hence 0.03 in its logarithm.
    np.testing.assert_allclose(found, exact, atol=0.12)
    # The same random numbers for all draws: the same error for all.
    assert np.ptp(found - exact) < 1e-9


def test_curve_of_unequal_weights():
    curve = TailCurve.of(np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(curve.mass, [0.5, 0.75, 1.0])
    np.testing.assert_allclose(curve.log_density, [1.0, 2.0, 3.0])
    assert curve.quantile(0.75) == 2.0
    assert curve.quantile(0.875) == 2.5


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(8)
    sets = [random_mixture(rng, 3, 2).parameters for _ in range(30)]
    return tuple(np.stack(part) for part in zip(*((p.weights, p.means, p.precision_factors) for p in sets)))


def test_averages_over_draws_against_one_draw_at_a_time(draws):
    rng = np.random.default_rng(9)
    # More than one block, and a row so far away that every density is 0.
    X = np.vstack([3 * rng.standard_normal((700, 2)), [[1e170, -1e170]]])
    edges, thresholds, marked = np.array([0, 7, 20, 30]), rng.normal(-5, 1, 30), draws[0] < 0.3
    found = kernel.predictive_averages(
        X, *draws, edges=edges, thresholds=thresholds, marked=marked, with_squares=True, n_threads=1
    )
    each = [kernel.responsibilities(X, kernel.MixtureParameters(*(part[s] for part in draws))) for s in range(30)]
    r, log_density = np.stack([one[0] for one in each]), np.stack([one[1] for one in each])
    for b in range(3):
        part = slice(edges[b], edges[b + 1])
        plain = np.logaddexp.reduce(log_density[part], axis=0) - np.log(edges[b + 1] - edges[b])
        # Two orders of summing the same terms.
        np.testing.assert_allclose(found.log_density[:-1, b], plain[:-1], rtol=1e-11)
        np.testing.assert_allclose(
            found.below[:, b], (log_density[part] < thresholds[part, None]).mean(axis=0), atol=1e-15
        )
    np.testing.assert_allclose(found.responsibilities, r.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.squares, (r**2).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.marked_mass, np.einsum("snk,sk->n", r, marked) / 30, atol=1e-12)
    assert np.isfinite(found.responsibilities).all()


@pytest.mark.parametrize("n_features", [1, 3, 10, 500])
def test_the_inflated_row_lies_where_one_in_a_million_does(n_features):
    # Half of a component's rows are typical ones at √D; inflated, at the radius that chance REACH lies beyond.
    expected = max(1.5, np.sqrt(stats.chi2.isf(1e-6, n_features) / n_features))
    assert inflation(n_features) == pytest.approx(expected, rel=1e-12)


def test_resolution_and_error_of_a_curve_are_their_formulas():
    rng = np.random.default_rng(0)
    log_density, importance = rng.normal(size=300), rng.uniform(0, 2, 300)
    curve = TailCurve.of(log_density, importance)
    order = np.argsort(log_density)
    shares = importance[order] / importance.sum()
    mass = np.cumsum(shares)
    np.testing.assert_allclose(curve.mass, mass, rtol=1e-12)
    np.testing.assert_allclose(curve.squares, np.cumsum(shares**2), rtol=1e-12)
    enough = [i for i in range(300) if mass[i] ** 2 >= 10 * np.sum(shares[: i + 1] ** 2)]
    assert curve.resolution == pytest.approx(mass[enough[0]], rel=1e-12)
    for i in (5, 100, 250, 299):
        p = max(mass[i], curve.resolution)
        below = np.arange(300) <= i
        # Of a ratio of weighted sums: each row's share times its indicator less p.
        exact = np.sqrt(np.sum((shares * (below - p)) ** 2))
        assert curve.error(log_density[order][[i]])[0] == pytest.approx(exact, rel=1e-9)
        assert curve.probability(log_density[order][[i]])[0] == pytest.approx(p, rel=1e-12)
    assert curve.probability(np.array([log_density.min() - 1e-9]))[0] == curve.resolution
    few = TailCurve.of(np.arange(5.0), np.ones(5))
    assert few.resolution == 1.0


def test_error_of_a_predictive_tail_joins_rows_and_draws(draws):
    edges = np.array([0, 10, 20, 30])
    tail = PredictiveTail.simulate(*draws, 3000, np.random.default_rng(0), edges)
    at = np.quantile(tail.log_density, [0.05, 0.4])
    by_batch = np.stack([at - 0.1, at, at + 0.2], axis=1)
    each = np.stack([curve.probability(by_batch[:, b]) for b, curve in enumerate(tail.batches)], axis=1)
    for factor in (1.0, 4.0):
        expected = np.hypot(tail.curve.error(at), each.std(axis=1, ddof=1) * np.sqrt(factor / 3))
        np.testing.assert_allclose(tail.error(at, by_batch, factor), expected, rtol=1e-12)
    alone = PredictiveTail.simulate(*draws, 3000, np.random.default_rng(0))
    assert alone.batches == ()
    np.testing.assert_array_equal(alone.error(at, by_batch), alone.curve.error(at))
    # A batch's curve has the same rows under its own density.
    np.testing.assert_allclose(tail.log_density, alone.log_density, rtol=1e-10)


def test_fewer_rows_than_draws_are_of_different_draws():
    weights, means, factors = (np.repeat(each, 50, axis=0) for each in one_normal(1))
    means[:, 0, 0] = 1000.0 * np.arange(50)
    rows, _ = simulate(weights, means, factors, 20, np.random.default_rng(0))
    assert len(set(np.rint(rows[:, 0] / 1000).astype(int).tolist())) == 20


def test_components_of_simulated_rows_have_their_weights():
    weights = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    means = 1000.0 * np.arange(6).reshape(2, 3, 1)
    rows, _ = simulate(weights, means, np.ones((2, 3, 1, 1)), 40_000, np.random.default_rng(1))
    share = np.bincount(np.rint(rows[:, 0] / 1000).astype(int), minlength=6).reshape(2, 3) / 20_000
    # Binomial errors of 0.0035.
    np.testing.assert_allclose(share, weights, atol=0.015)
