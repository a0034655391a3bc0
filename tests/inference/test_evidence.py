"""Evidence against the closed form at K = 1, against the sum over all allocations, and its error against its scatter."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import gammaln
from sklearn.exceptions import NotFittedError

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, GaussianMixture, load
from bayesgmm.core import em
from bayesgmm.inference.bridge import Half, bridge
from bayesgmm.inference.evidence import Evidence, log_evidence, posterior_over_components
from bayesgmm.inference.folding import FoldedNormals
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.relabel import relabel
from tests.mixtures import STRUCTURES
from tests.oracles import Enumeration, PriorValues, one_component_log_evidence

QUIET = {"progressbar": False, "random_state": 0, "target_ess": 0}
OVERLAPPING = np.array(
    [[-2.4, -1.0], [-1.9, 0.3], [-1.5, -0.6], [-0.2, 0.9], [0.4, -0.4], [1.6, 1.8], [2.0, 0.7], [2.9, 2.2]]
)
SEPARATED = 0.3 * OVERLAPPING + np.where(np.arange(8) < 4, -6.0, 6.0)[:, None]
TABLES = {"overlapping": OVERLAPPING, "separated": SEPARATED}
CENTRE, SCALE = np.array([0.3, 0.5]), np.array([[1.5, 0.5], [0.5, 1.0]])


def values_and_prior(table: str, K: int = 2) -> tuple[PriorValues, ConjugatePrior]:
    """The same prior for the oracle and for the package; means may be far out where the data are."""
    kappa = 0.5 if table == "overlapping" else 0.02
    values = PriorValues(np.full(K, 2.0), CENTRE, kappa, 6.0, SCALE)
    return values, ConjugatePrior(2.0, CENTRE, kappa, 6.0, SCALE)


def quietly(estimator: BayesianGaussianMixture, X: np.ndarray, sample_weight=None) -> BayesianGaussianMixture:
    """Fit without the warnings that eight rows rightly bring about labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(X, sample_weight=sample_weight)


def exact_fit(
    table: str, covariance_type: str, seed: int, size: int = 800, K: int = 2
) -> tuple[SimpleNamespace, float]:
    """What `log_evidence` reads of a fit, holding exact independent draws of the posterior, and the exact evidence."""
    X = TABLES[table]
    values, prior = values_and_prior(table, K)
    oracle = Enumeration(X, values, K, covariance_type)
    weights, means, covariances, _ = oracle.draw(np.random.default_rng(seed), size)
    resolved = prior.resolve(X, K, covariance_type)
    found = em.fit(X, K, covariance_type, prior=resolved, rng=np.random.default_rng(0))
    best = found.best.parameters
    order = relabel(weights, means, covariances, best, covariance_type="full")
    parts = (weights, means, np.linalg.cholesky(np.linalg.inv(covariances)))
    draws = PosteriorDraws(*(part.reshape(4, -1, *part.shape[1:]) for part in parts)).permuted(order)
    diagnostics = SimpleNamespace(pareto_k=None, modes_combined=False, invariants=pd.DataFrame({"r_hat": [1.0]}))
    fit = SimpleNamespace(
        _draws=draws,
        _X=X,
        _sample_weight=None,
        prior_=resolved,
        covariance_type=covariance_type,
        modes_=found.modes,
        idata_={},
        diagnostics_=diagnostics,
    )
    return fit, oracle.log_evidence


@pytest.fixture(scope="module")
def one_component() -> BayesianGaussianMixture:
    X = np.random.default_rng(1).standard_normal((60, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]]) + 3.0
    return BayesianGaussianMixture(1, draws=300, tune=200, **QUIET).fit(X)


def within_twice_its_error(found: Evidence, exact: float) -> bool:
    # Seeds are fixed; the second condition keeps the first from passing by a large error.
    return abs(found.log_evidence - exact) < 2 * found.standard_error and found.standard_error < 0.1


def test_one_component_by_nuts_is_the_closed_form(one_component):
    found = one_component.log_evidence()
    exact = one_component_log_evidence(one_component._X, one_component.prior_)
    assert within_twice_its_error(found, exact)
    assert found.converged
    assert found.n_permutations == 1
    # Laplace's relative error is of order P / N = 5 / 60.
    assert found.laplace == pytest.approx(exact, abs=0.1)
    assert f"{found.log_evidence:.3f}" in str(found)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_one_component_by_laplace_is_the_closed_form(covariance_type):
    X = np.random.default_rng(2).standard_normal((80, 3)) * [1.0, 2.0, 0.1] + 5.0
    fitted = BayesianGaussianMixture(1, covariance_type=covariance_type, method="laplace", draws=250, **QUIET).fit(X)
    found = fitted.log_evidence()
    assert within_twice_its_error(found, one_component_log_evidence(X, fitted.prior_, covariance_type))
    assert found.n_draws == 1000


def test_frequency_weights_are_repeated_rows():
    rng = np.random.default_rng(3)
    X, v = rng.standard_normal((30, 2)), rng.integers(1, 4, 30).astype(float)
    prior = ConjugatePrior(mean_prior=[0.0, 0.0], scale=np.eye(2))
    fitted = BayesianGaussianMixture(1, prior=prior, method="laplace", draws=250, **QUIET).fit(X, sample_weight=v)
    exact = one_component_log_evidence(np.repeat(X, v.astype(int), axis=0), fitted.prior_)
    assert within_twice_its_error(log_evidence(fitted), exact)
    half = BayesianGaussianMixture(1, prior=prior, method="laplace", draws=250, **QUIET).fit(X, sample_weight=v / 2)
    assert any("not whole" in note for note in log_evidence(half).notes)


@pytest.mark.parametrize("table", ["overlapping", "separated"])
def test_two_components_by_nuts_against_the_sum_over_all_allocations(table):
    values, prior = values_and_prior(table)
    fitted = quietly(BayesianGaussianMixture(2, prior=prior, draws=600, tune=300, **QUIET), TABLES[table])
    found = fitted.log_evidence()
    assert within_twice_its_error(found, Enumeration(TABLES[table], values).log_evidence)
    assert found.n_permutations == 2
    assert found.exact_permutations


@pytest.mark.parametrize("table", ["overlapping", "separated"])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_every_structure_from_exact_draws(covariance_type, table):
    fit, exact = exact_fit(table, covariance_type, seed=5)
    assert within_twice_its_error(log_evidence(fit), exact)


def test_three_components_with_one_to_spare():
    fit, exact = exact_fit("separated", "diag", seed=7, K=3)
    found = log_evidence(fit)
    assert within_twice_its_error(found, exact)
    assert found.n_permutations == 6


@pytest.mark.slow
def test_adding_the_log_of_the_orders_is_off_where_components_overlap(monkeypatch):
    """The folding is what the oracle asks for: without it the same draws miss by many errors."""
    fit, exact = exact_fit("overlapping", "tied", seed=0, size=8000)
    folded = log_evidence(fit)

    def unfolded(self, theta, rng, max_orders=720, repeats=4):
        return (self.log_unfolded(theta) - gammaln(self.blocks.n_components + 1))[None]

    monkeypatch.setattr(FoldedNormals, "log_density", unfolded)
    added = log_evidence(fit)
    assert abs(folded.log_evidence - exact) < 3 * folded.standard_error
    assert abs(added.log_evidence - exact) > 5 * added.standard_error


@pytest.mark.slow
def test_error_is_the_scatter_of_repeated_estimates():
    """Exact independent draws, 20 seeds: (estimate − exact) / error scatters about 0 with a standard deviation near 1."""
    z = []
    for seed in range(20):
        fit, exact = exact_fit("overlapping", "diag", seed, size=400)
        found = log_evidence(fit, random_state=seed)
        z.append((found.log_evidence - exact) / found.standard_error)
    # 20 unit normals: sd within 0.52 and 1.52 and mean within 0.74 with probability 0.999.
    assert 0.5 < np.std(z, ddof=1) < 1.6
    assert abs(np.mean(z)) < 0.74


def test_error_of_one_bridge_counts_autocorrelation():
    """Two normals with known constants; the draws of one are autoregressive chains (φ = 0.7: five for one)."""
    rng = np.random.default_rng(9)
    C, S, phi, constant = 4, 250, 0.7, 12.3

    def log_ratio(x: np.ndarray) -> np.ndarray:
        return constant - 0.5 * x**2 - (-0.5 * ((x - 0.8) / 1.4) ** 2 - np.log(1.4))

    z = []
    for _ in range(150):
        x = np.empty((C, S))
        x[:, 0] = rng.standard_normal(C)
        for s in range(1, S):
            x[:, s] = phi * x[:, s - 1] + np.sqrt(1 - phi**2) * rng.standard_normal(C)
        half = Half(x.reshape(-1, 1), np.zeros(C * S), np.ones(C * S), C)
        found = bridge(half, log_ratio(x.ravel()), log_ratio(0.8 + 1.4 * rng.standard_normal(1000)))
        assert found.effective_size < 0.7 * C * S
        z.append((found.log_ratio - constant) / np.sqrt(found.variance))
    # 150 z-values: sd within 1 ± 0.19 with probability 0.999, and 5 % more for the error of each effective size.
    assert 0.76 < np.std(z) < 1.25
    assert abs(np.mean(z)) < 3.3 / np.sqrt(150)


def test_thinned_orders_agree_and_say_so():
    fit, _ = exact_fit("overlapping", "spherical", seed=3, K=3)
    exact, thinned = log_evidence(fit), log_evidence(fit, max_permutations=2)
    assert exact.exact_permutations
    assert not thinned.exact_permutations
    assert thinned.n_permutations == 2
    assert any("thinned at random to 2 of 3!" in note for note in thinned.notes)
    # The same draws and proposals: the difference is the thinning alone, less than the two errors together.
    assert abs(thinned.log_evidence - exact.log_evidence) < 2 * np.hypot(thinned.standard_error, exact.standard_error)
    assert thinned.log_evidence != exact.log_evidence


def test_same_seed_same_number():
    fit, _ = exact_fit("separated", "tied", seed=4, size=400)
    assert log_evidence(fit, random_state=1) == log_evidence(fit, random_state=1)
    assert log_evidence(fit, random_state=1) != log_evidence(fit, random_state=2)
    assert log_evidence(fit, n_proposals=100).n_proposals == 200


def test_draws_that_stand_for_something_else_are_called_out():
    fit, _ = exact_fit("separated", "diag", seed=6, size=800)
    moved = fit._draws.means.copy()
    moved[:, 100:] += 40.0
    broken = SimpleNamespace(**(vars(fit) | {"_draws": replace(fit._draws, means=moved)}))
    found = log_evidence(broken)
    assert not found.converged
    assert "far from the normals" in found.notes[0]
    # The formula would say about 1 where the two do not meet; the halves are thousands of nats apart.
    assert found.standard_error > 100
    fit.diagnostics_.invariants.loc[0, "r_hat"] = 1.2
    found = log_evidence(fit)
    assert not found.converged
    assert "R-hat = 1.200" in found.notes[0]


def test_a_loaded_fit_has_the_same_evidence(one_component, tmp_path):
    one_component.save(tmp_path)
    assert load(tmp_path).log_evidence() == one_component.log_evidence()


def test_fits_without_usable_draws_are_refused(one_component):
    with pytest.raises(NotFittedError):
        BayesianGaussianMixture(2).log_evidence()
    with pytest.raises(ValueError, match="BayesianGaussianMixture after fit"):
        log_evidence(GaussianMixture(1).fit(one_component._X))
    with pytest.raises(ValueError, match="max_permutations must be at least 1"):
        one_component.log_evidence(max_permutations=0)
    with pytest.raises(ValueError, match="n_proposals must be at least 50"):
        one_component.log_evidence(n_proposals=3)
    fit, _ = exact_fit("separated", "diag", seed=0, size=400)

    def changed(**changes: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(**(vars(fit) | {"_draws": replace(fit._draws, **changes)}))

    means = fit._draws.means.copy()
    means[1, 2, 0, 1] = np.nan
    with pytest.raises(ValueError, match=r"means must be finite; the value at index \(1, 2, 0, 1\) is nan"):
        log_evidence(changed(means=means))
    weights = fit._draws.weights.copy()
    weights[0, 0] = [0.0, 1.0]
    with pytest.raises(ValueError, match="weight 0"):
        log_evidence(changed(weights=weights))
    with pytest.raises(ValueError, match="40 draws are too few: log_evidence needs at least 100"):
        log_evidence(changed(**{name: part[:, :10] for name, part in vars(fit._draws).items() if part is not None}))
    uneven = replace(fit.prior_, weight_concentration=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="weight_concentration differs between components"):
        log_evidence(SimpleNamespace(**(vars(fit) | {"prior_": uneven})))


def test_posterior_over_components_is_bayes_rule():
    found = posterior_over_components({3: -101.0, 1: -105.0, 2: -100.0})
    expected = np.exp([-5.0, 0.0, -1.0])
    np.testing.assert_array_equal(found.n_components, [1, 2, 3])
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_array_equal(found.standard_errors, 0.0)
    assert found.mode == 2
    assert "p(K = 2) = 0.727" in str(found)
    # An array is K = 1 … M; the level of the evidences does not matter, nor do evidences of 0.
    again = posterior_over_components(np.array([-105.0, -100.0, -101.0, -np.inf]) - 1e6)
    np.testing.assert_allclose(again.probabilities[:3], found.probabilities, rtol=1e-9)
    assert again.probabilities[3] == 0


def test_priors_over_components():
    equal = [-7.0, -7.0, -7.0]
    poisson = posterior_over_components(equal, ("poisson", 2.0))
    # 2^K / K! for K = 1, 2, 3.
    np.testing.assert_allclose(poisson.probabilities, np.array([2, 2, 4 / 3]) / (16 / 3), rtol=1e-12)
    own = posterior_over_components(equal, {1: 3.0, 2: 1.0, 3: 0.0, 9: 5.0})
    np.testing.assert_allclose(own.probabilities, [0.75, 0.25, 0.0], rtol=1e-12)
    np.testing.assert_allclose(own.prior, [0.75, 0.25, 0.0], rtol=1e-12)


def test_errors_of_evidences_reach_the_probabilities():
    found = posterior_over_components([0.0, 0.5], errors=[0.03, 0.04])
    p = found.probabilities[0]
    # The delta method: p (1 − p) · √(0.03² + 0.04²); 4,000 simulations leave about 1 % of it, and curvature less.
    np.testing.assert_allclose(found.standard_errors, p * (1 - p) * 0.05, rtol=0.05)
    assert np.all((found.lower < found.probabilities) & (found.probabilities < found.upper))
    fit, _ = exact_fit("separated", "diag", seed=0, size=400)
    evidence = log_evidence(fit)
    both = posterior_over_components({1: -29.0, 2: evidence}, errors=None)
    same = posterior_over_components({1: -29.0, 2: evidence.log_evidence}, errors={1: 0, 2: evidence.standard_error})
    np.testing.assert_array_equal(both.standard_errors, same.standard_errors)
    assert both.standard_errors[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "log_evidences is empty"),
        (({1: np.nan},), "log evidence of K = 1 is nan"),
        (([0.0, np.inf],), "log evidence of K = 2 is inf"),
        (({0: 1.0},), "at least 1"),
        (({"two": 1.0},), "keys of log_evidences"),
        ((np.zeros((2, 2)),), "array for K = 1"),
        (([0.0, 1.0], ("poisson", -1.0)), "rate of a Poisson prior"),
        (([0.0, 1.0], {1: 1.0}), r"no probability for K = \[2\]"),
        (([0.0, 1.0], {1: -1.0, 2: 1.0}), "finite numbers ≥ 0"),
        (([0.0, -np.inf], {1: 0.0, 2: 1.0}), "both an evidence and a prior"),
        (([0.0, 1.0], "uniform", [0.1]), "errors are for K"),
        (([0.0, 1.0], "uniform", [0.1, -0.1]), "errors must be finite and not negative"),
        (([0.0, 1.0], "uniform", [0.1, np.nan]), "errors must be finite and not negative"),
    ],
)
def test_what_is_no_posterior_over_components(arguments, message):
    with pytest.raises(ValueError, match=message):
        posterior_over_components(*arguments)
    with pytest.raises(TypeError, match="prior must be"):
        posterior_over_components([0.0], "flat")
