"""Confidence intervals part by part: each limit by its formula through scipy's distributions, and the edges of their ranges."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from bayesgmm.core import information
from bayesgmm.core import intervals as module
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, StandardErrors
from bayesgmm.core.intervals import check_prob, covariance_limits, intervals, named_intervals, variance_limits
from bayesgmm.core.parameters import MixtureParameters
from tests.core.test_information import fitted, separated
from tests.mixtures import STRUCTURES

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
