"""Standard errors against dense finite differences of scipy's densities, closed forms, and resampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bayesgmm.core import bootstrap, em, information
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.datasets import load_faithful
from tests import oracles
from tests.mixtures import STRUCTURES

ROUNDING = 1e-6
"""Two ways to the same sums: the inverse of an information matrix of condition below 1e6, each entry to about 1e-12."""


def separated(K: int, D: int, n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of overlapping but distinct correlated clusters of unequal size, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, size=n_rows, p=np.arange(2, K + 2) / np.arange(2, K + 2).sum())
    centers = 3.5 * np.arange(K)[:, None] * np.linspace(1.0, 0.4, D)
    mixing = np.eye(D) + 0.5 * np.tri(D, k=-1)
    return np.ascontiguousarray(centers[labels] + rng.standard_normal((n_rows, D)) @ mixing.T), labels


def fitted(
    X: np.ndarray,
    labels: np.ndarray,
    covariance_type: str = "full",
    prior: ConjugatePrior | None = None,
    v: np.ndarray | None = None,
    tol: float = 1e-14,
) -> tuple[em.Problem, MixtureParameters, np.ndarray]:
    """EM from the true labels: the problem, its optimum and the packed covariances."""
    problem = em.Problem(X, structure(covariance_type), prior, v, tol=tol, max_iter=20000)
    start = em.start_from_labels(problem, labels, int(labels.max()) + 1)
    run = em.climb(problem, *start, np.random.default_rng(0))
    return problem, run.parameters, run.covariances


def a_prior(X: np.ndarray, K: int) -> ConjugatePrior:
    """Strong, and unequal in everything: it moves every entry of the information."""
    D = X.shape[1]
    return ConjugatePrior(
        weight_concentration=np.linspace(4.0, 2.0, K),
        mean_prior=X.mean(axis=0) + 0.3,
        mean_precision=3.0,
        degrees_of_freedom=D + 5.5,
        scale=2 * np.eye(D) + 0.5,
    )


class Natural:
    """The objective in the free natural parameters, through scipy's densities."""

    def __init__(self, problem: em.Problem, K: int) -> None:
        self.X, self.K, self.D = problem.X, K, problem.X.shape[1]
        self.name, self.prior = problem.kind.name, problem.prior
        self.v = np.ones(len(self.X)) if problem.sample_weight is None else problem.sample_weight

    def unpack(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        K, D = self.K, self.D
        weights, means = np.append(theta[: K - 1], 1 - theta[: K - 1].sum()), theta[K - 1 : K - 1 + K * D].reshape(K, D)
        free = theta[K - 1 + K * D :]
        if self.name == "diag":
            return weights, means, free.reshape(K, D)
        if self.name == "spherical":
            return weights, means, free
        rows, cols = np.tril_indices(D)
        matrices = np.zeros((K if self.name == "full" else 1, D, D))
        matrices[:, rows, cols] = matrices[:, cols, rows] = free.reshape(len(matrices), -1)
        return weights, means, matrices if self.name == "full" else matrices[0]

    def pack(self, parameters: MixtureParameters, packed: np.ndarray) -> np.ndarray:
        symmetric = self.name in ("full", "tied")
        free = packed[..., *np.tril_indices(self.D)] if symmetric else packed
        return np.concatenate([parameters.weights[:-1], parameters.means.ravel(), free.ravel()])

    def row_densities(self, theta: np.ndarray) -> np.ndarray:
        weights, means, packed = self.unpack(theta)
        return oracles.mixture_log_density(
            self.X, weights, means, oracles.expand_covariances(packed, self.name, self.K, self.D)
        )

    def __call__(self, theta: np.ndarray) -> float:
        value = float(self.v @ self.row_densities(theta))
        return value if self.prior is None else value + oracles.log_prior(*self.unpack(theta), self.prior, self.name)


def hessian(f: Callable[[np.ndarray], float], x: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Dense Hessian by second differences, extrapolated once (Richardson): the error is of the order step⁴."""

    here = f(x)

    def second(i: int, j: int, h: float) -> float:
        # On the diagonal (+, −) and (−, +) are the point itself.
        corners = ((1, 1, 1), (-1, -1, 1)) if i == j else ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
        total = -2 * here if i == j else 0.0
        for a, b, sign in corners:
            moved = x.copy()
            moved[i] += a * h * step[i]
            moved[j] += b * h * step[j]
            total += sign * f(moved)
        return total / (4 * h * h * step[i] * step[j])

    out = np.empty((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i + 1):
            out[i, j] = out[j, i] = (4 * second(i, j, 1.0) - second(i, j, 2.0)) / 3
    return out


def assert_close_in_sds(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Compare covariance matrices entry by entry, in units of the standard deviations of both ends."""
    scale = np.sqrt(np.diagonal(expected))
    assert np.max(np.abs(actual - expected) / scale / scale[:, None]) < tolerance


@pytest.mark.parametrize("with_prior", [False, True], ids=["likelihood", "prior"])
@pytest.mark.parametrize(
    ("covariance_type", "K", "D"),
    [
        *((name, 2, 2) for name in STRUCTURES),
        *(pytest.param(name, 3, 1, marks=pytest.mark.slow) for name in ("full", "tied")),
    ],
)
def test_information_is_minus_the_dense_hessian(covariance_type, K, D, with_prior):
    X, labels = separated(K, D, 100)
    v = np.random.default_rng(1).integers(1, 4, len(X)).astype(float)
    prior = a_prior(X, K) if with_prior else None
    problem, parameters, packed = fitted(X, labels, covariance_type, prior, v)
    errors = information.standard_errors(problem, parameters, packed)
    natural = Natural(problem, K)
    theta = natural.pack(parameters, packed)
    # 2 % of a standard error: truncation near 0.02⁴ in relative terms, rounding 1e-16 · |f| / 0.02² near 1e-10.
    step = 0.02 * np.sqrt(np.diagonal(errors.covariance_matrix))
    expected = np.linalg.inv(-hessian(natural, theta, step))
    assert_close_in_sds(errors.covariance_matrix, expected, 1e-5)
    assert errors.notes == ()


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_information_away_from_the_optimum(covariance_type):
    """Terms that vanish at the optimum are there all the same, and the distance from it is reported."""
    X, labels = separated(2, 2, 150)
    problem, parameters, packed = fitted(X, labels, covariance_type, a_prior(X, 2))
    moved = replace(parameters, means=parameters.means + 0.1, weights=np.array([0.45, 0.55]))
    with pytest.warns(information.InformationWarning, match="standard errors from the optimum: fit these data"):
        errors = information.standard_errors(problem, moved, packed)
    natural = Natural(problem, 2)
    theta = natural.pack(moved, packed)
    step = 0.02 * np.sqrt(np.diagonal(errors.covariance_matrix))
    assert_close_in_sds(errors.covariance_matrix, np.linalg.inv(-hessian(natural, theta, step)), 1e-5)


@pytest.mark.parametrize("with_prior", [False, True], ids=["likelihood", "prior"])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_sandwich_is_made_of_the_rows_scores(covariance_type, with_prior):
    X, labels = separated(2, 2, 120)
    v = np.random.default_rng(2).integers(1, 4, len(X)).astype(float)
    problem, parameters, packed = fitted(X, labels, covariance_type, a_prior(X, 2) if with_prior else None, v)
    bread = information.standard_errors(problem, parameters, packed).covariance_matrix
    errors = information.standard_errors(problem, parameters, packed, "sandwich")
    natural = Natural(problem, 2)
    theta, steps = natural.pack(parameters, packed), 1e-4 * np.sqrt(np.diagonal(bread))
    scores = np.stack(
        [(natural.row_densities(theta + e) - natural.row_densities(theta - e)) / (2 * e.sum()) for e in np.diag(steps)],
        axis=1,
    )
    centred = scores - np.average(scores, axis=0, weights=v)
    expected = bread @ (centred.T @ (v[:, None] * centred)) @ bread
    # Central differences: 1e-4² of truncation, and 1e-16 / 1e-4 times |log p| / se-sized score of rounding.
    assert_close_in_sds(errors.covariance_matrix, expected, 1e-5)


def test_one_full_component_has_closed_forms():
    """K = 1: se(μ_j)² = Σ_jj / N, se(Σ_ij)² = (Σ_ii Σ_jj + Σ_ij²) / N, se(σ_j) = σ_j / √(2N), se(ρ) = (1 − ρ²) / √N."""
    X, _ = separated(1, 3, 200)
    problem, parameters, packed = fitted(X, np.zeros(200, dtype=int))
    errors = information.standard_errors(problem, parameters, packed)
    S, N = np.cov(X, rowvar=False, ddof=0), len(X)
    sd = np.sqrt(np.diagonal(S))
    rho = (S / sd / sd[:, None])[np.tril_indices(3, -1)]
    np.testing.assert_allclose(errors.weights, [0.0])
    np.testing.assert_allclose(errors.means[0], sd / np.sqrt(N), rtol=ROUNDING)
    np.testing.assert_allclose(errors.covariances[0], np.sqrt((np.outer(sd**2, sd**2) + S**2) / N), rtol=ROUNDING)
    np.testing.assert_allclose(errors.standard_deviations[0], sd / np.sqrt(2 * N), rtol=ROUNDING)
    np.testing.assert_allclose(errors.correlations[0], (1 - rho**2) / np.sqrt(N), rtol=ROUNDING)


def test_sandwich_of_one_component_has_the_empirical_fourth_moments():
    """K = 1: the estimates are moments, and the sandwich is their empirical variance, whatever the rows' distribution."""
    X = np.random.default_rng(3).exponential(size=(300, 2)) * [1.0, 1e3]
    problem, parameters, packed = fitted(X, np.zeros(300, dtype=int))
    errors = information.standard_errors(problem, parameters, packed, "sandwich")
    centred = X - X.mean(axis=0)
    products = centred[:, :, None] * centred[:, None, :]
    np.testing.assert_allclose(errors.means[0], X.std(axis=0) / np.sqrt(300), rtol=ROUNDING)
    np.testing.assert_allclose(errors.covariances[0], products.std(axis=0) / np.sqrt(300), rtol=ROUNDING)
    # Exponential rows have fourth moments of 9 σ⁴ instead of 3 σ⁴: the normal information is far off.
    normal = information.standard_errors(problem, parameters, packed)
    assert np.all(errors.covariances[0].diagonal() > 1.3 * normal.covariances[0].diagonal())


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_one_feature_has_no_correlations(covariance_type):
    X, labels = separated(2, 1, 150)
    problem, parameters, packed = fitted(X, labels, covariance_type)
    errors = information.standard_errors(problem, parameters, packed)
    assert errors.correlations is None
    assert errors.covariances.shape == packed.shape
    variances = structure(covariance_type).expand(packed, 2, 1)[:, 0, 0]
    se = np.broadcast_to(errors.covariances.reshape(-1), (2,))
    expected = np.broadcast_to(errors.standard_deviations.reshape(-1), (2,))
    np.testing.assert_allclose(expected, se / (2 * np.sqrt(variances)), rtol=ROUNDING)


@pytest.mark.parametrize(
    ("covariance_type", "deviations", "correlations"),
    [("full", (2, 3), (2, 3)), ("tied", (3,), (3,)), ("diag", (2, 3), None), ("spherical", (2,), None)],
)
def test_delta_method_and_shapes(covariance_type, deviations, correlations):
    X, labels = separated(2, 3, 200)
    problem, parameters, packed = fitted(X, labels, covariance_type)
    errors = information.standard_errors(problem, parameters, packed)
    natural = Natural(problem, 2)
    theta = natural.pack(parameters, packed)
    assert errors.standard_deviations.shape == deviations
    assert (errors.correlations is None) if correlations is None else (errors.correlations.shape == correlations)
    # The matrix and the packed standard errors are the same numbers.
    unpacked = natural.unpack(np.sqrt(np.diagonal(errors.covariance_matrix)))
    np.testing.assert_allclose(errors.weights, [unpacked[0][0]] * 2, rtol=ROUNDING)
    np.testing.assert_allclose(errors.means, unpacked[1], rtol=ROUNDING)
    np.testing.assert_allclose(errors.covariances, unpacked[2], rtol=ROUNDING)

    def derived(point: np.ndarray) -> np.ndarray:
        matrices = oracles.expand_covariances(natural.unpack(point)[2], covariance_type, 2, 3)
        sd = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
        rho = (matrices / sd[:, :, None] / sd[:, None, :])[:, *np.tril_indices(3, -1)]
        if covariance_type == "full":
            return np.concatenate([sd.ravel(), rho.ravel()])
        if covariance_type == "tied":
            return np.concatenate([sd[0], rho[0]])
        return sd.ravel() if covariance_type == "diag" else sd[:, 0]

    h = 1e-5
    jacobian = np.stack([(derived(theta + e) - derived(theta - e)) / (2 * h) for e in h * np.eye(len(theta))], axis=1)
    expected = np.sqrt(np.diagonal(jacobian @ errors.covariance_matrix @ jacobian.T))
    actual = errors.standard_deviations.ravel()
    if errors.correlations is not None:
        actual = np.concatenate([actual, errors.correlations.ravel()])
    np.testing.assert_allclose(actual, expected, rtol=ROUNDING)


@pytest.mark.parametrize("method", ["information", "sandwich"])
def test_a_weight_of_two_is_the_row_twice(method):
    X, labels = separated(2, 2, 100)
    v = np.random.default_rng(4).integers(0, 4, 100)
    problem, parameters, packed = fitted(X, labels, v=v.astype(float))
    repeated = em.Problem(np.repeat(X, v, axis=0), problem.kind)
    weighted = information.standard_errors(problem, parameters, packed, method)
    rows = information.standard_errors(repeated, parameters, packed, method)
    np.testing.assert_allclose(weighted.covariance_matrix, rows.covariance_matrix, rtol=ROUNDING, atol=1e-12)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_sandwich_meets_information_on_data_from_the_model(covariance_type):
    rng = np.random.default_rng(5)
    labels = rng.choice(2, size=20_000, p=[0.4, 0.6])
    X = np.array([[0.0, 0.0], [4.0, 1.0]])[labels] + rng.standard_normal((20_000, 2))
    problem, parameters, packed = fitted(X, labels, covariance_type)
    plain = information.standard_errors(problem, parameters, packed)
    robust = information.standard_errors(problem, parameters, packed, "sandwich")
    # An empirical fourth moment of 8,000 rows has a relative error of √(96/9/8000) = 3.7 %, its root half of that; 4 of those.
    for name in ("weights", "means", "standard_deviations"):
        np.testing.assert_allclose(getattr(robust, name), getattr(plain, name), rtol=0.075)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale_and_origin_of_the_data_do_not_matter(scale):
    X, labels = separated(2, 2, 150)
    problem, parameters, packed = fitted(X, labels)
    errors = information.standard_errors(problem, parameters, packed, "sandwich")
    factors = np.array([scale, 1.0])
    scaled = MixtureParameters(
        parameters.weights, parameters.means * factors + [0.0, 1e6], parameters.precision_factors / factors[:, None]
    )
    other = information.standard_errors(
        em.Problem(X * factors + [0.0, 1e6], problem.kind),
        scaled,
        packed * factors * factors[:, None],
        "sandwich",
    )
    # A shift by 1e6 costs six of sixteen digits of the data.
    np.testing.assert_allclose(other.weights, errors.weights, rtol=1e-7)
    np.testing.assert_allclose(other.means / factors, errors.means, rtol=1e-7)
    np.testing.assert_allclose(other.covariances / factors / factors[:, None], errors.covariances, rtol=1e-7)
    np.testing.assert_allclose(other.correlations, errors.correlations, rtol=1e-7)


def test_blocks_of_rows_do_not_matter(monkeypatch):
    X, labels = separated(3, 2, 500)
    problem, parameters, packed = fitted(X, labels, v=np.linspace(0.5, 2, 500))
    whole = information.standard_errors(problem, parameters, packed, "sandwich")
    monkeypatch.setattr(information, "BLOCK_ELEMENTS", 0)
    blocks = information.standard_errors(problem, parameters, packed, "sandwich")
    np.testing.assert_allclose(blocks.covariance_matrix, whole.covariance_matrix, rtol=1e-9, atol=1e-12)


def test_a_component_without_rows_is_at_the_boundary():
    """Its weight is not 0, but of 200 rows it has a billionth: less than a hundred millionth of all, and not less than that over all."""
    X, labels = separated(2, 1, 200)
    problem, parameters, packed = fitted(X, labels)
    far = X.max() + np.sqrt(2 * np.log(1e9)) * np.sqrt(packed[1, 0, 0])
    lost = MixtureParameters(
        np.append(parameters.weights * 0.5, 0.5),
        np.vstack([parameters.means, [[far]]]),
        np.concatenate([parameters.precision_factors, parameters.precision_factors[1:]]),
    )
    count = problem.e_step(lost).counts[2]
    assert information.BOUNDARY / 200 < count < information.BOUNDARY * 200
    with pytest.warns(information.InformationWarning, match="boundary"):
        errors = information.standard_errors(problem, lost, np.concatenate([packed, packed[1:]]))
    assert not np.isfinite(errors.means[2]).any()


def test_components_that_coincide_are_named_and_infinite():
    """One component of a K = 2 optimum cut into two equal halves: still stationary, and the halves cannot be told apart."""
    X, labels = separated(2, 2, 200)
    problem, parameters, packed = fitted(X, labels)
    whole = information.standard_errors(problem, parameters, packed)
    take = np.array([0, 0, 1])
    halved = MixtureParameters(
        parameters.weights[take] * [0.5, 0.5, 1.0], parameters.means[take], parameters.precision_factors[take]
    )
    with pytest.warns(
        information.InformationWarning, match=r"singular .* parameters of components 0, 1: the data do not"
    ):
        errors = information.standard_errors(problem, halved, packed[take])
    assert errors.undetermined == (0, 1)
    assert np.all(np.isinf(errors.weights[:2]))
    assert np.all(np.isinf(errors.means[:2]))
    for values in (errors.weights, errors.means, errors.covariances, errors.correlations, errors.covariance_matrix):
        assert not np.isnan(values).any()
    # By symmetry the cut changes nothing for the other component.
    np.testing.assert_allclose(errors.means[2], whole.means[1], rtol=ROUNDING)
    np.testing.assert_allclose(errors.covariances[2], whole.covariances[1], rtol=ROUNDING)
    np.testing.assert_allclose(errors.weights[2], whole.weights[1], rtol=ROUNDING)


@pytest.mark.parametrize("method", ["information", "sandwich"])
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag"])
def test_a_constant_column_leaves_the_errors_of_the_others(covariance_type, method):
    """Its variance is held up by ``reg_covar`` alone; all else is determined as it is without the column."""
    X, labels = separated(2, 2, 200)
    reg = 1e-9

    def errors_of(rows):
        problem = em.Problem(rows, structure(covariance_type), reg_covar=reg, tol=1e-14, max_iter=20000)
        run = em.climb(problem, *em.start_from_labels(problem, labels, 2), np.random.default_rng(0))
        return information.standard_errors(problem, run.parameters, run.covariances, method)

    whole = errors_of(X)
    with pytest.warns(information.InformationWarning, match="reg_covar makes up more than half .* components 0, 1"):
        errors = errors_of(np.column_stack([X[:, 0], np.full(200, 3.0), X[:, 1]]))
    others, tolerance = [0, 2], {"rtol": ROUNDING}
    np.testing.assert_allclose(errors.weights, whole.weights, **tolerance)
    np.testing.assert_allclose(errors.means[:, others], whole.means, **tolerance)
    if covariance_type == "diag":
        np.testing.assert_allclose(errors.covariances[:, others], whole.covariances, **tolerance)
    else:
        np.testing.assert_allclose(errors.covariances[..., others, :][..., others], whole.covariances, **tolerance)
        assert np.isinf(errors.covariances[..., 1, :]).all()
        # pairs (1, 0), (2, 0), (2, 1)
        np.testing.assert_allclose(errors.correlations[..., 1], whole.correlations[..., 0], **tolerance)
        assert np.isinf(errors.correlations[..., [0, 2]]).all()
    np.testing.assert_allclose(errors.standard_deviations[..., others], whole.standard_deviations, **tolerance)
    assert np.isinf(errors.standard_deviations[..., 1]).all()
    # The mean of the column is known as well as its floor says: √(reg_covar / N_k).
    assert (errors.means[:, 1] < 1.1 * np.sqrt(reg / 50)).all()
    assert not np.isnan(errors.covariance_matrix).any()


def test_a_column_that_is_a_sum_of_others_leaves_their_errors():
    X, labels = separated(2, 2, 200)
    reg = 1e-9
    found = []
    for rows in (X, np.column_stack([X, X @ [1.0, -2.0] + 3.0])):
        problem = em.Problem(rows, structure("full"), reg_covar=reg, tol=1e-13, max_iter=20000)
        run = em.climb(problem, *em.start_from_labels(problem, labels, 2), np.random.default_rng(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", information.InformationWarning)
            found.append(information.standard_errors(problem, run.parameters, run.covariances))
    whole, errors = found
    # A sum's column carries nothing of its own; reg_covar moves the responsibilities by its share of the variances, and
    # factors of condition 1e9 in squares leave six digits.
    np.testing.assert_allclose(errors.weights, whole.weights, rtol=1e-4)
    np.testing.assert_allclose(errors.means[:, :2], whole.means, rtol=1e-4)
    np.testing.assert_allclose(errors.covariances[:, :2, :2], whole.covariances, rtol=1e-4)
    assert errors.undetermined == ()


def with_empty_component(parameters: MixtureParameters, mean: np.ndarray, covariance: np.ndarray) -> MixtureParameters:
    """The same mixture with a component of weight 0 at the end."""
    factor = np.linalg.cholesky(np.linalg.inv(covariance))
    return MixtureParameters(
        np.append(parameters.weights, 0.0),
        np.vstack([parameters.means, mean]),
        np.concatenate([parameters.precision_factors, factor[None]]),
    )


@pytest.mark.parametrize("method", ["information", "sandwich"])
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_a_weight_at_its_boundary_under_maximum_likelihood(covariance_type, method):
    X, labels = separated(2, 2, 200)
    problem, parameters, packed = fitted(X, labels, covariance_type)
    whole = information.standard_errors(problem, parameters, packed, method)
    own = packed[0] if covariance_type == "full" else packed
    extended = with_empty_component(parameters, np.array([50.0, 50.0]), own)
    more = np.concatenate([packed, own[None]]) if covariance_type == "full" else packed
    with pytest.warns(information.InformationWarning, match="component 2 has no rows"):
        errors = information.standard_errors(problem, extended, more, method)
    assert errors.undetermined == (2,)
    assert np.isinf(errors.weights[2])
    assert np.all(np.isinf(errors.means[2]))
    np.testing.assert_allclose(errors.weights[:2], whole.weights, rtol=ROUNDING)
    np.testing.assert_allclose(errors.means[:2], whole.means, rtol=ROUNDING)
    if covariance_type == "tied":
        np.testing.assert_allclose(errors.covariances, whole.covariances, rtol=ROUNDING)
    else:
        assert np.all(np.isinf(errors.covariances[2]))
        assert np.all(np.isinf(errors.standard_deviations[2]))
        assert np.all(np.isinf(errors.correlations[2]))
        np.testing.assert_allclose(errors.correlations[:2], whole.correlations, rtol=ROUNDING)
    assert not np.isnan(errors.covariance_matrix).any()


def test_a_weight_at_its_boundary_under_a_prior_leaves_the_priors_errors():
    """At the mode of an empty component, μ = m₀ and Σ = Λ₀ / (ν₀ + D + 2): se(μ_j)² = Σ_jj / κ₀ by the curvature there."""
    X, labels = separated(2, 2, 200)
    two = replace(a_prior(X, 2), weight_concentration=np.ones(2))
    three = replace(two, weight_concentration=np.ones(3))
    problem, parameters, packed = fitted(X, labels, prior=two)
    whole = information.standard_errors(problem, parameters, packed)
    own = two.resolved_scale / (two.resolved_degrees_of_freedom + 4)
    extended = with_empty_component(parameters, two.resolved_mean, own)
    with pytest.warns(information.InformationWarning, match="its mean and covariance are the prior's"):
        errors = information.standard_errors(
            replace(problem, prior=three), extended, np.concatenate([packed, own[None]])
        )
    assert np.isinf(errors.weights[2])
    np.testing.assert_allclose(errors.means[2], np.sqrt(np.diagonal(own) / two.mean_precision), rtol=ROUNDING)
    np.testing.assert_allclose(errors.means[:2], whole.means, rtol=ROUNDING)
    np.testing.assert_allclose(errors.weights[:2], whole.weights, rtol=ROUNDING)


def test_unknown_method_and_too_many_parameters(monkeypatch):
    X, labels = separated(2, 2, 60)
    problem, parameters, packed = fitted(X, labels)
    with pytest.raises(ValueError, match="'information', 'sandwich' or 'bootstrap'; got 'hessian'"):
        information.standard_errors(problem, parameters, packed, "hessian")
    monkeypatch.setattr(information, "MAX_PARAMETERS", 10)
    with pytest.raises(ValueError, match="11 free parameters are more than the 10 .* method='bootstrap'"):
        information.standard_errors(problem, parameters, packed)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_bootstrap_meets_information_on_data_from_the_model(covariance_type):
    rng = np.random.default_rng(6)
    labels = rng.choice(2, size=800, p=[0.4, 0.6])
    X = np.ascontiguousarray(np.array([[0.0, 0.0], [5.0, 1.0]])[labels] + rng.standard_normal((800, 2)))
    problem, parameters, packed = fitted(X, labels, covariance_type)
    plain = information.standard_errors(problem, parameters, packed)
    replicates = bootstrap.bootstrap(replace(problem, tol=1e-7), parameters, packed, 150, np.random.default_rng(7))
    errors = replicates.standard_errors
    assert (replicates.n_failed, replicates.n_unconverged, errors.method) == (0, 0, "bootstrap")
    # A standard deviation of 150 draws has a relative error of 1/√300 = 5.8 %; fourth moments of 320 rows add some 9 % for the
    # spreads: three of √(5.8² + 9²) = 11 %.
    for name in ("weights", "means", "standard_deviations"):
        assert getattr(errors, name).shape == getattr(plain, name).shape
        np.testing.assert_allclose(getattr(errors, name), getattr(plain, name), rtol=0.33)
    assert (errors.correlations is None) == (plain.correlations is None)
    np.testing.assert_allclose(np.sqrt(np.diagonal(errors.covariance_matrix))[0], errors.weights[0], rtol=ROUNDING)
    assert errors.covariance_matrix.shape == plain.covariance_matrix.shape


def test_bootstrap_of_one_component_is_that_of_the_moments():
    """K = 1: replicates are the moments of the resampled rows, here recomputed from the same random numbers."""
    X = np.ascontiguousarray(load_faithful().to_numpy(float))
    problem, parameters, packed = fitted(X, np.zeros(len(X), dtype=int))
    replicates = bootstrap.bootstrap(problem, parameters, packed, 5, np.random.default_rng(8))
    rng = np.random.default_rng(8)
    for b in range(5):
        counts = rng.multinomial(len(X), np.full(len(X), 1 / len(X)))
        rows = np.repeat(X, counts, axis=0)
        np.testing.assert_allclose(replicates.means[b, 0], rows.mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(replicates.covariances[b, 0], np.cov(rows, rowvar=False, ddof=0), rtol=1e-8)
    lower, upper = replicates.interval(0.5)["standard_deviations"]
    sd = np.sqrt(np.diagonal(replicates.covariances, axis1=2, axis2=3))
    np.testing.assert_allclose(lower, np.quantile(sd, 0.25, axis=0))
    np.testing.assert_allclose(upper, np.quantile(sd, 0.75, axis=0))
    rho = replicates.covariances[:, :, 1, 0] / sd.prod(axis=2)
    np.testing.assert_allclose(replicates.interval(0.5)["correlations"][0][:, 0], np.quantile(rho, 0.25, axis=0))
    with pytest.raises(ValueError, match="prob must lie between 0 and 1; got 90"):
        replicates.interval(90)


def test_bootstrap_draws_as_many_rows_as_the_weights_sum_to():
    """Weights that sum to a tenth of the rows: errors √10 times as large as those of the rows unweighted."""
    X, _ = separated(1, 2, 500)
    problem, parameters, packed = fitted(X, np.zeros(500, dtype=int))
    few = replace(problem, sample_weight=np.repeat([0.2, 0.0], 250))
    half = bootstrap.bootstrap(few, parameters, packed, 400, np.random.default_rng(10))
    sd = X[:250].std(axis=0)
    # A standard deviation of 400 draws has a relative error of 3.5 %, a mean of them one of sd / √50 / √400; four of each.
    np.testing.assert_allclose(half.standard_errors.means[0], sd / np.sqrt(50), rtol=0.15)
    np.testing.assert_allclose(
        half.means[:, 0].mean(axis=0), X[:250].mean(axis=0), atol=4 * sd.max() / np.sqrt(50 * 400)
    )


def test_bootstrap_puts_components_in_the_fits_order():
    X, labels = separated(3, 2, 300)
    _, parameters, packed = fitted(X, labels)
    for order in ([2, 0, 1], [1, 0, 2], [0, 1, 2]):
        shuffled = MixtureParameters(
            parameters.weights[order], parameters.means[order] + 0.2, parameters.precision_factors[order]
        )
        np.testing.assert_array_equal(np.array(order)[bootstrap._fit_order(shuffled, parameters)], [0, 1, 2])


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_bootstrap_takes_switched_and_reseeded_climbs_for_what_they_are(covariance_type, monkeypatch):
    """A climb that renumbers the components is put back in order; one that started a component anew is left out."""
    X, labels = separated(3, 2, 200)
    problem, parameters, packed = fitted(X, labels, covariance_type, tol=1e-8)
    expected = bootstrap.bootstrap(problem, parameters, packed, 12, np.random.default_rng(15))
    climb, calls, order = em.climb, iter(range(12)), [2, 0, 1]

    def troubled(*arguments):
        run, index = climb(*arguments), next(calls)
        if index % 3 == 0:
            return replace(run, n_reseeded=1)
        matrices = oracles.expand_covariances(run.covariances, covariance_type, 3, 2)[order]
        found = MixtureParameters(
            run.parameters.weights[order], run.parameters.means[order], run.parameters.precision_factors[order]
        )
        return replace(run, parameters=found, covariances=problem.kind.pack(matrices), converged=index != 1)

    monkeypatch.setattr(em, "climb", troubled)
    with pytest.warns(information.InformationWarning) as caught:
        actual = bootstrap.bootstrap(problem, parameters, packed, 12, np.random.default_rng(15))
    lost, unconverged = (str(w.message) for w in caught)
    assert lost.startswith("4 of 12 resamples lost a component")
    assert unconverged.startswith("EM did not converge in 1 of 8 resamples")
    assert (actual.n_failed, actual.n_unconverged) == (4, 1)
    kept = [1, 2, 4, 5, 7, 8, 10, 11]
    np.testing.assert_array_equal(actual.weights, expected.weights[kept])
    np.testing.assert_array_equal(actual.means, expected.means[kept])
    np.testing.assert_array_equal(actual.covariances, expected.covariances[kept])


def test_bootstrap_counts_the_resamples_that_lose_a_component():
    """A full covariance on four rows in two dimensions: every so often a resample leaves two of them, or none."""
    rng = np.random.default_rng(12)
    X = np.vstack([rng.standard_normal((60, 2)), 30 + rng.standard_normal((4, 2))])
    problem, parameters, packed = fitted(X, np.repeat([0, 1], [60, 4]), tol=1e-8)
    with pytest.warns(information.InformationWarning, match="of 60 resamples lost a component and are left out"):
        replicates = bootstrap.bootstrap(problem, parameters, packed, 60, np.random.default_rng(13))
    # Fewer than three distinct rows of the four: none (e^-4 = 2 %), one (7 %) or two kinds (some 22 %), so about a third.
    assert 8 <= replicates.n_failed <= 35
    assert len(replicates.weights) == 60 - replicates.n_failed
    assert f"{replicates.n_failed} of 60 resamples" in replicates.standard_errors.notes[0]
    assert np.all(np.isfinite(replicates.standard_errors.covariances))


def test_bootstrap_refuses_what_it_cannot_do():
    X, labels = separated(2, 2, 60)
    problem, parameters, packed = fitted(X, labels)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="n_bootstrap must be at least 2; got 1"):
        bootstrap.bootstrap(problem, parameters, packed, 1, rng)
    with pytest.raises(ValueError, match="sum to 0.6 are too few rows to resample"):
        bootstrap.bootstrap(replace(problem, sample_weight=np.full(60, 0.01)), parameters, packed, 10, rng)


def test_old_faithful():
    """Where the groups are apart, errors are close to those of known labels; rounding and skewness show in the sandwich."""
    X = np.ascontiguousarray(load_faithful().to_numpy(float))
    labels = (X[:, 0] < 3).astype(int)
    problem, parameters, packed = fitted(X, labels)
    errors = information.standard_errors(problem, parameters, packed)
    robust = information.standard_errors(problem, parameters, packed, "sandwich")
    quick = replace(problem, tol=1e-7)
    replicates = bootstrap.bootstrap(quick, parameters, packed, 200, np.random.default_rng(14)).standard_errors
    counts = len(X) * parameters.weights
    sd = np.sqrt(np.diagonal(parameters.covariances, axis1=1, axis2=2))
    known_weights = np.sqrt(parameters.weights * (1 - parameters.weights) / len(X))
    # Missing labels can only take information away; with a few doubtful rows of 272 they take no more than a tenth.
    for actual, known in (
        (errors.weights, known_weights),
        (errors.means, sd / np.sqrt(counts)[:, None]),
        (errors.standard_deviations, sd / np.sqrt(2 * counts)[:, None]),
    ):
        assert np.all(actual >= known * (1 - 1e-9))
        assert np.all(actual < 1.1 * known)
    # 200 draws: 5 % a standard deviation, four of these. The bootstrap estimates the sandwich, also where the model is wrong: the
    # spread of the short eruptions is 1.3 times less certain than normal theory says.
    np.testing.assert_allclose(replicates.means, robust.means, rtol=0.2)
    np.testing.assert_allclose(replicates.standard_deviations, robust.standard_deviations, rtol=0.2)
    assert robust.standard_deviations[1, 0] / errors.standard_deviations[1, 0] == pytest.approx(1.31, abs=0.01)
