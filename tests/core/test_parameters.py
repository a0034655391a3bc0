from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest

from bayesgmm.core.parameters import (
    MixtureParameters,
    SufficientStatistics,
    covariances_from_factors,
    factors_from_covariances,
    marginal_factors,
    upper_factors_from_covariances,
)
from tests.mixtures import random_mixture


@pytest.mark.parametrize("D", [1, 2, 3, 6, 15])
def test_factors_are_triangular_roots_of_the_inverse(D):
    covariances = random_mixture(np.random.default_rng(D), 4, D).covariances
    identity = np.broadcast_to(np.eye(D), covariances.shape)
    lower, upper = factors_from_covariances(covariances), upper_factors_from_covariances(covariances)
    for factors, triangle in ((lower, np.tril), (upper, np.triu)):
        np.testing.assert_array_equal(factors, triangle(factors))
        assert (np.diagonal(factors, axis1=1, axis2=2) > 0).all()
        # Rounding times the condition number, at most 1e3 here.
        np.testing.assert_allclose(factors @ factors.swapaxes(1, 2) @ covariances, identity, atol=1e-11)
    np.testing.assert_allclose(covariances_from_factors(lower), covariances, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(lower, np.linalg.cholesky(np.linalg.inv(covariances)), rtol=1e-9, atol=1e-11)


def test_factors_keep_leading_axes():
    covariances = random_mixture(np.random.default_rng(0), 6, 3).covariances.reshape(2, 3, 3, 3)
    factors = factors_from_covariances(covariances)
    assert factors.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(factors[1, 2], factors_from_covariances(covariances[1, 2]))
    np.testing.assert_allclose(covariances_from_factors(factors), covariances, rtol=1e-10, atol=1e-12)


def test_factors_are_exact_for_features_of_very_different_units():
    scale = np.array([1e-140, 1.0, 1e140])
    correlation = np.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.5], [0.3, 0.5, 1.0]])
    factor = factors_from_covariances(correlation * scale * scale[:, None])
    # Units change P by an exact rescaling of its rows; only the roundings of the products remain.
    np.testing.assert_allclose(factor * scale[:, None], np.linalg.cholesky(np.linalg.inv(correlation)), rtol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[0.0, 0.0], [0.0, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
        [[np.inf, 0.0], [0.0, 1.0]],
    ],
)
@pytest.mark.filterwarnings("error")
def test_matrices_that_are_not_positive_definite_are_named(matrix):
    stack = np.stack([np.eye(2), np.array(matrix)])
    for function in (factors_from_covariances, upper_factors_from_covariances):
        with pytest.raises(np.linalg.LinAlgError, match="matrix 1 is not positive definite"):
            function(stack)


def test_mixture_parameters_know_their_size_and_covariances():
    mixture = random_mixture(np.random.default_rng(1), 3, 4)
    parameters = mixture.parameters
    assert (parameters.n_components, parameters.n_features) == (3, 4)
    np.testing.assert_allclose(parameters.covariances, mixture.covariances, rtol=1e-9, atol=1e-11)
    with pytest.raises(dataclasses.FrozenInstanceError):
        parameters.weights = np.ones(3)
    assert isinstance(parameters, MixtureParameters)


def test_sums_add_field_by_field():
    rng = np.random.default_rng(2)

    def sums():
        return SufficientStatistics(
            rng.normal(), rng.uniform(1, 9), rng.uniform(0, 1, 2), rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
        )

    a, b = sums(), sums()
    total = a + b
    for field in dataclasses.fields(SufficientStatistics):
        np.testing.assert_array_equal(getattr(total, field.name), getattr(a, field.name) + getattr(b, field.name))


@pytest.mark.parametrize("features", [[0], [3, 1], [0, 1, 2, 3, 4]])
def test_marginal_factors_are_those_of_a_part_of_the_covariance(features):
    covariances = random_mixture(np.random.default_rng(0), 6, 5).covariances.reshape(2, 3, 5, 5)
    found = marginal_factors(factors_from_covariances(covariances), features)
    expected = factors_from_covariances(covariances[..., features, :][..., features])
    # Rounding times the condition of these matrices, some hundreds.
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_marginal_factors_of_a_nearly_singular_covariance():
    factors = factors_from_covariances(np.array([[1e-12, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.5, 1.0]]))
    np.testing.assert_allclose(marginal_factors(factors, [0, 2]), [[1e6, 0], [0, 1]], rtol=1e-12, atol=1e-9)


def test_a_covariance_at_the_edge_of_positive_definiteness_has_both_factors():
    """Rounding lets the Cholesky factor of the one order of features pass, and not that of the other."""
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal(2) * 10.0 ** rng.uniform(0, 7, 2)
        matrix = np.outer(a, a)
        matrix[[0, 1], [0, 1]] *= 1 + 2.0 ** rng.uniform(-54, -51)
        try:
            lower = factors_from_covariances(matrix)
        except np.linalg.LinAlgError:
            continue
        upper = upper_factors_from_covariances(matrix)
        assert np.isfinite(upper).all()
        assert upper[1, 0] == 0
        assert (np.diagonal(upper) > 0).all()
        with contextlib.suppress(np.linalg.LinAlgError):
            factors_from_covariances(matrix[::-1, ::-1])
            continue
        # Made of the lower one, it has the same inverse, but for rounding.
        np.testing.assert_allclose((upper @ upper.T) * np.outer(a, a), (lower @ lower.T) * np.outer(a, a), rtol=1e-6)
        found += 1
    assert found > 5


@pytest.mark.parametrize("D", [1, 2, 4])
def test_upper_factors_are_cholesky_factors_of_the_inverse(D):
    rng = np.random.default_rng(D)
    roots = rng.standard_normal((3, D, D + 2)) * 10.0 ** rng.uniform(-3, 3, (3, D, 1))
    matrices = roots @ np.swapaxes(roots, 1, 2)
    upper = upper_factors_from_covariances(matrices)
    np.testing.assert_array_equal(upper, np.triu(upper))
    assert (np.diagonal(upper, axis1=1, axis2=2) > 0).all()
    scale = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
    product = (upper @ np.swapaxes(upper, 1, 2) @ matrices) * scale[:, :, None] / scale[:, None, :]
    # Rounding times the condition of correlations, some hundred.
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(D), product.shape), atol=1e-10)
    # Not by the way that is left for matrices at the edge: bit for bit the factor of the features in reverse order.
    np.testing.assert_array_equal(upper[:, ::-1, ::-1], factors_from_covariances(matrices[:, ::-1, ::-1]))


def test_the_matrix_that_is_not_positive_definite_is_named():
    good, bad = np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]])
    for stack, which in (([bad], 0), ([good, bad], 1), ([good, good, -good], 2), ([good * np.nan], 0)):
        for factors in (factors_from_covariances, upper_factors_from_covariances):
            with pytest.raises(np.linalg.LinAlgError, match=f"covariance matrix {which} is not positive definite"):
                factors(np.array(stack))
