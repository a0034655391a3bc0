from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import integrate, stats

from bayesgmm import ConjugatePrior, HierarchicalPrior, SeparationPrior
from bayesgmm.core.hierarchical import NARROWEST, _matrix, pack_rate, prior_from_values
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


def some_prior(K: int, D: int, seed: int = 0) -> HierarchicalPrior:
    """Every value given, matrices with correlations."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((2, D, D + 2))
    return HierarchicalPrior(
        rng.uniform(0.7, 3.0, K), rng.standard_normal(D), A @ A.T, D + 1.7, D / 2 + 0.3, B @ B.T + np.eye(D)
    )


def scipys(prior: HierarchicalPrior, mixture, C0: np.ndarray, covariance_type: str) -> float:
    """Log density of (π, μ, Σ, C₀), term by term through scipy.stats."""
    K, D = mixture.means.shape
    c0, g0, G0 = prior.precision_shape, prior.hyper_shape, np.asarray(prior.hyper_rate)
    total = float(stats.dirichlet(prior.weight_concentration).logpdf(mixture.weights)) if K > 1 else 0.0
    total += sum(stats.multivariate_normal(prior.mean_prior, prior.mean_covariance).logpdf(m) for m in mixture.means)
    if covariance_type in ("full", "tied"):
        matrices = mixture.packed if covariance_type == "full" else mixture.packed[None]
        total += sum(stats.invwishart(2 * c0, 2 * C0).logpdf(S) for S in matrices)
        return float(total + stats.wishart(2 * g0, np.linalg.inv(2 * G0)).logpdf(C0))
    half, scales = c0 - (D - 1) / 2, np.diag(np.linalg.inv(G0))
    if covariance_type == "spherical":
        scales = scales.mean()
    total += stats.invgamma(half, scale=C0).logpdf(mixture.packed).sum()
    return float(total + np.sum(stats.gamma(g0, scale=scales).logpdf(C0)))


def some_rate(D: int, covariance_type: str) -> np.ndarray:
    rng = np.random.default_rng(9)
    A = rng.standard_normal((D, D + 1))
    rate = A @ A.T + 0.1 * np.eye(D)
    return {"diag": np.diag(rate), "spherical": np.asarray(rate[0, 0])}.get(covariance_type, rate)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_log_density_against_scipy(covariance_type, K, D):
    prior, C0 = some_prior(K, D), some_rate(D, covariance_type)
    m = random_mixture(np.random.default_rng(D), K, D, covariance_type)
    prior = prior.resolve(np.random.default_rng(0).standard_normal((9, D)), K, covariance_type)
    value = prior.log_density(m.weights, m.means, m.packed, covariance_type, C0)
    # Rounding of sums of some tens.
    assert value == pytest.approx(scipys(prior, m, C0, covariance_type), rel=1e-11, abs=1e-10)
    batch = prior.log_density(
        *(np.stack([a] * 3) for a in (m.weights, m.means, m.packed)), covariance_type, np.stack([C0, 2 * C0, C0])
    )
    np.testing.assert_allclose(batch[[0, 2]], value, rtol=1e-12)
    assert batch[1] != pytest.approx(value)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_density_without_the_rate_is_the_integral_over_it(covariance_type):
    K = 3
    prior = some_prior(K, 1)
    m = random_mixture(np.random.default_rng(2), K, 1, covariance_type)
    at = (m.weights, m.means, m.packed, covariance_type)
    marginal = prior.log_density(*at)

    def ratio(log_rate: float) -> float:
        rate = np.exp(log_rate)
        packed = np.full({"diag": (1,), "spherical": ()}.get(covariance_type, (1, 1)), rate)
        return float(np.exp(prior.log_density(*at, packed) + log_rate - marginal))

    # quad's own tolerance is 1e-8 relative; beyond ±30 the integrand is below 1e-13.
    assert integrate.quad(ratio, -30, 30, limit=200, points=[-2, 0, 2])[0] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_matrix_rate_is_integrated_out(covariance_type):
    """By Bayes' rule: joint less marginal is C₀'s conditional, a Wishart with c₀ and precisions added."""
    K, D = 3, 2
    prior = some_prior(K, D)
    m = random_mixture(np.random.default_rng(2), K, D, covariance_type)
    C0 = some_rate(D, covariance_type)
    at = (m.weights, m.means, m.packed, covariance_type)
    R = K if covariance_type == "full" else 1
    precisions = np.linalg.inv(m.covariances)[:R].sum(axis=0)
    shape = prior.hyper_shape + R * prior.precision_shape
    conditional = stats.wishart(2 * shape, np.linalg.inv(2 * (prior.hyper_rate + precisions))).logpdf(C0)
    # Rounding of sums of some tens.
    assert prior.log_density(*at, C0) - prior.log_density(*at) == pytest.approx(conditional, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_draws_have_the_priors_moments(covariance_type):
    K, D, S = 2, 2, 20_000
    base = some_prior(K, D)
    # High shapes, so that fourth moments exist and Monte Carlo errors are honest.
    prior = HierarchicalPrior(
        base.weight_concentration, base.mean_prior, base.mean_covariance, 9.0, 4.0, base.hyper_rate
    )
    weights, means, packed, rates = prior.draw(np.random.default_rng(1), S, covariance_type)
    matrices = oracles.expand_draws(packed, covariance_type, K, D)
    alpha, c0, g0 = base.weight_concentration, 9.0, 4.0
    inverse = np.linalg.inv(np.asarray(prior.hyper_rate))

    def close(draws, expected):
        # Five standard errors; the seed is fixed as well.
        error = draws.std(axis=0) / np.sqrt(S)
        assert np.all(np.abs(draws.mean(axis=0) - expected) <= 5 * error + 1e-12)

    close(weights, alpha / alpha.sum())
    deviation = means - prior.mean_prior
    close(deviation, 0.0)
    close(deviation[..., :, None] * deviation[..., None, :], np.broadcast_to(prior.mean_covariance, (K, D, D)))
    close(deviation[:, 0, :, None] * np.diagonal(matrices[:, 0], axis1=1, axis2=2)[:, None], 0.0)
    if covariance_type in ("full", "tied"):
        # E C₀ = g₀ G₀⁻¹; E Σ = C₀ / (c₀ − (D + 1)/2).
        close(rates, g0 * inverse)
        close(matrices, np.broadcast_to(g0 * inverse / (c0 - 1.5), (K, D, D)))
        return
    expected = g0 * (np.diag(inverse) if covariance_type == "diag" else np.diag(inverse).mean())
    close(rates, expected)
    close(packed, np.broadcast_to(expected / (c0 - 0.5 - 1), packed.shape[1:]))
    # Components share C₀: their log variances correlate as digamma's derivatives say.
    logs = np.log(packed.reshape(S, K, -1)[..., 0])
    from scipy.special import polygamma

    shared, own = polygamma(1, g0), polygamma(1, c0 - 0.5)
    # Correlations of 20,000 draws err by at most 1/sqrt(S) = 0.007.
    assert np.corrcoef(logs.T)[0, 1] == pytest.approx(shared / (shared + own), abs=0.035)


def test_defaults_are_the_papers():
    X = np.column_stack([[0.0, 1.0, 2.0, 7.0, 10.0], [5.0, 1.0, 3.0, 2.0, 1.5]])
    prior = HierarchicalPrior().resolve(X, 3)
    np.testing.assert_array_equal(prior.mean_prior, [2.0, 2.0])
    np.testing.assert_allclose(prior.mean_covariance, np.diag([100.0, 16.0]), rtol=1e-15)
    assert (prior.precision_shape, prior.hyper_shape) == (3.0, 1.0)
    np.testing.assert_allclose(prior.hyper_rate, np.diag([100 / 3 / 100, 100 / 3 / 16]), rtol=1e-15)
    for K, structure in ((1, "tied"), (5, "diag")):
        same = HierarchicalPrior().resolve(X, K, structure)
        for name in ("mean_prior", "mean_covariance", "precision_shape", "hyper_shape", "hyper_rate"):
            np.testing.assert_array_equal(getattr(same, name), getattr(prior, name))
    again = prior.resolve(9 * X, 3)
    np.testing.assert_array_equal(again.hyper_rate, prior.hyper_rate)


def test_weights_count_rows():
    rng = np.random.default_rng(3)
    X, counts = rng.standard_normal((12, 2)), rng.integers(0, 4, 12)
    weighted = HierarchicalPrior().resolve(X, 2, sample_weight=counts.astype(float))
    repeated = HierarchicalPrior().resolve(np.repeat(X, counts, axis=0), 2)
    for name in ("mean_prior", "mean_covariance", "hyper_rate"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-14)


def test_richardson_and_greens_values():
    prior = HierarchicalPrior.richardson_green([3.0, 5.0, 4.5, 13.0]).resolve(np.zeros((2, 1)), 2)
    assert (prior.mean_prior, prior.mean_covariance, prior.precision_shape) == (8.0, 100.0, 2.0)
    assert (prior.hyper_shape, prior.hyper_rate) == (0.2, 0.1)
    with pytest.raises(ValueError, match="one feature"):
        HierarchicalPrior.richardson_green(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="constant"):
        HierarchicalPrior.richardson_green(np.ones(4))


def test_printing_tells_every_value():
    text = str(HierarchicalPrior(1.5, [2.25], [0.125], 7.5, 3.75, [[9.5]]))
    for part in ("1.5", "2.25", "0.125", "7.5", "3.75", "9.5", "Dirichlet", "Normal"):
        assert part in text
    assert "from the data" in str(HierarchicalPrior())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_concentration": 0.0}, "weight_concentration"),
        ({"mean_prior": [np.nan]}, "mean_prior"),
        ({"mean_covariance": [1.0, -1.0]}, "mean_covariance must be positive definite"),
        ({"mean_covariance": [[1.0, 0.2], [0.1, 1.0]]}, "symmetric"),
        ({"precision_shape": 0.0}, "precision_shape"),
        ({"hyper_shape": [1.0, 2.0]}, "hyper_shape"),
        ({"hyper_rate": [np.inf]}, "hyper_rate"),
        ({"em_prior": "default"}, "em_prior"),
    ],
)
def test_values_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalPrior(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_concentration": [1.0, 1.0]}, "2 values for 3 components"),
        ({"mean_prior": [1.0]}, "1 values for 2 features"),
        ({"precision_shape": 0.5}, "precision_shape must exceed"),
        ({"hyper_shape": 0.4}, "hyper_shape must exceed"),
        ({"hyper_rate": np.eye(3)}, "for 2 features"),
    ],
)
def test_values_that_do_not_fit_the_data_are_refused(arguments, message):
    X = np.random.default_rng(0).standard_normal((60, 2))
    with pytest.raises(ValueError, match=message):
        HierarchicalPrior(**arguments).resolve(X, 3)


def test_unresolved_or_unscalable_says_what_to_do():
    with pytest.raises(ValueError, match="resolve"):
        HierarchicalPrior().draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="column 1 of X is constant"):
        HierarchicalPrior().resolve(np.column_stack([np.arange(4.0), np.ones(4)]), 2)


def test_columns_too_narrow_for_squared_precisions_are_refused():
    X = np.column_stack([np.arange(4.0), np.arange(4.0) / 3])
    for narrow in (2 * NARROWEST, 1e-40):
        resolved = HierarchicalPrior().resolve(X * [1.0, narrow], 2)
        np.testing.assert_allclose(resolved.mean_covariance[1, 1], narrow**2, rtol=1e-12)
    with pytest.raises(ValueError, match="column 1 of X is narrower than 1e-100"):
        HierarchicalPrior().resolve(X * [1.0, 0.5 * NARROWEST], 2)
    # Where nothing is scaled by the ranges they may be as they like.
    given = HierarchicalPrior(mean_covariance=[1.0, 1.0], hyper_rate=[1.0, 1.0])
    assert given.resolve(X * [1.0, 0.5 * NARROWEST], 2).is_resolved


# Boundaries and shapes of the hierarchical prior, by hand

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
