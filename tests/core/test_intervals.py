"""EM's confidence intervals: the textbook's for one normal sample, their level where rows are few, their range where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from bayesgmm import GaussianMixture
from bayesgmm.core import bootstrap, em, information
from bayesgmm.core.covariance import structure
from bayesgmm.core.intervals import intervals
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances

STRUCTURES = ("full", "tied", "diag", "spherical")
FAR = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 50.0]])


def sample_moments(X: np.ndarray, labels: np.ndarray, name: str) -> tuple[em.Problem, MixtureParameters, np.ndarray]:
    """The maximum of the likelihood of clusters so far apart that labels are known."""
    K = labels.max() + 1
    groups = [X[labels == k] for k in range(K)]
    weights, means = np.array([len(g) for g in groups]) / len(X), np.array([g.mean(axis=0) for g in groups])
    matrices = np.stack([np.cov(g, rowvar=False, ddof=0) for g in groups])
    kind = structure(name)
    if name == "tied":
        packed = np.einsum("k,kij->ij", weights, matrices)
    else:
        diagonals = np.diagonal(matrices, axis1=1, axis2=2)
        packed = {"full": matrices, "diag": diagonals, "spherical": diagonals.mean(axis=1)}[name]
    factors = factors_from_covariances(kind.expand(packed, *means.shape))
    return em.Problem(X, kind, None, None), MixtureParameters(weights, means, factors), packed


@pytest.mark.parametrize("name", STRUCTURES)
def test_far_apart_they_are_the_textbooks(name):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [12, 20, 9])
    X = FAR[labels] + rng.standard_normal((41, 2)) @ np.array([[1.0, 0.7], [0.0, 0.8]])
    problem, parameters, packed = sample_moments(X, labels, name)
    errors = information.standard_errors(problem, parameters, packed)
    found = intervals(parameters, packed, errors, 0.9)
    own = X[labels == 1]
    within = X - parameters.means[labels]
    squares = {
        "full": (np.sum(within[labels == 1, 0] ** 2), 19),
        "diag": (np.sum(within[labels == 1, 0] ** 2), 19),
        "tied": (np.sum(within[:, 0] ** 2), 41 - 3),
        "spherical": (np.sum(within[labels == 1] ** 2), 2 * 19),
    }
    total, df = squares[name]
    at = {"tied": (0,), "spherical": (1,)}.get(name, (1, 0))
    expected = np.sqrt(total / stats.chi2.ppf([0.95, 0.05], df))
    # The responsibilities of clusters 50 sd apart are 0 and 1: rounding alone.
    np.testing.assert_allclose([end[at] for end in found["standard_deviations"]], expected, rtol=1e-8)
    expected = stats.t.interval(0.9, df, own[:, 0].mean(), np.sqrt(total / df / 20))
    np.testing.assert_allclose([end[1, 0] for end in found["means"]], expected, rtol=1e-8)
    p, se = 20 / 41, np.sqrt(20 * 21 / 41**3)
    expected = expit(logit(p) + np.array([-1, 1]) * stats.norm.ppf(0.95) * se / (p * (1 - p)))
    np.testing.assert_allclose([end[1] for end in found["weights"]], expected, rtol=1e-8)
    if name == "full":
        expected = stats.pearsonr(*own.T).confidence_interval(0.9)
        np.testing.assert_allclose([end[1, 0] for end in found["correlations"]], expected, rtol=1e-8)
    assert ("correlations" in found) == (name in ("full", "tied"))
    for low, high in found.values():
        assert np.all(low < high)


@pytest.mark.parametrize("prob", [0.0, 1.0, 1.5, -0.1, np.nan])
def test_a_probability_outside_its_range_is_refused(prob):
    problem, parameters, packed = sample_moments(
        FAR[[0, 0, 1, 1]] + np.arange(8).reshape(4, 2), np.arange(4) // 2, "diag"
    )
    errors = information.standard_errors(problem, parameters, packed)
    with pytest.raises(ValueError, match="prob"):
        intervals(parameters, packed, errors, prob)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_ten_rows_hold_the_level(rho):
    """Estimate ± 1.645 standard errors of the variance of ten rows hold it in 75 of 100 samples; these in 90."""
    rng, n, S = np.random.default_rng(1), 10, 1000
    root = np.linalg.cholesky([[1.0, rho], [rho, 1.0]])
    hits = dict.fromkeys(("means", "covariances", "standard_deviations", "correlations"), 0.0)
    truth = {"means": np.zeros(2), "standard_deviations": np.ones(2), "correlations": rho}
    truth["covariances"] = np.array([[1.0, rho], [rho, 1.0]])
    plain = 0
    for _ in range(S):
        X = rng.standard_normal((n, 2)) @ root.T
        problem, parameters, packed = sample_moments(X, np.zeros(n, dtype=int), "full")
        errors = information.standard_errors(problem, parameters, packed)
        found = intervals(parameters, packed, errors, 0.9)
        for name in hits:
            low, high = (end[0] for end in found[name])
            inside = (low <= truth[name]) & (truth[name] <= high)
            # Off the diagonal alone: variances have the standard deviations' intervals.
            hits[name] += inside[0, 1] if name == "covariances" else inside.flat[0]
        plain += abs(packed[0, 0, 0] - 1) <= 1.645 * errors.covariances[0, 0, 0]
    # Binomial error of 1000 samples is 0.0095; Fisher's z and MOVER are off by a few thousandths.
    for name, count in hits.items():
        assert count / S == pytest.approx(0.9, abs=0.035), name
    assert plain / S < 0.82


def test_what_is_not_determined_has_the_whole_range():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [12, 20, 9])
    X = FAR[labels] + rng.standard_normal((41, 2))
    problem, parameters, packed = sample_moments(X, labels, "full")
    errors = information.standard_errors(problem, parameters, packed)
    matrix = errors.covariance_matrix.copy()
    matrix[:2, :] = matrix[:, :2] = 0
    matrix[np.arange(len(matrix)), np.arange(len(matrix))] = np.inf
    names = ("weights", "means", "covariances", "standard_deviations", "correlations")
    lost = {name: np.full_like(getattr(errors, name), np.inf) for name in names}
    found = intervals(parameters, packed, replace(errors, covariance_matrix=matrix, **lost), 0.9)
    ranges = {
        "weights": (0, 1),
        "means": (-np.inf, np.inf),
        "standard_deviations": (0, np.inf),
        "correlations": (-1, 1),
    }
    for name, ends in ranges.items():
        assert [np.unique(end).tolist() for end in found[name]] == [[ends[0]], [ends[1]]]
    low, high = found["covariances"]
    assert low[0, 0, 0] == 0
    assert low[0, 0, 1] == -np.inf
    assert np.all(high == np.inf)
    one = sample_moments(X[:12], labels[:12], "full")
    assert [end.tolist() for end in intervals(*one[1:], information.standard_errors(*one))["weights"]] == [[1], [1]]
    at_bound = MixtureParameters(np.array([1.0, 0, 0]), parameters.means, parameters.precision_factors)
    found = intervals(at_bound, packed, replace(errors, weights=np.full(3, np.inf)))
    assert [end.tolist() for end in found["weights"]] == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("name", STRUCTURES)
def test_pivotal_bootstrap_is_that_of_the_pivots(name):
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [15, 25, 20])
    X = FAR[labels] + rng.standard_normal((60, 2))
    problem, parameters, packed = sample_moments(X, labels, name)
    replicates = bootstrap.bootstrap(problem, parameters, packed, 40, np.random.default_rng(0))
    found = replicates.interval(0.8, "pivotal")
    sd = replicates.standard_deviations[(slice(None), *{"tied": (0,), "spherical": (1,)}.get(name, (1, 0)))]
    here = np.sqrt(parameters.covariances[1, 0, 0])
    at = {"tied": (0,), "spherical": (1,)}.get(name, (1, 0))
    # Quantiles interpolate between variances, not between standard deviations.
    q = np.sqrt(np.quantile(sd**2, [0.9, 0.1]))
    np.testing.assert_allclose([end[at] for end in found["standard_deviations"]], here**2 / q, rtol=1e-10)
    t = (replicates.means[:, 1, 0] - parameters.means[1, 0]) / (sd / np.sqrt(replicates.weights[:, 1]))
    expected = parameters.means[1, 0] - np.quantile(t, [0.9, 0.1]) * here / np.sqrt(25 / 60)
    np.testing.assert_allclose([end[1, 0] for end in found["means"]], expected, rtol=1e-10)
    np.testing.assert_array_equal(found["weights"], replicates.interval(0.8)["weights"])
    for low, high in found.values():
        assert np.all(low < high)
    with pytest.raises(ValueError, match="'percentile' or 'pivotal'; got 'bca'"):
        replicates.interval(0.8, "bca")


def test_methods_of_the_estimator():
    rng = np.random.default_rng(4)
    X = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(5, 1, (40, 2))])
    fit = GaussianMixture(2, random_state=0).fit(X)
    by_method = {m: fit.intervals(X, 0.5, m, n_bootstrap=200) for m in ("information", "sandwich", "bootstrap")}
    errors = fit.standard_errors(X)
    for found in by_method.values():
        low, high = found["means"]
        # Widths of the three agree in about a sixth: 200 replicates and 40 rows have errors of a tenth each.
        np.testing.assert_allclose((high - low) / (2 * stats.norm.ppf(0.75) * errors.means), 1.0, atol=0.35)
    with pytest.raises(ValueError, match="prob must lie between 0 and 1; got 95"):
        fit.intervals(X, 95)


@pytest.mark.parametrize("name", STRUCTURES)
def test_units_of_the_features_are_those_of_the_limits(name):
    """Three correlated features in other units (spherical: in one): every limit is in its own."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [25, 40])
    root = np.array([[1.0, 0.6, -0.4], [0.0, 0.8, 0.5], [0.0, 0.0, 0.7]])
    X = 50 * labels[:, None] + rng.standard_normal((65, 3)) @ root
    units = np.array([0.2, 3.0, 10.0]) if name != "spherical" else np.full(3, 7.0)
    found = []
    for rows in (X, X * units):
        problem, parameters, packed = sample_moments(rows, labels, name)
        found.append(intervals(parameters, packed, information.standard_errors(problem, parameters, packed), 0.9))
    squares = {
        "full": units * units[:, None],
        "tied": units * units[:, None],
        "diag": units**2,
        "spherical": units[0] ** 2,
    }
    deviations = units if name != "spherical" else units[0]
    factors = {"means": units, "covariances": squares[name], "standard_deviations": deviations}
    for quantity, limits in found[0].items():
        for one, other in zip(limits, found[1][quantity]):
            # Responsibilities of clusters 50 sd apart are 0 and 1, and what is left is rounding.
            np.testing.assert_allclose(other, one * factors.get(quantity, 1.0), rtol=1e-7, atol=1e-9, err_msg=quantity)


def test_limits_of_a_covariance_are_movers():
    """σ_ij = s_i s_j (u − v) / 4, u and v the variances of the sum and the difference of standardised features (Zou & Donner 2008)."""
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], [30, 20])
    X = 60 * labels[:, None] + rng.standard_normal((50, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]])
    problem, parameters, packed = sample_moments(X, labels, "full")
    found = intervals(parameters, packed, information.standard_errors(problem, parameters, packed), 0.9)
    own = X[labels == 0]
    s = own.std(axis=0)
    z = (own - own.mean(axis=0)) / s
    df = len(own) - 1
    parts = []
    for sums in (np.sum((z[:, 0] + z[:, 1]) ** 2), np.sum((z[:, 0] - z[:, 1]) ** 2)):
        parts.append((sums / df, *(sums / stats.chi2.ppf([0.95, 0.05], df))))
    (u, u_low, u_high), (v, v_low, v_high) = parts
    scale = s[0] * s[1] / 4
    expected = scale * (u - v - np.hypot(u - u_low, v_high - v)), scale * (u - v + np.hypot(u_high - u, v - v_low))
    np.testing.assert_allclose([end[0, 0, 1] for end in found["covariances"]], expected, rtol=1e-7)
