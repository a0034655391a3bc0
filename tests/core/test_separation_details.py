"""Boundaries and shapes of the separation-strategy prior, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bayesgmm import ConjugatePrior, SeparationPrior
from bayesgmm.core.parameters import factors_from_covariances
from bayesgmm.core.separation import FAMILIES, correlation_roots, deviations_from_factors
from tests.mixtures import STRUCTURES, random_mixture

X = np.column_stack([[0.0, 1.0, 2.0, 7.0, 10.0], [5.0, 1.0, 3.0, 2.0, 1.5]])
"""Of ranges 10 and 4."""


@pytest.mark.parametrize("name", ["mean_scale", "deviation_scale", "deviation_floor"])
def test_scales_are_vectors_of_positive_numbers_and_floors_may_be_zero(name):
    for value in (0.5, [0.5, 1e-9]):
        SeparationPrior(**{name: value})
    for value in ([[0.5, 0.5], [0.5, 0.5]], [0.5, np.inf], [0.5, np.nan], [-1e-9, 0.5]):
        with pytest.raises(ValueError, match=f"{name} must (be positive|not be negative), a finite number or one"):
            SeparationPrior(**{name: value})
    if name == "deviation_floor":
        SeparationPrior(deviation_floor=[0.0, 0.5])
    else:
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            SeparationPrior(**{name: [0.0, 0.5]})


def test_what_is_not_given_beside_a_given_scale_comes_from_the_data():
    given = SeparationPrior(mean_scale=[3.0, 5.0]).resolve(X, 2)
    np.testing.assert_array_equal(given.mean_scale, [3.0, 5.0])
    np.testing.assert_allclose(given.deviation_scale, 0.5 * X.std(axis=0, ddof=1), rtol=1e-14)
    given = SeparationPrior(deviation_scale=2.5).resolve(X, 2)
    np.testing.assert_array_equal(given.deviation_scale, [2.5, 2.5])
    np.testing.assert_array_equal(given.mean_scale, [10.0, 4.0])
    for name in ("mean_scale", "deviation_scale"):
        with pytest.raises(ValueError, match="column 1 of X is constant"):
            SeparationPrior(**{name: 1.0}).resolve(np.column_stack([X[:, 0], np.ones(5)]), 2)


def test_of_a_constant_column_nothing_is_asked_where_both_scales_are_given():
    constant = np.column_stack([X[:, 0], np.ones(5)])
    em = ConjugatePrior(mean_prior=[0.0, 0.0], degrees_of_freedom=5.0, scale=np.eye(2))
    given = SeparationPrior(mean_scale=1.0, deviation_scale=1.0, em_prior=em).resolve(constant, 2)
    assert given.is_resolved
    np.testing.assert_array_equal(given.mean_prior, [2.0, 1.0])


@pytest.mark.parametrize(
    ("family", "of_spread", "shape"),
    [("lognormal", 0.5, 1), ("halfnormal", 1, None), ("gamma", 0.25, 2), ("inversegamma", 1, 3)],
)
def test_default_scales_and_shapes_of_the_families(family, of_spread, shape):
    prior = SeparationPrior(deviation_family=family).resolve(X, 2)
    np.testing.assert_allclose(prior.deviation_scale, of_spread * X.std(axis=0, ddof=1), rtol=1e-14)
    assert prior.deviation_shape == shape
    if shape is not None:
        assert SeparationPrior(deviation_family=family, deviation_shape=1.25).resolve(X, 2).deviation_shape == 1.25


@pytest.mark.parametrize(("D", "eta"), [(1, 2.0), (4, 2.0), (5, 2.5), (6, 3.0)])
def test_default_eta_is_two_or_half_the_features(D, eta):
    data = np.random.default_rng(D).standard_normal((12, D))
    assert SeparationPrior().resolve(data, 2).eta == eta
    assert SeparationPrior(eta=0.75).resolve(data, 2).eta == 0.75


def test_em_is_given_the_weights_and_what_fraley_and_raftery_would():
    em = SeparationPrior([2.0, 3.0]).resolve(X, 2).for_em
    np.testing.assert_array_equal(em.weight_concentration, [2.0, 3.0])
    np.testing.assert_allclose(em.mean_prior, X.mean(axis=0), rtol=1e-14)
    given = ConjugatePrior(mean_precision=0.3, degrees_of_freedom=7.5)
    em = SeparationPrior(em_prior=given).resolve(X, 2).for_em
    assert (em.mean_precision, em.degrees_of_freedom) == (0.3, 7.5)


def test_a_prior_without_any_one_of_its_values_waits_for_the_data():
    prior = SeparationPrior().resolve(X, 2)
    assert prior.is_resolved
    for name in ("mean_prior", "mean_scale", "deviation_scale", "deviation_shape", "eta"):
        assert not replace(prior, **{name: None}).is_resolved
    # One number for all components waits for their number, one for all features for theirs.
    assert not replace(prior, weight_concentration=1.0).is_resolved
    assert not replace(prior, deviation_floor=0.0).is_resolved
    half = SeparationPrior(deviation_family="halfnormal").resolve(X, 2)
    assert half.deviation_shape is None
    assert half.is_resolved


def test_values_that_wait_for_the_data_are_told_of_everywhere():
    # All but the floor's size and η's value would do.
    waiting = replace(SeparationPrior().resolve(X, 2), deviation_floor=0.0)
    for ask in (
        lambda: waiting.mean_factor,
        lambda: waiting.resolved_eta,
        lambda: waiting.deviation_terms("full"),
        lambda: waiting.exponents("full"),
        lambda: waiting.constants(),
    ):
        with pytest.raises(ValueError, match="call resolve"):
            ask()


def test_the_factor_of_the_means_precision_is_one_over_their_scales():
    prior = SeparationPrior(mean_scale=[4.0, 0.5]).resolve(X, 2)
    np.testing.assert_array_equal(prior.mean_factor, np.diag([0.25, 2.0]))


@pytest.mark.parametrize(
    ("family", "shape", "a"),
    [("lognormal", 0.7, np.inf), ("halfnormal", None, 1.0), ("gamma", 1.7, 1.7), ("inversegamma", 1.7, np.inf)],
)
def test_exponents_of_deviations_near_zero(family, shape, a):
    prior = SeparationPrior(deviation_family=family, deviation_shape=shape, deviation_floor=[0.0, 1e-9]).resolve(X, 2)
    np.testing.assert_array_equal(prior.exponents("full"), [a, np.inf])
    # Spherical: the larger of the floors.
    np.testing.assert_array_equal(prior.exponents("spherical"), [np.inf])
    np.testing.assert_array_equal(replace(prior, deviation_floor=np.zeros(2)).exponents("spherical"), [a])


def test_partial_correlations_have_the_shapes_of_the_vine():
    """b = η + (i − 1)/2 for the pairs (1, 0), (2, 0), (2, 1), (3, 0) …"""
    prior = SeparationPrior(eta=1.5).resolve(np.random.default_rng(0).standard_normal((9, 4)), 2)
    np.testing.assert_array_equal(prior.partial_correlation_shapes, [1.5, 2, 2, 2.5, 2.5, 2.5])
    one = SeparationPrior().resolve(X[:, :1], 2)
    assert one.partial_correlation_shapes.shape == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_constants_are_the_values_with_their_dims(family):
    prior = SeparationPrior([1.0, 2.0], deviation_family=family, deviation_floor=[0.0, 0.5], eta=3).resolve(X, 2)
    constants = prior.constants()
    dims = {"weight_concentration": ("component",), "deviation_shape": (), "eta": ()}
    dims |= dict.fromkeys(("mean_prior", "mean_scale", "deviation_scale", "deviation_floor"), ("feature",))
    if family == "halfnormal":
        del dims["deviation_shape"]
    assert {name: found for name, (_, found) in constants.items()} == dims
    np.testing.assert_array_equal(constants["deviation_floor"][0], [0.0, 0.5])
    assert constants["eta"][0] == 3
    assert prior.choices == {"deviation_family": family}


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_density_as_stated_is_without_the_volume_of_the_covariance(covariance_type):
    """∂Σ/∂(σ, R) = 2^D Π σ^D of a matrix, ∂σ²/∂σ = 2σ of a variance."""
    K, D = 3, 3
    m = random_mixture(np.random.default_rng(1), K, D, covariance_type)
    prior = SeparationPrior().resolve(np.random.default_rng(0).standard_normal((9, D)), K, covariance_type)
    at = (m.weights, m.means, factors_from_covariances(np.asarray(m.covariances)), covariance_type)
    sigma = np.sqrt(np.diagonal(m.covariances, axis1=1, axis2=2))
    volume = {
        "full": K * D * np.log(2) + D * np.log(sigma).sum(),
        "tied": D * np.log(2) + D * np.log(sigma[0]).sum(),
        "diag": K * D * np.log(2) + np.log(sigma).sum(),
        "spherical": K * np.log(2) + np.log(sigma[:, 0]).sum(),
    }[covariance_type]
    stated = prior.log_density_from_factors(*at, as_stated=True)
    # Rounding of sums of some tens.
    assert stated - prior.log_density_from_factors(*at) == pytest.approx(volume, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_deviations_at_or_below_the_floor_have_no_density(family, covariance_type):
    prior = SeparationPrior(deviation_family=family, deviation_floor=0.5).resolve(X, 2, covariance_type)
    weights, means = np.array([0.5, 0.5]), np.zeros((2, 2))

    def at(sigma: float) -> float:
        # Powers of two: the factor 1/σ and the deviation are exact.
        factors = np.stack([np.eye(2) / sigma, np.eye(2)])
        return float(prior.log_density_from_factors(weights, means, factors, covariance_type))

    assert at(0.5) == at(0.25) == -np.inf
    assert np.isfinite(at(2.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_spherical_deviations_have_the_root_mean_square_scale_and_the_largest_floor(family):
    """√((3² + 4²)/2) and 0.25, whichever feature has them."""
    options = {"deviation_family": family, "mean_scale": [1.0, 1.0], "mean_prior": [0.0, 0.0], "eta": 2.0}
    unequal = SeparationPrior(deviation_scale=[3.0, 4.0], deviation_floor=[0.25, 0.125], **options)
    equal = SeparationPrior(deviation_scale=np.sqrt(12.5), deviation_floor=0.25, **options)
    one, other = (p.resolve(X, 2, "spherical") for p in (unequal, equal))
    draws = [p.draw(np.random.default_rng(4), 6, "spherical") for p in (one, other)]
    for ours, theirs in zip(*draws):
        # Rounding of a root of a square.
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    weights, means, packed = draws[0]
    assert np.all(packed > 0.25**2)
    assert len(np.unique(packed)) == 12
    np.testing.assert_allclose(
        one.log_density(weights, means, packed, "spherical"),
        other.log_density(weights, means, packed, "spherical"),
        rtol=1e-13,
    )


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (3, 1), (3, 4)])
def test_draws_have_the_shapes_of_the_structure(covariance_type, K, D):
    prior = SeparationPrior().resolve(np.random.default_rng(0).standard_normal((9, D)), K, covariance_type)
    weights, means, packed = prior.draw(np.random.default_rng(1), 5, covariance_type)
    assert (weights.shape, means.shape) == ((5, K), (5, K, D))
    assert packed.shape == (5, *{"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[covariance_type])
    # All variances are drawn apart, those of one matrix that all share as well.
    variances = np.diagonal(packed, axis1=-2, axis2=-1) if covariance_type in ("full", "tied") else packed
    assert len(np.unique(variances)) == variances.size
    assert np.all(np.isfinite(prior.log_density(weights, means, packed, covariance_type)))


def test_a_floor_is_told_only_where_there_is_one():
    prior = SeparationPrior(deviation_scale=2.0, deviation_floor=0.25)
    assert "standard deviations ~ 0.25 + LogNormal(median 2., from the data)" in str(prior)
    assert "standard deviations ~ LogNormal" in str(SeparationPrior())
    for family, told in (
        ("halfnormal", "HalfNormal(2.)"),
        ("gamma", "Gamma(shape 1.5, scale 2.)"),
        ("inversegamma", "inverse-Gamma(shape 1.5"),
    ):
        shape = None if family == "halfnormal" else 1.5
        assert f"~ {told}" in str(SeparationPrior(deviation_family=family, deviation_scale=2.0, deviation_shape=shape))


@pytest.mark.parametrize("name", ["mean_scale", "deviation_scale", "deviation_floor"])
def test_one_number_is_for_every_feature_and_a_vector_for_as_many(name):
    np.testing.assert_array_equal(getattr(SeparationPrior(**{name: 0.5}).resolve(X, 2), name), [0.5, 0.5])
    for values in ([0.5], [0.5, 0.5, 0.5]):
        with pytest.raises(ValueError, match=f"{name} has {len(values)} values for 2 features"):
            SeparationPrior(**{name: values}).resolve(X, 2)


def test_deviations_are_the_roots_of_the_covariances_diagonal():
    covariances = np.array([[[4.0, 1.0], [1.0, 9.0]], [[0.25, -0.1], [-0.1, 1.0]]])
    found = deviations_from_factors(factors_from_covariances(covariances))
    np.testing.assert_allclose(found, [[2.0, 3.0], [0.5, 1.0]], rtol=1e-14)


def test_roots_of_three_features_by_hand():
    """ρ₁₀ = 0.6 given the last, ρ₂₀ = 0.28, ρ₂₁ = −0.8."""
    U = correlation_roots(np.array([0.6, 0.28, -0.8]), 3)
    np.testing.assert_allclose(U, [[0.96 * 0.8, 0.96 * 0.6, 0.28], [0, 0.6, -0.8], [0, 0, 1]], rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(correlation_roots(np.empty((4, 0)), 1), np.ones((4, 1, 1)))
