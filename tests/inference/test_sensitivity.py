"""Evidence under varied priors: against closed forms at K = 1 and the sum over all allocations, from draws and from a refit."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, HierarchicalPrior
from bayesgmm.inference import sensitivity
from bayesgmm.inference.sensitivity import VARIATIONS, change_by_refit, evidence_change, varied_priors
from tests.inference.test_evidence import QUIET, TABLES, exact_fit, quietly, values_and_prior
from tests.mixtures import STRUCTURES
from tests.oracles import Enumeration, PriorValues, one_component_log_evidence


def enumerated(table: str, prior: ConjugatePrior, covariance_type: str = "full", K: int = 2) -> float:
    values = PriorValues(
        prior.resolved_concentration,
        prior.resolved_mean,
        prior.mean_precision,
        prior.resolved_degrees_of_freedom,
        prior.resolved_scale,
    )
    return Enumeration(TABLES[table], values, K, covariance_type).log_evidence


def test_variations_multiply_what_they_say():
    conjugate = ConjugatePrior(1.0, [0.0, 1.0], 0.3, 5.0, [[2.0, 0.5], [0.5, 1.0]]).resolve(np.eye(2), 2)
    found = varied_priors(conjugate)
    assert tuple(found) == VARIATIONS
    assert [prior.mean_precision / 0.3 for prior in found.values()] == pytest.approx([0.1, 10, 1, 1])
    assert [prior.scale[0, 1] / 0.5 for prior in found.values()] == pytest.approx([1, 1, 0.5, 2])
    hierarchical = HierarchicalPrior(mean_covariance=[4.0], hyper_rate=[3.0]).resolve([[0.0], [1.0], [5.0]], 2)
    found = varied_priors(hierarchical)
    # Precision is 1 / B₀; the typical scale of the covariances goes with 1 / G₀.
    assert [4 / prior.mean_covariance[0, 0] for prior in found.values()] == pytest.approx([0.1, 10, 1, 1])
    assert [3 / prior.hyper_rate[0, 0] for prior in found.values()] == pytest.approx([1, 1, 0.5, 2])
    rng = np.random.default_rng(0)
    medians = [np.median(prior.draw(rng, 20_000)[2]) for prior in (hierarchical, found["scale × 2"])]
    # The median of 40,000 draws that come in pairs: about 1 % each.
    assert medians[1] / medians[0] == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize(
    "covariance_type", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in STRUCTURES if name != "full")]
)
def test_one_component_is_the_closed_form(covariance_type):
    z = []
    for seed in range(5):
        X = np.random.default_rng(seed).standard_normal((150, 2)) * [1.0, 3.0] + 2.0
        options = QUIET | {"covariance_type": covariance_type, "random_state": seed}
        fitted = BayesianGaussianMixture(1, method="laplace", draws=250, **options).fit(X)
        exact = one_component_log_evidence(X, fitted.prior_, covariance_type)
        for prior in varied_priors(fitted.prior_).values():
            found = evidence_change(fitted, prior)
            assert found.reliable
            assert found.standard_error < 0.05
            z.append(
                (one_component_log_evidence(X, prior, covariance_type) - exact - found.change) / found.standard_error
            )
    # 20 values that come in pairs (up and down), in units of the stated error: for ten unit normals the root mean square is below 1.75, and
    # the largest below 3.5, with probability 0.999 or so.
    assert np.sqrt(np.mean(np.square(z))) < 1.75
    assert np.max(np.abs(z)) < 3.5


def test_one_component_by_nuts_is_the_closed_form():
    X = np.random.default_rng(1).standard_normal((60, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]]) + 3.0
    fitted = BayesianGaussianMixture(1, draws=300, tune=200, **QUIET).fit(X)
    exact = one_component_log_evidence(X, fitted.prior_)
    for prior in varied_priors(fitted.prior_).values():
        found = evidence_change(fitted, prior)
        # Twice the stated error; seeds are fixed.
        assert abs(one_component_log_evidence(X, prior) - exact - found.change) < 2 * found.standard_error


@pytest.mark.parametrize(
    ("table", "covariance_type"), [("overlapping", "diag"), ("overlapping", "tied"), ("separated", "tied")]
)
def test_two_components_are_the_sum_over_all_allocations(table, covariance_type):
    """Exact independent draws, 12 seeds, a variation each: the error is as stated wherever k̂ says that it can be trusted."""
    z = []
    for seed in range(12):
        fit, exact = exact_fit(table, covariance_type, seed, size=800)
        prior = varied_priors(fit.prior_)[VARIATIONS[seed % 4]]
        found = evidence_change(fit, prior)
        if found.reliable:
            z.append((enumerated(table, prior, covariance_type) - exact - found.change) / found.standard_error)
    # 5 to 12 independent unit normals: root mean square below 2 with probability 0.999 for 5 of them, and more for 12.
    assert len(z) >= 5
    assert np.sqrt(np.mean(np.square(z))) < 2


def test_smoothing_leaves_well_behaved_ratios_alone():
    fit, _ = exact_fit("overlapping", "diag", 0, size=800)
    prior = replace(fit.prior_, mean_precision=fit.prior_.mean_precision * 1.05)
    at = (*fit._draws.flat(), "diag")
    ratios = prior.log_density_from_factors(*at) - fit.prior_.log_density_from_factors(*at)
    found = evidence_change(fit, prior)
    # Smoothing replaces the 85 largest of 800 ratios, all within 20 % of 1, by quantiles of a distribution fitted to them.
    assert found.change == pytest.approx(logsumexp(ratios) - np.log(800), abs=1e-3)
    same = evidence_change(fit, fit.prior_)
    assert (same.change, same.standard_error, same.pareto_k) == (0.0, 0.0, -np.inf)


@pytest.fixture(scope="module")
def narrow() -> BayesianGaussianMixture:
    """Eight rows under a prior that holds the means together: draws do not go as far as under a wider one."""
    _, prior = values_and_prior("overlapping")
    return quietly(BayesianGaussianMixture(2, prior=prior, draws=400, tune=300, **QUIET), TABLES["overlapping"])


@pytest.mark.parametrize("way", ["back", "bridge"])
def test_a_refit_reaches_what_the_draws_do_not(narrow, way, monkeypatch):
    prior = varied_priors(narrow.prior_)["precision of the means × 0.1"]
    exact = enumerated("overlapping", prior) - enumerated("overlapping", narrow.prior_)
    if way == "bridge":
        # As if the way back had failed too.
        monkeypatch.setattr(sensitivity, "PARETO_K_LIMIT", -np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = change_by_refit(narrow, prior, random_state=1)
    assert abs(found.change - exact) < 2 * found.standard_error
    assert found.standard_error < 0.1
    assert np.isneginf(found.pareto_k) == (way == "bridge")
