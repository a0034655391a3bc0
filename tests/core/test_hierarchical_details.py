"""Boundaries and shapes of the hierarchical prior, by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from bayesgmm import ConjugatePrior, HierarchicalPrior, SeparationPrior
from bayesgmm.core.hierarchical import _matrix, pack_rate, prior_from_values
from tests.mixtures import STRUCTURES

X = np.column_stack([[0.0, 1.0, 2.0, 7.0, 10.0], [5.0, 1.0, 3.0, 2.0, 1.5]])
"""Of ranges 10 and 4."""

RATE = np.array([[2.0, 0.5], [0.5, 1.0]])


@pytest.mark.parametrize("name", ["precision_shape", "hyper_shape"])
def test_a_shape_of_half_the_features_less_one_is_too_small(name):
    """A Wishart distribution of D features has more than D − 1 degrees of freedom: here 2."""
    three = np.column_stack([X, X[:, 0] ** 2])
    with pytest.raises(ValueError, match=rf"{name} must exceed \(D − 1\)/2 = 1 for 3 features; got 1"):
        HierarchicalPrior(**{name: 1.0}).resolve(three, 2)
    assert getattr(HierarchicalPrior(**{name: 1.001}).resolve(three, 2), name) == 1.001


@pytest.mark.parametrize("D", [1, 2, 3, 6])
def test_default_shapes_grow_by_half_with_each_feature(D):
    data = np.random.default_rng(D).standard_normal((9, D))
    prior = HierarchicalPrior().resolve(data, 2)
    assert (prior.precision_shape, prior.hyper_shape) == (2.5 + (D - 1) / 2, 0.5 + (D - 1) / 2)
    # 100 g₀/c₀ diag(1/R²); products in another order round otherwise.
    rate = 100 * prior.hyper_shape / prior.precision_shape / np.ptp(data, axis=0) ** 2
    np.testing.assert_allclose(prior.hyper_rate, np.diag(rate), rtol=1e-14)


def test_em_is_given_the_mean_of_the_scale():
    """κ₀ = 0.01, ν₀ = 2c₀ and Λ₀ = 2 g₀ G₀⁻¹."""
    prior = HierarchicalPrior(precision_shape=4.0, hyper_shape=1.25, hyper_rate=RATE).resolve(X, 3)
    em = prior.em_prior
    assert (em.mean_precision, em.degrees_of_freedom) == (0.01, 8.0)
    # By hand: the inverse of RATE is [[1, −0.5], [−0.5, 2]]/1.75. Rounding of an inverse.
    np.testing.assert_allclose(em.scale, 2.5 / 1.75 * np.array([[1.0, -0.5], [-0.5, 2.0]]), rtol=1e-14)
    np.testing.assert_array_equal(em.mean_prior, prior.mean_prior)
    np.testing.assert_array_equal(em.weight_concentration, np.ones(3))


def test_an_em_prior_that_is_given_is_kept():
    given = ConjugatePrior(mean_precision=0.3, degrees_of_freedom=7.5)
    em = HierarchicalPrior(em_prior=given).resolve(X, 3).em_prior
    assert (em.mean_precision, em.degrees_of_freedom) == (0.3, 7.5)
    assert em.is_resolved


def test_what_is_not_given_beside_a_given_value_is_scaled_by_the_ranges():
    given = HierarchicalPrior(mean_covariance=[3.0, 5.0]).resolve(X, 2)
    np.testing.assert_array_equal(given.mean_covariance, np.diag([3.0, 5.0]))
    # 100 g₀/c₀ = 100/3.
    np.testing.assert_allclose(given.hyper_rate, np.diag([1 / 3, 100 / 48]), rtol=1e-14)
    given = HierarchicalPrior(hyper_rate=RATE).resolve(X, 2)
    np.testing.assert_array_equal(given.hyper_rate, RATE)
    np.testing.assert_array_equal(given.mean_covariance, np.diag([100.0, 16.0]))
    for name in ("mean_covariance", "hyper_rate"):
        with pytest.raises(ValueError, match="column 1 of X is constant"):
            HierarchicalPrior(**{name: [1.0, 1.0]}).resolve(np.column_stack([X[:, 0], np.ones(5)]), 2)


def test_only_columns_that_are_too_narrow_are_named():
    """A range of 1e-60 is narrow, and enough; one of 4e-101 is not."""
    with pytest.raises(ValueError, match="column 1 of X is narrower"):
        HierarchicalPrior().resolve(X * [1e-61, 1e-101], 2)
    with pytest.raises(ValueError, match="column 0, 1 of X is narrower"):
        HierarchicalPrior().resolve(X * [1e-102, 1e-101], 2)


def test_richardson_and_greens_prior_of_a_column_and_of_rows_that_count():
    """R = 8 and ξ = 5 of the rows that have a weight: κ = 1/64 and h = 10/64."""
    values, v = np.array([1.0, 9.0, 4.0, 30.0, -2.0]), np.array([1.0, 0.5, 2.0, 0.0, 0.0])
    for table in (values, values[:, None], values.tolist()):
        prior = HierarchicalPrior.richardson_green(table, v)
        assert (prior.weight_concentration, prior.mean_prior, prior.mean_covariance) == (1.0, 5.0, 64.0)
        assert (prior.precision_shape, prior.hyper_shape, prior.hyper_rate) == (2.0, 0.2, 10 / 64)
    # All rows: from −2 to 30.
    assert HierarchicalPrior.richardson_green(values[:, None]).mean_prior == 14.0
    for shape in ((4, 2), (4, 1, 1), (4, 1, 2)):
        with pytest.raises(ValueError, match="one feature"):
            HierarchicalPrior.richardson_green(np.arange(np.prod(shape), dtype=float).reshape(shape))


def test_a_prior_without_any_one_of_its_values_waits_for_the_data():
    prior = HierarchicalPrior().resolve(X, 2)
    assert prior.is_resolved
    assert replace(prior, em_prior=None).is_resolved
    for name in ("mean_prior", "mean_covariance", "precision_shape", "hyper_shape", "hyper_rate"):
        assert not replace(prior, **{name: None}).is_resolved
    # One number for all components waits for their number.
    assert not replace(prior, weight_concentration=1.0).is_resolved


def test_values_that_wait_for_the_data_are_told_of_everywhere():
    waiting = HierarchicalPrior(mean_prior=[0.0, 0.0], mean_covariance=[1.0, 1.0], precision_shape=3.0, hyper_shape=2.0)
    waiting = replace(waiting, hyper_rate=RATE)
    for ask in (
        lambda: waiting.resolved_degrees_of_freedom,
        lambda: waiting.hyper_degrees_of_freedom,
        lambda: waiting.mean_factor,
        lambda: waiting.rate_factor("full"),
        lambda: waiting.constants(),
    ):
        with pytest.raises(ValueError, match="call resolve"):
            ask()


def test_degrees_of_freedom_and_factors_are_of_what_was_given():
    spread = np.array([[4.0, 1.0], [1.0, 3.0]])
    prior = HierarchicalPrior([1.0, 2.0], [0.0, 1.0], spread, 3.5, 1.75, RATE)
    assert (prior.resolved_degrees_of_freedom, prior.hyper_degrees_of_freedom) == (7.0, 3.5)
    F = prior.mean_factor
    # Rounding of products of numbers about 1.
    np.testing.assert_allclose(F @ F.T @ spread, np.eye(2), atol=1e-14)
    assert F[0, 1] == 0
    for name in ("full", "tied"):
        L = prior.rate_factor(name)
        np.testing.assert_allclose(L @ L.T, RATE, rtol=1e-14)
    # The inverses' diagonal is (1, 2)/1.75, its mean 1.5/1.75.
    np.testing.assert_allclose(prior.rate_factor("diag") ** 2, np.diag([1.75, 0.875]), rtol=1e-14)
    np.testing.assert_allclose(prior.rate_factor("spherical") ** 2, np.eye(2) * 1.75 / 1.5, rtol=1e-14)


def test_constants_are_the_values_with_their_dims():
    prior = HierarchicalPrior([1.0, 2.0], [0.0, 1.0], [4.0, 9.0], 3.5, 1.75, RATE)
    constants = prior.constants()
    assert {name: dims for name, (_, dims) in constants.items()} == {
        "weight_concentration": ("component",),
        "mean_prior": ("feature",),
        "mean_covariance": ("feature", "feature_bis"),
        "precision_shape": (),
        "hyper_shape": (),
        "hyper_rate": ("feature", "feature_bis"),
    }
    np.testing.assert_array_equal(constants["mean_covariance"][0], np.diag([4.0, 9.0]))
    np.testing.assert_array_equal(constants["hyper_rate"][0], RATE)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_variances_of_several_features_without_the_rate_by_bayes_rule(covariance_type):
    """Joint less marginal is the conditional of C: Gamma(g₀ + K h, rate + Σ_k 1/σ²), with h = c₀ − (D − 1)/2."""
    prior = HierarchicalPrior([1.0, 2.0, 1.5], [0.0, 1.0], [4.0, 9.0], 3.5, 1.75, RATE)
    variances = np.array([[0.5, 2.0], [1.5, 0.25], [0.8, 4.0]])
    rate = np.array([1.75, 0.875])
    if covariance_type == "spherical":
        variances, rate = variances[:, 0], np.array(1.75 / 1.5)
    at = (np.array([0.2, 0.3, 0.5]), np.array([[0.1, 2.0], [-1.0, 0.0], [3.0, 1.0]]), variances, covariance_type)
    C = 0.7 * rate
    conditional = stats.gamma(1.75 + 3 * 3.0, scale=1 / (rate + np.sum(1 / variances, axis=0))).logpdf(C).sum()
    # Rounding of sums of some tens.
    assert prior.log_density(*at, C) - prior.log_density(*at) == pytest.approx(conditional, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (3, 1), (3, 3)])
def test_draws_have_the_shapes_of_the_structure(covariance_type, K, D):
    data = np.random.default_rng(0).standard_normal((9, D))
    prior = HierarchicalPrior().resolve(data, K, covariance_type)
    weights, means, packed, rates = prior.draw(np.random.default_rng(1), 5, covariance_type)
    assert (weights.shape, means.shape) == ((5, K), (5, K, D))
    assert packed.shape == (5, *{"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[covariance_type])
    assert rates.shape == (5, *{"full": (D, D), "tied": (D, D), "diag": (D,), "spherical": ()}[covariance_type])
    # Nothing is drawn twice.
    assert len(np.unique(packed.reshape(5, -1)[:, 0])) == len(np.unique(rates.reshape(5, -1)[:, 0])) == 5


def test_matrices_of_the_rate_are_packed_by_their_diagonals():
    rates = np.array([[[2.0, 0.5], [0.5, 3.0]], [[4.0, 0.0], [0.0, 4.0]]])
    for name in ("full", "tied"):
        np.testing.assert_array_equal(pack_rate(rates, name), rates)
    np.testing.assert_array_equal(pack_rate(rates, "diag"), [[2.0, 3.0], [4.0, 4.0]])
    np.testing.assert_array_equal(pack_rate(rates[1:, :1, :1], "spherical"), [4.0])


@pytest.mark.parametrize("family", [ConjugatePrior, HierarchicalPrior, SeparationPrior])
def test_each_prior_comes_back_from_its_values(family):
    prior = family().resolve(X, 2)

    def values(p):
        found = {f.name: getattr(p, f.name) for f in fields(p)}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}

    told = values(prior)
    if told.get("em_prior") is not None:
        told["em_prior"] = values(told["em_prior"])
    back = prior_from_values(told)
    assert type(back) is family
    assert str(back) == str(prior)
    assert isinstance(back.mean_prior, np.ndarray)


def test_matrices_are_square_finite_symmetric_and_positive_definite():
    np.testing.assert_array_equal(_matrix(3.0, "B"), [[3.0]])
    np.testing.assert_array_equal(_matrix([3.0, 2.0], "B"), np.diag([3.0, 2.0]))
    np.testing.assert_array_equal(_matrix(RATE, "B"), RATE)
    # Three indices, whatever their order, and positive definite matrices of the last two.
    cube = np.array([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 3.0]]])
    for value in (cube, np.ones((2, 3)), np.array([1.0, np.inf]), np.array([[1.0, 0.1], [0.1 + 1e-6, 1.0]])):
        with pytest.raises(ValueError, match="B must be one finite number per feature or a finite symmetric matrix"):
            _matrix(value, "B")
    # Symmetric but for rounding, in any units.
    for unit in (1e-20, 1.0, 1e20):
        assert _matrix(unit * (RATE + [[0.0, 1e-12], [0.0, 0.0]]), "B").shape == (2, 2)
        with pytest.raises(ValueError, match="symmetric"):
            _matrix(unit * (RATE + [[0.0, 1e-6], [0.0, 0.0]]), "B")
    for value in (-1.0, [[1.0, 2.0], [2.0, 1.0]]):
        with pytest.raises(ValueError, match="B must be positive definite"):
            _matrix(value, "B")
