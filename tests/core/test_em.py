from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.core.priors import ConjugatePrior
from tests import oracles
from tests.mixtures import STRUCTURES, Coordinates, random_mixture
from tests.reference import data_set, em_fits


def overlapping(seed: int = 0, n_rows: int = 150, D: int = 2) -> np.ndarray:
    """Rows of three components that overlap, so that EM has a way to go."""
    rng = np.random.default_rng(seed)
    return random_mixture(rng, 3, D, spread=1.5).sample(rng, n_rows)


def some_prior(X: np.ndarray, K: int) -> ConjugatePrior:
    """A prior that is felt: unequal concentrations, and the weight of several rows."""
    base = ConjugatePrior.fraley_raftery(X, K)
    return dataclasses.replace(base, weight_concentration=np.linspace(1.5, 3, K), mean_precision=0.5)


def given_start(X: np.ndarray, K: int, covariance_type: str, seed: int = 0):
    """A start at random rows with the data's own variances."""
    rng = np.random.default_rng(seed)
    kind, D = structure(covariance_type), X.shape[1]
    matrices = np.stack([np.diag(np.full(D, X.var(axis=0).mean()))] * K)
    packed = kind.pack(matrices)
    means = X[rng.choice(len(X), K, replace=False)]
    return MixtureParameters(np.full(K, 1 / K), means, kind.factors(packed, K, D)), packed


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_iteration_raises_the_objective(covariance_type, with_prior, seed):
    X = overlapping(seed)
    v = np.random.default_rng(seed).uniform(0.5, 2, len(X)) if seed % 2 else None
    prior = some_prior(X, 3) if with_prior else None
    problem = em.Problem(X, structure(covariance_type), prior, v, 0.0, 0.0, 150)
    run = em.climb(problem, *given_start(X, 3, covariance_type, seed), np.random.default_rng(seed))
    assert run.n_reseeded == 0
    assert (run.n_iter, len(run.lower_bounds)) == (150, 151)
    # At the top only rounding is left: 150 rows of about 5 nats, 1e-16 each.
    assert np.diff(run.lower_bounds).min() > -1e-13
    assert run.lower_bounds[-1] - run.lower_bounds[0] > 0.01


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_one_iteration_is_dempster_laird_and_rubins(covariance_type):
    """One E-step and one M-step by their definitions, through scipy's densities."""
    X = overlapping()
    v = np.random.default_rng(0).uniform(0.5, 2, len(X))
    kind, K, D = structure(covariance_type), 3, 2
    parameters, packed = given_start(X, K, covariance_type)
    run = em.climb(em.Problem(X, kind, None, v, 0.0, 0.0, 1), parameters, packed, np.random.default_rng(0))
    r = v[:, None] * oracles.responsibilities(X, parameters.weights, parameters.means, parameters.covariances)
    counts = r.sum(axis=0)
    means = r.T @ X / counts[:, None]
    scatters = np.stack([(r[:, k, None] * (X - means[k])).T @ (X - means[k]) for k in range(K)])
    expected = {
        "full": scatters / counts[:, None, None],
        "tied": scatters.sum(axis=0) / v.sum(),
        "diag": np.diagonal(scatters, axis1=1, axis2=2) / counts[:, None],
        "spherical": np.trace(scatters, axis1=1, axis2=2) / counts / D,
    }[covariance_type]
    np.testing.assert_allclose(run.parameters.weights, counts / v.sum(), rtol=1e-12)
    np.testing.assert_allclose(run.parameters.means, means, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(run.covariances, expected, rtol=1e-11, atol=1e-12)
    natural = (run.parameters.weights, means, oracles.expand_covariances(expected, covariance_type, K, D))
    log_likelihood = v @ oracles.mixture_log_density(X, *natural)
    assert run.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert run.objective == pytest.approx(log_likelihood / v.sum(), rel=1e-12)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("with_prior", [False, True])
def test_fit_is_a_stationary_point_of_scipys_log_posterior(covariance_type, D, with_prior):
    """In (π, μ, Σ): the chart has no Jacobian. Without a prior it is the likelihood's stationary point."""
    X = overlapping(3, 200, D)
    v = np.random.default_rng(1).uniform(0.5, 2, len(X))
    prior = some_prior(X, 2) if with_prior else None
    problem = em.Problem(X, structure(covariance_type), prior, v, 0.0, 1e-15, 5000)
    best = em.climb(problem, *given_start(X, 2, covariance_type), np.random.default_rng(0))
    coordinates = Coordinates(covariance_type, 2, D)

    def log_posterior(u):
        weights, means, packed = coordinates.unflatten(u)
        matrices = oracles.expand_covariances(packed, covariance_type, 2, D)
        total = v @ oracles.mixture_log_density(X, weights, means, matrices)
        if prior is not None:
            total += oracles.log_prior(weights, means, packed, prior, covariance_type)
        return total

    top = coordinates.flatten(best.parameters.weights, best.parameters.means, best.covariances)
    assert best.objective == pytest.approx(log_posterior(top) / v.sum(), rel=1e-11)
    h = 1e-4
    gradient, curvature = np.empty(len(top)), np.empty(len(top))
    for i in range(len(top)):
        step = np.zeros(len(top))
        step[i] = h
        up, down = log_posterior(top + step), log_posterior(top - step)
        gradient[i], curvature[i] = (up - down) / (2 * h), (up - 2 * log_posterior(top) + down) / h**2
    # EM stops when a step gains less than 1e-15 × Σv = 2e-13, which is ½ curvature × step² of it: steps of 1e-6 standard errors, and
    # even at a rate of convergence of 0.99 a distance of 1e-4. Differences: h² f‴ / 6 ≈ 1e-6 and rounding 1e-13 × 1e3 / h = 1e-6.
    assert np.abs(gradient / np.sqrt(np.maximum(-curvature, 1))).max() < 3e-4


def references():
    """The best that is not near-singular of the other programs, for each data set, structure and K."""
    best = {}
    for fit in em_fits():
        # One feature: full, diag and spherical are one model.
        if fit.near_singular or (fit.data == "galaxies" and fit.covariance_type in ("diag", "spherical")):
            continue
        key = (fit.data, fit.covariance_type, fit.n_components)
        best[key] = max(best.get(key, -np.inf), fit.loglik)
    return [(*key, value) for key, value in best.items()]


@pytest.mark.parametrize(("data", "covariance_type", "K", "loglik"), references())
def test_reaches_or_beats_mclust_and_scikit_learn(data, covariance_type, K, loglik):
    X = data_set(data)
    # scikit-learn's reference has this tol, and twenty starts; mclust's was continued to a relative change of 1e-12.
    settings = {"tol": 1e-8, "max_iter": 5000}
    found = em.fit(X, K, covariance_type, n_init=10, rng=np.random.default_rng(0), **settings)
    if found.best.log_likelihood <= loglik - 1e-3:
        # Ten starts find the best optimum nearly everywhere; where one seed does not, forty must.
        found = em.fit(X, K, covariance_type, n_init=40, rng=np.random.default_rng(0), **settings)
    # A change of 1e-8 per row with a rate of convergence of 0.99 or so leaves 1e-6 × 272 rows to gain.
    assert found.best.log_likelihood > loglik - 1e-3
    assert not found.modes[0].spurious


def separated(seed: int = 0):
    rng = np.random.default_rng(seed)
    return np.vstack(
        [rng.standard_normal((60, 2)), rng.standard_normal((40, 2)) + 15, rng.standard_normal((30, 2)) - 15]
    )


def test_modes_tell_how_many_starts_reached_each():
    X = separated()
    found = em.fit(X, 3, "full", n_init=10, rng=np.random.default_rng(0))
    assert sum(mode.n_starts for mode in found.modes) + len(found.failures) == 10
    objectives = [mode.objective for mode in found.modes if not mode.spurious]
    assert objectives == sorted(objectives, reverse=True)
    best = found.modes[0]
    assert found.best is best.run
    assert best.smallest_count == pytest.approx(30, abs=1e-3)
    assert not best.spurious
    spread = np.diag(1 / X.std(axis=0))
    expected = min(
        np.linalg.eigvalsh(spread @ np.cov(X[a:b].T, bias=True) @ spread)[0]
        for a, b in ((0, 60), (60, 100), (100, 130))
    )
    # Responsibilities of clusters 20 sd apart are 0 or 1 to beyond double precision.
    assert best.smallest_eigenvalue == pytest.approx(expected, rel=1e-6)
    text = str(best)
    assert "30.0 rows" in text
    assert "spurious" not in text


def test_distinct_optima_are_kept_apart_and_equal_ones_merged():
    X = separated()
    kind = structure("full")
    truth = np.stack([X[:60].mean(axis=0), X[60:100].mean(axis=0), X[100:].mean(axis=0)])
    # Another optimum: two components share the first cluster and one spans the other two.
    shared = np.stack([X[0], X[1], np.zeros(2)])
    eye = np.stack([np.eye(2)] * 3)
    wide = eye * np.array([1.0, 1.0, 400.0])[:, None, None]
    starts = []
    for means, packed in ((truth, eye), (truth[[2, 0, 1]], 2 * eye), (truth[[1, 2, 0]], 3 * eye), (shared, wide)):
        starts.append((MixtureParameters(np.full(3, 1 / 3), means, kind.factors(packed, 3, 2)), packed))
    found = em.fit(X, 3, "full", starts=starts, rng=np.random.default_rng(0))
    assert [mode.n_starts for mode in found.modes][0] == 3
    assert sum(mode.n_starts for mode in found.modes) == 4
    assert len(found.modes) == 2
    assert found.modes[0].objective > found.modes[1].objective


def test_spurious_optimum_is_flagged_and_not_preferred():
    """Two rows nearly on top of each other: a component on them alone raises the likelihood without saying anything."""
    rng = np.random.default_rng(5)
    X = np.vstack([rng.standard_normal((60, 1)), rng.standard_normal((60, 1)) + 4, [[8.0], [8.0 + 1e-9]]])
    kind = structure("full")

    def start(means, variances):
        packed = np.array(variances)[:, None, None]
        return MixtureParameters(np.full(2, 0.5), np.array(means)[:, None], kind.factors(packed, 2, 1)), packed

    honest, on_the_pair = start([0.0, 4.0], [1.0, 1.0]), start([2.0, 8.0], [5.0, 1e-10])
    found = em.fit(X, 2, "full", starts=[on_the_pair, honest], rng=np.random.default_rng(0))
    assert [mode.spurious for mode in found.modes] == [False, True]
    assert found.modes[1].objective > found.modes[0].objective
    assert found.modes[1].smallest_count == pytest.approx(2, abs=0.1)
    assert found.modes[1].smallest_eigenvalue < 1e-10
    assert "spurious" in str(found.modes[1])
    assert found.best is found.modes[0].run
    alone = em.fit(X, 2, "full", starts=[on_the_pair], rng=np.random.default_rng(0))
    assert alone.modes[0].spurious
    # Under a prior there is no such optimum.
    prior = ConjugatePrior.fraley_raftery(X, 2)
    regular = em.fit(X, 2, "full", prior=prior, starts=[on_the_pair, honest], rng=np.random.default_rng(0))
    assert not any(mode.spurious for mode in regular.modes)
    assert regular.modes[0].smallest_eigenvalue > 1e-3


def test_tight_clusters_far_apart_are_not_called_spurious():
    """Clusters 1e4 of their own widths apart are all small against the data, and real."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 2)) + np.repeat([[0.0, 0.0], [1e4, 0.0], [0.0, 1e4]], 30, axis=0)
    found = em.fit(X, 3, "full", rng=np.random.default_rng(0))
    assert found.modes[0].smallest_eigenvalue < 1e-3
    assert not found.modes[0].spurious


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("with_prior", [False, True])
def test_frequency_weight_is_the_row_repeated(covariance_type, with_prior):
    X = overlapping(1)
    v = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
    repeated = np.repeat(X, v.astype(int), axis=0)
    prior = some_prior(repeated, 3) if with_prior else None
    start = given_start(X, 3, covariance_type)
    common = {"prior": prior, "starts": [start], "tol": 0.0, "max_iter": 60}
    a = em.fit(X, 3, covariance_type, sample_weight=v, rng=np.random.default_rng(0), **common)
    b = em.fit(repeated, 3, covariance_type, rng=np.random.default_rng(0), **common)
    # The same sums in another order: rounding, amplified a little by 60 iterations that are not yet at rest.
    np.testing.assert_allclose(a.best.lower_bounds, b.best.lower_bounds, rtol=1e-11)
    np.testing.assert_allclose(a.best.parameters.means, b.best.parameters.means, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(a.best.parameters.weights, b.best.parameters.weights, rtol=1e-8)
    np.testing.assert_allclose(a.best.covariances, b.best.covariances, rtol=1e-7, atol=1e-9)
    assert a.best.log_likelihood == pytest.approx(b.best.log_likelihood, rel=1e-11)
    assert a.modes[0].smallest_count == pytest.approx(b.modes[0].smallest_count, rel=1e-8)
    assert a.modes[0].smallest_eigenvalue == pytest.approx(b.modes[0].smallest_eigenvalue, rel=1e-6)


@pytest.mark.parametrize("method", ["kmeans", "k-means++", "random", "random_from_data"])
def test_rows_of_weight_zero_have_no_say(method):
    """An outlier of weight 0 changes neither where EM starts nor where it ends nor the report."""
    X = separated()
    with_outlier = np.vstack([X, [[1e3, -1e3]]])
    v = np.append(np.ones(len(X)), 0.0)
    a = em.fit(X, 3, init_params=method, rng=np.random.default_rng(0)).modes[0]
    b = em.fit(with_outlier, 3, sample_weight=v, init_params=method, rng=np.random.default_rng(0)).modes[0]
    assert a.objective == pytest.approx(b.objective, abs=1e-6)
    assert a.smallest_eigenvalue == pytest.approx(b.smallest_eigenvalue, rel=1e-3)


def test_same_seed_same_fit_on_any_number_of_threads():
    X = overlapping(2, 300)
    fits = [em.fit(X, 3, rng=np.random.default_rng(7), n_threads=n) for n in (1, 1, 2)]
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].best.parameters.means, other.best.parameters.means)
        np.testing.assert_array_equal(fits[0].best.covariances, other.best.covariances)
        assert fits[0].best.lower_bounds == other.best.lower_bounds
        assert [m.n_starts for m in fits[0].modes] == [m.n_starts for m in other.modes]


def test_history_holds_the_parameters_of_every_iteration():
    """L = 1, 2, 5, 20 of one long run are the ends of runs of that length."""
    X = overlapping(4)
    start = given_start(X, 3, "full")
    long = em.fit(X, 3, starts=[start], tol=0.0, max_iter=20, rng=np.random.default_rng(0), keep_history=True).best
    assert len(long.history) == len(long.lower_bounds) == 21
    assert long.history[0] is start[0]
    for L in (1, 2, 5, 20):
        short = em.fit(X, 3, starts=[start], tol=0.0, max_iter=L, rng=np.random.default_rng(0)).best
        np.testing.assert_array_equal(long.history[L].means, short.parameters.means)
        np.testing.assert_array_equal(long.history[L].weights, short.parameters.weights)
        assert long.lower_bounds[: L + 1] == short.lower_bounds
        assert short.history == ()


def test_history_and_bounds_of_several_starts_are_whole():
    """The loose climb and its continuation make one trace, with no iteration twice."""
    X = overlapping(4)
    best = em.fit(X, 3, tol=1e-8, rng=np.random.default_rng(0), keep_history=True).best
    assert len(best.history) == len(best.lower_bounds) == best.n_iter + 1
    # Equal neighbours would be an iteration told twice; the last steps may be below rounding.
    assert np.diff(best.lower_bounds[:-1]).min() > 0
    for parameters, bound in ((best.history[0], best.lower_bounds[0]), (best.history[-1], best.lower_bounds[-1])):
        natural = (parameters.weights, parameters.means, parameters.covariances)
        assert oracles.mixture_log_density(X, *natural).mean() == pytest.approx(bound, rel=1e-11)
    np.testing.assert_array_equal(best.history[-1].means, best.parameters.means)


def test_callback_sees_every_iteration():
    X = overlapping(4)
    seen = []
    run = em.fit(
        X, 2, starts=[given_start(X, 2, "full")], rng=np.random.default_rng(0), callback=lambda *a: seen.append(a)
    ).best
    assert [iteration for iteration, _, _ in seen] == list(range(run.n_iter + 1))
    assert tuple(objective for _, _, objective in seen) == run.lower_bounds
    np.testing.assert_array_equal(seen[-1][1].means, run.parameters.means)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-7])
def test_tol_is_the_change_of_the_mean_log_likelihood(tol):
    X = overlapping(4)
    rng, start = np.random.default_rng(0), given_start(X, 3, "full")
    run = em.fit(X, 3, starts=[start], tol=tol, rng=rng, accelerated=False).best
    steps = np.abs(np.diff(run.lower_bounds))
    assert run.converged
    assert steps[-1] < tol
    assert (steps[:-1] >= tol).all()
    stopped = em.fit(X, 3, starts=[given_start(X, 3, "full")], tol=1e-12, max_iter=3, rng=np.random.default_rng(0)).best
    assert not stopped.converged
    assert stopped.n_iter == 3


def test_max_iter_bounds_each_start_and_its_continuation():
    found = em.fit(overlapping(4), 3, tol=0.0, max_iter=17, rng=np.random.default_rng(0))
    assert all(mode.run.n_iter <= 17 for mode in found.modes)


def test_prior_makes_reg_covar_needless():
    X = overlapping(0)
    prior, start = some_prior(X, 2), given_start(X, 2, "full")
    a, b = (
        em.fit(X, 2, prior=prior, reg_covar=r, starts=[start], rng=np.random.default_rng(0)).best for r in (0.0, 5.0)
    )
    np.testing.assert_array_equal(a.covariances, b.covariances)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_one_component_is_the_closed_form(covariance_type):
    X = overlapping(0, 100, 3)
    best = em.fit(X, 1, covariance_type, rng=np.random.default_rng(0)).best
    S = np.cov(X.T, bias=True)
    expected = {"full": S[None], "tied": S, "diag": np.diag(S)[None], "spherical": np.array([np.trace(S) / 3])}
    np.testing.assert_allclose(best.covariances, expected[covariance_type], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(best.parameters.means[0], X.mean(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(best.parameters.weights, [1.0])


def assert_sound(found: em.EMFit) -> None:
    """No NaN anywhere, weights on the simplex, covariances positive definite."""
    for mode in found.modes:
        parameters = mode.run.parameters
        assert np.isfinite(parameters.means).all()
        assert parameters.weights.sum() == pytest.approx(1, rel=1e-12)
        assert (parameters.weights >= 0).all()
        assert np.isfinite(parameters.precision_factors).all()
        assert (np.linalg.eigvalsh(parameters.covariances) > 0).all()
        assert np.isfinite(mode.run.lower_bounds).all()


COLLAPSING = {
    "ten rows in one place": np.vstack([np.random.default_rng(0).standard_normal((40, 2)), np.full((10, 2), 5.0)]),
    "ties in one feature": np.repeat(np.arange(5.0), 10)[:, None],
    "rows on a line": np.vstack(
        [np.random.default_rng(0).standard_normal((40, 2)), np.column_stack([np.arange(12.0) + 8, np.arange(12.0) + 8])]
    ),
    "fewer rows than features": np.random.default_rng(0).standard_normal((6, 9)),
    "two distinct rows": np.repeat([[0.0, 0.0], [1.0, 2.0]], 10, axis=0),
}


@pytest.mark.parametrize("name", COLLAPSING)
@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("reg_covar", [0.0, 1e-6])
def test_collapsing_components_are_reported_and_never_nan(name, covariance_type, reg_covar):
    """Either a sound fit, or one error that says that the covariances are not positive definite."""
    X = COLLAPSING[name]
    message = ""
    try:
        found = em.fit(X, 3, covariance_type, reg_covar=reg_covar, max_iter=300, rng=np.random.default_rng(0))
    except em.DegenerateFitError as error:
        message = str(error)
    else:
        assert_sound(found)
    if message:
        assert reg_covar == 0.0
        assert "positive definite" in message
        assert "reg_covar" in message


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_prior_keeps_collapsing_data_regular(covariance_type):
    for name in ("ten rows in one place", "ties in one feature", "rows on a line"):
        X = COLLAPSING[name]
        found = em.fit(X, 3, covariance_type, prior=ConjugatePrior.fraley_raftery(X, 3), rng=np.random.default_rng(0))
        assert_sound(found)
        assert not found.failures


def test_empty_component_is_started_anew():
    """A component started so far away that no row is its own comes back with rows, and the fit says so."""
    X = separated()
    kind = structure("full")
    packed = np.stack([np.eye(2)] * 3)
    means = np.array([[0.0, 0.0], [15.0, 15.0], [1e6, 1e6]])
    start = (MixtureParameters(np.full(3, 1 / 3), means, kind.factors(packed, 3, 2)), packed)
    found = em.fit(X, 3, starts=[start], rng=np.random.default_rng(0))
    assert found.best.n_reseeded >= 1
    assert_sound(found)
    np.testing.assert_allclose(np.sort(found.best.counts), [30, 40, 60], atol=1e-3)


def test_lost_component_is_not_started_anew_at_a_row_of_weight_zero():
    X = np.vstack([separated(), np.full((60, 2), 500.0) + np.arange(60)[:, None]])
    v = np.append(np.ones(130), np.zeros(60))
    packed = np.stack([np.eye(2)] * 3)
    means = np.array([[0.0, 0.0], [15.0, 15.0], [1e6, 1e6]])
    start = (MixtureParameters(np.full(3, 1 / 3), means, structure("full").factors(packed, 3, 2)), packed)
    found = em.fit(X, 3, sample_weight=v, starts=[start], rng=np.random.default_rng(0))
    assert found.best.n_reseeded == 1
    np.testing.assert_allclose(np.sort(found.best.counts), [30, 40, 60], atol=1e-3)


def test_start_of_one_component_far_from_the_data():
    """Sums centred 1e8 sd away lose every digit of the scatter; the climb must still end at the closed form."""
    X = overlapping(0)
    packed = np.eye(2)[None]
    start = (MixtureParameters(np.ones(1), np.full((1, 2), 1e8), np.eye(2)[None]), packed)
    found = em.fit(X, 1, starts=[start], tol=1e-9, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found.best.covariances[0], np.cov(X.T, bias=True), rtol=1e-6, atol=1e-8)


def test_concentration_below_one_has_no_mode():
    X = overlapping(0)
    prior = dataclasses.replace(some_prior(X, 2), weight_concentration=np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="weight_concentration"):
        em.fit(X, 2, prior=prior, rng=np.random.default_rng(0))
    em.fit(X, 2, prior=prior.at_least_uniform(), rng=np.random.default_rng(0))


@pytest.mark.parametrize("scale", [1e-120, 1e-30, 1e30, 1e120])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_units_of_the_data_do_not_matter(scale, covariance_type):
    X = separated()
    one, other = (em.fit(s * X, 3, covariance_type, rng=np.random.default_rng(0)).best for s in (1.0, scale))
    order = np.argsort(one.parameters.means[:, 0]), np.argsort(other.parameters.means[:, 0])
    np.testing.assert_allclose(other.parameters.means[order[1]], scale * one.parameters.means[order[0]], rtol=1e-6)
    # log p changes by −D log(scale).
    assert other.objective == pytest.approx(one.objective - 2 * np.log(scale), abs=1e-5)


def race_starts(problem: em.Problem, K: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    methods = ("kmeans", "hierarchical", "random_from_data", "patchwork", "k-means++", "random")
    return [em.start(problem, K, method, rng) for method in methods]


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_a_race_ends_at_the_optimum_of_a_full_climb(covariance_type):
    X = overlapping(1)
    problem = em.Problem(X, structure(covariance_type), tol=1e-10, max_iter=5000)
    found = em.race(problem, race_starts(problem, 2), np.random.default_rng(0))
    whole = em.fit(X, 2, covariance_type, tol=1e-10, max_iter=5000, rng=np.random.default_rng(0))
    # both stop where an iteration gains 1e-10 a row
    assert found.best.log_likelihood == pytest.approx(whole.best.log_likelihood, abs=1e-4)
    assert found.best.converged
    packed = problem.kind.pack(found.best.parameters.covariances)
    np.testing.assert_allclose(found.best.covariances, packed, rtol=1e-8)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("with_prior", [False, True])
def test_an_accelerated_climb_never_goes_down_and_ends_where_the_plain_one_does(covariance_type, with_prior):
    X = overlapping(3)
    prior = some_prior(X, 3) if with_prior else None
    problem = em.Problem(X, structure(covariance_type), prior, None, 1e-6 * (not with_prior), 1e-11, 20_000)
    begin = em.climb(
        dataclasses.replace(problem, tol=1e-3), *given_start(X, 3, covariance_type), np.random.default_rng(0)
    )
    plain = em.climb(problem, begin.parameters, begin.covariances, np.random.default_rng(0))
    fast = em.accelerate(problem, begin, np.random.default_rng(0))
    assert fast.converged
    # rounding of 150 rows, as for the plain climb
    assert np.diff(fast.lower_bounds).min() > -1e-12
    # a plain climb of linear rate 0.99 stops 1e-9 short where its last step was 1e-11; a higher optimum would do as well
    assert fast.objective > plain.objective - 1e-7
    assert fast.n_iter - begin.n_iter < max(60, plain.n_iter)
    at = problem.e_step(fast.parameters)
    assert problem.objective(at, fast.parameters) == pytest.approx(fast.objective, abs=1e-12)


def test_a_race_on_some_of_the_rows_ends_on_all():
    X = np.random.default_rng(0).permutation(np.vstack([separated()] * 4))
    problem = em.Problem(X, structure("full"), tol=1e-9)
    small = dataclasses.replace(problem, X=np.ascontiguousarray(X[:200]))
    found = em.race(problem, race_starts(small, 3), np.random.default_rng(0), rehearsal=small)
    np.testing.assert_allclose(np.sort(found.best.counts), [120, 160, 240], atol=1e-3)


def test_a_race_can_be_stopped_and_says_when_nothing_came_of_it():
    X = overlapping()
    problem = em.Problem(X, structure("full"))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        em.race(problem, race_starts(problem, 2), np.random.default_rng(0), callback=stop)
    with pytest.raises(em.DegenerateFitError, match="no start led"):
        em.race(problem, [], np.random.default_rng(0))
