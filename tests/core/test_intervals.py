"""EM's confidence intervals: the textbook's for one normal sample, their level where rows are few, their range where nothing is known."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from bayesgmm import GaussianMixture
from bayesgmm.core import bootstrap, em, information
from bayesgmm.core import intervals as module
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, StandardErrors
from bayesgmm.core.intervals import check_prob, covariance_limits, intervals, named_intervals, variance_limits
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from tests.core.test_information import fitted, separated
from tests.mixtures import STRUCTURES

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


# Confidence intervals part by part: each limit by its formula through scipy's distributions, and the edges of their ranges

SCIPY = 1e-8
"""Quantiles of scipy.stats and of scipy.special are found by different routes, to about nine digits."""


def overlapping(kind: str, n_features: int = 3) -> tuple[MixtureParameters, np.ndarray, StandardErrors]:
    """A fit of two clusters that overlap: no standard error is that of known labels."""
    X, labels = separated(2, n_features, 150)
    problem, parameters, packed = fitted(X, labels, kind, tol=1e-9)
    with warnings.catch_warnings():
        # The optimum to within what this tolerance leaves; the limits are functions of whatever the errors are.
        warnings.simplefilter("ignore", information.InformationWarning)
        return parameters, packed, information.standard_errors(problem, parameters, packed)


def chi_squared(variance: np.ndarray, error: np.ndarray, spent: float, prob: float) -> tuple[np.ndarray, ...]:
    """Estimate, lower and upper limit of a variance, Satterthwaite."""
    rows = 2 * (variance / error) ** 2
    df = rows - spent
    return tuple(
        rows * variance / q for q in (df, stats.chi2.ppf(0.5 + prob / 2, df), stats.chi2.ppf(0.5 - prob / 2, df))
    )


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_limit_is_its_formula_where_clusters_overlap(kind):
    prob = 0.8
    parameters, packed, errors = overlapping(kind)
    found = intervals(parameters, packed, errors, prob)
    # Means that share a variance: of both clusters (tied), of all three features (spherical).
    spent = {"full": 1, "tied": 2, "diag": 1, "spherical": 3}[kind]
    symmetric = kind in ("full", "tied")
    variances, se = packed, errors.covariances
    if symmetric:
        variances, se = (np.diagonal(each, axis1=-2, axis2=-1) for each in (packed, errors.covariances))
    _, lower, upper = chi_squared(variances, se, spent, prob)
    np.testing.assert_allclose(found["standard_deviations"], np.sqrt([lower, upper]), rtol=SCIPY)
    ends = np.stack(found["covariances"])
    own = np.diagonal(ends, axis1=-2, axis2=-1) if symmetric else ends
    np.testing.assert_allclose(own, [lower, upper], rtol=SCIPY)

    rows = 2 * (variances / se) ** 2
    rows = rows[:, None] if kind == "spherical" else rows
    half = stats.t.ppf(0.5 + prob / 2, rows - spent) * np.sqrt(rows / (rows - spent)) * errors.means
    np.testing.assert_allclose(found["means"], [parameters.means - half, parameters.means + half], rtol=SCIPY)

    z, pi = stats.norm.ppf(0.5 + prob / 2), parameters.weights
    half = z * errors.weights / (pi * (1 - pi))
    np.testing.assert_allclose(found["weights"], expit([logit(pi) - half, logit(pi) + half]), rtol=SCIPY)
    if not symmetric:
        assert "correlations" not in found
        return
    sd = np.sqrt(variances)
    # The free entries of a covariance lie row by row in the matrix, behind a weight and six means.
    place = {(i, j): i * (i + 1) // 2 + j for i in range(3) for j in range(i + 1)}
    for owner in range(2 if kind == "full" else 1):
        at = (owner,) if kind == "full" else ()
        s, S = sd[at], packed[at]
        block = errors.covariance_matrix[7 + 6 * owner : 13 + 6 * owner, 7 + 6 * owner : 13 + 6 * owner]
        for pair, (i, j) in enumerate(zip(*np.tril_indices(3, -1), strict=True)):
            rho = S[i, j] / (s[i] * s[j])
            degrees = ((1 - rho**2) / errors.correlations[(*at, pair)]) ** 2 - spent - 2
            expected = np.tanh(np.arctanh(rho) + np.array([-1, 1]) * z / np.sqrt(degrees))
            np.testing.assert_allclose([end[(*at, pair)] for end in found["correlations"]], expected, rtol=SCIPY)
            parts = []
            for sign in (1, -1):
                way = np.zeros(6)
                way[[place[i, i], place[j, j], place[i, j]]] = s[i] ** -2, s[j] ** -2, sign * 2 / (s[i] * s[j])
                parts.append(chi_squared(2 + sign * 2 * rho, np.sqrt(way @ block @ way), spent, prob))
            (u, u_low, u_high), (v, v_low, v_high) = parts
            both = u - v - np.hypot(u - u_low, v_high - v), u - v + np.hypot(u_high - u, v - v_low)
            for end, expected_end in zip(ends, both, strict=True):
                np.testing.assert_allclose(end[(*at, i, j)], s[i] * s[j] / 4 * expected_end, rtol=1e-7)


def test_a_variance_of_less_than_a_row_beyond_its_means_has_one_degree_of_freedom():
    # Errors of σ² √(2/ν) for ν = 3, 2 and 1.5 rows, one mean: 2, 1 and 1 degrees of freedom.
    rows = np.array([3.0, 2.0, 1.5])
    estimate, lower, upper = variance_limits(np.full(3, 4.0), 4 * np.sqrt(2 / rows), 1.0, 0.05)
    df = np.array([2.0, 1.0, 1.0])
    np.testing.assert_allclose(estimate, 4 * rows / df, rtol=SCIPY)
    np.testing.assert_allclose(lower, 4 * rows / stats.chi2.ppf(0.95, df), rtol=SCIPY)
    np.testing.assert_allclose(upper, 4 * rows / stats.chi2.ppf(0.05, df), rtol=SCIPY)


def test_a_variance_that_is_not_determined_may_be_anything():
    _, lower, upper = variance_limits(np.array([4.0, 4.0]), np.array([np.inf, 1.0]), 1.0, 0.05)
    assert (lower[0], upper[0]) == (0, np.inf)
    assert 0 < lower[1] < 4 < upper[1] < np.inf


@pytest.mark.parametrize(("kind", "expected"), [("full", 1), ("tied", 3), ("diag", 1), ("spherical", 2)])
def test_means_that_are_about_each_variance(kind, expected):
    assert module._means_per_variance(FreeEntries(structure(kind), 3, 2)) == expected
    assert module._means_per_variance(FreeEntries(structure(kind), 1, 1)) == 1


def test_weights_at_their_bounds_may_be_anything_and_known_ones_nothing_else():
    weights = np.array([0.0, 1.0, 0.0, 1.0, 1e-300, 1 - 1e-16])
    errors = np.array([np.inf, np.inf, 0.0, 0.0, 1e-302, 1e-18])
    lower, upper = module._weight_limits(weights, errors, 1.5)
    np.testing.assert_array_equal(lower[:4], [0, 0, 0, 1])
    np.testing.assert_array_equal(upper[:4], [1, 1, 0, 1])
    # However small a weight or what is left of it: logit ± 1.5 · 0.01.
    np.testing.assert_allclose([lower[4], upper[4]], 1e-300 * np.exp([-0.015, 0.015]), rtol=1e-9)
    assert lower[5] < 1
    assert 1 - 1e-15 < lower[5] <= weights[5] <= upper[5] <= 1


def test_a_correlation_of_too_few_rows_may_be_anything():
    """ν_ρ − m − 2 of one mean: none are left of 3, and one of 4."""
    parameters, packed, errors = overlapping("full", 2)
    rho = packed[:, 1, 0] / np.sqrt(packed[:, 0, 0] * packed[:, 1, 1])
    for rows, full_range in ((1.0, True), (3.0 - 1e-9, True), (4.0, False)):
        few = replace(errors, correlations=((1 - rho**2) / np.sqrt(rows))[:, None])
        lower, upper = intervals(parameters, packed, few, 0.9)["correlations"]
        if full_range:
            assert np.all(lower == -1)
            assert np.all(upper == 1)
        else:
            z = stats.norm.ppf(0.95)
            np.testing.assert_allclose(lower[:, 0], np.tanh(np.arctanh(rho) - z), rtol=1e-6)
            np.testing.assert_allclose(upper[:, 0], np.tanh(np.arctanh(rho) + z), rtol=1e-6)


@pytest.mark.parametrize("prob", [0.0, 1.0, 2.0, np.nan])
def test_check_prob_refuses_the_bounds_and_beyond(prob):
    with pytest.raises(ValueError, match="prob must lie between 0 and 1; got"):
        check_prob(prob)


@pytest.mark.parametrize("prob", [5e-324, 0.5, np.nextafter(1, 0)])
def test_check_prob_accepts_what_lies_between(prob):
    check_prob(prob)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_intervals_of_probability_nought_or_one_are_refused(prob):
    with pytest.raises(ValueError, match="prob must lie between 0 and 1"):
        intervals(*overlapping("diag", 1), prob)


def test_named_intervals_are_the_intervals_in_the_order_of_the_components():
    parameters, packed, errors = overlapping("full", 2)
    found = intervals(parameters, packed, errors, 0.6)
    named = named_intervals(parameters, packed, errors, 0.6, ["a", "b"], [1, 0])
    assert len(named) == 2 + 4 + 4 + 2
    for mine, theirs in ((0, 1), (1, 0)):
        assert named[f"weights[{mine}]"] == tuple(end[theirs] for end in found["weights"])
        assert named[f"means[{mine}, b]"] == tuple(end[theirs, 1] for end in found["means"])
        assert named[f"standard_deviations[{mine}, a]"] == tuple(end[theirs, 0] for end in found["standard_deviations"])
        assert named[f"correlations[{mine}, a:b]"] == tuple(end[theirs, 0] for end in found["correlations"])
    assert all(low < high for low, high in named.values())


def test_limits_of_a_covariance_that_are_no_numbers_are_the_whole_range():
    free = FreeEntries(structure("full"), 1, 2)
    nothing = np.full((1, 1), np.nan)
    lower, upper = covariance_limits(free, np.eye(2)[None], lambda direction, value: (nothing, nothing, nothing))
    assert (lower.tolist(), upper.tolist()) == ([[-np.inf]], [[np.inf]])
