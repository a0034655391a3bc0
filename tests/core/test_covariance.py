from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import covariance, kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import SufficientStatistics
from bayesgmm.core.priors import ConjugatePrior
from tests import oracles
from tests.mixtures import STRUCTURES, Coordinates, random_mixture, softmax

SIZES = ((1, 3), (2, 1), (3, 2), (3, 4))


class CompleteData:
    """The expected complete-data log-likelihood by its definition: Σ_n v_n Σ_k r_nk (log π_k + log N(x_n; μ_k, Σ_k)).

    Responsibilities come from a mixture that is off the truth, so that the M-step has somewhere to go.
    """

    def __init__(self, covariance_type: str, K: int, D: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.K, self.D, self.kind = K, D, structure(covariance_type)
        truth, self.start = (random_mixture(rng, K, D, covariance_type, spread=1.5) for _ in range(2))
        self.X, self.v = truth.sample(rng, 80), rng.uniform(0.5, 2.0, 80)
        natural = (self.start.weights, self.start.means, self.start.covariances)
        self.r = self.v[:, None] * oracles.responsibilities(self.X, *natural)
        self.statistics = kernel.accumulate(self.X, self.start.parameters, self.v)
        A = rng.standard_normal((D, D + 2))
        self.prior = ConjugatePrior(
            weight_concentration=rng.uniform(1.2, 3.0, K),
            mean_prior=rng.standard_normal(D),
            mean_precision=2.5,
            degrees_of_freedom=D + 3.7,
            scale=A @ A.T + np.eye(D),
        )

    def __call__(self, weights: np.ndarray, means: np.ndarray, packed: np.ndarray) -> float:
        matrices = oracles.expand_covariances(packed, self.kind.name, self.K, self.D)
        total = 0.0
        for k in range(self.K):
            log_normal = stats.multivariate_normal(means[k], matrices[k]).logpdf(self.X)
            total += self.r[:, k] @ (math.log(weights[k]) + np.atleast_1d(log_normal))
        return float(total)

    def log_posterior(self, weights: np.ndarray, means: np.ndarray, packed: np.ndarray) -> float:
        return self(weights, means, packed) + oracles.log_prior(weights, means, packed, self.prior, self.kind.name)


def assert_maximum(objective, u, rng):
    """``u`` is a stationary point of ``objective`` and no random step from it gains anything."""
    h, best = 1e-4, objective(u)
    gradient, curvature = np.empty(len(u)), np.empty(len(u))
    for i in range(len(u)):
        step = np.zeros(len(u))
        step[i] = h
        up, down = objective(u + step), objective(u - step)
        gradient[i], curvature[i] = (up - down) / (2 * h), (up - 2 * best + down) / h**2
    # Central differences: rounding 1e-13 × |objective| ≈ 1e-10 over h, truncation h² f‴ with f‴ up to 1e3: below 1e-4 of the
    # curvature, that is less than 1e-4 of a standard error from the top for curvatures ≥ 1.
    assert (curvature < 0).all()
    assert np.abs(gradient / np.sqrt(-curvature)).max() < 1e-4
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(10):
            assert objective(u + size * rng.standard_normal(len(u))) < best


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_m_step_maximises_the_expected_complete_data_log_likelihood(covariance_type, K, D):
    data = CompleteData(covariance_type, K, D)
    found = covariance.maximise(data.statistics, data.start.means, data.kind, 0.0)
    coordinates = Coordinates(covariance_type, K, D)
    assert found[2].shape == data.kind.shape(K, D)
    assert_maximum(lambda u: data(*coordinates.unflatten(u)), coordinates.flatten(*found), np.random.default_rng(1))


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_m_step_under_the_prior_is_the_mode_in_natural_coordinates(covariance_type, K, D):
    """log-ratios and log-Cholesky factors serve as a chart only: no Jacobian, so the mode is that in (π, μ, Σ)."""
    data = CompleteData(covariance_type, K, D)
    found = covariance.maximise_with_prior(data.statistics, data.start.means, data.kind, data.prior)
    coordinates = Coordinates(covariance_type, K, D)
    objective = lambda u: data.log_posterior(*coordinates.unflatten(u))  # noqa: E731
    assert_maximum(objective, coordinates.flatten(*found), np.random.default_rng(1))


def unconstrained_log_density(data: CompleteData, u: np.ndarray) -> float:
    """Log posterior in Bartlett's coordinates with the Jacobians of log-ratios and of log chi-square variates.

    P_k = chol(Λ₀⁻¹) A_k with A_ii² ~ χ²(ν₀ − i + 1), A_ij ~ N(0, 1); ``diag`` and ``spherical``: Λ σ⁻² ~ χ²(ν).
    """
    K, D, name, prior = data.K, data.D, data.kind.name, data.prior
    weights, means, rest = softmax(u[: K - 1]), u[K - 1 : K - 1 + K * D].reshape(K, D), u[K - 1 + K * D :]
    total = 0.0
    if K > 1:
        # The Jacobian of π as a function of K − 1 log-ratios is the product of all K weights.
        total = stats.dirichlet(prior.weight_concentration).logpdf(weights) + np.log(weights).sum()
    if name in ("full", "tied"):
        copies = 1 if name == "tied" else K
        log_chi2, below = rest[: copies * D].reshape(copies, D), rest[copies * D :].reshape(copies, -1)
        freedom = prior.degrees_of_freedom - np.arange(D)
        # p(log c) = p(c) c.
        total += (stats.chi2(freedom).logpdf(np.exp(log_chi2)) + log_chi2).sum() + stats.norm.logpdf(below).sum()
        A = np.zeros((copies, D, D))
        A[:, range(D), range(D)] = np.exp(log_chi2 / 2)
        A[:, *np.tril_indices(D, -1)] = below
        P = np.linalg.cholesky(np.linalg.inv(prior.scale)) @ A
        matrices = np.broadcast_to(np.linalg.inv(P @ P.swapaxes(1, 2)), (K, D, D))
        packed = matrices[0] if name == "tied" else matrices
    else:
        nu = prior.degrees_of_freedom - D + 1
        scale = np.diag(prior.scale) if name == "diag" else np.trace(prior.scale) / D
        log_chi2 = rest.reshape(data.kind.shape(K, D))
        total += (stats.chi2(nu).logpdf(np.exp(log_chi2)) + log_chi2).sum()
        packed = scale / np.exp(log_chi2)
        matrices = oracles.expand_covariances(packed, name, K, D)
    for mean, matrix in zip(means, matrices, strict=True):
        total += stats.multivariate_normal(prior.mean_prior, matrix / prior.mean_precision).logpdf(mean)
    return float(total) + data(weights, means, packed)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_unconstrained_m_step_is_the_mode_with_the_jacobians(covariance_type, K, D):
    data = CompleteData(covariance_type, K, D)
    found = covariance.maximise_unconstrained(data.statistics, data.start.means, data.kind, data.prior)
    P = found.precision_factors
    np.testing.assert_array_equal(P, np.tril(P))
    if covariance_type in ("full", "tied"):
        copies = 1 if covariance_type == "tied" else K
        A = np.linalg.solve(np.linalg.cholesky(np.linalg.inv(data.prior.scale)), P[:copies])
        rest = [2 * np.log(np.diagonal(A, axis1=1, axis2=2)).ravel(), A[:, *np.tril_indices(D, -1)].ravel()]
        np.testing.assert_array_equal(P, np.broadcast_to(P if copies > 1 else P[:1], P.shape))
    else:
        precision = np.diagonal(P, axis1=1, axis2=2) ** 2
        scale = np.diag(data.prior.scale) if covariance_type == "diag" else np.trace(data.prior.scale) / D
        rest = [np.log(scale * (precision if covariance_type == "diag" else precision[:, 0])).ravel()]
    u = np.concatenate([np.log(found.weights[:-1] / found.weights[-1]), found.means.ravel(), *rest])
    assert_maximum(lambda a: unconstrained_log_density(data, a), u, np.random.default_rng(1))


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_reg_covar_is_added_to_every_variance_alone(covariance_type):
    data = CompleteData(covariance_type, 3, 3)
    plain = covariance.maximise(data.statistics, data.start.means, data.kind, 0.0)
    regularised = covariance.maximise(data.statistics, data.start.means, data.kind, 0.5)
    difference = oracles.expand_covariances(regularised[2] - plain[2], covariance_type, 3, 3)
    if covariance_type in ("full", "tied"):
        np.testing.assert_allclose(difference, np.broadcast_to(0.5 * np.eye(3), (3, 3, 3)), atol=1e-14)
    else:
        np.testing.assert_allclose(regularised[2] - plain[2], 0.5, rtol=1e-13)
    np.testing.assert_array_equal(plain[1], regularised[1])


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_empty_component_under_the_prior_has_the_modes_of_the_prior(covariance_type):
    """With no rows at all, the M-step is the mode of the prior: m₀, and Λ₀ over its own divisor."""
    K, D = 2, 2
    data = CompleteData(covariance_type, K, D)
    nothing = SufficientStatistics(0.0, 0.0, np.zeros(K), np.zeros((K, D)), np.zeros((K, D, D)))
    weights, means, packed = covariance.maximise_with_prior(nothing, data.start.means, data.kind, data.prior)
    alpha = data.prior.resolved_concentration
    np.testing.assert_allclose(weights, (alpha - 1) / (alpha.sum() - K), rtol=1e-13)
    np.testing.assert_allclose(means, np.broadcast_to(data.prior.mean_prior, (K, D)), rtol=1e-13)
    scale, nu = data.prior.resolved_scale, data.prior.resolved_degrees_of_freedom
    expected = {
        "full": scale / (nu + D + 2),
        "tied": scale / (nu + K + D + 1),
        "diag": np.diag(scale) / (nu - D + 1 + 3),
        "spherical": np.trace(scale) / D / (nu - D + 1 + D + 2),
    }[covariance_type]
    np.testing.assert_allclose(packed, np.broadcast_to(expected, data.kind.shape(K, D)), rtol=1e-13)


def test_weight_is_zero_where_count_and_concentration_leave_nothing():
    K, D = 2, 1
    prior = ConjugatePrior(np.ones(K), np.zeros(D), 0.01, 3.0, np.eye(D))
    statistics = SufficientStatistics(0.0, 5.0, np.array([5.0, 0.0]), np.zeros((K, D)), np.ones((K, D, D)))
    weights, means, packed = covariance.maximise_with_prior(statistics, np.zeros((K, D)), structure("full"), prior)
    np.testing.assert_array_equal(weights, [1.0, 0.0])
    assert np.isfinite(means).all()
    assert (packed > 0).all()


@pytest.mark.parametrize(("K", "D"), SIZES)
def test_number_of_free_parameters_is_the_length_of_the_coordinates(K, D):
    rng = np.random.default_rng(0)
    for name in STRUCTURES:
        mixture = random_mixture(rng, K, D, name)
        free = len(Coordinates(name, K, D).flatten(mixture.weights, mixture.means, mixture.packed))
        assert structure(name).n_parameters(K, D) == free
        assert structure(name).n_covariance_parameters(K, D) == free - K * D - K + 1


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_expand_and_pack_are_inverse_for_any_leading_axes(covariance_type, lead):
    kind, rng = structure(covariance_type), np.random.default_rng(0)
    mixtures = [random_mixture(rng, 3, 4, covariance_type) for _ in range(int(np.prod(lead)))]
    packed = np.stack([m.packed for m in mixtures]).reshape(*lead, *kind.shape(3, 4))
    matrices = np.stack([m.covariances for m in mixtures]).reshape(*lead, 3, 4, 4)
    np.testing.assert_array_equal(kind.expand(packed, 3, 4), matrices)
    np.testing.assert_array_equal(kind.pack(matrices), packed)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_factors_and_precisions_against_explicit_inverses(covariance_type):
    kind, K, D = structure(covariance_type), 3, 4
    mixture = random_mixture(np.random.default_rng(0), K, D, covariance_type)
    inverses = np.linalg.inv(mixture.covariances)
    factors = kind.factors(mixture.packed, K, D)
    np.testing.assert_allclose(factors, np.linalg.cholesky(inverses), rtol=1e-9, atol=1e-11)
    upper = kind.precisions_cholesky(mixture.packed)
    assert upper.shape == kind.shape(K, D)
    if covariance_type in ("full", "tied"):
        np.testing.assert_array_equal(upper, np.triu(upper))
        precisions = upper @ np.swapaxes(upper, -1, -2)
    else:
        precisions = upper**2
    np.testing.assert_allclose(
        oracles.expand_covariances(precisions, covariance_type, K, D), inverses, rtol=1e-9, atol=1e-10
    )
    np.testing.assert_allclose(kind.covariances_from_precisions(precisions), mixture.packed, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("with_prior", [False, True])
def test_m_steps_need_no_more_moments_than_their_structure_asks_for(covariance_type, with_prior):
    rng = np.random.default_rng(4)
    K, D = 3, 6
    mixture, kind = random_mixture(rng, K, D, covariance_type), structure(covariance_type)
    # Nobody's: a component that no row belongs to.
    theta = replace(mixture.parameters, weights=np.array([0.4, 0.6, 0.0]))
    X = mixture.sample(rng, 300)
    few, all_moments = (kernel.accumulate(X, theta, moments=moments) for moments in (kind.moments, "full"))
    prior = ConjugatePrior.fraley_raftery(X, K)

    def steps(statistics):
        if with_prior:
            yield from covariance.maximise_with_prior(statistics, theta.means, kind, prior)
            free = covariance.maximise_unconstrained(statistics, theta.means, kind, prior)
            yield from (free.weights, free.means, free.precision_factors)
        else:
            yield from covariance.maximise(statistics, theta.means, kind, 1e-6)

    for found, expected in zip(steps(few), steps(all_moments), strict=True):
        # The same sums in another order, once less those of the shift of the means.
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_covariances_that_are_not_positive_definite_are_refused(covariance_type):
    kind = structure(covariance_type)
    with pytest.raises(np.linalg.LinAlgError, match="positive"):
        kind.factors(np.zeros(kind.shape(2, 2)), 2, 2)


def test_unknown_structure_lists_the_allowed_names():
    with pytest.raises(ValueError, match="fulll") as error:
        structure("fulll")
    for name in STRUCTURES:
        assert repr(name) in str(error.value)
    assert set(covariance.STRUCTURES) == set(STRUCTURES)
