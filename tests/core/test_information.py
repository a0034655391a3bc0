"""Standard errors against dense finite differences of scipy's densities, closed forms, and resampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import bootstrap, em, information, kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, ScoreCoordinates, ScoreMoments, named_scalars
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.datasets import load_faithful
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

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


# Parts of the standard errors one at a time: free entries, coordinates, sums over rows, and what is reported

CONDITIONED = 1e-10
"""Two orders of the same sums of at most some hundred terms, in matrices of condition below 1e3."""


def named(kind: str, n_features: int, order: list[int] | None = None) -> dict[str, float]:
    """Names of numbers that tell where they come from: component (hundreds), feature or pair (units)."""
    free = structure(kind)
    by_component = 100.0 * np.arange(2)[:, None]
    deviations = {"full": by_component + np.arange(n_features), "diag": by_component + np.arange(n_features)}
    deviations |= {"tied": np.arange(float(n_features)), "spherical": by_component[:, 0]}
    pairs = np.arange(n_features * (n_features - 1) / 2)
    correlations = {"full": by_component + pairs, "tied": pairs}.get(kind)
    arrays = {
        "weights": by_component[:, 0],
        "means": by_component + np.arange(n_features),
        "standard_deviations": deviations[kind],
        "correlations": correlations,
    }
    return named_scalars(arrays, free, ["a", "b", "c"][:n_features], order)


def test_names_of_full_covariances_have_components_features_and_pairs():
    assert named("full", 3) == {
        **{"weights[0]": 0, "weights[1]": 100},
        **{"means[0, a]": 0, "means[0, b]": 1, "means[0, c]": 2},
        **{"means[1, a]": 100, "means[1, b]": 101, "means[1, c]": 102},
        **{"standard_deviations[0, a]": 0, "standard_deviations[0, b]": 1, "standard_deviations[0, c]": 2},
        **{"standard_deviations[1, a]": 100, "standard_deviations[1, b]": 101, "standard_deviations[1, c]": 102},
        **{"correlations[0, a:b]": 0, "correlations[0, a:c]": 1, "correlations[0, b:c]": 2},
        **{"correlations[1, a:b]": 100, "correlations[1, a:c]": 101, "correlations[1, b:c]": 102},
    }


def test_an_order_renames_components_and_leaves_what_they_share():
    assert named("tied", 2, [1, 0]) == {
        **{"weights[0]": 100, "weights[1]": 0},
        **{"means[0, a]": 100, "means[0, b]": 101, "means[1, a]": 0, "means[1, b]": 1},
        **{"standard_deviations[a]": 0, "standard_deviations[b]": 1},
        **{"correlations[a:b]": 0},
    }
    assert named("spherical", 1, [1, 0])["standard_deviations[0]"] == 100


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_correlations_have_no_names_where_the_structure_has_none(kind):
    found = named_scalars({"correlations": np.ones((2, 1)), "weights": np.ones(2)}, structure(kind), ["a", "b"])
    assert list(found) == ["weights[0]", "weights[1]"]


def derivatives(free: FreeEntries, kind: str, owner: int) -> np.ndarray:
    """∂Σ/∂entry (q, D, D) of an owner: covariances are linear in their free entries."""
    units = np.eye(free.owners * free.size)[owner * free.size : (owner + 1) * free.size]
    K, D = free.n_components, free.n_features
    return np.stack([structure(kind).expand(free.put(unit), K, D)[owner] for unit in units])


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(2, 3), (3, 1)])
def test_free_entries_are_those_that_the_covariances_are_linear_in(kind, K, D):
    free, rng = FreeEntries(structure(kind), K, D), np.random.default_rng(0)
    J = derivatives(free, kind, 0)
    np.testing.assert_array_equal(free.basis, J)
    A = rng.standard_normal((4, D, D))
    M = A + np.swapaxes(A, 1, 2)
    np.testing.assert_allclose(free.contract(M), np.einsum("aij,nji->na", J, M), rtol=CONDITIONED, atol=1e-14)
    z = rng.standard_normal((5, D))
    outer = z[:, :, None] * z[:, None, :] - np.eye(D)
    np.testing.assert_allclose(free.squares(z), 0.5 * np.einsum("aij,nji->na", J, outer), rtol=CONDITIONED, atol=1e-14)
    entries = rng.standard_normal(free.owners * free.size)
    np.testing.assert_array_equal(free.take(free.put(entries)), entries)
    # Replicates: any number of axes in front.
    many = np.stack([[free.put(i + j + entries) for j in range(2)] for i in range(3)])
    np.testing.assert_array_equal(free.take(many), np.add.outer(np.add.outer(np.arange(3), np.arange(2)), entries))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_deviations_and_correlations_are_those_of_the_matrices(kind):
    mixture = random_mixture(np.random.default_rng(1), 2, 3, kind)
    free = FreeEntries(structure(kind), 2, 3)
    packed = np.stack([mixture.packed, 4 * mixture.packed])
    sd = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    own = {"full": sd, "tied": sd[:1], "diag": sd, "spherical": sd[:, :1]}[kind]
    np.testing.assert_allclose(free.deviations(packed), [own, 2 * own], rtol=CONDITIONED)
    shared = {"tied": own[0], "spherical": own[:, 0]}.get(kind, own)
    np.testing.assert_array_equal(free.drop_shared(own), shared)
    if free.symmetric:
        rho = (mixture.covariances / sd[:, :, None] / sd[:, None, :])[: free.owners, *np.tril_indices(3, -1)]
        np.testing.assert_allclose(free.correlations(packed), [rho, rho], rtol=CONDITIONED)


def unit_normals(weights: list[float], variances: np.ndarray | None = None, n_features: int = 2) -> MixtureParameters:
    """Components at 0 without correlations, of variance 1 unless told."""
    K = len(weights)
    variances = np.ones((K, n_features)) if variances is None else np.asarray(variances, dtype=float)
    factors = np.stack([np.diag(1 / np.sqrt(v)) for v in variances])
    return MixtureParameters(np.array(weights), np.zeros((K, variances.shape[1])), factors)


def test_the_largest_of_the_active_weights_gives_way_to_the_others():
    mixture = unit_normals([0.2, 0.5, 0.3])
    all_move = ScoreCoordinates(structure("full"), mixture)
    np.testing.assert_array_equal(all_move.from_weights, [[1, 0], [-1, -1], [0, 1]])
    # ∂ log π
    np.testing.assert_allclose(all_move.log_weight_gradient, [[5, 0], [-2, -2], [0, 10 / 3]], rtol=CONDITIONED)
    two_move = ScoreCoordinates(structure("full"), mixture, np.array([True, False, True]))
    np.testing.assert_array_equal(two_move.from_weights, [[1], [0], [-1]])


@pytest.mark.parametrize("kind", STRUCTURES)
def test_slots_of_components_fill_the_coordinates_without_gaps(kind):
    own = ScoreCoordinates(structure(kind), unit_normals([0.2, 0.5, 0.3]))
    index = np.arange(own.size)
    means = [index[own.mean_slots(k)].tolist() for k in range(3)]
    covariances = [index[own.covariance_slots(k)].tolist() for k in range(3)]
    assert means == [[2, 3], [4, 5], [6, 7]]
    expected = {
        "full": [[8, 9, 10], [11, 12, 13], [14, 15, 16]],
        "tied": [[8, 9, 10]] * 3,
        "diag": [[8, 9], [10, 11], [12, 13]],
        "spherical": [[8], [9], [10]],
    }
    assert covariances == expected[kind]
    assert own.size == expected[kind][-1][-1] + 1 == structure(kind).n_parameters(3, 2)
    assert [own.slots(k).tolist() for k in range(3)] == [m + c for m, c in zip(means, covariances)]


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_without_a_prior_a_component_without_rows_keeps_nothing_of_its_own(kind):
    active = np.array([True, False, True])
    mixture = unit_normals([0.5, 0.0, 0.5])
    without = ScoreCoordinates(structure(kind), mixture, active, False)
    gone = set(without.slots(1).tolist() if kind != "tied" else range(3, 5))
    assert set(np.flatnonzero(~without.kept).tolist()) == gone
    assert without.kept.shape == (without.size,)
    assert ScoreCoordinates(structure(kind), mixture, active, True).kept.all()


@pytest.mark.parametrize("kind", STRUCTURES)
def test_reg_covar_holds_up_a_variance_of_which_it_is_more_than_half(kind):
    own = ScoreCoordinates(structure(kind), unit_normals([0.6, 0.4]))
    turn, held = own.held_up(0.5)
    assert turn is None
    assert not held.any()
    turn, held = own.held_up(np.nextafter(0.5, 1))
    assert turn is not None
    covariances = np.concatenate([np.arange(own.size)[own.covariance_slots(k)] for k in range(2)])
    assert set(np.flatnonzero(held).tolist()) == set(covariances.tolist())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Entries (0, 0), (1, 0), (1, 1) along the principal axes, in the order of the shares: half, and twice the variance.
        ("full", [[False, False, False], [False, True, True]]),
        ("diag", [[False, False], [False, True]]),
        ("spherical", [[False], [True]]),
    ],
)
def test_only_directions_that_are_held_up_are(kind, expected):
    """reg_covar 0.5: half of a variance of 1 is not more than half of it, of a variance of a quarter it is."""
    variances = [[1.0, 1.0], [0.25, 0.25]] if kind == "spherical" else [[1.0, 1.0], [1.0, 0.25]]
    own = ScoreCoordinates(structure(kind), unit_normals([0.6, 0.4], np.array(variances)))
    _, held = own.held_up(0.5)
    assert [held[own.covariance_slots(k)].tolist() for k in range(2)] == expected
    assert not held[: own.covariance_slots(0).start].any()


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_turned_coordinates_are_the_same_covariances_along_other_axes(kind):
    """Half the squared Frobenius norm of E, the information of a row about it, is a sum of squares in them, whatever the axes."""
    mixture = random_mixture(np.random.default_rng(2), 2, 3, kind)
    own = ScoreCoordinates(structure(kind), mixture.parameters)
    turn, _ = own.held_up(10.0)
    assert turn is not None
    for k in range(2):
        part = own.covariance_slots(k)
        gram = 0.5 * own.free.contract(own.free.basis)
        block = turn[part, part]
        np.testing.assert_allclose(block.T @ gram @ block, 0.5 * np.eye(6), atol=1e-12)
        # The axes are those of reg_covar against the covariance.
        P = mixture.parameters.precision_factors[k if kind == "full" else 0]
        for column, shares in zip(block.T[own.free.diagonal], np.linalg.eigvalsh(P.T @ P), strict=True):
            E = np.einsum("a,aij->ij", column, own.free.basis)
            # Symmetric of rank one: an axis' square.
            assert np.trace(E @ P.T @ P) == pytest.approx(shares, rel=1e-9)
            assert np.linalg.matrix_rank(E, tol=1e-9) == 1
    rest = np.delete(
        np.arange(own.size), np.concatenate([np.arange(own.size)[own.covariance_slots(k)] for k in range(2)])
    )
    np.testing.assert_array_equal(turn[np.ix_(rest, rest)], np.eye(len(rest)))


def dense_scores(X: np.ndarray, mixture: MixtureParameters, own: ScoreCoordinates) -> tuple[np.ndarray, np.ndarray]:
    """Responsibilities (N, K) through scipy and the scores (N, K, P) of rows if their labels were k."""
    K, covariances = mixture.n_components, mixture.covariances
    joint = np.stack(
        [w * stats.multivariate_normal.pdf(X, m, S) for w, m, S in zip(mixture.weights, mixture.means, covariances)],
        axis=1,
    )
    scores = np.zeros((len(X), K, own.size))
    for n, x in enumerate(X):
        for k in range(K):
            z = mixture.precision_factors[k].T @ (x - mixture.means[k])
            scores[n, k, : own.n_weights] = own.from_weights[k] / mixture.weights[k]
            scores[n, k, own.mean_slots(k)] = z
            about = 0.5 * (np.outer(z, z) - np.eye(len(z)))
            scores[n, k, own.covariance_slots(k)] = [np.trace(J @ about) for J in own.free.basis]
    return joint / joint.sum(axis=1, keepdims=True), scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_sums_over_rows_are_those_of_the_scores_of_every_row_and_label(kind, weighted):
    rng = np.random.default_rng(3)
    mixture = random_mixture(rng, 3, 2, kind)
    X = mixture.sample(rng, 40)
    v = rng.uniform(0.3, 2.5, 40) if weighted else None
    own = ScoreCoordinates(structure(kind), mixture.parameters)
    sums = ScoreMoments(own, 1)(X, v, 0)
    r, scores = dense_scores(X, mixture.parameters, own)
    u = np.ones(40) if v is None else v
    by_row = np.einsum("nk,nkp->np", r, scores)
    np.testing.assert_allclose(sums.meat, np.einsum("n,np,nq->pq", u, by_row, by_row), rtol=CONDITIONED, atol=1e-10)
    missing = np.einsum("n,nk,nkp,nkq->pq", u, r, scores, scores) - sums.meat
    # Louis (1982): what is unknown about the labels takes information away and gives none.
    np.testing.assert_allclose(sums.missing_information(own), missing, rtol=CONDITIONED, atol=1e-10)
    assert np.linalg.eigvalsh(sums.missing_information(own)).min() > -1e-10
    problem = em.Problem(X, structure("full"), None, v)
    expected, found = problem.e_step(mixture.parameters), sums.statistics(mixture.parameters)
    for name in ("log_likelihood", "total_weight", "counts", "first", "second"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11, err_msg=name)


def test_rows_of_weight_zero_count_for_nothing_however_far_away():
    X, labels = separated(2, 2, 50)
    _, parameters, _ = fitted(X, labels)
    own = ScoreCoordinates(structure("full"), parameters)
    far = np.vstack([X, [[1e150, 0.0]]])
    few = ScoreMoments(own, 1)(X, np.full(50, 0.5), 0)
    more = ScoreMoments(own, 1)(far, np.append(np.full(50, 0.5), 0.0), 0)
    assert few.total_weight == more.total_weight == 25
    assert more.log_likelihood == pytest.approx(few.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(more.meat, few.meat, rtol=CONDITIONED, atol=1e-12)


def test_no_rows_have_sums_of_zero():
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    sums = ScoreMoments(own, 1)(np.empty((0, 2)), None, 0)
    assert (sums.log_likelihood, sums.total_weight) == (0, 0)
    assert not sums.grams.any()
    assert not sums.meat.any()


@pytest.mark.parametrize(
    ("elements", "n_rows", "largest", "parts"),
    [
        # 11 parameters: as many rows as make up the elements, but no fewer than 64 and no more than 8192.
        (0, 512, 64, 8),
        (11 * 65 - 1, 512, 64, 8),
        (11 * 65, 130, 65, 2),
        (11 * 100_000, 8193, 8192, 2),
        # More pieces than 8 parts: the parts have several.
        (0, 513, 64, 5),
        (0, 64 * 24, 64, 8),
        (0, 1, 1, 1),
    ],
)
def test_pieces_of_a_block_are_small_and_their_sums_few(elements, n_rows, largest, parts, monkeypatch):
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    pieces, handed = [], []
    responsibilities, over_chunks = kernel.responsibilities, information.over_chunks

    def counted(X, parameters, n_threads):
        pieces.append(len(X))
        # Pieces run beside one another; within one there is a single thread.
        assert n_threads == 1
        return responsibilities(X, parameters, n_threads)

    def watched(n_rows, chunk_rows, work, n_threads, task):
        handed.append((-(-n_rows // chunk_rows), work, n_threads))
        over_chunks(n_rows, chunk_rows, work, n_threads, task)

    monkeypatch.setattr(information.kernel, "responsibilities", counted)
    monkeypatch.setattr(information, "over_chunks", watched)
    monkeypatch.setattr(information, "BLOCK_ELEMENTS", elements)
    sums = ScoreMoments(own, 1)(np.zeros((n_rows, 2)), None, 0)
    assert sum(pieces) == sums.total_weight == n_rows
    assert max(pieces) == largest
    # Of 1 + 2 + 3 scores of a row and component: that many times the work of a pass of EM.
    assert handed == [(parts, 6 * kernel.pass_cost(n_rows, 2, 2), 1)]


@pytest.mark.parametrize("with_prior", [False, True], ids=["likelihood", "prior"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_gradients_are_the_slopes_of_the_objective_and_of_the_likelihood(kind, with_prior):
    X, labels = separated(2, 2, 60)
    prior, v = a_prior(X, 2), np.linspace(0.5, 2, 60)
    problem = em.Problem(X, structure(kind), prior if with_prior else None, v)
    mixture = random_mixture(np.random.default_rng(4), 2, 2, kind)
    parameters = replace(mixture.parameters, means=np.array([[0.3, -0.2], [3.0, 1.0]]))
    own = ScoreCoordinates(problem.kind, parameters)
    sums = problem.total(ScoreMoments(own, 1))
    _, expected, gradient, slope = information._information(problem, own, sums.grams, sums.meat)
    jacobian, scale = own.to_natural()
    # The last weight is 1 less the first.
    ways = np.delete(jacobian * scale[:, None], 1, axis=0)
    for objective, found in ((Natural(problem, 2), gradient), (Natural(replace(problem, prior=None), 2), slope)):
        theta = objective.pack(parameters, mixture.packed)
        h = 1e-5
        slopes = [(objective(theta + h * way) - objective(theta - h * way)) / (2 * h) for way in ways.T]
        # Differences: h² of truncation, and 1e-16 |f| / h of rounding, |f| near 1e3.
        np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-6)
    # Of labelled rows at their optimum: N_k of a normal's information, and the multinomial's of the weights.
    counts = sums.grams[:, 0, 0]
    concentration, precision = (prior.resolved_concentration - 1, prior.mean_precision) if with_prior else (0, 0)
    weights = np.diag((counts + concentration) / parameters.weights**2)
    np.testing.assert_allclose(expected[:1, :1], own.from_weights.T @ weights @ own.from_weights, rtol=CONDITIONED)
    for k in range(2):
        part = own.mean_slots(k)
        np.testing.assert_allclose(expected[part, part], (counts[k] + precision) * np.eye(2), rtol=CONDITIONED)
        others = np.delete(np.arange(own.size), np.arange(own.size)[part])
        assert not expected[part, others].any()
    if not with_prior:
        whose = [counts.sum()] * 2 if kind == "tied" else counts
        J = own.free.basis
        for k in range(2):
            part = own.covariance_slots(k)
            np.testing.assert_allclose(
                expected[part, part], 0.5 * whose[k] * np.einsum("aij,bji->ab", J, J), rtol=CONDITIONED, atol=1e-12
            )


def test_as_many_parameters_as_are_allowed_are_not_too_many(monkeypatch):
    X, labels = separated(2, 2, 60)
    problem, parameters, packed = fitted(X, labels)
    monkeypatch.setattr(information, "MAX_PARAMETERS", 11)
    assert information.standard_errors(problem, parameters, packed).covariance_matrix.shape == (11, 11)


def empty_notes(problem: em.Problem, parameters: MixtureParameters) -> list[str]:
    """What is said about components without rows."""
    packed = problem.kind.pack(parameters.covariances)
    with pytest.warns(information.InformationWarning):
        errors = information.standard_errors(problem, parameters, packed)
    return [note for note in errors.notes if "has no rows" in note]


def test_a_weight_of_the_boundary_is_none_at_it():
    X, labels = separated(2, 1, 80)
    prior = a_prior(X, 2)
    problem, parameters, _ = fitted(X, labels, prior=prior)
    least = information.BOUNDARY
    for weight, n_notes in ((least, 0), (np.nextafter(least, 0), 1)):
        moved = replace(parameters, weights=np.array([1 - weight, weight]))
        assert len(empty_notes(problem, moved)) == n_notes


def test_a_share_of_the_rows_of_the_boundary_is_none_at_it(monkeypatch):
    X, labels = separated(2, 1, 80)
    problem, parameters, packed = fitted(X, labels)
    least, e_step, passes = information.BOUNDARY * 80, em.Problem.e_step, []

    def with_count(count):
        def step(self, parameters):
            passes.append(count)
            return replace(e_step(self, parameters), counts=np.array([80 - count, count]))

        return step

    monkeypatch.setattr(em.Problem, "e_step", with_count(least))
    assert information.standard_errors(problem, parameters, packed).notes == ()
    monkeypatch.setattr(em.Problem, "e_step", with_count(np.nextafter(least, 0)))
    assert len(empty_notes(problem, parameters)) == 1
    assert len(passes) == 2


def test_under_a_prior_no_pass_is_spent_on_the_counts(monkeypatch):
    X, labels = separated(2, 1, 80)
    problem, parameters, packed = fitted(X, labels, prior=a_prior(X, 2))
    monkeypatch.delattr(em.Problem, "e_step")
    assert information.standard_errors(problem, parameters, packed).notes == ()


def test_under_a_prior_reg_covar_holds_up_nothing():
    """It is not used there: variances far below it are determined."""
    X, labels = separated(2, 2, 80)
    problem, parameters, packed = fitted(X, labels, prior=a_prior(X, 2))
    plain = information.standard_errors(problem, parameters, packed)
    large = information.standard_errors(replace(problem, reg_covar=1e3), parameters, packed)
    np.testing.assert_array_equal(large.covariance_matrix, plain.covariance_matrix)
    # Nor does a prior on data of tiny variances need it.
    tiny = 1e-3 * X
    problem, parameters, packed = fitted(tiny, labels, prior=replace(a_prior(tiny, 2), scale=1e-6 * np.eye(2)))
    assert information.standard_errors(problem, parameters, packed).notes == ()


@pytest.mark.parametrize("method", ["information", "sandwich"])
@pytest.mark.parametrize(("share", "touched"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_variance_is_lost_where_a_thousandth_of_its_error_lies_in_what_reg_covar_holds_up(share, touched, method):
    """Axes at 45° with variances l and r l, r held up: (1 + r)⁻² of the error of each feature's variance is the first axis'."""
    r = 1 / np.sqrt(1 - share) - 1
    reg = 0.9 * r / (1 - 0.9 * r)
    # The data have the variances 1 and what makes r of the sum with reg_covar.
    own = np.array([1.0, r * (1 + reg) - reg])
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    Z = np.random.default_rng(8).standard_normal((50, 2))
    Z -= Z.mean(axis=0)
    Z @= np.linalg.inv(np.linalg.cholesky(Z.T @ Z / 50)).T
    X = (Z * np.sqrt(own)) @ turn.T
    S = turn @ np.diag(own + reg) @ turn.T
    parameters = MixtureParameters(np.ones(1), np.zeros((1, 2)), factors_from_covariances(S[None]))
    problem = em.Problem(X, structure("full"), reg_covar=reg)
    if touched:
        with pytest.warns(
            information.InformationWarning, match="^reg_covar makes up more than half of a variance of component 0"
        ):
            errors = information.standard_errors(problem, parameters, S[None], method)
    else:
        errors = information.standard_errors(problem, parameters, S[None], method)
    # By symmetry the covariance has nothing of the turn from one axis to the other.
    assert np.isinf(errors.covariances[0]).tolist() == [[touched, False], [False, touched]]
    assert np.all(np.isinf(errors.correlations) == touched)
    assert np.all(np.isinf(errors.standard_deviations) == touched)
    assert np.all(np.isfinite(errors.means))
    assert errors.undetermined == ((0,) if touched else ())


def test_a_root_of_the_inverse_leaves_out_what_is_below_the_threshold():
    A = np.random.default_rng(5).standard_normal((4, 6))
    M = A @ A.T
    root, null = information._inverse_root(M)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(M), rtol=1e-9, atol=1e-12)
    assert null.shape == (4, 0)
    for value, n_lost in ((information.SINGULAR, 1), (0.5 * information.SINGULAR, 1), (0.0, 1), (-1.0, 1)):
        root, null = information._inverse_root(np.diag([4.0, value, 1.0]))
        assert null.shape == (3, n_lost)
        np.testing.assert_allclose(np.abs(null[:, 0]), [0, 1, 0], atol=1e-12)
        np.testing.assert_allclose(root @ root.T, np.diag([0.25, 0, 1]), atol=1e-12)
    root, null = information._inverse_root(np.diag([4.0, 2 * information.SINGULAR, 1.0]))
    assert null.shape == (3, 0)
    np.testing.assert_allclose(np.diagonal(root @ root.T), [0.25, 0.5 / information.SINGULAR, 1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "tied", "spherical"])
@pytest.mark.parametrize("why", ["lost", "held"])
def test_each_entry_that_is_not_determined_names_its_component(kind, why):
    own = ScoreCoordinates(structure(kind), unit_normals([0.3, 0.3, 0.4]))
    none = np.zeros(own.size + 1, dtype=bool)
    # All three weights, then the coordinates' order.
    owners = [[0], [1], [2], *([k] for k in (0, 0, 1, 1, 2, 2))]
    owners += {
        "full": [[k] for k in range(3) for _ in range(3)],
        "tied": [[0, 1, 2]] * 3,
        "spherical": [[0], [1], [2]],
    }[kind]
    assert len(owners) == len(none)
    for entry, expected in enumerate(owners):
        one = none.copy()
        one[entry] = True
        undetermined, notes = information._report(
            own, one if why == "lost" else none, one if why == "held" else none, 0.0
        )
        assert undetermined == tuple(expected)
        (note,) = notes
        plural = "components 0, 1, 2" if len(expected) > 1 else f"component {expected[0]}"
        assert f" of {plural}: the data do" in note
        assert note.startswith("the observed information is singular" if why == "lost" else "reg_covar makes up")
    assert information._report(own, none, none, 0.0) == ((), ())


def test_half_a_standard_error_from_the_optimum_is_not_worth_a_note():
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    none = np.zeros(own.size + 1, dtype=bool)
    assert information._report(own, none, none, 0.5)[1] == ()
    (note,) = information._report(own, none, none, float(np.nextafter(0.5, 1)))[1]
    assert note.startswith("the parameters may lie up to 0.5 of their standard errors from the optimum")


def test_what_is_lost_has_an_infinite_variance_and_no_covariances():
    free = FreeEntries(structure("full"), 2, 2)
    n = 2 + 4 + 6
    A = np.random.default_rng(6).standard_normal((n, n + 5))
    scaled, scale = A @ A.T, np.linspace(0.5, 2.0, n)
    mixture = random_mixture(np.random.default_rng(7), 2, 2)
    lost = np.zeros(n, dtype=bool)
    # A weight, a mean, and the second variance of the last component.
    lost[[0, 3, 11]] = True
    errors = information._collect(free, scaled, scale, lost, mixture.packed, "information", (0, 1), ())
    expected = scale[:, None] * scaled * scale
    expected[lost] = expected[:, lost] = 0
    expected[lost, lost] = np.inf
    expected = np.delete(np.delete(expected, 1, axis=0), 1, axis=1)
    np.testing.assert_allclose(errors.covariance_matrix, expected, rtol=CONDITIONED)
    se = np.where(lost, np.inf, np.sqrt(np.diagonal(scaled)) * scale)
    np.testing.assert_allclose(errors.weights, se[:2], rtol=CONDITIONED)
    np.testing.assert_allclose(errors.means, se[2:6].reshape(2, 2), rtol=CONDITIONED)
    np.testing.assert_allclose(errors.covariances[1], [[se[9], se[10]], [se[10], np.inf]], rtol=CONDITIONED)
    # A correlation needs both variances.
    assert np.isinf(errors.correlations).tolist() == [[False], [True]]
    assert np.isinf(errors.standard_deviations).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_deviations_and_correlations_have_their_errors_by_the_delta_method(kind, n_features):
    """Of any covariance matrix of the estimates, here a random one: slopes by differences."""
    K, D = 2, n_features
    free, mixture = FreeEntries(structure(kind), K, D), random_mixture(np.random.default_rng(9), K, D, kind)
    before, n = K + K * D, K + K * D + free.owners * free.size
    A = np.random.default_rng(10).standard_normal((n, n + 3))
    scaled, scale = A @ A.T / 100, np.linspace(0.5, 2.0, n)
    none = np.zeros(n, dtype=bool)
    # Correlations need the scale of an entry to be that of its deviations.
    sd = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    for owner in range(free.owners):
        part = slice(before + owner * free.size, before + (owner + 1) * free.size)
        scale[part] = sd[owner, free.rows] * sd[owner, free.cols]
    errors = information._collect(free, scaled, scale, none, mixture.packed, "sandwich", (), ("a note",))
    assert (errors.method, errors.covariance_type, errors.notes) == ("sandwich", kind, ("a note",))
    entries, matrix = free.take(mixture.packed), (scaled * scale * scale[:, None])[before:, before:]

    def by_differences(derived):
        h = 1e-6
        slopes = [
            (derived(free.put(entries + e)) - derived(free.put(entries - e))) / (2 * h)
            for e in h * np.eye(len(entries))
        ]
        return np.sqrt(np.einsum("a...,ab,b...->...", slopes, matrix, slopes))

    # Central differences: h² of truncation and 1e-16 / h of rounding, against entries of a tenth to ten.
    close = {"rtol": 1e-6, "atol": 1e-9}
    deviations = by_differences(lambda packed: free.drop_shared(free.deviations(packed)))
    np.testing.assert_allclose(errors.standard_deviations, deviations, **close)
    np.testing.assert_allclose(free.take(errors.covariances), np.sqrt(np.diagonal(matrix)), rtol=CONDITIONED)
    if D == 1 or kind in ("diag", "spherical"):
        assert errors.correlations is None
    else:
        correlations = by_differences(free.correlations)
        np.testing.assert_allclose(errors.correlations, correlations if kind == "full" else correlations[0], **close)


def test_variances_that_rounding_made_negative_have_an_error_of_zero():
    free, mixture = FreeEntries(structure("full"), 1, 2), random_mixture(np.random.default_rng(11), 1, 2)
    scaled = np.diag([0.0, -1e-17, 1.0, -1e-17, -1e-17, -1e-17])
    errors = information._collect(
        free, scaled, np.ones(6), np.zeros(6, dtype=bool), mixture.packed, "information", (), ()
    )
    assert errors.means.tolist() == [[0, 1]]
    assert not errors.covariances.any()
    assert not errors.correlations.any()
