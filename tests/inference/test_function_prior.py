"""`BayesianGaussianMixture(prior=function)`: the posterior of a known prior, and what a function cannot say is refused."""

from __future__ import annotations

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from scipy import stats
from sklearn.base import clone

from bayesgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    MixtureClassifier,
    SeparationPrior,
    compare,
    load,
    open_blocks,
    select,
)
from bayesgmm.core import em, kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.exceptions import PriorFunctionError
from bayesgmm.inference import function_posterior
from bayesgmm.inference.function_posterior import FunctionPosterior, _scatter_of

rng = np.random.default_rng(5)
X = np.concatenate([rng.normal(-2, 1, 60), rng.normal(4, 1.5, 40)])[:, None]
SCALE, SHAPE = 1.5, 0.7


def ordered():
    """Means in order, so that components have names; SeparationPrior's family otherwise."""
    share = pm.Beta("share", 2, 2)
    first = pm.Normal("first", 0.0, 5.0)
    gap = pm.HalfNormal("gap", 10.0)
    sigma = pm.LogNormal("sigma", np.log(SCALE), SHAPE, dims="component")
    return {
        "weights": pt.stack([share, 1 - share]),
        "means": pt.stack([first, first + gap])[:, None],
        "covariances": sigma[:, None] ** 2,
    }


def fit(prior=ordered, K=2, **options):
    settings = {"draws": 500, "random_state": 0, "progressbar": False, "covariance_type": "diag"} | options
    return BayesianGaussianMixture(K, prior=prior, **settings).fit(X)


@pytest.fixture(scope="module")
def nuts():
    """As a user has it: compiled, which takes half a minute."""
    return fit()


@pytest.fixture(scope="module")
def post():
    """Few draws, by a function that is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_posterior, "MODE", "FAST_COMPILE")
        yield fit(method="laplace", draws=200)


@pytest.mark.slow
def test_nuts_has_the_draws_in_the_order_of_the_prior(nuts):
    assert nuts.diagnostics_.ok
    assert nuts.method_ == "nuts"
    own = nuts.idata_["posterior"]
    np.testing.assert_array_equal(own["means"].values[..., 0, 0], own["first"].values)
    np.testing.assert_allclose(own["means"].values[..., 1, 0], (own["first"] + own["gap"]).values)


def test_draws_are_in_the_order_of_the_prior_and_bring_its_variables(post):
    assert post.diagnostics_.ok
    own = post.idata_["posterior"]
    np.testing.assert_array_equal(own["means"].values[..., 0, 0], own["first"].values)
    np.testing.assert_allclose(own["means"].values[..., 1, 0], (own["first"] + own["gap"]).values)
    assert own["sigma"].dims == ("chain", "draw", "component_id")
    np.testing.assert_allclose(own["sigma"].values, np.sqrt(own["covariances"].values[..., 0]))
    # The mode that EM found is in the same order.
    assert np.all(np.diff(post.map_.means[:, 0]) > 0)
    assert post.modes_[0].run.parameters is post.map_
    expected = (
        stats.beta(2, 2).logpdf(own["share"])
        + stats.norm(0, 5).logpdf(own["first"])
        + stats.halfnorm(scale=10).logpdf(own["gap"])
        + stats.lognorm(SHAPE, scale=SCALE).logpdf(own["sigma"]).sum(axis=-1)
    )
    # PyTensor's log-gamma function, in the Beta's constant, is off by 4e-8.
    np.testing.assert_allclose(post.idata_["log_prior"]["prior"].values, expected, atol=1e-6)


@pytest.mark.slow
def test_posterior_is_that_of_the_same_prior_by_the_package():
    """SeparationPrior written by hand; separated components, which are put in the order of their means."""

    def by_hand():
        weights = pm.Dirichlet("w", np.full(2, 2.0))
        means = pm.Normal("m", 0.0, 5.0, shape=(2, 1))
        sigma = pm.LogNormal("s", np.log(SCALE), SHAPE, shape=(2, 1))
        return {"weights": weights, "means": means, "covariances": sigma**2}

    theirs = SeparationPrior(2.0, [0.0], [5.0], "lognormal", [SCALE], SHAPE)
    both = fit(by_hand, draws=1500), fit(theirs, draws=1500)
    orders = [np.argsort(f.means_[:, 0]) for f in both]
    for name in ("weights", "means", "standard_deviations"):
        a, b = (f.idata_["posterior"][name].values.reshape(6000, 2)[:, order] for f, order in zip(both, orders))
        # Two samples of at least 2000 effective draws: errors of 0.03 standard deviations of the means, four of them.
        assert np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / b.std(axis=0)) < 0.13
        np.testing.assert_allclose(a.std(axis=0), b.std(axis=0), rtol=0.1)


@pytest.mark.slow
def test_laplace_agrees_with_nuts(nuts):
    laplace = fit(method="laplace")
    assert laplace.diagnostics_.ok
    a, b = laplace.summary(), nuts.summary()
    assert np.max(np.abs(a["mean"] - b["mean"]) / b["sd"]) < 0.2
    again = fit(method="laplace")
    np.testing.assert_array_equal(again.idata_["posterior"]["gap"].values, laplace.idata_["posterior"]["gap"].values)


def test_what_rests_on_draws_alone_works(post, tmp_path):
    best = GaussianMixture(2, covariance_type="diag", random_state=0).fit(X)
    assert (compare(best, post)["parts"] != "both").all()
    assert post.predict_proba(X).shape == (100, 2)
    assert "prior_sensitivity" in post.summary()
    assert (post.prior_sensitivity()["prior"] < 0.5).all()
    assert post.pymc_model_["gap"].name == "gap"
    assert clone(post).prior is ordered
    loaded = load(post.save(tmp_path / "fit"))
    np.testing.assert_array_equal(loaded.idata_["posterior"]["gap"].values, post.idata_["posterior"]["gap"].values)
    np.testing.assert_array_equal(loaded.score_samples(X), post.score_samples(X))
    assert str(loaded.prior_) == "prior made by the function ordered"
    with pytest.raises(PriorFunctionError, match="the function 'ordered', which is not saved"):
        loaded.pymc_model_  # noqa: B018
    post.report(tmp_path / "report.html")
    assert "ordered" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_a_function_cannot_say_is_refused(post, monkeypatch):
    monkeypatch.setattr(function_posterior, "MODE", "FAST_COMPILE")
    with pytest.raises(PriorFunctionError, match="the prior is a function"):
        post.log_evidence()
    with pytest.raises(PriorFunctionError, match="rows in memory"):
        BayesianGaussianMixture(2, prior=ordered).fit(open_blocks([X[:50], X[50:]]))
    with pytest.raises(PriorFunctionError, match="no evidence"):
        select(X, prior=ordered, method="nuts")
    classifier = MixtureClassifier(BayesianGaussianMixture(prior=ordered))
    with pytest.raises(PriorFunctionError, match="classes share theirs"):
        classifier.fit(X, np.arange(100) % 2)

    def discrete():
        pm.Bernoulli("z", 0.5)
        return ordered()

    with pytest.raises(PriorFunctionError, match=r"discrete variables \(z\): sum them out"):
        fit(discrete)
    with pytest.raises(ValueError, match="mapping with 'weights', 'means'"):
        fit(lambda: 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_m_step_is_ems_under_a_flat_prior(kind, monkeypatch):
    """With next to no prior the M-step in the user's coordinates leads to weighted moments, those of EM."""
    monkeypatch.setattr(function_posterior, "MODE", "FAST_COMPILE")
    table = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(5, 1, (40, 2)) @ np.array([[1.0, 0.6], [0.0, 1.0]])])

    def flat():
        weights = pm.Dirichlet("w", np.ones(2))
        means = pm.Normal("m", 0.0, 1e4, shape=(2, 2))
        own = 1 if kind == "tied" else 2
        size = 1 if kind == "spherical" else 2
        roots = pm.Flat("log_roots", shape=(own, size))
        if kind in ("diag", "spherical"):
            variances = pt.exp(2 * roots)
            return {"weights": weights, "means": means, "covariances": variances if size == 2 else variances[:, 0]}
        L = pt.exp(roots)[:, :, None] * pt.eye(2)
        L = pt.set_subtensor(L[:, 1, 0], pm.Flat("below", shape=own))
        return {"weights": weights, "means": means, "covariance_factors": L if own == 2 else L[0]}

    best = GaussianMixture(2, covariance_type=kind, random_state=0, reg_covar=0).fit(table)
    posterior = FunctionPosterior(table, 2, structure(kind), FunctionPrior.of(flat), None, ("a", "b"))
    problem = em.Problem(table, structure(kind), None, None)
    theta, scales = posterior.m_step(problem.e_step(best._parameters), best.means_)
    found = posterior.constrain(theta)
    order = np.argsort(found["means"][:, 0])
    expected = np.argsort(best.means_[:, 0])
    # The quasi-Newton method ends at a slope of 1e-4 of a standard deviation; the simplex transform's volume moves weights by 1/N.
    np.testing.assert_allclose(found["means"][order], best.means_[expected], atol=1e-3)
    np.testing.assert_allclose(found["weights"][order], best.weights_[expected], atol=0.02)
    sigma = np.linalg.inv(found["precision_factors"] @ found["precision_factors"].swapaxes(1, 2))
    np.testing.assert_allclose(sigma[order], best._parameters.covariances[expected], rtol=5e-3, atol=5e-3)
    assert np.all(scales > 0)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_scatter_of_the_m_step_is_about_the_components_own_means(kind):
    table = np.random.default_rng(6).standard_normal((30, 2)) @ np.array([[1.0, 0.6], [0.0, 1.0]])
    means = np.array([[1.0, 0.5], [-1.0, 0.0]])
    parameters = MixtureParameters(np.array([0.4, 0.6]), means, np.broadcast_to(np.eye(2), (2, 2, 2)).copy())
    statistics = em.Problem(table, structure(kind), None, None).e_step(parameters)
    shift = statistics.first / statistics.counts[:, None]
    found = _scatter_of(statistics, shift)
    r = kernel.responsibilities(table, parameters)[0]
    expected = np.stack([np.cov(table.T, aweights=r[:, k], ddof=0) * r[:, k].sum() for k in range(2)])
    if kind == "tied":
        found, expected = found.sum(axis=0), expected.sum(axis=0)
    elif kind != "full":
        expected = expected * np.eye(2)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
