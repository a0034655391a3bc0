from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import kernel, tails
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


# Tail probabilities part by part: what is simulated, curves of few rows, and batches, with numbers found by hand

ROUNDING = 1e-10
"""The same sums and products of a few numbers in another order."""


@pytest.mark.parametrize(("n_rows", "n_features"), [(9, 1), (10, 3), (7, 20)])
def test_noise_is_inflated_in_half_of_the_rows_and_weighted_by_its_density(n_rows, n_features):
    noise, weights = tails._noise(np.random.default_rng(0), n_rows, n_features)
    plain = np.random.default_rng(0).standard_normal((n_rows, n_features))
    c = inflation(n_features)
    factors = noise / plain
    inflated = factors[:, 0] > 1.01
    assert inflated.sum() == n_rows // 2
    np.testing.assert_allclose(factors, np.where(inflated, c, 1.0)[:, None] * np.ones(n_features), rtol=1e-14)
    own, wide = (stats.norm.logpdf(noise, scale=s).sum(axis=1) for s in (1.0, c))
    np.testing.assert_allclose(weights, 1 / (0.5 + 0.5 * np.exp(wide - own)), rtol=1e-9)


def average(n_draws: int, K: int, D: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures of unequal weights and correlated features."""
    rng = np.random.default_rng(1)
    found = [random_mixture(rng, K, D).parameters for _ in range(n_draws)]
    return tuple(np.stack([getattr(p, name) for p in found]) for name in ("weights", "means", "precision_factors"))


def test_a_simulated_row_is_its_noise_with_the_components_covariance():
    weights, means, factors = average(4, 3, 2)
    # Weights that do not quite sum to 1 are shares of their sum.
    weights = weights * np.array([1.0, 0.9, 1.1, 2.0])[:, None]
    rows, importance = simulate(weights, means, factors, 40, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    u = rng.random(40)
    noise, expected = tails._noise(rng, 40, 2)
    np.testing.assert_array_equal(importance, expected)
    for n in range(40):
        s = n // 10
        share = weights[s] / weights[s].sum()
        k = next(k for k in range(3) if u[n] < share[: k + 1].sum())
        # Σ = P⁻ᵀ P⁻¹.
        np.testing.assert_allclose(rows[n], means[s, k] + np.linalg.inv(factors[s, k]).T @ noise[n], rtol=1e-9)


def test_matrices_of_so_many_rows_at_a_time_give_the_same_rows(monkeypatch):
    weights, means, factors = average(3, 2, 2)
    whole, _ = simulate(weights, means, factors, 25, np.random.default_rng(3))
    solve, sizes = np.linalg.solve, []

    def counted(a, b):
        sizes.append(len(a))
        return solve(a, b)

    monkeypatch.setattr(tails, "SOLVED_ROWS", 7)
    monkeypatch.setattr(tails.np.linalg, "solve", counted)
    parts, _ = simulate(weights, means, factors, 25, np.random.default_rng(3))
    assert sizes == [7, 7, 7, 4]
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(("n_rows", "per_draw"), [(6, [1] * 6), (13, [3, 2, 2, 2, 2, 2])])
def test_draws_have_equal_shares_of_the_rows_in_their_order(n_rows, per_draw):
    means = 1000.0 * np.arange(6)[:, None, None]
    rows, _ = simulate(np.ones((6, 1)), means, np.ones((6, 1, 1, 1)), n_rows, np.random.default_rng(4))
    assert np.rint(rows[:, 0] / 1000).astype(int).tolist() == np.repeat(np.arange(6), per_draw).tolist()


def test_a_component_of_weight_zero_has_no_rows_even_where_the_random_number_is_zero():
    generator = np.random.default_rng(5)
    rng = SimpleNamespace(random=np.zeros, standard_normal=generator.standard_normal, permutation=generator.permutation)
    rows, _ = simulate(np.array([[0.0, 1.0]]), np.array([[[0.0], [1e6]]]), np.ones((1, 2, 1, 1)), 5, rng)
    assert np.all(rows > 1e5)


def test_the_mass_of_a_curve_ends_in_one_exactly():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert TailCurve.of(rng.normal(size=50), rng.uniform(0, 2, 50)).mass[-1] == 1.0


def test_ten_rows_of_equal_weight_are_just_enough():
    """Σ w² of 16 equal shares is exact in float64, so that the tenth row is at the threshold itself."""
    curve = TailCurve.of(np.arange(16.0), np.ones(16))
    assert curve.resolution == 10 / 16
    assert curve.probability(np.array([3.0, 9.0, 10.0, 20.0])).tolist() == [10 / 16, 10 / 16, 11 / 16, 1.0]
    # Nine rows are too few for any probability, ten for all but the whole.
    assert TailCurve.of(np.arange(9.0), np.ones(9)).resolution == 1.0
    assert TailCurve.of(np.arange(8.0), np.ones(8)).probability(np.array([-1.0, 2.0])).tolist() == [1.0, 1.0]


def test_error_at_and_below_the_first_row_is_that_of_the_rows_beyond():
    curve = TailCurve.of(np.arange(16.0), np.ones(16))
    p = 10 / 16
    below, first, second, last = curve.error(np.array([-1.0, 0.0, 1.0, 15.0]))
    assert below == pytest.approx(np.sqrt(16 * p**2) / 16, rel=1e-12)
    assert first == pytest.approx(np.sqrt((1 - p) ** 2 + 15 * p**2) / 16, rel=1e-12)
    assert second == pytest.approx(np.sqrt(2 * (1 - p) ** 2 + 14 * p**2) / 16, rel=1e-12)
    assert last == 0


def test_rows_of_weight_zero_do_not_bend_the_quantiles():
    curve = TailCurve.of(np.array([4.0, 2.0, 1.0, 3.0]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert [curve.quantile(p) for p in (0.5, 0.75, 1.0)] == [1.0, 2.5, 4.0]


def test_batches_see_the_same_rows_weighted_anew(monkeypatch):
    draws, edges = average(6, 2, 2), np.array([0, 2, 6])
    averages, asked = kernel.predictive_averages, []

    def watched(*arguments, **options):
        asked.append(averages(*arguments, **options))
        return asked[-1]

    monkeypatch.setattr(tails.kernel, "predictive_averages", watched)
    tail = PredictiveTail.simulate(*draws, 60, np.random.default_rng(6), edges)
    # One pass, without the responsibilities that nobody asks for.
    assert len(asked) == 1
    assert asked[0].responsibilities.size == 0
    joint = np.stack(
        [kernel.log_density(tail.rows, kernel.MixtureParameters(*(d[s] for d in draws))) for s in range(6)]
    )
    mean = np.log(np.exp(joint).mean(axis=0))
    np.testing.assert_allclose(tail.log_density, mean, rtol=ROUNDING)
    assert len(tail.batches) == 2
    for curve, part in zip(tail.batches, (slice(0, 2), slice(2, 6)), strict=True):
        own = np.log(np.exp(joint[part]).mean(axis=0))
        expected = TailCurve.of(own, tail.importance * np.exp(own - mean))
        np.testing.assert_allclose(curve.log_density, expected.log_density, rtol=ROUNDING)
        np.testing.assert_allclose(curve.mass, expected.mass, rtol=1e-9)
    one = PredictiveTail.simulate(*draws, 60, np.random.default_rng(6), np.array([0, 6]))
    assert one.batches == ()
    np.testing.assert_array_equal(one.error(mean, mean[:, None]), one.curve.error(mean))


def test_densities_of_two_batches_may_be_as_far_apart_as_they_like():
    found = mean_over_batches(np.array([[0.0, -5000.0], [-5000.0, 4000.0], [-1.0, -1.0]]), np.array([0, 1, 4]))
    # A quarter of the draws in the first batch.
    np.testing.assert_allclose(found, [np.log(0.25), 4000 + np.log(0.75), -1.0], rtol=1e-14)
    assert mean_over_batches(np.array([[-3.0], [-np.inf]]), np.array([0, 4])).tolist() == [-3.0, -np.inf]
    assert mean_over_batches(np.array([[-3.0]]), None).tolist() == [-3.0]


def test_two_batches_have_an_error_of_half_their_difference():
    pairs = np.array([[0.2, 0.6], [0.5, 0.5]])
    np.testing.assert_allclose(batch_error(pairs), [0.2, 0.0], rtol=1e-14)
    # As few effective draws as a ninth: three times the error.
    np.testing.assert_allclose(batch_error(pairs, 9.0), [0.6, 0.0], rtol=1e-14)


def test_quantiles_of_draws_see_components_by_their_weights_to_within_a_row(monkeypatch):
    """Random numbers are stratified: of 100 rows a component of weight 0.3 has 30, with weights that sum to 2 as well."""
    means, counts = np.array([[[0.0], [1e6], [2e6]]] * 2), []
    log_density = kernel.log_density

    def counted(rows, parameters):
        counts.append(np.bincount(np.rint(rows[:, 0] / 1e6).astype(int), minlength=3).tolist())
        return log_density(rows, parameters)

    monkeypatch.setattr(tails.kernel, "log_density", counted)
    weights = np.array([[0.3, 0.5, 0.2], [0.4, 1.2, 0.4]])
    draw_quantiles(weights, means, np.ones((2, 3, 1, 1)), 0.1, np.random.default_rng(7), n_rows=100)
    assert counts == [[30, 50, 20], [20, 60, 20]]


def test_quantile_of_a_draw_is_that_of_its_own_rows():
    weights, means, factors = average(2, 3, 2)
    found = draw_quantiles(weights, means, factors, 0.2, np.random.default_rng(8), n_rows=50)
    rng = np.random.default_rng(8)
    noise, importance = tails._noise(rng, 50, 2)
    u = rng.permutation((np.arange(50) + rng.random(50)) / 50)
    for s in range(2):
        component = np.searchsorted(np.cumsum(weights[s]), u)
        rows = np.stack(
            [means[s, k] + np.linalg.inv(factors[s, k]).T @ z for k, z in zip(component, noise, strict=True)]
        )
        density = kernel.log_density(rows, kernel.MixtureParameters(weights[s], means[s], factors[s]))
        assert found[s] == pytest.approx(TailCurve.of(density, importance).quantile(0.2), rel=1e-9)
