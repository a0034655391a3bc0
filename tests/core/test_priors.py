from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from bayesgmm import HierarchicalPrior, SeparationPrior
from bayesgmm.core import em
from bayesgmm.core.priors import (
    ConjugatePrior,
    TableSummary,
    refuse_constant,
    refuse_singular,
    weighted_covariance,
    weighted_mean,
    weighted_median,
    weighted_range,
)
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


def resolved_prior(K: int, D: int, seed: int = 0, freedom: float = 4.5) -> ConjugatePrior:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((D, D + 2))
    return ConjugatePrior(
        weight_concentration=rng.uniform(0.7, 3.0, K),
        mean_prior=rng.standard_normal(D),
        mean_precision=0.3,
        degrees_of_freedom=D + freedom,
        scale=A @ A.T + np.eye(D),
    )


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (1, 3), (2, 1), (3, 2), (2, 5)])
def test_log_density_against_scipy(covariance_type, K, D):
    """All constants count: evidence and comparisons of structures need them."""
    prior = resolved_prior(K, D)
    mixture = random_mixture(np.random.default_rng(D), K, D, covariance_type)
    expected = oracles.log_prior(mixture.weights, mixture.means, mixture.packed, prior, covariance_type)
    value = prior.log_density(mixture.weights, mixture.means, mixture.packed, covariance_type)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_log_density_keeps_leading_axes(covariance_type):
    prior, rng = resolved_prior(2, 3), np.random.default_rng(0)
    mixtures = [random_mixture(rng, 2, 3, covariance_type) for _ in range(6)]
    weights, means, packed = (np.stack(a) for a in zip(*[(m.weights, m.means, m.packed) for m in mixtures]))
    values = prior.log_density(weights, means, packed, covariance_type)
    assert np.shape(values) == (6,)
    for value, m in zip(values, mixtures):
        assert value == pytest.approx(prior.log_density(m.weights, m.means, m.packed, covariance_type), rel=1e-13)


@pytest.mark.filterwarnings("error")
def test_log_density_at_weight_zero():
    """The limit of the Dirichlet's density: finite for α = 1, 0 for α > 1."""
    covariances, means = np.stack([np.eye(1)] * 2), np.zeros((2, 1))
    rest = {"mean_prior": [0.0], "degrees_of_freedom": 3.0, "scale": [[1.0]]}
    uniform = ConjugatePrior(weight_concentration=[1.0, 1.0], **rest)
    at_zero, inside = (uniform.log_density(np.array(w), means, covariances) for w in ([1.0, 0.0], [0.5, 0.5]))
    assert at_zero == pytest.approx(inside, rel=1e-14)
    peaked = ConjugatePrior(weight_concentration=[2.0, 2.0], **rest)
    assert peaked.log_density(np.array([1.0, 0.0]), means, covariances) == -np.inf


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(2, 1), (3, 3)])
def test_moments_of_the_draws(covariance_type, K, D):
    # ν = 12.5 leaves the covariances with finite fourth moments, so that Monte Carlo errors are honest.
    prior = resolved_prior(K, D, freedom=11.5)
    S = 20_000
    weights, means, packed = prior.draw(np.random.default_rng(1), S, covariance_type)
    matrices = oracles.expand_draws(packed, covariance_type, K, D)
    alpha, nu, scale = prior.resolved_concentration, prior.resolved_degrees_of_freedom, prior.resolved_scale

    def close(draws, expected):
        # Five standard errors: fewer than one false alarm in a million for each of the ≈ 100 numbers (the seed is fixed as well).
        error = draws.std(axis=0) / np.sqrt(S)
        assert np.all(np.abs(draws.mean(axis=0) - expected) <= 5 * error + 1e-12)

    a0 = alpha.sum()
    close(weights, alpha / a0)
    close(weights**2, alpha * (alpha + 1) / (a0 * (a0 + 1)))
    if covariance_type in ("full", "tied"):
        average = scale / (nu - D - 1)
        close(packed, average)
        # E Σ⁻¹ = ν Λ⁻¹: another moment, through the other tail.
        close(np.linalg.inv(matrices), np.broadcast_to(nu * np.linalg.inv(scale), (K, D, D)))
    else:
        # The marginal of an inverse-Wishart's diagonal has the same mean Λ_jj / (ν₀ − D − 1).
        marginal = np.diag(scale) if covariance_type == "diag" else np.trace(scale) / D
        average = (marginal if covariance_type == "diag" else np.full(D, marginal)) * np.eye(D) / (nu - D - 1)
        close(packed, np.broadcast_to(marginal / (nu - D - 1), packed.shape[1:]))
        close(1 / packed, np.broadcast_to((nu - D + 1) / marginal, packed.shape[1:]))
    deviation = means - prior.resolved_mean
    close(means, np.broadcast_to(prior.resolved_mean, (K, D)))
    close(deviation[..., :, None] * deviation[..., None, :], np.broadcast_to(average / prior.mean_precision, (K, D, D)))
    # Given Σ, the standardised deviation is chi-square: the draw of a mean uses its own Σ.
    distance = prior.mean_precision * np.einsum("skd,skde,ske->sk", deviation, np.linalg.inv(matrices), deviation)
    for k in range(K):
        assert stats.kstest(distance[:, k], stats.chi2(D).cdf).pvalue > 1e-4
    if covariance_type == "tied":
        assert packed.shape == (S, D, D)
    # Components are independent given the hyperparameters (tied: of one covariance).
    close(deviation[:, 0, 0] * deviation[:, 1, 0], 0.0)


def test_draws_follow_the_seed():
    prior = resolved_prior(2, 2)
    first, again, other = (prior.draw(np.random.default_rng(s), 3) for s in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c)


def test_fraley_raftery_by_hand():
    X = np.array([[0.0, 0.0], [2.0, 1.0], [4.0, 5.0], [6.0, 2.0]])
    prior = ConjugatePrior.fraley_raftery(X, 4)
    # Deviations (±3, ±1) and (−2, −1, 3, 0): variances 20/3 and 14/3, covariance (6 + 1 + 3 + 0)/3; K^(2/D) = 4.
    np.testing.assert_allclose(prior.scale, np.array([[20, 10], [10, 14]]) / 3 / 4, rtol=1e-14)
    np.testing.assert_allclose(prior.mean_prior, [3.0, 2.0])
    np.testing.assert_array_equal(prior.weight_concentration, np.ones(4))
    assert (prior.mean_precision, prior.degrees_of_freedom) == (0.01, 4.0)
    assert prior.is_resolved
    one_feature = ConjugatePrior.fraley_raftery(X[:, :1], 3)
    np.testing.assert_allclose(one_feature.scale, [[20 / 3 / 9]], rtol=1e-14)


def test_frequency_weight_two_is_the_row_twice():
    rng = np.random.default_rng(0)
    X = random_mixture(rng, 2, 2).sample(rng, 60)
    v = rng.integers(1, 4, 60).astype(float)
    repeated = np.repeat(X, v.astype(int), axis=0)
    for weighted, plain in (
        (ConjugatePrior.fraley_raftery(X, 2, v), ConjugatePrior.fraley_raftery(repeated, 2)),
        (
            ConjugatePrior(scale=np.eye(2)).resolve(X, 2, sample_weight=v),
            ConjugatePrior(scale=np.eye(2)).resolve(repeated, 2),
        ),
    ):
        np.testing.assert_allclose(weighted.mean_prior, plain.mean_prior, rtol=1e-13)
        np.testing.assert_allclose(weighted.scale, plain.scale, rtol=1e-12)
    mean, covariance = weighted_covariance(X, v)
    np.testing.assert_allclose(mean, repeated.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(repeated.T), rtol=1e-12)


def test_weighted_covariance_far_from_zero():
    X = np.random.default_rng(0).standard_normal((1000, 2)) + 1e8
    # X itself is rounded to 1e-8 there.
    np.testing.assert_allclose(weighted_covariance(X)[1], np.cov((X - 1e8).T), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_default_scale_is_the_documented_formula(covariance_type):
    """Λ₀ = (D + 2) Σ_k π_k Σ_k of the mode under Fraley and Raftery's prior; here the mode is unmistakable."""
    rng = np.random.default_rng(4)
    X = np.vstack([rng.standard_normal((80, 2)), rng.standard_normal((120, 2)) * [0.5, 2.0] + 12.0])
    prior = ConjugatePrior().resolve(X, 2, covariance_type)
    regularising = ConjugatePrior.fraley_raftery(X, 2)
    best = em.fit(X, 2, covariance_type, prior=regularising, tol=1e-10, rng=np.random.default_rng(9)).best
    matrices = oracles.expand_covariances(best.covariances, covariance_type, 2, 2)
    within = np.einsum("k,kij->ij", best.parameters.weights, matrices)
    # Both climb to the same optimum; the default's stop at 1e-6 leaves a difference of second order in separated clusters.
    np.testing.assert_allclose(prior.scale, 4 * within, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prior.mean_prior, X.mean(axis=0), rtol=1e-13)
    assert (prior.mean_precision, prior.degrees_of_freedom) == (0.01, 4.0)
    np.testing.assert_array_equal(prior.weight_concentration, [1.0, 1.0])
    if covariance_type == "full":
        # And by hand: clusters so far apart that responsibilities are 0 or 1 (to about 1e-6), so that the mode is in closed form.
        expected = np.zeros((2, 2))
        for group in (X[:80], X[80:]):
            n, deviation = len(group), group.mean(axis=0) - X.mean(axis=0)
            scatter = (n - 1) * np.cov(group.T) + 0.01 * n / (n + 0.01) * np.outer(deviation, deviation)
            expected += n / 200 * (np.cov(X.T) / 2 + scatter) / (4 + n + 2 + 2)
        np.testing.assert_allclose(prior.scale, 4 * expected, rtol=1e-3, atol=1e-3)


def test_resolving_is_reproducible_and_keeps_what_was_given():
    rng = np.random.default_rng(0)
    X = random_mixture(rng, 3, 2).sample(rng, 150)
    a, b = ConjugatePrior().resolve(X, 3), ConjugatePrior().resolve(X, 3)
    np.testing.assert_array_equal(a.scale, b.scale)
    given = ConjugatePrior(2.0, [1.0, 2.0], 0.5, 7.0, [[2.0, 0.5], [0.5, 1.0]])
    assert not given.is_resolved
    resolved = given.resolve(X, 3)
    np.testing.assert_array_equal(resolved.weight_concentration, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(resolved.mean_prior, [1.0, 2.0])
    np.testing.assert_array_equal(resolved.scale, [[2.0, 0.5], [0.5, 1.0]])
    assert (resolved.mean_precision, resolved.degrees_of_freedom) == (0.5, 7.0)
    assert resolved.resolve(X[:50], 3).scale is not None
    np.testing.assert_array_equal(resolved.resolve(X[:50] * 9, 3).scale, resolved.scale)


def test_numbers_do_for_one_feature():
    X = np.arange(6.0)[:, None]
    prior = ConjugatePrior(mean_prior=2.0, scale=1.5).resolve(X, 2)
    assert prior.resolved_mean.shape == (1,)
    assert prior.resolved_scale.shape == (1, 1)


def test_at_least_uniform_raises_concentrations_below_one():
    prior = dataclasses.replace(resolved_prior(3, 1), weight_concentration=np.array([0.2, 1.0, 4.0]))
    np.testing.assert_array_equal(prior.at_least_uniform().weight_concentration, [1.0, 1.0, 4.0])


def test_printing_tells_every_value():
    text = str(ConjugatePrior(1.5, [2.25], 0.125, 7.5, [[3.75]]))
    for part in ("1.5", "2.25", "0.125", "7.5", "3.75", "Dirichlet", "Normal", "inverse-Wishart"):
        assert part in text
    assert "from the data" in str(ConjugatePrior())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_concentration": 0.0}, "weight_concentration"),
        ({"weight_concentration": -1.0}, "weight_concentration"),
        ({"weight_concentration": [1.0, 0.0]}, "weight_concentration"),
        ({"weight_concentration": np.nan}, "weight_concentration"),
        ({"weight_concentration": [[1.0]]}, "weight_concentration"),
        ({"mean_precision": 0.0}, "mean_precision"),
        ({"mean_precision": np.inf}, "mean_precision"),
        ({"mean_precision": [1.0, 2.0]}, "mean_precision"),
        ({"mean_prior": [np.nan]}, "mean_prior"),
        ({"mean_prior": [[1.0, 2.0]]}, "mean_prior"),
        ({"degrees_of_freedom": 0.0}, "degrees_of_freedom"),
        ({"degrees_of_freedom": np.inf}, "degrees_of_freedom"),
        ({"degrees_of_freedom": [3.0, 4.0]}, "degrees_of_freedom"),
        ({"scale": [[1.0, 0.2], [0.1, 1.0]]}, "symmetric"),
        ({"scale": [1.0, 1.0]}, "scale"),
        ({"scale": [[1.0, 0.0]]}, "scale"),
        ({"scale": [[np.nan]]}, "scale"),
        ({"scale": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
        ({"scale": 0.0}, "positive definite"),
        ({"scale": -1.0}, "positive definite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConjugatePrior(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_concentration": [1.0, 1.0]}, "2 values for 3 components"),
        ({"mean_prior": [1.0]}, "1 values for 2 features"),
        ({"degrees_of_freedom": 1.0}, "degrees_of_freedom must exceed"),
        ({"scale": np.eye(3)}, "for 2 features"),
    ],
)
def test_values_that_do_not_fit_the_data_are_refused(arguments, message):
    rng = np.random.default_rng(0)
    X = random_mixture(rng, 3, 2).sample(rng, 60)
    with pytest.raises(ValueError, match=message):
        ConjugatePrior(**arguments).resolve(X, 3)


def test_unresolved_prior_says_what_to_do():
    with pytest.raises(ValueError, match="resolve"):
        ConjugatePrior().draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="resolve"):
        ConjugatePrior().log_density(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))


RESOLVED = ("resolved_concentration", "resolved_mean")


@pytest.mark.parametrize(
    ("prior", "names"),
    [
        (ConjugatePrior(), (*RESOLVED, "resolved_degrees_of_freedom")),
        (
            HierarchicalPrior(),
            (*RESOLVED, "resolved_degrees_of_freedom", "hyper_degrees_of_freedom", "mean_factor", "for_em"),
        ),
        (SeparationPrior(), (*RESOLVED, "resolved_eta", "for_em")),
    ],
    ids=["conjugate", "hierarchical", "separation"],
)
def test_no_value_is_told_before_the_data_are(prior, names):
    for name in names:
        with pytest.raises(ValueError, match="resolve"):
            getattr(prior, name)
    with pytest.raises(ValueError, match="resolve"):
        prior.constants()
    with pytest.raises(ValueError, match="resolve"):
        prior.draw(np.random.default_rng(0))


@pytest.mark.parametrize(
    "X",
    [
        np.column_stack([np.arange(9.0), np.ones(9)]),
        np.column_stack([np.arange(9.0), 2 * np.arange(9.0) + 1]),
        np.ones((1, 2)),
        np.arange(6.0).reshape(2, 3),
    ],
    ids=["constant", "collinear", "one row", "fewer rows than features"],
)
@pytest.mark.parametrize("make", [ConjugatePrior.fraley_raftery, ConjugatePrior().resolve], ids=["fraley", "resolve"])
@pytest.mark.filterwarnings("error")
def test_data_that_cannot_scale_a_prior_are_refused(X, make):
    with pytest.raises(ValueError, match="constant column or exactly collinear"):
        make(X, 2)


@pytest.mark.filterwarnings("error")
def test_weights_that_sum_to_one_observation_or_less_are_refused():
    """Frequency weights that sum to 1 leave no degree of freedom for a covariance; no overflow, no misleading reason."""
    X = np.random.default_rng(0).standard_normal((50, 2))
    with pytest.raises(ValueError, match="sample_weight|weights"):
        ConjugatePrior.fraley_raftery(X, 2, np.full(50, 1 / 50))
    with pytest.raises(ValueError, match="sample_weight|weights"):
        ConjugatePrior.fraley_raftery(X, 2, np.full(50, 1 / 100))


def test_weighted_medians_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8, 30):
        X, v = rng.standard_normal((n, 2)), rng.integers(0, 4, n)
        v[0] = 1
        repeated = np.repeat(X, v, axis=0)
        np.testing.assert_allclose(weighted_median(X, v.astype(float)), np.median(repeated, axis=0), rtol=1e-12)
        low, high = weighted_range(X, v.astype(float))
        np.testing.assert_array_equal(low, repeated.min(axis=0))
        np.testing.assert_array_equal(high, repeated.max(axis=0))


def test_rows_that_count_for_little_are_in_the_range():
    X = np.array([[0.0], [5.0], [9.0]])
    low, high = weighted_range(X, np.array([0.5, 1.0, 0.0]))
    assert (low[0], high[0]) == (0.0, 5.0)


def test_a_constant_range_is_named():
    refuse_constant(np.array([0.0, 1.0]), np.array([1.0, 2.0]), "scale")
    with pytest.raises(ValueError, match="column 1 of X is constant"):
        refuse_constant(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 3.0]), "scale")


@pytest.mark.parametrize("N", [65536, 65537, 140_000])
def test_moments_of_many_rows_are_summed_in_blocks(N):
    rng = np.random.default_rng(N)
    X, v = rng.normal(3.0, 2.0, (N, 2)), rng.uniform(0, 2, N)
    X[:, 1] += X[:, 0]
    for weights in (None, v):
        w = np.ones(N) if weights is None else weights
        mean = w @ X / w.sum()
        # Sums of 1e5 numbers in another order.
        np.testing.assert_allclose(weighted_mean(X, weights), mean, rtol=1e-12)
        found = weighted_covariance(X, weights)
        np.testing.assert_allclose(found[0], mean, rtol=1e-12)
        np.testing.assert_allclose(found[1], ((X - mean) * w[:, None]).T @ (X - mean) / (w.sum() - 1), rtol=1e-11)
    np.testing.assert_array_equal(weighted_mean(X), X.sum(axis=0) / N)
    single = X.astype(np.float32)
    np.testing.assert_array_equal(weighted_mean(single, v), weighted_mean(single.astype(float), v))


def test_one_row_has_a_covariance_of_zero():
    mean, covariance = weighted_covariance(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    np.testing.assert_array_equal(covariance, np.zeros((2, 2)))


def test_collinear_is_an_eigenvalue_of_the_correlation_below_a_trillionth():
    scale = np.array([1e-30, 1.0, 1e30])

    def with_smallest(eigenvalue: float) -> np.ndarray:
        # Correlations r of two features have eigenvalues 1 ± r.
        correlation = np.eye(3)
        correlation[0, 1] = correlation[1, 0] = 1 - eigenvalue
        return correlation * scale * scale[:, None]

    refuse_singular(with_smallest(3e-12), "these rows")
    with pytest.raises(ValueError, match="these rows have a constant column"):
        refuse_singular(with_smallest(3e-13), "these rows")


@pytest.mark.parametrize("prior", [HierarchicalPrior, SeparationPrior])
def test_em_starts_under_a_conjugate_prior_alone(prior):
    X = np.random.default_rng(0).standard_normal((40, 2))
    with pytest.raises(ValueError, match="em_prior must be a ConjugatePrior; got dict"):
        prior(em_prior={})
    with pytest.raises(ValueError, match="resolve"):
        _ = prior().for_em
    with pytest.raises(ValueError, match="resolve"):
        _ = prior(em_prior=ConjugatePrior()).for_em
    own = ConjugatePrior(mean_precision=0.7)
    resolved = prior(em_prior=own).resolve(X, 2)
    assert resolved.for_em.mean_precision == 0.7
    assert resolved.for_em.is_resolved


def test_constants_are_the_values_and_their_dims():
    prior = resolved_prior(3, 2)
    constants = prior.constants()
    dims = {name: dims for name, (_, dims) in constants.items()}
    assert dims == {
        "weight_concentration": ("component",),
        "mean_prior": ("feature",),
        "mean_precision": (),
        "degrees_of_freedom": (),
        "scale": ("feature", "feature_bis"),
    }
    for name, (value, of) in constants.items():
        assert np.shape(value) == tuple({"component": 3, "feature": 2, "feature_bis": 2}[dim] for dim in of)
        np.testing.assert_array_equal(value, getattr(prior, name))
    with pytest.raises(ValueError, match="resolve"):
        ConjugatePrior().constants()


def test_a_prior_is_resolved_once_every_value_is_known():
    whole = {"weight_concentration": [1.0], "mean_prior": [0.0], "degrees_of_freedom": 3.0, "scale": [[1.0]]}
    assert ConjugatePrior(**whole).is_resolved
    for name in ("mean_prior", "degrees_of_freedom", "scale"):
        assert not ConjugatePrior(**(whole | {name: None})).is_resolved
    assert not ConjugatePrior(**(whole | {"weight_concentration": 1.0})).is_resolved
    assert ConjugatePrior(**whole).marginal_degrees_of_freedom == 3.0
    three = ConjugatePrior([1.0], [0.0, 0.0, 0.0], 1.0, 6.5, np.eye(3))
    assert three.marginal_degrees_of_freedom == 4.5


def test_a_summary_of_a_table_knows_what_priors_ask_of_it():
    rng = np.random.default_rng(0)
    X, v = rng.standard_normal((30, 3)), rng.integers(0, 3, 30).astype(float)
    repeated = np.repeat(X, v.astype(int), axis=0)
    for summary, rows in ((TableSummary(X, 2), X), (TableSummary(X, 2, "diag", v), repeated)):
        assert summary.n_features == 3
        np.testing.assert_allclose(summary.mean, rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(summary.covariance, np.cov(rows.T), rtol=1e-11)
        np.testing.assert_allclose(summary.median, np.median(rows, axis=0), rtol=1e-12)
        np.testing.assert_array_equal(summary.range[0], rows.min(axis=0))
        np.testing.assert_array_equal(summary.range[1], rows.max(axis=0))
    assert TableSummary(X.astype(np.float32), 2).X.dtype == np.float32


@pytest.mark.parametrize("value", [[[np.inf, 0.0], [0.0, 1.0]], [[np.nan, 0.0], [0.0, 1.0]]])
def test_rows_that_are_not_finite_have_no_range(value):
    with pytest.raises(ValueError, match="finite rows"):
        weighted_range(np.array(value), None)
    with pytest.raises(ValueError, match="finite rows"):
        weighted_range(np.zeros((2, 1)), np.zeros(2))


def test_a_half_that_is_reached_exactly_lies_between_two_rows():
    X = np.array([[0.0], [1.0], [2.0], [10.0]])
    assert weighted_median(X, np.array([1.0, 1.0, 1.0, 1.0]))[0] == 1.5
    assert weighted_median(X, np.array([1.0, 1.0, 0.5, 1.0]))[0] == 1.0
    assert weighted_median(X, np.array([3.0, 0.0, 0.0, 3.0]))[0] == 5.0
    assert weighted_median(X, np.array([0.0, 0.0, 0.0, 0.7]))[0] == 10.0


@pytest.mark.parametrize(
    "name", ["resolved_scale", "resolved_mean", "resolved_concentration", "resolved_degrees_of_freedom"]
)
def test_values_that_wait_for_the_data_are_not_given_out(name):
    with pytest.raises(ValueError, match="resolve"):
        getattr(ConjugatePrior(), name)
