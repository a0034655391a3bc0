from __future__ import annotations

import hashlib
import importlib
import math
import platform
import re
import sys
import tracemalloc
from pathlib import Path

import numba as nb
import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import blocks, kernel, lanes, threads
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from tests import oracles
from tests.mixtures import Mixture, random_mixture

DIMENSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20)


def assert_sums_equal(sums, expected, rtol=1e-10):
    """Compare each sum at the scale of its largest entry.

    Tolerance: N ≈ 1000 additions of terms with relative error ≈ 1e-14 (responsibilities) in float64, far below 1e-10.
    """
    log_likelihood, counts, first, second = expected
    assert sums.log_likelihood == pytest.approx(log_likelihood, rel=rtol)
    np.testing.assert_allclose(sums.counts, counts, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(sums.first, first, rtol=rtol, atol=rtol * max(np.abs(first).max(), 1e-300) * 10)
    np.testing.assert_allclose(sums.second, second, rtol=rtol, atol=rtol * np.abs(second).max())


@pytest.mark.parametrize("D", DIMENSIONS)
def test_log_density_of_one_component_against_scipy(D):
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 1, D)
    X = mixture.sample(rng, 50)
    expected = stats.multivariate_normal(mixture.means[0], mixture.covariances[0]).logpdf(X)
    # Rounding: the quadratic form is a sum of at most 20 squares of sums of 20 products.
    np.testing.assert_allclose(kernel.log_density(X, mixture.parameters), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("K", [1, 2, 5])
def test_sums_and_densities_against_plain_numpy(D, K):
    rng = np.random.default_rng(100 * D + K)
    mixture = random_mixture(rng, K, D)
    X = mixture.sample(rng, 700)
    v = rng.uniform(0, 3, 700)
    natural = (mixture.weights, mixture.means, mixture.covariances)
    assert_sums_equal(kernel.accumulate(X, mixture.parameters), oracles.weighted_sums(X, *natural))
    weighted = kernel.accumulate(X, mixture.parameters, v)
    assert_sums_equal(weighted, oracles.weighted_sums(X, *natural, v))
    assert weighted.total_weight == pytest.approx(v.sum(), rel=1e-14)
    responsibilities, log_density = kernel.responsibilities(X, mixture.parameters)
    np.testing.assert_allclose(log_density, oracles.mixture_log_density(X, *natural), rtol=1e-11, atol=1e-11)
    # exp(−d) turns the error of d ≤ 1e3 in the exponent, ≈ 1e-12, into a relative error of the responsibility.
    np.testing.assert_allclose(responsibilities, oracles.responsibilities(X, *natural), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(kernel.log_density(X, mixture.parameters), log_density)


def reduced(second, moments):
    """Second moments (K, D, D) in another form."""
    if moments == "pooled":
        return second.sum(axis=0, keepdims=True)
    return np.diagonal(second, axis1=1, axis2=2) if moments == "diagonal" else second


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 7, 8, 9, 13, 20])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_structures_against_plain_numpy(covariance_type, D, K):
    """Whitening once for all components, or feature by feature, and no more of the second moments than is wanted."""
    rng = np.random.default_rng(100 * D + K)
    mixture = random_mixture(rng, K, D, covariance_type)
    X, p = mixture.sample(rng, 700), mixture.parameters
    v = rng.uniform(0, 3, 700)
    v[::7] = 0.0
    natural = (mixture.weights, mixture.means, mixture.covariances)
    moments = structure(covariance_type).moments
    for weight in (None, v):
        loglik, counts, first, second = oracles.weighted_sums(X, *natural, weight)
        sums = kernel.accumulate(X, p, weight, moments=moments)
        assert_sums_equal(sums, (loglik, counts, first, reduced(second, moments)))
        # The form of the whitening and what is asked of the moments have nothing to do with each other.
        assert_sums_equal(kernel.accumulate(X, p, weight), (loglik, counts, first, second))
    r, log_density = kernel.responsibilities(X, p)
    np.testing.assert_allclose(log_density, oracles.mixture_log_density(X, *natural), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(r, oracles.responsibilities(X, *natural), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("moments", ["pooled", "diagonal"])
@pytest.mark.parametrize("D", [2, 5, 9])
def test_moments_of_free_covariances(moments, D):
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 3, D)
    X = mixture.sample(rng, 400)
    loglik, counts, first, second = oracles.weighted_sums(X, mixture.weights, mixture.means, mixture.covariances)
    sums = kernel.accumulate(X, mixture.parameters, moments=moments)
    assert_sums_equal(sums, (loglik, counts, first, reduced(second, moments)))


def test_form_of_whitening_is_that_of_all_parameter_sets():
    rng = np.random.default_rng(0)

    def stacked(*types):
        each = [random_mixture(rng, 3, 6, name).parameters for name in types]
        return np.stack([p.means for p in each]), np.stack([p.precision_factors for p in each])

    assert kernel._form(*stacked("diag", "spherical")) == kernel.BY_FEATURE
    assert kernel._form(*stacked("tied", "tied")) == kernel.SHARED
    for types in (("full",), ("tied", "full"), ("diag", "full"), ("full", "diag"), ("tied", "diag")):
        assert kernel._form(*stacked(*types)) == kernel.FREE
    means, P = stacked("tied")
    means[0, 2] += 1e6
    # Whitened rows and means would lose six more digits in their difference.
    assert kernel._form(means, P) == kernel.FREE


@pytest.mark.parametrize("D", [5, 9])
def test_pooled_moments_of_separated_components_do_not_cancel(D):
    """Means 1e4 sd apart and 1e8 from zero: moments about one centre would keep no more than eight digits of sixteen."""
    rng = np.random.default_rng(D)
    means = np.zeros((3, D))
    means[1:, :2] = [[1e4, 0.0], [0.0, -1e4]]
    covariance = random_mixture(rng, 1, D, "tied").covariances[0]
    near = Mixture(np.array([0.5, 0.3, 0.2]), means, covariance, np.stack([covariance] * 3))
    # Multiples of 2⁻²⁰ keep their differences exactly when 2²⁷ is added.
    X = np.round(near.sample(rng, 500) * 2.0**20) * 2.0**-20
    natural = (near.weights, near.means, near.covariances)
    loglik, counts, first, second = oracles.weighted_sums(X, *natural)
    far = Mixture(near.weights, means + 2.0**27, covariance, near.covariances)
    assert kernel._form(near.means[None], near.parameters.precision_factors[None]) == kernel.SHARED
    for rows, mixture in ((X, near), (X + 2.0**27, far)):
        sums = kernel.accumulate(rows, mixture.parameters, moments="pooled")
        # Exponents are within 1e-9 (see SHARED_REACH); the moments themselves are exact to rounding.
        assert_sums_equal(sums, (loglik, counts, first, reduced(second, "pooled")), rtol=1e-9)


@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 8, 13])
def test_single_precision_rows_give_what_the_same_numbers_give_in_double(D):
    """Bit for bit: they become float64 as they are loaded."""
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 3, D)
    X = mixture.sample(rng, 700).astype(np.float32)
    same, v, p = X.astype(np.float64), rng.uniform(0, 2, 700), mixture.parameters
    draws = [np.stack([a, a]) for a in (p.weights, p.means, p.precision_factors)]
    sums, expected = kernel.accumulate(X, p, v), kernel.accumulate(same, p, v)
    assert sums.log_likelihood == expected.log_likelihood
    assert sums.second.dtype == np.float64
    for name in ("counts", "first", "second"):
        np.testing.assert_array_equal(getattr(sums, name), getattr(expected, name))
    for function in (
        lambda rows: kernel.log_density(rows, p),
        lambda rows: kernel.responsibilities(rows, p)[0],
        lambda rows: kernel.pointwise_log_likelihood(rows, *draws),
        lambda rows: kernel.posterior_predictive(rows, *draws)[0],
        lambda rows: kernel.log_likelihoods(rows, *draws, v),
    ):
        np.testing.assert_array_equal(function(X), function(same))


def test_single_precision_rows_are_not_copied():
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, 2, 8)
    X = rng.standard_normal((200_000, 8), dtype=np.float32)
    kernel.accumulate(X[:300], mixture.parameters)
    tracemalloc.start()
    try:
        kernel.accumulate(X, mixture.parameters)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # In float64 they would be 12.8 MB; the sums of the chunks are some kilobytes.
    assert peak < 1e6


@pytest.mark.parametrize("N", [1, 2, 3, 5, 255, 256, 257, 511, 512, 513, 8191, 8192, 8193, 16385])
@pytest.mark.parametrize("D", [1, 2, 6])
def test_sums_at_the_edges_of_blocks_and_chunks(N, D):
    rng = np.random.default_rng(N)
    mixture = random_mixture(rng, 3, D)
    X, v = mixture.sample(rng, N), rng.uniform(0, 2, N)
    expected = oracles.weighted_sums(X, mixture.weights, mixture.means, mixture.covariances, v)
    # More rows, more rounding: still far below 1e-10.
    assert_sums_equal(kernel.accumulate(X, mixture.parameters, v), expected)
    assert len(kernel.log_density(X, mixture.parameters)) == N


def test_chunks_do_not_depend_on_the_order_of_the_last_rows():
    """Every row counts once, wherever it stands: rows reversed give the same sums."""
    rng = np.random.default_rng(5)
    mixture = random_mixture(rng, 2, 3)
    X = mixture.sample(rng, 8192 * 2 + 77)
    there, back = kernel.accumulate(X, mixture.parameters), kernel.accumulate(X[::-1].copy(), mixture.parameters)
    assert there.log_likelihood == pytest.approx(back.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(there.counts, back.counts, rtol=1e-12)
    assert there.counts.sum() == pytest.approx(len(X), rel=1e-13)


@pytest.mark.parametrize("D", [1, 2, 4, 7])
def test_data_far_from_zero(D):
    """Means at 1e8: sums about the origin would lose all sixteen digits, centred ones only those that X itself loses."""
    rng = np.random.default_rng(D)
    near = random_mixture(rng, 3, D)
    # Multiples of 2⁻²⁰ keep their differences exactly when 2²⁷ ≈ 1.3e8 is added: both problems are the same problem.
    grid, shift = 2.0**-20, 2.0**27
    means = np.round(near.means / grid) * grid
    X = np.round(near.sample(rng, 400) / grid) * grid
    at_zero = kernel.accumulate(X, Mixture(near.weights, means, near.packed, near.covariances).parameters)
    far = Mixture(near.weights, means + shift, near.packed, near.covariances)
    away = kernel.accumulate(X + shift, far.parameters)
    assert away.log_likelihood == at_zero.log_likelihood
    np.testing.assert_array_equal(away.counts, at_zero.counts)
    np.testing.assert_array_equal(away.first, at_zero.first)
    np.testing.assert_array_equal(away.second, at_zero.second)
    assert_sums_equal(at_zero, oracles.weighted_sums(X, near.weights, means, near.covariances))


@pytest.mark.parametrize("D", [1, 2, 5, 8])
def test_point_forty_standard_deviations_away(D):
    """exp(−800) underflows: densities must come from logarithms, and the nearest component takes the row."""
    means = np.stack([np.zeros(D), np.full(D, 5.0)])
    mixture = Mixture(np.array([0.3, 0.7]), means, np.stack([np.eye(D)] * 2), np.stack([np.eye(D)] * 2))
    X = np.zeros((3, D))
    X[0, 0], X[1, 0], X[2, 0] = -40.0, 45.0, 2.5
    natural = (mixture.weights, mixture.means, mixture.covariances)
    responsibilities, log_density = kernel.responsibilities(X, mixture.parameters)
    assert log_density[0] < -780
    np.testing.assert_allclose(log_density, oracles.mixture_log_density(X, *natural), rtol=1e-13)
    np.testing.assert_allclose(responsibilities, oracles.responsibilities(X, *natural), rtol=1e-9, atol=1e-300)
    assert_sums_equal(kernel.accumulate(X, mixture.parameters), oracles.weighted_sums(X, *natural))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 8])
def test_blocks_with_a_row_far_below_the_peak_are_done_with_maxima(D, weighted):
    """With few features exponents are counted from the highest peak, unless a row of the block lies 2^−100 below it."""
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 3, D)
    X = mixture.sample(rng, 20 * lanes.BLOCK + 7)
    v = rng.uniform(0.5, 2.0, len(X)) if weighted else None
    natural = (mixture.weights, mixture.means, mixture.covariances)
    near = kernel.accumulate(X, mixture.parameters, v)
    # Far rows in one block, in the blocks that then wait, in one after those, and in the last, which is not full.
    for row in (3 * lanes.BLOCK + 5, 5 * lanes.BLOCK, 16 * lanes.BLOCK + 255, len(X) - 1):
        X[row] += 60.0
    sums = kernel.accumulate(X, mixture.parameters, v)
    assert sums.log_likelihood < near.log_likelihood - 4 * 700
    assert_sums_equal(sums, oracles.weighted_sums(X, *natural, v))
    # Relative to single logarithms of size 1e3: rounding of the squares.
    np.testing.assert_allclose(
        kernel.log_density(X, mixture.parameters), oracles.mixture_log_density(X, *natural), rtol=1e-12, atol=1e-11
    )


@pytest.mark.parametrize("D", [1, 2, 5, 8])
def test_row_beyond_float64_squares(D):
    """A squared distance of 1e400 overflows: density −∞, but responsibilities are finite, sum to 1 and name the nearest."""
    means = np.zeros((2, D))
    means[1, 0] = 1.0
    covariances = np.stack([np.eye(D), 4 * np.eye(D)])
    mixture = Mixture(np.array([0.9, 0.1]), means, covariances, covariances)
    X = np.zeros((2, D))
    X[0, 0] = 1e200
    responsibilities, log_density = kernel.responsibilities(X, mixture.parameters)
    assert log_density[0] == -np.inf
    assert np.isfinite(log_density[1])
    # The wider component has the larger density there.
    np.testing.assert_array_equal(responsibilities[0], [0.0, 1.0])
    sums = kernel.accumulate(X, mixture.parameters)
    assert sums.log_likelihood == -np.inf
    assert np.isfinite(sums.counts).all()
    draws = [np.stack([a] * 3) for a in (mixture.weights, mixture.means, mixture.parameters.precision_factors)]
    log_mean, mean_responsibilities = kernel.posterior_predictive(X, *draws)
    assert log_mean[0] == -np.inf
    np.testing.assert_allclose(mean_responsibilities.sum(axis=1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("D", [1, 2, 6])
def test_weight_zero_rows_do_not_count_even_beyond_float64_squares(D):
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 2, D)
    X = mixture.sample(rng, 6)
    with_outlier = np.vstack([X, np.full((1, D), 1e200)])
    v = np.append(np.ones(6), 0.0)
    expected, sums = kernel.accumulate(X, mixture.parameters), kernel.accumulate(with_outlier, mixture.parameters, v)
    assert sums.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-14)
    np.testing.assert_allclose(sums.second, expected.second, rtol=1e-13)


@pytest.mark.parametrize("D", [1, 2, 5, 7])
def test_component_of_weight_zero(D):
    rng = np.random.default_rng(D)
    two = random_mixture(rng, 2, D)
    three = Mixture(
        np.append(two.weights, 0.0),
        np.vstack([two.means, np.ones((1, D))]),
        np.concatenate([two.packed, np.eye(D)[None]]),
        np.concatenate([two.covariances, np.eye(D)[None]]),
    )
    X = two.sample(rng, 300)
    sums, expected = kernel.accumulate(X, three.parameters), kernel.accumulate(X, two.parameters)
    assert sums.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-14)
    np.testing.assert_array_equal(sums.counts[2], 0.0)
    np.testing.assert_array_equal(sums.second[2], 0.0)
    np.testing.assert_allclose(sums.second[:2], expected.second, rtol=1e-14)
    np.testing.assert_array_equal(kernel.responsibilities(X, three.parameters)[0][:, 2], 0.0)


@pytest.mark.parametrize("D", [2, 4, 5, 6, 9])
def test_scale_of_the_weights_scales_the_sums(D):
    """Sums are linear in the weights, however small: 1e-30 is 2⁻¹⁰⁰ and scales without rounding."""
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 3, D)
    X, v = mixture.sample(rng, 300), rng.uniform(0.5, 1.5, 300)
    factor = 2.0**-100
    unit, small = kernel.accumulate(X, mixture.parameters, v), kernel.accumulate(X, mixture.parameters, v * factor)
    np.testing.assert_allclose(small.first, unit.first * factor, rtol=1e-11, atol=1e-13 * factor)
    np.testing.assert_allclose(small.second, unit.second * factor, rtol=1e-11, atol=1e-13 * factor)


def finite_difference(function, x, step):
    """Central differences of a scalar function, entry by entry."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        h = step * max(1.0, abs(x[index]))
        up[index] += h
        down[index] -= h
        gradient[index] = (function(up) - function(down)) / (2 * h)
    return gradient


@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", ["near zero", "far from zero", "outlier"])
def test_gradient_against_finite_differences(D, weighted, case):
    rng = np.random.default_rng(10 * D + weighted)
    mixture = random_mixture(rng, 3, D)
    X = mixture.sample(rng, 60)
    means = mixture.means.copy()
    if case == "far from zero":
        X, means = X + 1e3, means + 1e3
    if case == "outlier":
        X[0] = means[0] + 40 * np.sqrt(np.diag(mixture.covariances[0]))
    v = rng.uniform(0.2, 3, 60) if weighted else None
    weights, P = mixture.weights, mixture.parameters.precision_factors

    def log_likelihood(w, m, p):
        """Directly in (log) free weights, means and factors, by the definition of the density."""
        y = np.einsum("nkd,kde->nke", X[:, None] - m, p)
        joint = (
            np.log(w)
            + np.log(np.diagonal(p, axis1=1, axis2=2)).sum(1)
            - 0.5 * (y**2).sum(2)
            - D / 2 * math.log(2 * math.pi)
        )
        rows = np.logaddexp.reduce(joint, axis=1)
        return rows.sum() if v is None else v @ rows

    sums = kernel.accumulate(X, MixtureParameters(weights, means, P), v)
    g_weights, g_means, g_factors = kernel.gradients(sums.counts, sums.first, sums.second, P)
    total = log_likelihood(weights, means, P)
    assert sums.log_likelihood == pytest.approx(total, rel=1e-11)
    # Central differences: truncation h² f‴ and rounding ε |f| / h balance near h = 1e-5, at about 1e-6 of the gradient's size;
    # at 1e3 the step of a mean is 1e3 times larger, so there a relative step of 1e-8 keeps it at 1e-5.
    step_mean = 1e-8 if case == "far from zero" else 1e-5
    for computed, numeric in (
        (g_weights, finite_difference(lambda a: log_likelihood(np.exp(a), means, P), np.log(weights), 1e-5)),
        (g_means, finite_difference(lambda a: log_likelihood(weights, a, P), means, step_mean)),
        (g_factors, np.tril(finite_difference(lambda a: log_likelihood(weights, means, a), P, 1e-5))),
    ):
        np.testing.assert_allclose(computed, numeric, rtol=2e-6, atol=2e-6 * np.abs(numeric).max() + 1e-5)


@pytest.mark.parametrize("D", [2, 7])
def test_results_do_not_depend_on_the_number_of_threads(D):
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 4, D)
    X = mixture.sample(rng, 30_000)
    v = rng.uniform(0, 2, len(X))
    # Enough work that threads are used at all.
    assert kernel.pass_cost(len(X), 4, D) > threads.PARALLEL_FLOPS
    reference = kernel.accumulate(X, mixture.parameters, v, n_threads=1)
    single = kernel.fused_pass(X, v, np.log(mixture.weights), mixture.means, mixture.parameters.precision_factors)
    responsibilities, density = kernel.responsibilities(X, mixture.parameters, n_threads=1)
    for a, b in zip(single, (reference.log_likelihood, reference.counts, reference.first, reference.second)):
        np.testing.assert_array_equal(a, b)
    for n_threads in (2, 3, 8):
        sums = kernel.accumulate(X, mixture.parameters, v, n_threads=n_threads)
        assert sums.log_likelihood == reference.log_likelihood
        for name in ("counts", "first", "second"):
            np.testing.assert_array_equal(getattr(sums, name), getattr(reference, name))
        r, d = kernel.responsibilities(X, mixture.parameters, n_threads=n_threads)
        np.testing.assert_array_equal(r, responsibilities)
        np.testing.assert_array_equal(d, density)


@pytest.mark.parametrize("covariance_type", ["tied", "diag"])
def test_sums_of_structures_do_not_depend_on_the_number_of_threads(covariance_type):
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 4, 6, covariance_type)
    X, moments = mixture.sample(rng, 60_000), structure(covariance_type).moments
    reference = kernel.accumulate(X, mixture.parameters, n_threads=1, moments=moments)
    for n_threads in (2, 3, 8):
        sums = kernel.accumulate(X, mixture.parameters, n_threads=n_threads, moments=moments)
        assert sums.log_likelihood == reference.log_likelihood
        for name in ("counts", "first", "second"):
            np.testing.assert_array_equal(getattr(sums, name), getattr(reference, name))


@pytest.mark.parametrize("weighted", [False, True])
def test_log_likelihoods_of_many_parameter_sets_are_those_of_single_passes(weighted):
    """Bit for bit, on any number of threads, also where rows lie so far out that some sets need maxima and others do not."""
    rng = np.random.default_rng(0)
    mixtures = [random_mixture(rng, 3, 4) for _ in range(7)]
    X = mixtures[0].sample(rng, 30_000)
    X[5000] += 60.0
    v = rng.uniform(0, 2, len(X)) if weighted else None
    stacked = [np.stack(a) for a in zip(*[(m.weights, m.means, m.parameters.precision_factors) for m in mixtures])]
    expected = [kernel.accumulate(X, m.parameters, v).log_likelihood for m in mixtures]
    for n_threads in (1, 2, 5):
        np.testing.assert_array_equal(kernel.log_likelihoods(X, *stacked, v, n_threads=n_threads), expected)
    others = [random_mixture(rng, 2, 4) for _ in range(2)]
    mixed = [others[0], *mixtures[:3], others[1]]
    task = blocks.LogLikelihoods([m.parameters for m in mixed])
    found = [kernel.accumulate(X, m.parameters, v).log_likelihood for m in mixed]
    np.testing.assert_array_equal(task(X, v, 0), found)


def test_fused_pass_takes_no_weights_as_all_ones():
    rng = np.random.default_rng(3)
    mixture = random_mixture(rng, 2, 3)
    X = mixture.sample(rng, 300)
    rest = (np.log(mixture.weights), mixture.means, mixture.parameters.precision_factors)
    for a, b in zip(kernel.fused_pass(X, np.empty(0), *rest), kernel.fused_pass(X, np.ones(300), *rest)):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("D", [2, 6])
def test_sums_over_parts_of_the_rows_add_to_the_whole(D):
    rng = np.random.default_rng(1)
    mixture = random_mixture(rng, 3, D)
    X, v = mixture.sample(rng, 1000), rng.uniform(0, 2, 1000)
    whole = kernel.accumulate(X, mixture.parameters, v)
    parts = [kernel.accumulate(X[a:b], mixture.parameters, v[a:b]) for a, b in ((0, 1), (1, 300), (300, 1000))]
    added = parts[0] + parts[1] + parts[2]
    # Only the order of the additions differs.
    assert_sums_equal(added, (whole.log_likelihood, whole.counts, whole.first, whole.second), rtol=1e-12)
    assert added.total_weight == pytest.approx(v.sum(), rel=1e-14)


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(8)
    S = 23
    mixtures = [random_mixture(rng, 3, 4) for _ in range(S)]
    X = np.vstack([mixtures[0].sample(rng, 600), np.full((1, 4), 60.0)])
    stacked = [np.stack(a) for a in zip(*[(m.weights, m.means, m.parameters.precision_factors) for m in mixtures])]
    return X, mixtures, stacked


def test_pointwise_log_likelihood_is_the_log_density_of_every_draw(draws):
    X, mixtures, stacked = draws
    expected = np.stack([kernel.log_density(X, m.parameters) for m in mixtures])
    for n_threads in (1, 2):
        np.testing.assert_array_equal(kernel.pointwise_log_likelihood(X, *stacked, n_threads=n_threads), expected)
    np.testing.assert_allclose(
        expected[0],
        oracles.mixture_log_density(X, mixtures[0].weights, mixtures[0].means, mixtures[0].covariances),
        rtol=1e-10,
    )


def test_posterior_predictive_is_the_mean_over_draws(draws):
    X, mixtures, stacked = draws
    log_densities = np.stack([kernel.log_density(X, m.parameters) for m in mixtures])
    expected = np.logaddexp.reduce(log_densities, axis=0) - math.log(len(mixtures))
    expected_r = np.mean([kernel.responsibilities(X, m.parameters)[0] for m in mixtures], axis=0)
    for n_threads in (1, 2):
        log_mean, r = kernel.posterior_predictive(X, *stacked, n_threads=n_threads)
        # A running log-sum-exp over 23 draws: rounding of the logarithm only. The last row is far out (log density < −50).
        np.testing.assert_allclose(log_mean, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(r, expected_r, rtol=1e-12, atol=1e-15)
    log_mean, r = kernel.posterior_predictive(X, *stacked, with_responsibilities=False)
    np.testing.assert_allclose(log_mean, expected, rtol=1e-12, atol=1e-12)
    assert r.size == 0


def test_posterior_predictive_does_not_hold_draws_times_rows():
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 2, 2)
    X = mixture.sample(rng, 20_000)
    stacked = [np.stack([a] * 200) for a in (mixture.weights, mixture.means, mixture.parameters.precision_factors)]
    kernel.posterior_predictive(X[:300], *stacked)
    tracemalloc.start()
    try:
        kernel.posterior_predictive(X, *stacked)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Results take 20 000 × 3 × 8 = 480 kB; draws × rows would be 32 MB.
    assert peak < 3e6


@nb.njit(**{**kernel._exact_options, "cache": False})
def exponentials(x, top, total):
    lanes.exponentials(x, x.shape[0], top, total)


def powers_of_two(x):
    """2^x by the kernel; also that they are added to the sum."""
    whole = lanes.LANES * -(-len(x) // lanes.LANES)
    out, total = np.zeros(whole), np.ones(whole)
    out[: len(x)] = x
    exponentials(out, np.zeros(whole), total)
    np.testing.assert_array_equal(total, 1.0 + out)
    return out[: len(x)]


@nb.njit(**{**kernel._options, "cache": False})
def logarithms(x, out):
    for i in range(x.shape[0]):
        out[i] = kernel.log_positive(x[i])


def ulps(value, exact):
    exact64 = np.abs(exact.astype(np.float64))
    return np.abs((value - exact) / np.spacing(exact64)).astype(np.float64)


@pytest.mark.parametrize("reach", [1e-12, 0.5, 1.0, 10.0, 100.0, 1022.0])
def test_powers_of_two_are_accurate_to_the_last_bits(reach):
    """Their docstring claims 1.3 ulp."""
    x = -np.random.default_rng(1).uniform(0, reach, 200_000)
    assert ulps(powers_of_two(x), np.exp2(x.astype(np.longdouble))).max() <= 1.3


def test_powers_of_two_at_special_values():
    x = np.array([0.0, -0.0, -np.inf, np.nan, -1e308, -1023.0, -1022.0, -5e-324, -1e-17, -1.0, -0.5])
    out = powers_of_two(x)
    np.testing.assert_array_equal(out[:7], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0**-1022])
    np.testing.assert_allclose(out[7:], np.exp2(x[7:]), rtol=1e-15)


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (1.0, 50.0), (0.5, 1.0), (1e-300, 1e300), (1 - 1e-6, 1 + 1e-6)])
def test_logarithm_is_accurate_to_the_last_bits(low, high):
    """Its docstring claims 2 ulp."""
    x = np.exp(np.random.default_rng(1).uniform(math.log(low), math.log(high), 200_000))
    out = np.empty_like(x)
    logarithms(x, out)
    exact = np.log(x.astype(np.longdouble))
    good = exact != 0
    assert ulps(out[good], exact[good]).max() <= 2.0


def test_logarithm_at_special_values():
    tiny = np.finfo(float).tiny
    x = np.array([1.0, 0.0, 2.0, 5.0, tiny, np.finfo(float).max])
    out = np.empty_like(x)
    logarithms(x, out)
    assert out[0] == 0.0
    assert out[1] == -np.inf
    np.testing.assert_allclose(out[2:], np.log(x[2:]), rtol=1e-15)


@nb.njit(**{**kernel._options, "cache": False})
def library_exponentials(x, out):
    for i in range(x.shape[0]):
        out[i] = math.exp(x[i])


def test_exponential_and_logarithm_are_vectorised():
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"packed instructions are looked for by their x86 names; this is {platform.machine()}")
    packed = re.compile(r"\bv?(mulpd|fn?m(add|sub)\d+pd)\b")

    def count(function, *arguments):
        function(*arguments)
        return len(packed.findall(next(iter(function.inspect_asm().values()))))

    x, out = -np.ones(8), np.empty(8)
    # The polynomial has fourteen products, the logarithm's eleven: a loop that is vectorised has at least as many packed instructions.
    assert count(exponentials, x, np.zeros(8), np.zeros(8)) >= 14
    assert count(logarithms, x, out) >= 11
    # And the check can fail: libm's exponential is called row by row.
    assert count(library_exponentials, x, out) == 0


@pytest.mark.parametrize("name", ["_pass_chunks", "_density_rows", "_predictive_rows", "fused_pass", "gradients"])
def test_compiled_functions_release_the_gil(name):
    assert getattr(kernel, name).targetoptions["nogil"] is True


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag"])
@pytest.mark.parametrize("D", [1, 3, 4, 6, 8, 13])
def test_vectors_of_the_other_width_give_the_same_sums(D, covariance_type, other_lanes):
    """As on a processor with AVX-512, or without: what the registers do not hold is two vectors, or half a one."""
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, 3, D, covariance_type)
    X = mixture.sample(rng, 3 * lanes.BLOCK + 11)
    moments = structure(covariance_type).moments
    assert {other_lanes.LANES, lanes.LANES} == {4, 8}
    found = other_lanes.accumulate(X, mixture.parameters, n_threads=1, moments=moments)
    expected = kernel.accumulate(X, mixture.parameters, n_threads=1, moments=moments)
    for name in ("log_likelihood", "counts", "first", "second"):
        # The same terms in another order.
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=1e-9)


@pytest.fixture(scope="module")
def other_lanes(tmp_path_factory):
    """The kernel's sources with vectors of the other width, loaded from another place, so that no cache is shared."""
    folder = tmp_path_factory.mktemp("lanes")
    text = Path(lanes.__file__).read_text(encoding="utf-8")
    changed = re.sub(r"^LANES = .*$", f"LANES = {12 - lanes.LANES}", text, flags=re.MULTILINE)
    assert changed != text
    (folder / "other_lanes.py").write_text(changed, encoding="utf-8")
    text = Path(kernel.__file__).read_text(encoding="utf-8")
    changed = text.replace("import lanes, threads", "import threads\nimport other_lanes as lanes")
    changed = changed.replace("from bayesgmm.core.lanes import", "from other_lanes import")
    (folder / "other_kernel.py").write_text(changed, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("other_kernel")
    finally:
        sys.path.remove(str(folder))


def test_kernel_is_compiled_anew_with_what_is_inlined():
    digest = hashlib.sha256(b"".join(Path(part.__file__).read_bytes() for part in (lanes, threads))).hexdigest()
    assert digest.startswith(kernel.INLINED_SOURCES), (
        f'lanes.py or threads.py has changed: say INLINED_SOURCES = "{digest[:16]}" in kernel.py'
    )
    assert len(kernel.INLINED_SOURCES) >= 12


def test_kernel_version_follows_the_source():
    digest = hashlib.sha256(Path(kernel.__file__).read_bytes()).hexdigest()
    assert digest.startswith(kernel.KERNEL_VERSION)
    assert len(kernel.KERNEL_VERSION) >= 12
