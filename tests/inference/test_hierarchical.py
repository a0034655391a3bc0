"""The posterior under a random scale: density against scipy and against the PyMC model, evidence against quadrature."""

from __future__ import annotations

import numpy as np
import pymc as pm
import pytensor
import pytest

from bayesgmm import HierarchicalPrior, build_model
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import pack_rate
from bayesgmm.inference.compiled import CompiledPosterior
from tests import oracles
from tests.core.test_hierarchical import scipys, some_prior
from tests.inference.test_compiled import central_differences
from tests.mixtures import STRUCTURES, Mixture, random_mixture

SIZES = ((1, 1), (1, 3), (3, 1), (2, 2))


def some_posterior(covariance_type: str, K: int, D: int, weighted: bool = False):
    rng = np.random.default_rng(10 * K + D)
    mixture = random_mixture(rng, K, D, covariance_type)
    X = mixture.sample(rng, 40)
    v = rng.uniform(0.2, 3.0, 40) if weighted else None
    prior = some_prior(K, D).resolve(X, K, covariance_type)
    posterior = CompiledPosterior.from_data(X, K, covariance_type, prior, v)
    theta = posterior.unconstrain(mixture.weights, mixture.means, mixture.parameters.precision_factors)
    return posterior, theta + 0.2 * rng.standard_normal(posterior.ndim), X, v, prior


def natural(posterior: CompiledPosterior, theta: np.ndarray):
    """Weights, means, packed covariances and C₀ of a point."""
    parts = posterior.constrain(theta)
    factors, V = parts["precision_factors"], parts["scale_factor"]
    packed = structure(posterior.covariance_type).pack(np.linalg.inv(factors @ factors.swapaxes(-1, -2)))
    return parts["weights"], parts["means"], packed, pack_rate(np.linalg.inv(V @ V.T) / 2, posterior.covariance_type)


def natural_vector(posterior: CompiledPosterior, theta: np.ndarray) -> np.ndarray:
    weights, means, packed, rate = natural(posterior, theta)
    if posterior.covariance_type in ("full", "tied"):
        lower = np.tril_indices(means.shape[1])
        packed, rate = packed[..., *lower], rate[lower]
    return np.concatenate([weights[:-1], means.ravel(), packed.ravel(), np.ravel(rate)])


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_density_is_scipys_in_natural_coordinates_times_the_volume_element(covariance_type, K, D):
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, weighted=K == 3)
    weights, means, packed, rate = natural(posterior, theta)
    matrices = oracles.expand_covariances(packed, covariance_type, K, D)
    rows = oracles.mixture_log_density(X, weights, means, matrices)
    expected = scipys(prior, Mixture(weights, means, packed, matrices), rate, covariance_type)
    expected += np.sum(rows if v is None else v * rows)

    volume = np.linalg.slogdet(central_differences(lambda t: natural_vector(posterior, t), theta))[1]
    # Jacobian by central differences: 1e-9 relative in its entries.
    np.testing.assert_allclose(posterior.log_jacobian(theta), volume, rtol=1e-7, atol=1e-6)
    # scipy's and ours round at 1e-13 of the terms; covariances went through an inverse.
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[0] - posterior.log_jacobian(theta), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_gradient_is_that_of_the_density(covariance_type, K, D):
    posterior, theta, *_ = some_posterior(covariance_type, K, D)
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], theta)

    # Rounding of values of some hundreds over the step, 1e-8, and truncation.
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[1], numeric, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (2, 3)])
def test_density_and_gradient_are_the_pymc_models_own(covariance_type, K, D):
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, weighted=D == 1)
    model = build_model(X, K, covariance_type, prior, v)
    values = {variable.name: variable for variable in model.continuous_value_vars}
    assert list(values) == [name for name in posterior.slices if name in values]
    assert set(posterior.names) <= set(values)
    shapes = {name: value.shape for name, value in model.initial_point().items()}
    point = [theta[posterior.slices[name]].reshape(shapes[name]) for name in values]
    log_density = model.logp()
    parameters = model.replace_rvs_by_values([model["means"], model["covariances"], model["precision_rate"]])
    slopes = pytensor.grad(log_density, list(values.values()))
    function = pytensor.function(list(values.values()), [log_density, *parameters, *slopes], mode="FAST_COMPILE")
    logp, means, packed, rate, *slopes = function(*point)

    value, gradient = posterior.logp_and_grad(theta)
    # Terms added in another order, and 3e-9 for each χ² variable: PyTensor's log-gamma function.
    np.testing.assert_allclose(value, logp, rtol=1e-12, atol=1e-8 * K * D)
    for name, slope in zip(values, slopes, strict=True):
        part = gradient[posterior.slices[name]]
        np.testing.assert_allclose(part, slope.ravel(), rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
    for ours, theirs in zip(natural(posterior, theta)[1:], (means, packed, rate), strict=True):
        # An inverse on each side, of matrices of condition 1e3 at most.
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_unconstrain_undoes_constrain_and_finds_the_rates_mean(covariance_type):
    posterior, theta, _, _, prior = some_posterior(covariance_type, 3, 2)
    parts = posterior.constrain(theta)
    # Triangular solves and logarithms: rounding.
    np.testing.assert_allclose(posterior.unconstrain(**parts), theta, rtol=1e-10, atol=1e-10)
    factors = parts["precision_factors"]
    without = natural(posterior, posterior.unconstrain(parts["weights"], parts["means"], factors))[3]
    precisions, G0 = factors @ factors.swapaxes(1, 2), np.asarray(prior.hyper_rate)
    c0, g0 = prior.precision_shape, prior.hyper_shape
    if covariance_type in ("full", "tied"):
        R = 3 if covariance_type == "full" else 1
        expected = (g0 + R * c0) * np.linalg.inv(G0 + precisions[:R].sum(axis=0))
    else:
        variances = np.diag(np.linalg.inv(G0))
        rate = 1 / (variances if covariance_type == "diag" else variances.mean())
        expected = (g0 + 3 * (c0 - 0.5)) / (rate + np.diagonal(precisions.sum(axis=0)))
        expected = expected if covariance_type == "diag" else expected[0]
    np.testing.assert_allclose(without, expected, rtol=1e-9)


def test_a_scale_is_refused_where_it_is_fixed():
    X = np.random.default_rng(0).standard_normal((20, 1))
    posterior = CompiledPosterior.from_data(X, 1)
    with pytest.raises(ValueError, match="fixed"):
        posterior.unconstrain([1.0], [[0.0]], [[[1.0]]], [[1.0]])


def test_prior_draws_through_pymc_are_the_priors():
    prior = HierarchicalPrior(2.0, [1.0, -1.0], [4.0, 9.0], 9.0, 4.0, [2.0, 3.0])
    X = np.random.default_rng(0).standard_normal((5, 2))
    S = 2000
    with build_model(X, 2, "full", prior):
        drawn = pm.sample_prior_predictive(S, random_seed=1)["prior"]
    _, means, packed, rates = prior.resolve(X, 2).draw(np.random.default_rng(2), S, "full")
    for name, ours in (("means", means), ("covariances", packed), ("precision_rate", rates)):
        theirs = drawn[name].values[0]
        error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / S)
        # Five standard errors of the difference of two means.
        assert np.all(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error)
