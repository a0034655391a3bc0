"""The random scale integrated out: density and gradient, its draws, and posteriors sampled without it."""

from __future__ import annotations

import warnings

import numpy as np
import pymc as pm
import pytest
from arviz_stats.base import array_stats
from scipy import stats

from bayesgmm import BayesianGaussianMixture, HierarchicalPrior, build_model
from bayesgmm.datasets import load_faithful
from bayesgmm.inference.compiled import CompiledPosterior
from tests import oracles
from tests.inference.test_compiled import central_differences
from tests.inference.test_hierarchical import EIGHT, ONE_FEATURE, by_quadrature, some_posterior
from tests.mixtures import STRUCTURES

SIZES = [*((K, D) for K in (1, 2, 3) for D in (1, 2, 3)), (2, 5)]


def without(covariance_type: str, K: int, D: int, weighted: bool = False):
    """A posterior with its scale among the variables, the same without it, a point of that, and what they belong to."""
    full, theta, X, v, prior = some_posterior(covariance_type, K, D, weighted)
    parts = full.constrain(theta)
    posterior = full.without_scale(parts["precision_factors"])
    # Not the point that the coordinates were made for.
    psi = posterior.unconstrain(parts["weights"], parts["means"], parts["precision_factors"])
    psi = psi + 0.3 * np.random.default_rng(D).standard_normal(posterior.ndim)
    return full, posterior, psi, X, v, prior


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_density_is_the_closed_form_in_natural_coordinates_times_the_volume_element(covariance_type, K, D):
    _, posterior, psi, X, v, prior = without(covariance_type, K, D, weighted=K == 2)
    parts = posterior.constrain(psi)
    factors = parts["precision_factors"]
    matrices = np.linalg.inv(factors @ factors.swapaxes(1, 2))
    rows = oracles.mixture_log_density(X, parts["weights"], parts["means"], matrices)
    expected = np.sum(rows if v is None else v * rows)
    # Its own test holds it against numerical integration of scipy's densities over C₀.
    expected += prior.log_density_from_factors(**parts, covariance_type=covariance_type)

    # Rounding at 1e-13 of the terms; covariances went through an inverse.
    np.testing.assert_allclose(posterior.logp_and_grad(psi)[0] - posterior.log_jacobian(psi), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_gradient_is_that_of_the_density(covariance_type, K, D):
    _, posterior, psi, *_ = without(covariance_type, K, D, weighted=K == 2)
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], psi)

    # Rounding of values of some hundreds over the step, 1e-8, and truncation.
    np.testing.assert_allclose(posterior.logp_and_grad(psi)[1], numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_a_drawn_scale_brings_the_density_of_all_variables(covariance_type, K, D):
    """The density of θ is that of ψ times that of the drawn variables over the volume of θ, wherever these fall."""
    full, posterior, psi, *_ = without(covariance_type, K, D, weighted=K == 2)
    rng = np.random.default_rng(0)
    batch = psi + 0.2 * rng.standard_normal((5, posterior.ndim))
    parts = posterior.constrain(batch)
    V, change = posterior.draw_scale(parts["precision_factors"], rng)
    theta = full.unconstrain(**parts, scale_factor=V)
    found = [posterior.logp_and_grad(point)[0] for point in batch] + change
    # Rounding, through two triangular solves.
    np.testing.assert_allclose([full.logp_and_grad(point)[0] for point in theta], found, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_drawn_scales_are_wisharts(covariance_type):
    K, D, n_draws = 3, 2, 40_000
    _, posterior, psi, _, _, prior = without(covariance_type, K, D)
    factors = posterior.constrain(psi)["precision_factors"]
    V, _ = posterior.draw_scale(np.broadcast_to(factors, (n_draws, *factors.shape)), np.random.default_rng(3))
    inverse = np.linalg.inv(V)
    rates = 0.5 * inverse.swapaxes(1, 2) @ inverse
    precisions, rate = factors @ factors.swapaxes(1, 2), np.asarray(prior.hyper_rate)
    c0, g0 = prior.precision_shape, prior.hyper_shape
    entries = rates[:, *np.tril_indices(D)]
    if covariance_type in ("full", "tied"):
        R = K if covariance_type == "full" else 1
        # W(c, C) has 2c degrees of freedom and the scale (2C)⁻¹.
        known = stats.wishart(2 * (g0 + R * c0), np.linalg.inv(2 * (rate + precisions[:R].sum(axis=0))))
        mean, variance = (known.mean()[np.tril_indices(D)], known.var()[np.tril_indices(D)])
    else:
        variances = np.diag(np.linalg.inv(rate))
        joined = 1 / (variances if covariance_type == "diag" else np.full(D, variances.mean()))
        joined = joined + np.diagonal(precisions.sum(axis=0))
        # Each feature's C_j, or the one of all.
        known = stats.gamma(g0 + K * (c0 - 0.5), scale=1 / joined)
        entries, mean, variance = rates[:, [0, 1], [0, 1]], known.mean(), known.var()
        np.testing.assert_array_equal(rates[:, 0, 1], 0)
        # Bounds at the 1e-4 level for independent features; equal ones are the same number.
        together = np.corrcoef(entries.T)[0, 1]
        assert abs(together) < 4 / np.sqrt(n_draws) if covariance_type == "diag" else together == pytest.approx(1)
    # Four standard errors: of a mean, and of a variance by the fourth moment of the draws.
    assert np.all(np.abs(entries.mean(axis=0) - mean) < 4 * np.sqrt(variance / n_draws))
    fourth = np.mean((entries - entries.mean(axis=0)) ** 4, axis=0)
    assert np.all(np.abs(entries.var(axis=0) - variance) < 4 * np.sqrt((fourth - variance**2) / n_draws))


def test_a_fixed_scale_stays_in_its_place():
    posterior = CompiledPosterior.from_data(EIGHT, 1)
    assert posterior.without_scale(np.ones((1, 1, 1))) is posterior


def fitted(method: str = "nuts", K: int = 1, X=EIGHT, prior=ONE_FEATURE, **options) -> BayesianGaussianMixture:
    options = {"draws": 1000, "tune": 300, "target_ess": 0, "random_state": 5, "progressbar": False} | options
    with warnings.catch_warnings():
        # Eight rows rightly bring about warnings.
        warnings.simplefilter("ignore", UserWarning)
        return BayesianGaussianMixture(K, prior=prior, method=method, **options).fit(X)


@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_one_component_of_one_feature_is_that_of_quadrature(method):
    post = fitted(method)
    prior = ONE_FEATURE
    # p(log σ²) up to its constant: C₀ by its closed form, the mean by hand: x ~ Normal(b₀, σ² I + B₀ 11ᵀ).
    grid = np.linspace(-6, 8, 2001)
    s2, y = np.exp(grid), EIGHT[:, 0] - prior.mean_prior[0]
    n, B0, G0 = len(y), prior.mean_covariance[0], prior.hyper_rate[0]
    c0, g0 = prior.precision_shape, prior.hyper_shape
    log_density = -c0 * grid - (c0 + g0) * np.log(G0 + 1 / s2)
    log_density -= 0.5 * ((n - 1) * grid + np.log(s2 + n * B0))
    log_density -= 0.5 * (y @ y - B0 * y.sum() ** 2 / (s2 + n * B0)) / s2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    draws = np.log(post.idata_["posterior"]["covariances"].values).reshape(4, -1)
    exact = density @ grid
    spread = np.sqrt(density @ (grid - exact) ** 2)
    for value, truth, how in ((draws.mean(), exact, "mean"), (draws.std(), spread, "sd")):
        # Four standard errors; resampled draws cost at most √2 over independent ones.
        wide = np.sqrt(2) if method == "laplace" else 1.0
        assert abs(value - truth) < 4 * wide * float(array_stats.mcse(draws, method=how))
    rates = np.log(post.idata_["posterior"]["precision_rate"].values).reshape(4, -1)
    error = np.sqrt(2) * rates.std() / np.sqrt(float(array_stats.ess(rates, method="mean")))
    assert abs(rates.mean() - by_quadrature(EIGHT, 1)[1]) < 4 * error


@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_the_stored_log_density_is_that_of_all_variables(method):
    post = fitted(method, K=2, draws=50)
    compiled = CompiledPosterior.from_data(EIGHT, 2, prior=post.prior_)
    theta = post._draws.unconstrained_by(compiled)
    stored = post.idata_["sample_stats"]["lp"].values.ravel()
    # Through two solves and logarithms: rounding.
    np.testing.assert_allclose([compiled.logp_and_grad(point)[0] for point in theta], stored, rtol=1e-9)
    # Equal draws have one scale: they count as copies of one.
    factors = post._draws.precision_factors.reshape(200, -1)
    scales = post._draws.scale_factors.reshape(200, -1)
    assert len(np.unique(np.hstack([factors, scales]), axis=0)) == len(np.unique(factors, axis=0))


def test_same_seed_same_draws():
    one, again, other = (fitted(K=2, draws=50, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one._draws.scale_factors, again._draws.scale_factors)
    np.testing.assert_array_equal(one._draws.means, again._draws.means)
    assert not np.any(one._draws.scale_factors == other._draws.scale_factors)


@pytest.mark.parametrize("K", [1, 2])
def test_old_faithful_has_no_divergences(K):
    post = fitted(K=K, X=load_faithful().to_numpy(dtype=float), prior=HierarchicalPrior(), random_state=0)
    assert post.diagnostics_.ok
    # One in 1,000.
    assert post.diagnostics_.n_divergent < 4
    assert post.diagnostics_.r_hat < 1.01


def test_coordinates_belong_to_a_likely_scale():
    """Wherever the point lies that they are made for, the density in (π, μ, Σ) is the same."""
    full, posterior, psi, *_ = without("full", 2, 3)
    parts = posterior.constrain(psi)
    other = full.without_scale(np.tril(parts["precision_factors"] * 3 + 0.5))
    theta = other.unconstrain(**parts)
    assert not np.allclose(theta, psi)
    values = [p.logp_and_grad(t)[0] - p.log_jacobian(t) for p, t in ((posterior, psi), (other, theta))]
    # Rounding.
    assert values[0] == pytest.approx(values[1], rel=1e-11)


@pytest.mark.slow
def test_samplers_agree_under_a_random_scale():
    """NUTS and Laplace without the scale, PyMC's own sampler of the model with it."""
    X = load_faithful().to_numpy(dtype=float)
    prior = HierarchicalPrior().resolve(X, 2)
    with build_model(X, 2, prior=prior):
        plain = pm.sample(
            300,
            tune=300,
            chains=2,
            cores=1,
            random_seed=2,
            target_accept=0.9,
            progressbar=False,
            compute_convergence_checks=False,
            nuts_sampler="pymc",
        ).posterior
    one = summaries(plain)
    for method in ("nuts", "laplace"):
        other = summaries(fitted(method, K=2, X=X, prior=prior).idata_["posterior"])
        for name, a in other.items():
            b = one[name]
            for statistic, how in ((np.mean, "mean"), (np.std, "sd")):
                # Four Monte Carlo errors of the difference; resampled draws cost at most √2 over independent ones.
                wide = np.sqrt(2) if method == "laplace" else 1.0
                error = np.hypot(wide * float(array_stats.mcse(a, method=how)), float(array_stats.mcse(b, method=how)))
                assert abs(statistic(a) - statistic(b)) < 4 * error, (method, name, how)


def summaries(draws) -> dict[str, np.ndarray]:
    """Quantities (chains, draws), the component of the longer eruptions last."""
    weights, means, covariances = (draws[name].values for name in ("weights", "means", "covariances"))
    order = np.argsort(means[..., 0], axis=-1)
    weights = np.take_along_axis(weights, order, axis=2)
    means = np.take_along_axis(means, order[..., None], axis=2)
    covariances = np.take_along_axis(covariances, order[..., None, None], axis=2)
    rates = draws["precision_rate"].values
    out = {"weight": weights[..., 0]}
    for j in range(2):
        out |= {f"mean {k}{j}": means[..., k, j] for k in range(2)}
        out |= {f"log sd {k}{j}": 0.5 * np.log(covariances[..., k, j, j]) for k in range(2)}
        out[f"log rate {j}"] = np.log(rates[..., j, j])
    return out | {"covariance 0": covariances[..., 0, 0, 1], "covariance 1": covariances[..., 1, 0, 1]}
