"""The posterior under priors of standard deviations and correlations: density against PyMC's own, sampling against quadrature."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from scipy import integrate, stats
from scipy.special import gammaln, logsumexp

from bayesgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    MixtureClassifier,
    SeparationPrior,
    build_model,
    compare,
    load,
    open_blocks,
    select,
)
from bayesgmm.core.covariance import structure
from bayesgmm.core.separation import FAMILIES
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import ImproperPosteriorError
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.evidence import log_evidence
from bayesgmm.inference.layout import ModelInputs
from bayesgmm.inference.loo import loo_posterior
from bayesgmm.inference.prior_ops import SeparatedFactors
from bayesgmm.inference.summed import SummedPosterior, TableRows
from tests import oracles
from tests.core.test_separation import FLOOR, some_prior
from tests.inference.test_compiled import central_differences
from tests.mixtures import STRUCTURES, random_mixture

SIZES = ((1, 1), (1, 3), (3, 1), (2, 3))
CASES = [(family, kind) for family, kind in zip(FAMILIES, STRUCTURES, strict=True)] + [("gamma", "full")]
"""Each family and each structure; they meet in no term."""


def some_posterior(covariance_type: str, K: int, D: int, family: str = "lognormal", weighted: bool = False):
    rng = np.random.default_rng(10 * K + D)
    mixture = random_mixture(rng, K, D, covariance_type)
    X = mixture.sample(rng, 40)
    v = rng.uniform(0.2, 3.0, 40) if weighted else None
    prior = some_prior(K, D, family, deviation_floor=FLOOR).resolve(X, K, covariance_type)
    posterior = CompiledPosterior.from_data(X, K, covariance_type, prior, v)
    theta = posterior.unconstrain(mixture.weights, mixture.means, mixture.parameters.precision_factors)
    return posterior, theta + 0.2 * rng.standard_normal(posterior.ndim), X, v, prior


def natural(posterior: CompiledPosterior, theta: np.ndarray):
    parts = posterior.constrain(theta)
    factors = parts["precision_factors"]
    packed = structure(posterior.covariance_type).pack(np.linalg.inv(factors @ factors.swapaxes(-1, -2)))
    return parts["weights"], parts["means"], packed


def natural_vector(posterior: CompiledPosterior, theta: np.ndarray) -> np.ndarray:
    weights, means, packed = natural(posterior, theta)
    if posterior.covariance_type in ("full", "tied"):
        packed = packed[..., *np.tril_indices(means.shape[1])]
    return np.concatenate([weights[:-1], means.ravel(), packed.ravel()])


@pytest.mark.parametrize(("family", "covariance_type"), CASES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_density_is_that_in_natural_coordinates_times_the_volume_element(family, covariance_type, K, D):
    """The prior's density is held against scipy in its own tests, the likelihood against scipy here."""
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, family, weighted=K == 3)
    weights, means, packed = natural(posterior, theta)
    matrices = oracles.expand_covariances(packed, covariance_type, K, D)
    rows = oracles.mixture_log_density(X, weights, means, matrices)
    expected = prior.log_density(weights, means, packed, covariance_type) + np.sum(rows if v is None else v * rows)

    volume = np.linalg.slogdet(central_differences(lambda t: natural_vector(posterior, t), theta))[1]
    # Jacobian by central differences: 1e-9 relative in its entries.
    np.testing.assert_allclose(posterior.log_jacobian(theta), volume, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[0] - posterior.log_jacobian(theta), expected, rtol=1e-9)


@pytest.mark.parametrize(("family", "covariance_type"), CASES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_gradient_is_that_of_the_density(family, covariance_type, K, D):
    posterior, theta, *_ = some_posterior(covariance_type, K, D, family)
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], theta)

    # Rounding of values of some hundreds over the step, 1e-8, and truncation.
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[1], numeric, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(("family", "covariance_type"), CASES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (2, 3)])
def test_density_and_gradient_are_the_pymc_models_own(family, covariance_type, K, D):
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, family, weighted=D == 1)
    model = build_model(X, K, covariance_type, prior, v)
    values = {variable.name: variable for variable in model.continuous_value_vars}
    assert set(posterior.names) <= set(values) <= set(posterior.slices)
    shapes = {name: value.shape for name, value in model.initial_point().items()}
    point = [theta[posterior.slices[name]].reshape(shapes[name]) for name in values]
    log_density = model.logp()
    parameters = model.replace_rvs_by_values([model["means"], model["covariances"], model["standard_deviations"]])
    slopes = pytensor.grad(log_density, list(values.values()))
    function = pytensor.function(list(values.values()), [log_density, *parameters, *slopes], mode="FAST_COMPILE")
    logp, means, packed, deviations, *slopes = function(*point)

    value, gradient = posterior.logp_and_grad(theta)
    # Terms added in another order; PyTensor's log-gamma function differs by 3e-9 from the C library's.
    np.testing.assert_allclose(value, logp, rtol=1e-12, atol=1e-8 * K * D)
    for name, slope in zip(values, slopes, strict=True):
        part = gradient[posterior.slices[name]]
        np.testing.assert_allclose(part, slope.ravel(), rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
    ours = natural(posterior, theta)
    np.testing.assert_allclose(ours[1], means, rtol=1e-12)
    # An inverse on each side, of matrices of condition 1e3 at most.
    np.testing.assert_allclose(ours[2], packed, rtol=1e-9, atol=1e-12)
    squares = np.diagonal(packed, axis1=-2, axis2=-1) if covariance_type in ("full", "tied") else packed
    np.testing.assert_allclose(deviations**2, squares, rtol=1e-9)


def test_operation_compiles_to_numba_with_its_gradient():
    posterior, theta, *_ = some_posterior("full", 2, 3)
    rng = np.random.default_rng(0)
    values = [theta[posterior.diagonal].reshape(2, 3), theta[posterior.below].reshape(2, 3)]
    weight = rng.standard_normal((2, 3, 3))
    inputs = [pt.dmatrix(), pt.dmatrix()]
    factors = SeparatedFactors()(inputs[0], np.full(3, FLOOR), inputs[1], 2)
    function = pytensor.function(inputs, [factors, *pytensor.grad((weight * factors).sum(), inputs)], mode="NUMBA")
    P, *slopes = function(*values)
    # PyTensor's options may fuse other operations: rounding.
    np.testing.assert_allclose(P, posterior.constrain(theta)["precision_factors"], rtol=1e-13)
    for which, slope in enumerate(slopes):

        def total(flat, which=which):
            moved = theta.copy()
            moved[(posterior.diagonal, posterior.below)[which]] = flat
            return float(np.sum(weight * posterior.constrain(moved)["precision_factors"]))

        # Central differences of values of some tens.
        np.testing.assert_allclose(
            slope.ravel(), central_differences(total, values[which].ravel()), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_unconstrain_undoes_constrain(covariance_type):
    posterior, theta, *_ = some_posterior(covariance_type, 3, 3)
    points = theta + np.random.default_rng(0).standard_normal((5, posterior.ndim))
    # Triangular solves and logarithms: rounding.
    np.testing.assert_allclose(posterior.unconstrain(**posterior.constrain(points)), points, rtol=1e-10, atol=1e-10)


def test_starts_below_the_floor_are_put_above_it():
    posterior, _, X, *_ = some_posterior("full", 2, 2)
    theta = posterior.unconstrain([0.5, 0.5], X[:2], np.eye(2)[None].repeat(2, axis=0) / (0.1 * FLOOR))
    factors = posterior.constrain(theta)["precision_factors"]
    deviations = np.sqrt(np.diagonal(np.linalg.inv(factors @ factors.swapaxes(1, 2)), axis1=1, axis2=2))
    np.testing.assert_allclose(deviations, 1.01 * FLOOR)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_posterior_from_sums_has_the_same_density_gradient_and_curvature(covariance_type):
    posterior, theta, X, _, prior = some_posterior(covariance_type, 2, 3)
    inputs = ModelInputs.from_prior(X, covariance_type, prior).without_rows()
    summed = SummedPosterior(TableRows(X), inputs, covariance_type)
    scale = np.full(posterior.ndim, 0.1)
    value, gradient, information = summed.curvature(theta, scale)
    # The same sums added in another order.
    np.testing.assert_allclose(value, posterior.logp_and_grad(theta)[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, posterior.logp_and_grad(theta)[1], rtol=1e-9, atol=1e-9)
    numeric = -central_differences(lambda t: posterior.logp_and_grad(t)[1], theta) * 0.01
    # Central differences on both sides.
    np.testing.assert_allclose(information, numeric, rtol=1e-4, atol=1e-5 * np.abs(numeric).max())


@pytest.mark.slow
def test_prior_draws_through_pymc_are_the_priors():
    S = 2000
    prior = some_prior(2, 3, "gamma", eta=1.5, deviation_floor=FLOOR)
    X = np.random.default_rng(0).standard_normal((5, 3))
    with build_model(X, 2, "full", prior):
        drawn = pm.sample_prior_predictive(S, random_seed=1, compile_kwargs={"mode": "FAST_COMPILE"})
    assert drawn["prior_predictive"]["x"].shape == (1, S, 5, 3)
    _, means, packed = prior.resolve(X, 2).draw(np.random.default_rng(2), S, "full")
    sigma = np.sqrt(np.diagonal(packed, axis1=-2, axis2=-1))
    rows, columns = np.tril_indices(3, -1)
    correlations = packed[..., rows, columns] / (sigma[..., rows] * sigma[..., columns])
    for name, ours in (("means", means), ("standard_deviations", sigma), ("correlations", correlations)):
        theirs = drawn["prior"][name].values[0]
        # 24 comparisons of two samples; the seeds are fixed.
        p = [stats.ks_2samp(a, b).pvalue for a, b in zip(ours.reshape(S, -1).T, theirs.reshape(S, -1).T, strict=True)]
        assert min(p) > 1e-4


def quadrature(prior: SeparationPrior, x: np.ndarray) -> tuple[float, float, float]:
    """Log evidence, and mean and standard deviation of σ, for one feature and component: the mean's integral in closed form."""
    N, centre = len(x), x.mean()
    m, s = float(prior.resolved_mean[0]), float(np.asarray(prior.mean_scale)[0])
    law = stats.lognorm(prior.deviation_shape, scale=np.asarray(prior.deviation_scale)[0])

    def log_density(t: float) -> float:
        sigma = np.exp(t)
        within = -0.5 * np.sum((x - centre) ** 2) / sigma**2 - (N - 1) * t - 0.5 * (N - 1) * np.log(2 * np.pi)
        between = stats.norm(m, np.sqrt(s**2 + sigma**2 / N)).logpdf(centre) - 0.5 * np.log(N)
        return float(within + between + law.logpdf(sigma) + t)

    at = np.log(x.std())
    top = log_density(at)

    def moment(power: int) -> float:
        return float(integrate.quad(lambda t: np.exp(power * t + log_density(t) - top), at - 2, at + 2)[0])

    total, first, second = (moment(power) for power in (0, 1, 2))
    return top + np.log(total), first / total, np.sqrt(second / total - (first / total) ** 2)


@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_one_component_against_quadrature(method):
    x = np.random.default_rng(3).normal(2.0, 0.7, 25)
    prior = SeparationPrior(deviation_shape=0.6)
    post = BayesianGaussianMixture(1, prior=prior, method=method, random_state=0, progressbar=False).fit(x[:, None])
    log_marginal, mean, sd = quadrature(post.prior_, x)
    sigma = post.idata_["posterior"]["standard_deviations"].values.ravel()
    # Four standard errors of a mean and of a standard deviation, from no fewer than 1000 effective draws.
    assert sigma.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(1000))
    assert sigma.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * 1000))
    evidence = log_evidence(post)
    assert evidence.log_evidence == pytest.approx(log_marginal, abs=max(4 * evidence.standard_error, 1e-3))
    # Laplace is exact to O(1/N).
    assert evidence.laplace == pytest.approx(log_marginal, abs=0.1)


@pytest.fixture(scope="module")
def separated():
    rng = np.random.default_rng(4)
    rows = [
        rng.multivariate_normal(m, S, n)
        for m, S, n in (
            ([0, 0], [[1, 0.6], [0.6, 1]], 90),
            ([9, 4], [[0.5, -0.2], [-0.2, 2]], 60),
        )
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.slow
def test_nuts_agrees_with_laplace_on_separated_components(separated, covariance_type):
    fits = {
        method: BayesianGaussianMixture(
            2,
            covariance_type=covariance_type,
            prior=SeparationPrior(),
            method=method,
            random_state=0,
            progressbar=False,
        ).fit(separated)
        for method in ("nuts", "laplace")
    }
    assert all(fit.diagnostics_.ok for fit in fits.values())
    nuts, laplace = (fit.summary() for fit in fits.values())
    sd = nuts["sd"].to_numpy()
    # Monte Carlo errors of both, from no fewer than 400 effective draws: 0.07 sd; five such.
    np.testing.assert_allclose(nuts["median"], laplace["median"], atol=0.35 * sd.max(), rtol=0)
    assert np.all(np.abs(nuts["median"] - laplace["median"]) <= 0.3 * sd)
    np.testing.assert_allclose(nuts["sd"], laplace["sd"], rtol=0.3)


def test_everything_a_posterior_does(separated, tmp_path):
    prior = SeparationPrior(deviation_family="inversegamma", eta=3)
    post = BayesianGaussianMixture(2, prior=prior, random_state=0, progressbar=False).fit(separated)
    assert np.isfinite(compare(GaussianMixture(2, random_state=0).fit(separated), post)["posterior_median"]).all()
    assert np.isfinite(loo_posterior(post).loo.elpd)
    assert [variable.name for variable in post.pymc_model_.free_RVs] == [
        "weights",
        "deviations",
        "correlation_sticks",
        "means",
    ]
    post.save(tmp_path / "fit")
    back = load(tmp_path / "fit")
    assert str(back.prior_) == str(post.prior_)
    assert isinstance(back.prior, SeparationPrior)
    np.testing.assert_array_equal(back.score_samples(separated), post.score_samples(separated))
    # The same draws give the same bridge.
    assert log_evidence(back).log_evidence == log_evidence(post).log_evidence
    # In the coordinates (π, μ, σ, R): the volume element of Σ taken off.
    draws = post._draws
    sigma = post.idata_["posterior"]["standard_deviations"].values
    expected = post.prior_.log_density(draws.weights, draws.means, draws.covariances)
    expected = expected + 4 * np.log(2) + 2 * np.log(sigma).sum(axis=(2, 3))
    np.testing.assert_allclose(post.idata_["log_prior"]["prior"].values, expected, rtol=1e-9)


@pytest.mark.slow
def test_selection_under_the_prior(separated):
    chosen = select(
        separated, range(1, 4), prior=SeparationPrior(), method="laplace", criteria=("evidence",), random_state=0
    )
    assert chosen.best("evidence") == ("full", 2)
    assert any("separation, lognormal" in note for note in chosen.notes)


def test_improper_posteriors_are_refused_before_sampling():
    X = load_faithful()
    with pytest.raises(ImproperPosteriorError, match="'waiting' = 78"):
        BayesianGaussianMixture(2, prior=SeparationPrior(deviation_family="halfnormal", eta=4)).fit(X)
    with pytest.raises(ImproperPosteriorError, match=r"8 rows lie on one line .*raise eta above 3"):
        build_model(X, 2, prior=SeparationPrior())


def test_old_faithful_with_a_larger_eta():
    prior = SeparationPrior(eta=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        post = BayesianGaussianMixture(2, prior=prior, random_state=0, progressbar=False).fit(load_faithful())
    assert post.diagnostics_.ok


def test_classes_share_the_prior_and_shrink_on_their_own_rows_alone(separated):
    y = np.repeat(["a", "b"], [90, 60])
    template = BayesianGaussianMixture(
        1, prior=SeparationPrior(), method="laplace", draws=200, target_ess=0, progressbar=False
    )
    bayes = MixtureClassifier(template, random_state=0).fit(separated, y)
    assert isinstance(bayes.prior_, SeparationPrior)
    assert np.mean(bayes.predict(separated) == y) > 0.99
    # Eight rows on a line: of one class, with one component, they do not matter; with two they do.
    X = separated.copy()
    X[2:10, 1] = 2 * X[2:10, 0]
    MixtureClassifier(template, random_state=0).fit(X, y)
    with pytest.raises(ImproperPosteriorError, match="rows 2, 3, 4, 5, 6, 7, 8, 9"):
        MixtureClassifier(template, n_components={"a": 2, "b": 1}, random_state=0).fit(X, y)


def test_rows_in_blocks_have_the_same_posterior(separated, tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, separated)
    options = {"prior": SeparationPrior(), "method": "laplace", "random_state": 0, "progressbar": False}
    whole = BayesianGaussianMixture(2, **options).fit(separated)
    blocks = BayesianGaussianMixture(2, **options).fit(open_blocks(path))
    for name in ("mean_prior", "mean_scale", "deviation_scale"):
        # The median is the sample's, which is all rows here; sums are added in another order.
        np.testing.assert_allclose(getattr(blocks.prior_, name), getattr(whole.prior_, name), rtol=1e-12)
    ours, theirs = blocks.summary(), whole.summary()
    if blocks.weights_.argmax() != whole.weights_.argmax():
        # Sums in another order may begin with the other component.
        ours = ours.rename(index=lambda name: re.sub(r"\[(\d)", lambda m: f"[{1 - int(m[1])}", name)).loc[theirs.index]
    # Other draws of one posterior: 4000 resampled ones each.
    assert np.all(np.abs(ours["mean"].to_numpy() - theirs["mean"].to_numpy()) < 0.15 * theirs["sd"].to_numpy())
    half = BayesianGaussianMixture(2, **(options | {"prior": SeparationPrior(deviation_family="halfnormal")}))
    X = separated.copy()
    X[3, 0] = X[4, 0]
    np.save(path, X)
    with pytest.raises(ImproperPosteriorError, match="2 rows have"):
        half.fit(open_blocks(path))


def log_subset_evidence(x: np.ndarray, m: float, s: float, log_deviation) -> np.ndarray:
    """Log density of every subset of the values of one feature as one component, by quadrature over log σ; (2^N,)."""
    members = (np.arange(2 ** len(x))[:, None] >> np.arange(len(x))) & 1
    n = members.sum(axis=1)
    nodes, node_weights = np.polynomial.legendre.leggauss(300)
    t = 8 * nodes
    sigma = np.exp(t)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, members @ x / n, 0.0)
        scatter = (members * (x - mean[:, None]) ** 2).sum(axis=1)
        # Rows less their mean, and the mean, which is Normal(m, s² + σ²/n).
        log_rows = -0.5 * scatter[:, None] / sigma**2 - (n[:, None] - 1) * (t + 0.5 * np.log(2 * np.pi))
        log_rows -= 0.5 * np.log(n)[:, None]
        log_rows += stats.norm(m, np.sqrt(s**2 + sigma**2 / n[:, None])).logpdf(mean[:, None])
    log_rows = np.where(n[:, None] > 0, log_rows, 0.0)
    return logsumexp(log_rows + log_deviation(t) + t, b=8 * node_weights, axis=1)


def enumerated_evidence(X: np.ndarray, prior: SeparationPrior, law) -> float:
    """Log evidence of two components with diagonal covariances, summed over all allocations."""
    N, D = X.shape
    total = np.zeros(2**N)
    for j in range(D):
        values = log_subset_evidence(
            X[:, j], prior.resolved_mean[j], np.asarray(prior.mean_scale)[j], lambda t, j=j: law(j).logpdf(np.exp(t))
        )
        total += values + values[::-1]
    n = ((np.arange(2**N)[:, None] >> np.arange(N)) & 1).sum(axis=1)
    # Dirichlet(1, 1): Γ(2) Γ(n + 1) Γ(N − n + 1) / Γ(N + 2).
    return float(logsumexp(total + gammaln(n + 1) + gammaln(N - n + 1) - gammaln(N + 2)))


@pytest.mark.parametrize(
    ("family", "law"),
    [
        ("lognormal", lambda scale, a: stats.lognorm(a, scale=scale)),
        pytest.param("gamma", lambda scale, a: stats.gamma(a, scale=scale), marks=pytest.mark.slow),
    ],
)
def test_evidence_and_predictive_density_against_the_sum_over_all_allocations(family, law):
    X = np.array([[-1.2, 0.3], [-0.7, 0.9], [-1.6, -0.2], [1.1, 2.4], [1.5, 3.1], [0.6, 2.2], [1.9, 1.7]])
    prior = SeparationPrior(1.0, [0.0, 1.0], [2.0, 2.0], family, [0.5, 0.6], 2.2 if family == "gamma" else 0.7)
    with warnings.catch_warnings():
        # So few rows allow components to change places.
        warnings.simplefilter("ignore")
        post = BayesianGaussianMixture(
            2, covariance_type="diag", prior=prior, draws=2500, target_ess=0, random_state=0, progressbar=False
        ).fit(X)
    exact = enumerated_evidence(
        X, post.prior_, lambda j: law(np.asarray(prior.deviation_scale)[j], prior.deviation_shape)
    )
    evidence = post.log_evidence()
    assert evidence.standard_error < 0.05
    assert evidence.log_evidence == pytest.approx(exact, abs=4 * evidence.standard_error)
    for row in ([-1.0, 0.5], [0.0, 1.0], [3.0, 0.0]):
        more = enumerated_evidence(
            np.vstack([X, row]), post.prior_, lambda j: law(np.asarray(prior.deviation_scale)[j], prior.deviation_shape)
        )
        # 10,000 draws, at least 2,000 of them effective; densities in the tails vary by their own size and more.
        assert post.score_samples([row])[0] == pytest.approx(more - exact, abs=0.12)
