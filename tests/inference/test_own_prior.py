"""A prior written in PyMC by the user: the one-pass likelihood under it, density for density, and its posterior."""

from __future__ import annotations

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from scipy import stats

from bayesgmm import SeparationPrior, build_model
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


def constants(**values):
    return lambda: {name: pt.as_tensor_variable(value) for name, value in values.items()}


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("form", ["covariances", "covariance_factors", "precision_factors"])
def test_likelihood_is_scipys_whatever_form_the_covariances_have(covariance_type, form):
    K, D = 2, 3
    rng = np.random.default_rng(1)
    m = random_mixture(rng, K, D, covariance_type)
    X, v = m.sample(rng, 20), rng.uniform(0.5, 2, 20)
    matrices = oracles.expand_covariances(m.packed, covariance_type, K, D)
    value = m.packed
    if form != "covariances":
        factors = m.parameters.precision_factors if form == "precision_factors" else np.linalg.cholesky(matrices)
        value = factors[0] if covariance_type == "tied" else factors
    model = build_model(X, K, covariance_type, constants(weights=m.weights, means=m.means, **{form: value}), v)
    expected = v @ oracles.mixture_log_density(X, m.weights, m.means, matrices)
    # Factors of covariances and their inverses: rounding.
    np.testing.assert_allclose(model.compile_logp(mode="FAST_COMPILE")({}), expected, rtol=1e-10)
    np.testing.assert_allclose(model["covariances"].eval(mode="FAST_COMPILE"), m.packed, rtol=1e-9, atol=1e-12)


def own_prior():
    """Weights by stick-breaking, means in order, one scale for all: nothing that the package has."""
    first = pm.Beta("first", 2, 2)
    gap = pm.HalfNormal("gap", 10.0)
    start = pm.Normal("start", 0.0, 5.0)
    sigma = pm.Exponential("sigma", 1.0)
    return {
        "weights": pt.stack([first, 1 - first]),
        "means": pt.stack([start, start + gap])[:, None],
        "covariances": pt.stack([sigma**2, sigma**2]),
    }


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(2)
    return np.concatenate([rng.normal(-2, 1, 60), rng.normal(3, 1, 40)])[:, None]


def test_density_and_gradient_through_the_hook(x):
    model = build_model(x, 2, "spherical", own_prior)
    point = {
        "first_logodds__": np.array(0.3),
        "gap_log__": np.array(1.5),
        "start": np.array(-1.8),
        "sigma_log__": np.array(0.1),
    }
    assert set(model.initial_point()) == set(point)
    first, gap, sigma = 1 / (1 + np.exp(-0.3)), np.exp(1.5), np.exp(0.1)
    rows = np.log(first * stats.norm(-1.8, sigma).pdf(x) + (1 - first) * stats.norm(-1.8 + gap, sigma).pdf(x))
    expected = rows.sum() + stats.beta(2, 2).logpdf(first) + np.log(first * (1 - first))
    expected += (
        stats.halfnorm(scale=10).logpdf(gap) + 1.5 + stats.norm(0, 5).logpdf(-1.8) + stats.expon.logpdf(sigma) + 0.1
    )
    # PyTensor's log-gamma function, in the Beta's constant, is off by 4e-8.
    np.testing.assert_allclose(model.compile_logp(mode="FAST_COMPILE")(point), expected, atol=1e-7, rtol=0)
    logp, gradient = model.compile_logp(mode="FAST_COMPILE"), model.compile_dlogp(mode="FAST_COMPILE")(point)
    names = [value.name for value in model.continuous_value_vars]
    for name, slope in zip(names, gradient, strict=True):
        up, down = (logp(point | {name: point[name] + step}) for step in (1e-5, -1e-5))
        # Central differences of values of some hundreds.
        assert slope == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-5)


def test_the_packages_own_prior_through_the_hook_has_its_density():
    """SeparationPrior for one feature written by hand: the same density but for the means' and weights' transforms, which are equal."""
    x = np.random.default_rng(3).standard_normal((30, 1))
    prior = SeparationPrior().resolve(x, 2, "diag")

    def by_hand():
        weights = pm.Dirichlet("weights", np.ones(2), dims="component")
        sigma = pm.LogNormal(
            "deviations", np.log(prior.deviation_scale), prior.deviation_shape, dims=("component", "feature")
        )
        means = pm.Normal("means", prior.mean_prior, prior.mean_scale, dims=("component", "feature"))
        return {"weights": weights, "means": means, "covariances": sigma**2}

    ours, theirs = build_model(x, 2, "diag", prior), build_model(x, 2, "diag", by_hand)
    point = ours.initial_point()
    rng = np.random.default_rng(0)
    point = {name: value + 0.3 * rng.standard_normal(np.shape(value)) for name, value in point.items()}
    np.testing.assert_allclose(
        ours.compile_logp(mode="FAST_COMPILE")(point), theirs.compile_logp(mode="FAST_COMPILE")(point), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: 3, "mapping with 'weights', 'means'"),
        (constants(weights=np.ones(2) / 2, means=np.zeros((2, 1))), "one of covariances, covariance_factors"),
        (
            constants(weights=np.ones(2) / 2, means=np.zeros(2), covariances=np.ones((2, 1, 1))),
            "means of a full prior has 2 dimensions",
        ),
        (
            constants(weights=np.ones(2) / 2, means=np.zeros((2, 1)), covariances=np.ones((2, 1))),
            "covariances of a full prior has 3 dimensions",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        build_model(np.zeros((3, 1)), 2, "full", given)
