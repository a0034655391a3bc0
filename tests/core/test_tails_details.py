"""Tail probabilities part by part: what is simulated, curves of few rows, and batches, with numbers found by hand."""

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
