"""Laws that EM, the pass and the estimators obey whatever the table, held against generated ones.

EM runs from starts that are transformed with the table, at ``reg_covar=0`` and for a number of plain steps: every step is then the image
of the other's, and what is left is rounding, 1e-15 for each of some hundred rows through covariances of condition 1e4 or less. Near an
optimum steps contract, so that it does not grow; 1e-8 in units of the image's own standard deviations leaves two digits over all
examples of ``--hypothesis-profile=many``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import ConjugatePrior, GaussianMixture, MixtureClassifier, criteria
from bayesgmm.core import kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import ScoreCoordinates, ScoreMoments
from tests import oracles
from tests.mixtures import STRUCTURES, Mixture, random_mixture

STEPS = 10
CLOSE = 1e-8


@dataclass(frozen=True, repr=False)
class Situation:
    """Rows of a mixture, the mixture as a start, frequency weights, and a generator for what is done to them."""

    made_of: str

    mixture: Mixture
    covariance_type: str
    X: np.ndarray
    weights: np.ndarray | None
    rng: np.random.Generator

    def __repr__(self) -> str:
        return self.made_of

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(self.made_of)

    @property
    def shape(self) -> tuple[int, int]:
        """K and D."""
        return self.mixture.means.shape


@st.composite
def situations(draw: st.DrawFn, kinds: tuple[str, ...] = STRUCTURES, most_components: int = 3) -> Situation:
    covariance_type = draw(st.sampled_from(kinds))
    K, D = draw(st.integers(1, most_components)), draw(st.integers(1, 4))
    n_rows = draw(st.integers(40 * K, 300))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, K, D, covariance_type)
    X = mixture.sample(rng, n_rows)
    # Rounded numbers have ties; far from zero there is less left of them.
    decimals = draw(st.sampled_from([None, None, 2, 1]))
    X = X if decimals is None else np.round(X, decimals)
    far = draw(st.sampled_from([0.0, 0.0, 100.0]))
    mixture = Mixture(mixture.weights, mixture.means + far, mixture.packed, mixture.covariances)
    weights = {"none": None, "whole": rng.integers(1, 4, n_rows).astype(float), "any": rng.gamma(2.0, size=n_rows)}
    weighting = draw(st.sampled_from(sorted(weights)))
    made_of = f"{covariance_type}, {n_rows=}, {D=}, {K=}, {seed=}, {decimals=}, {far=}, {weighting=}"
    return Situation(made_of, mixture, covariance_type, X + far, weights[weighting], rng)


def climbed(
    X: np.ndarray,
    covariance_type: str,
    weights: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    v: np.ndarray | None = None,
    prior: ConjugatePrior | None = None,
) -> GaussianMixture:
    """A few plain steps of EM from given parameters."""
    precisions = np.linalg.inv(covariances)
    precisions = 0.5 * (precisions + np.swapaxes(precisions, 1, 2))
    packed = {
        "full": precisions,
        "tied": precisions[0],
        "diag": np.diagonal(precisions, axis1=1, axis2=2),
        "spherical": precisions[:, 0, 0],
    }[covariance_type]
    fit = GaussianMixture(
        len(weights),
        covariance_type=covariance_type,
        weights_init=weights,
        means_init=means,
        precisions_init=packed,
        reg_covar=0.0,
        tol=0.0,
        max_iter=STEPS,
        prior=prior,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            fit.fit(X, sample_weight=v)
        except ValueError:
            # A component on too few rows for a covariance.
            assume(False)
    assume(fit.modes_[0].run.n_reseeded == 0)
    matrices = oracles.expand_covariances(fit.covariances_, covariance_type, *fit.means_.shape)
    deviations = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
    assume(np.linalg.cond(matrices / deviations[:, :, None] / deviations[:, None, :]).max() < 1e4)
    return fit


def of(s: Situation, **changes) -> GaussianMixture:
    m = s.mixture
    given_ = {"X": s.X, "weights": m.weights, "means": m.means, "covariances": m.covariances, "v": s.weights} | changes
    return climbed(covariance_type=s.covariance_type, **given_)


def matrices_of(fit: GaussianMixture) -> np.ndarray:
    return oracles.expand_covariances(fit.covariances_, fit.covariance_type, *fit.means_.shape)


def assert_same(fit: GaussianMixture, weights: np.ndarray, means: np.ndarray, matrices: np.ndarray) -> None:
    """Parameters of a fit, in units of their own standard deviations."""
    deviations = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
    np.testing.assert_allclose(fit.weights_, weights, rtol=CLOSE)
    np.testing.assert_allclose((fit.means_ - means) / deviations, 0, atol=CLOSE)
    scale = deviations[:, :, None] * deviations[:, None, :]
    np.testing.assert_allclose((matrices_of(fit) - matrices) / scale, 0, atol=CLOSE)


def assert_image(s: Situation, A: np.ndarray, b: np.ndarray, prior: ConjugatePrior | None = None) -> None:
    """The fit to A x + b is the image of the fit to x, and densities lose log |det A|."""
    m, moved = s.mixture, None
    if prior is not None:
        moved = ConjugatePrior(
            weight_concentration=prior.weight_concentration,
            mean_prior=A @ prior.mean_prior + b,
            mean_precision=prior.mean_precision,
            degrees_of_freedom=prior.degrees_of_freedom,
            scale=A @ prior.scale @ A.T,
        )
    there = s.X @ A.T + b
    fit = of(s, prior=prior)
    image = of(s, X=there, means=m.means @ A.T + b, covariances=A @ m.covariances @ A.T, prior=moved)
    assert_same(image, fit.weights_, fit.means_ @ A.T + b, A @ matrices_of(fit) @ A.T)
    jacobian = np.linalg.slogdet(A)[1]
    expected = fit.score_samples(s.X) - jacobian
    # A density's exponent: squares of whitened numbers, up to some hundred for the remotest row.
    np.testing.assert_allclose(image.score_samples(there), expected, rtol=1e-6, atol=1e-6)
    if prior is None:
        np.testing.assert_allclose(image.lower_bounds_, np.array(fit.lower_bounds_) - jacobian, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(image.predict_proba(there), fit.predict_proba(s.X), atol=1e-6)


def a_prior(s: Situation) -> ConjugatePrior:
    D = s.X.shape[1]
    spread = s.rng.standard_normal((D, D + 2))
    return ConjugatePrior(2.0, s.X.mean(axis=0) + s.rng.standard_normal(D), 0.5, D + 3.0, spread @ spread.T + np.eye(D))


@given(situations(("full", "tied")), st.booleans())
def test_affine_maps(s, with_prior):
    D = s.X.shape[1]
    A = s.rng.standard_normal((D, D)) + np.diag(s.rng.choice([-2.0, 2.0], D))
    assume(np.linalg.cond(A) < 30)
    assert_image(s, A * 10.0 ** s.rng.uniform(-3, 3), 10 * s.rng.standard_normal(D), a_prior(s) if with_prior else None)


@given(situations(("full", "tied", "diag")))
def test_scalings_of_the_axes(s):
    """Any units, and turned-round axes."""
    D = s.X.shape[1]
    assert_image(s, np.diag(s.rng.choice([-1.0, 1.0], D) * 10.0 ** s.rng.uniform(-40, 40, D)), np.zeros(D))


@given(situations())
def test_similarities(s):
    D = s.X.shape[1]
    A = np.eye(D)
    if s.covariance_type != "diag":
        A = np.linalg.qr(s.rng.standard_normal((D, D)))[0]
    scale = 10.0 ** s.rng.uniform(-20, 20)
    assert_image(s, scale * A, scale * s.rng.standard_normal(D))


@given(situations(), st.booleans())
def test_order_of_rows_columns_and_components(s, with_prior):
    K, D = s.shape
    prior = a_prior(s) if with_prior else None
    fit = of(s, prior=prior)
    rows, columns, components = s.rng.permutation(len(s.X)), s.rng.permutation(D), s.rng.permutation(K)
    m, v, moved = s.mixture, s.weights, None
    if prior is not None:
        scale = np.asarray(prior.scale)[np.ix_(columns, columns)]
        moved = ConjugatePrior(2.0, np.asarray(prior.mean_prior)[columns], 0.5, D + 3.0, scale)
    other = of(
        s,
        X=s.X[rows][:, columns],
        weights=m.weights[components],
        means=m.means[components][:, columns],
        covariances=m.covariances[components][:, columns][:, :, columns],
        v=None if v is None else v[rows],
        prior=moved,
    )
    assert_same(
        other,
        fit.weights_[components],
        fit.means_[components][:, columns],
        matrices_of(fit)[components][:, columns][:, :, columns],
    )
    labels = fit.predict(s.X)[rows]
    sure = fit.predict_proba(s.X).max(axis=1)[rows] > 0.5 + 1e-6
    np.testing.assert_array_equal(components[other.predict(s.X[rows][:, columns])][sure], labels[sure])


@given(situations())
def test_a_weight_of_n_is_the_row_n_times(s):
    n = s.rng.integers(0, 4, len(s.X))
    assume((n > 0).sum() > 30 * len(s.mixture.weights))
    fit, repeated = of(s, v=n.astype(float)), of(s, X=np.repeat(s.X, n, axis=0), v=None)
    assert_same(repeated, fit.weights_, fit.means_, matrices_of(fit))
    rows = np.repeat(s.X, n, axis=0)
    for name in ("score", "aic", "bic", "icl"):
        assert getattr(fit, name)(s.X, sample_weight=n.astype(float)) == pytest.approx(
            getattr(repeated, name)(rows), rel=1e-6
        )


@given(situations(), st.floats(1e-30, 1e30))
def test_maximum_likelihood_sees_ratios_of_weights_alone(s, factor):
    v = np.ones(len(s.X)) if s.weights is None else s.weights
    fit = of(s, v=v)
    assert_same(of(s, v=factor * v), fit.weights_, fit.means_, matrices_of(fit))


@given(situations(), st.booleans())
def test_no_step_lowers_the_objective(s, with_prior):
    bounds = np.array(of(s, prior=a_prior(s) if with_prior else None).lower_bounds_)
    # Rounding of a mean of log densities.
    assert (np.diff(bounds) > -1e-12 * (1 + np.abs(bounds[:-1]))).all()


@given(situations(), st.lists(st.floats(0, 1), max_size=4))
def test_sums_of_blocks_are_the_sums_of_the_whole(s, cuts):
    p, v = s.mixture.parameters, s.weights
    edges = [0, *sorted(int(cut * len(s.X)) for cut in cuts), len(s.X)]
    blocks = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]
    whole = kernel.accumulate(s.X, p, v)
    parts = [kernel.accumulate(s.X[block], p, None if v is None else v[block]) for block in blocks]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for name in ("log_likelihood", "total_weight", "counts"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-11)
    # Sums of numbers of both signs: in units of what they add up.
    size = np.abs(s.X[:, None] - s.mixture.means).max() * whole.total_weight
    np.testing.assert_allclose(total.first, whole.first, atol=1e-13 * size)
    np.testing.assert_allclose(total.second, whole.second, atol=1e-13 * size**2)
    expected = oracles.weighted_sums(s.X, s.mixture.weights, s.mixture.means, s.mixture.covariances, v)
    # Through scipy's densities: rounding times a condition number of up to 1e4.
    assert whole.log_likelihood == pytest.approx(expected[0], rel=1e-9)
    np.testing.assert_allclose(whole.counts, expected[1], rtol=1e-8, atol=1e-9 * whole.total_weight)
    np.testing.assert_allclose(whole.first, expected[2], atol=1e-8 * size)
    np.testing.assert_allclose(whole.second, expected[3], atol=1e-8 * size**2)
    scores = ScoreMoments(ScoreCoordinates(structure(s.covariance_type), p))
    of_whole = scores(s.X, v, 0)
    of_parts = [scores(s.X[block], None if v is None else v[block], 0) for block in blocks]
    meat = sum(part.meat for part in of_parts)
    np.testing.assert_allclose(meat, of_whole.meat, atol=1e-12 * np.abs(of_whole.meat).max())


@given(situations(most_components=1))
def test_one_component_is_the_normal_distribution(s):
    v = np.ones(len(s.X)) if s.weights is None else s.weights
    fit = of(s)
    mean, D = np.average(s.X, axis=0, weights=v), s.X.shape[1]
    covariance = np.cov(s.X.T, aweights=v, bias=True).reshape(D, D)
    if s.covariance_type in ("diag", "spherical"):
        covariance = np.diag(np.diagonal(covariance))
    if s.covariance_type == "spherical":
        covariance = np.trace(covariance) / D * np.eye(D)
    assert_same(fit, np.ones(1), mean[None], covariance[None])
    log_density = stats.multivariate_normal(mean, covariance).logpdf(s.X)
    # A condition number of up to 1e4 in the exponent.
    np.testing.assert_allclose(fit.score_samples(s.X), log_density, rtol=1e-7, atol=1e-7)
    assert fit.lower_bound_ == pytest.approx(np.average(log_density, weights=v), rel=1e-8)
    p = structure(s.covariance_type).n_parameters(1, D)
    assert fit.bic(s.X, sample_weight=v) == pytest.approx(-2 * v @ log_density + p * np.log(v.sum()), rel=1e-8)
    assert fit.aic(s.X, sample_weight=v) == pytest.approx(criteria.aic(v @ log_density, p), rel=1e-8)
    np.testing.assert_allclose(fit.predict_proba(s.X), 1.0, rtol=1e-15)


@given(situations())
def test_densities_and_responsibilities_are_those_of_scipy(s):
    m = s.mixture
    packed = m.packed
    fit = GaussianMixture.from_parameters(m.weights, m.means, packed, covariance_type=s.covariance_type)
    X = np.concatenate([s.X, s.X * 3, m.means])
    np.testing.assert_allclose(
        fit.score_samples(X), oracles.mixture_log_density(X, m.weights, m.means, m.covariances), rtol=1e-8, atol=1e-8
    )
    np.testing.assert_allclose(
        fit.predict_proba(X), oracles.responsibilities(X, m.weights, m.means, m.covariances), atol=1e-8
    )


@given(situations(("full", "tied", "diag")))
def test_standard_errors_have_the_units_of_their_parameters(s):
    fit, scale = of(s), 10.0 ** s.rng.uniform(-20, 20, s.X.shape[1])
    m = s.mixture
    A = np.diag(scale)
    scaled = of(s, X=s.X * scale, means=m.means * scale, covariances=A @ m.covariances @ A)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors = fit.standard_errors(s.X, sample_weight=s.weights)
        others = scaled.standard_errors(s.X * scale, sample_weight=s.weights)
    assume(not errors.undetermined and not caught)
    # The inverse of an information matrix, of condition up to about 1e4 where no direction is undetermined.
    np.testing.assert_allclose(others.weights, errors.weights, rtol=1e-4)
    np.testing.assert_allclose(others.means, errors.means * scale, rtol=1e-4)
    np.testing.assert_allclose(others.standard_deviations, errors.standard_deviations * scale, rtol=1e-4)


@given(situations(("full", "tied", "diag", "spherical")))
def test_classes_may_be_called_anything(s):
    K, _ = s.shape
    assume(K > 1)
    y = np.argmin(np.abs(s.X[:, :1] - s.mixture.means[:, 0]), axis=1)
    assume(np.bincount(y, minlength=K).min() > 10)
    estimator = GaussianMixture(1, covariance_type=s.covariance_type)
    names = np.array(["c", "a", "b"])[s.rng.permutation(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        numbers = MixtureClassifier(estimator, random_state=0).fit(s.X, y, sample_weight=s.weights)
        words = MixtureClassifier(estimator, random_state=0).fit(s.X, names[y], sample_weight=s.weights)
    order = np.argsort(names[:K])
    # The sums over classes in another order.
    np.testing.assert_allclose(words.predict_proba(s.X), numbers.predict_proba(s.X)[:, order], atol=1e-8)
    sure = numbers.predict_proba(s.X).max(axis=1) > 0.5 + 1e-6
    np.testing.assert_array_equal(words.predict(s.X)[sure], names[numbers.predict(s.X)][sure])
