"""The oracles checked against each other, so that the package's tests may lean on them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from tests.oracles import (
    Enumeration,
    PriorValues,
    expand_covariances,
    log_prior,
    mixture_log_densities_of_draws,
    mixture_log_density,
    one_component_log_evidence,
    responsibilities,
    weighted_sums,
)

STRUCTURES = ("full", "tied", "diag", "spherical")


def prior_for(n_features: int, n_components: int = 2) -> PriorValues:
    """Unequal concentrations, a correlated scale and an off-centre mean: no symmetry hides an error."""
    widths = np.sqrt(np.linspace(1.0, 2.5, n_features))
    correlation = 0.6 * np.eye(n_features) + 0.4
    return PriorValues(
        weight_concentration=np.array([2.0, 1.3, 0.7])[:n_components],
        mean_prior=np.linspace(0.3, -0.5, n_features),
        mean_precision=0.5,
        degrees_of_freedom=n_features + 4.0,
        scale=correlation * np.outer(widths, widths),
    )


def draw_from_prior(prior: PriorValues, covariance_type: str, n_components: int, rng: np.random.Generator, size: int):
    """Prior draws through scipy's samplers: weights, means, full covariances."""
    D = len(prior.mean_prior)
    nu = prior.degrees_of_freedom - D + 1
    shape = (size, n_components)
    if covariance_type in ("full", "tied"):
        number = size * n_components if covariance_type == "full" else size
        draws = stats.invwishart(prior.degrees_of_freedom, prior.scale).rvs(size=number, random_state=rng)
        draws = np.reshape(draws, (size, -1, D, D))
        covariances = np.broadcast_to(draws, (*shape, D, D))
    elif covariance_type == "diag":
        variances = stats.invgamma(nu / 2, scale=np.diag(prior.scale) / 2).rvs(size=(*shape, D), random_state=rng)
        covariances = variances[..., None] * np.eye(D)
    else:
        scale = np.trace(prior.scale) / D
        variances = stats.invgamma(nu / 2, scale=scale / 2).rvs(size=shape, random_state=rng)
        covariances = variances[..., None, None] * np.eye(D)
    factors = np.linalg.cholesky(covariances / prior.mean_precision)
    means = prior.mean_prior + np.einsum("skde,ske->skd", factors, rng.standard_normal((*shape, D)))
    return rng.dirichlet(prior.weight_concentration, size), means, covariances


def pack(covariances: np.ndarray, covariance_type: str) -> np.ndarray:
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return covariances[0]
    if covariance_type == "diag":
        return np.diagonal(covariances, axis1=1, axis2=2)
    return covariances[:, 0, 0]


@pytest.mark.parametrize("n_features", [1, 3])
def test_mixture_density_and_responsibilities_against_hand_written_formula(n_features):
    rng = np.random.default_rng(1)
    prior = prior_for(n_features, 3)
    weights, means, covariances = draw_from_prior(prior, "full", 3, rng, 1)
    X = rng.standard_normal((6, n_features))
    expected = mixture_log_densities_of_draws(X, weights, means, covariances)[0][0]
    # Rounding only: the two routes differ in how they factor Σ.
    np.testing.assert_allclose(mixture_log_density(X, weights[0], means[0], covariances[0]), expected, rtol=1e-10)
    r = responsibilities(X, weights[0], means[0], covariances[0])
    np.testing.assert_allclose(r.sum(axis=1), 1.0, rtol=1e-12)
    for k in range(3):
        alone = (np.ones((1, 1)), means[:, k : k + 1], covariances[:, k : k + 1])
        single = mixture_log_densities_of_draws(X, *alone)[0][0]
        np.testing.assert_allclose(r[:, k], weights[0, k] * np.exp(single - expected), rtol=1e-9)


def test_weighted_sums_are_the_gradient_of_the_log_likelihood():
    """Fisher's identity: Σ_k⁻¹ S1_k is the derivative by μ_k and N_k the one by log π_k (central differences)."""
    rng = np.random.default_rng(2)
    prior = prior_for(2, 2)
    weights, means, covariances = (value[0] for value in draw_from_prior(prior, "full", 2, rng, 1))
    X, v = rng.standard_normal((8, 2)), rng.uniform(0.5, 2.0, 8)
    _, counts, first, second = weighted_sums(X, weights, means, covariances, v)
    step = 1e-5
    for k in range(2):
        up, down = weights.copy(), weights.copy()
        up[k] *= np.exp(step)
        down[k] *= np.exp(-step)
        slope = v @ (mixture_log_density(X, up, means, covariances) - mixture_log_density(X, down, means, covariances))
        # Error of a central difference: about step² (1e-10) plus rounding over step (1e-11).
        np.testing.assert_allclose(counts[k], slope / (2 * step), rtol=1e-6)
        for d in range(2):
            shift = np.zeros((2, 2))
            shift[k, d] = step
            slope = v @ (
                mixture_log_density(X, weights, means + shift, covariances)
                - mixture_log_density(X, weights, means - shift, covariances)
            )
            expected = np.linalg.solve(covariances[k], first[k])[d]
            np.testing.assert_allclose(expected, slope / (2 * step), rtol=1e-6, atol=1e-8)
        bump = np.array([[step, 0.0], [0.0, 0.0]]) * (np.arange(2) == k)[:, None, None]
        slope = v @ (
            mixture_log_density(X, weights, means, covariances + bump)
            - mixture_log_density(X, weights, means, covariances - bump)
        )
        inverse = np.linalg.inv(covariances[k])
        expected = 0.5 * (inverse @ second[k] @ inverse - counts[k] * inverse)[0, 0]
        np.testing.assert_allclose(expected, slope / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_one_component_enumeration_is_the_closed_form(covariance_type, n_features):
    X = np.random.default_rng(3).standard_normal((7, n_features)) + 2.0
    prior = prior_for(n_features, 1)
    enumeration = Enumeration(X, prior, n_components=1, covariance_type=covariance_type)
    expected = one_component_log_evidence(X, prior, covariance_type)
    # Two closed forms of the same number: rounding only.
    np.testing.assert_allclose(enumeration.log_evidence, expected, rtol=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("n_features", "n_components"), [(1, 2), (2, 2), (2, 3)])
def test_joint_density_is_likelihood_times_prior_everywhere(covariance_type, n_features, n_components):
    """Chib's identity at points drawn from the prior ties evidence, prior and conditional posterior together."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((4, n_features)) * 1.5
    prior = prior_for(n_features, n_components)
    enumeration = Enumeration(X, prior, n_components, covariance_type)
    draws = draw_from_prior(prior, covariance_type, n_components, rng, 3)
    for weights, means, covariances in zip(*draws, strict=True):
        packed = pack(covariances, covariance_type)
        assert np.allclose(expand_covariances(packed, covariance_type, n_components, n_features), covariances)
        log_likelihood = mixture_log_density(X, weights, means, covariances).sum()
        expected = log_likelihood + log_prior(weights, means, packed, prior, covariance_type)
        # An identity; rounding in a sum of at most 81 terms of size up to about 50.
        np.testing.assert_allclose(enumeration.joint_log_density(weights, means, packed), expected, atol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_evidence_against_the_mean_likelihood_over_prior_draws(covariance_type):
    rng = np.random.default_rng(5)
    X = np.array([[0.4, -0.8], [-0.6, 1.1]])
    prior = prior_for(2)
    exact = np.exp(Enumeration(X, prior, covariance_type=covariance_type).log_evidence)
    draws = draw_from_prior(prior, covariance_type, 2, rng, 100_000)
    likelihood = np.exp(mixture_log_densities_of_draws(X, *draws)[0].sum(axis=1))
    error = likelihood.std() / np.sqrt(len(likelihood))
    # Four Monte Carlo standard errors; the error itself is below 1 % of the evidence.
    assert error < 0.01 * exact
    assert abs(likelihood.mean() - exact) < 4 * error


def test_evidence_of_two_numbers_against_quadrature():
    """D = 1, K = 2, N = 2 with the integral over (π, μ₁, σ²₁, μ₂, σ²₂) split by hand and done on a fine grid."""
    prior = prior_for(1)
    x = np.array([0.7, -1.2])
    # With μ = m₀ + s σ the prior of (s, log σ²) is a product: a plain trapezoid grid converges geometrically.
    log_variance, g_step = np.linspace(-6, 12, 361, retstep=True)
    standardised, s_step = np.linspace(-14, 14, 561, retstep=True)
    variance = np.exp(log_variance)[:, None]
    mean = prior.mean_prior[0] + standardised * np.sqrt(variance)
    density = stats.invgamma.pdf(variance, 2.5, scale=prior.scale[0, 0] / 2) * variance
    density = density * stats.norm.pdf(standardised, 0, np.sqrt(1 / prior.mean_precision))
    normal = [stats.norm.pdf(value, mean, np.sqrt(variance)) for value in x]
    cell = g_step * s_step
    single = [float((density * value).sum() * cell) for value in normal]
    both = float((density * normal[0] * normal[1]).sum() * cell)

    def integrand(share: float) -> float:
        # Given the weights the two rows share a component or not, and the components are independent a priori.
        likelihood = (share**2 + (1 - share) ** 2) * both + 2 * share * (1 - share) * single[0] * single[1]
        return float(stats.beta(*prior.weight_concentration).pdf(share) * likelihood)

    expected, _ = integrate.quad(integrand, 0, 1, epsabs=1e-13)
    exact = np.exp(Enumeration(x[:, None], prior).log_evidence)
    # What the grid leaves out lies beyond log σ² = 12, where the prior holds exp(−2.5 · 12) = 1e-13, and |s| = 14.
    np.testing.assert_allclose(exact, expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 2])
def test_chain_rule_ties_evidence_to_the_predictive_density(covariance_type, n_features):
    X = np.random.default_rng(6).standard_normal((5, n_features)) * 2
    prior = prior_for(n_features)
    log_p = [Enumeration(X[:n], prior, covariance_type=covariance_type).log_evidence for n in range(1, 6)]
    for n in range(1, 5):
        predictive = Enumeration(X[:n], prior, covariance_type=covariance_type).predictive_log_density(X[n : n + 1])
        # An identity; rounding of log evidences of size about 20.
        np.testing.assert_allclose(log_p[n] - log_p[n - 1], predictive[0], atol=1e-10)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_structures_coincide_in_one_dimension(covariance_type):
    X = np.random.default_rng(7).standard_normal((6, 1))
    prior = prior_for(1)
    full, other = Enumeration(X, prior), Enumeration(X, prior, covariance_type=covariance_type)
    np.testing.assert_allclose(other.log_allocation_evidence, full.log_allocation_evidence, rtol=1e-12)
    values = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(other.log_determinant_cdf(values), full.log_determinant_cdf(values), rtol=1e-12)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_predictive_density_integrates_to_one(covariance_type):
    X = np.array([[0.2], [0.5], [3.1], [2.9], [-4.0]])
    enumeration = Enumeration(X, prior_for(1), covariance_type=covariance_type)
    # x = sinh(t) spreads a fine grid over the heavy tails (5 or more degrees of freedom: beyond e^12 under 1e-20).
    t, step = np.linspace(-12, 12, 4001, retstep=True)
    density = np.exp(enumeration.predictive_log_density(np.sinh(t)[:, None]))
    np.testing.assert_allclose((density * np.cosh(t)).sum() * step, 1.0, atol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 2])
def test_exact_draws_have_the_exact_summaries(covariance_type, n_features):
    rng = np.random.default_rng(8)
    X = rng.standard_normal((6, n_features)) * 1.5
    prior = prior_for(n_features)
    enumeration = Enumeration(X, prior, covariance_type=covariance_type)
    size = 40_000
    weights, means, covariances, allocations = enumeration.draw(rng, size)

    points = np.linspace(-3, 3, 5)[:, None] * np.linspace(1.0, 0.6, n_features)
    density = np.exp(mixture_log_densities_of_draws(points, weights, means, covariances)[0])
    error = density.std(axis=0) / np.sqrt(size)
    # Four standard errors of independent draws, here and below.
    assert np.all(np.abs(density.mean(axis=0) - np.exp(enumeration.predictive_log_density(points))) < 4 * error)

    same = (allocations[:, :, None] == allocations[:, None, :]).mean(axis=0)
    rows = np.triu_indices(len(X), 1)
    exact = enumeration.coclustering()[rows]
    assert np.all(np.abs(same[rows] - exact) < 4 * np.sqrt(exact * (1 - exact) / size))

    larger = np.argmax(weights, axis=1)
    first = float(enumeration.allocation_probabilities @ enumeration.larger_weight_probability()[:, 0])
    largest = weights.max(axis=1)
    assert abs(largest.mean() - enumeration.larger_weight_mean()) < 4 * largest.std() / np.sqrt(size)
    assert abs(np.mean(larger == 0) - first) < 4 * np.sqrt(first * (1 - first) / size)

    log_determinant = np.linalg.slogdet(covariances[np.arange(size), larger])[1]
    probabilities = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    quantiles = enumeration.log_determinant_quantiles(probabilities)
    share = (log_determinant[:, None] <= quantiles).mean(axis=0)
    assert np.all(np.abs(share - probabilities) < 4 * np.sqrt(probabilities * (1 - probabilities) / size))
