from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from bayesgmm.core import blocked, em
from bayesgmm.core.blocks import Draw, Gather, moments
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.core.priors import ConjugatePrior
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


class Pieces:
    """Rows in memory, cut up."""

    def __init__(self, X, v=None, cuts=(100, 101, 450)):
        self.parts = np.split(X, cuts), [None] * (len(cuts) + 1) if v is None else np.split(v, cuts)
        self.n_features = X.shape[1]
        self.passes = 0

    def total(self, task):
        self.passes += 1
        parts = [task(X, v, block) for block, (X, v) in enumerate(zip(*self.parts, strict=True))]
        out = parts[0]
        for part in parts[1:]:
            out = out + part
        return out


def rows(n=700, seed=0, D=2, spread=1.5):
    rng = np.random.default_rng(seed)
    return random_mixture(rng, 3, D, spread=spread).sample(rng, n)


def weighted(seed=0):
    X = rows(seed=seed)
    v = np.random.default_rng(seed).integers(0, 3, len(X)).astype(float)
    return X, v


def test_moments_of_blocks_are_numpys():
    X, v = weighted()
    X += 1e6
    for weight in (None, v):
        found = Pieces(X, weight).total(moments)
        full = np.ones(len(X)) if weight is None else weight
        # 1e6 away from the origin, rounding is 1e-10 of a unit: no square of it may enter
        np.testing.assert_allclose(found.mean, np.average(X, axis=0, weights=full), rtol=1e-14)
        np.testing.assert_allclose(
            found.scatter, np.cov(X.T, fweights=full.astype(int), ddof=0) * full.sum(), rtol=1e-8
        )
        assert (found.n_rows, found.n_counted, found.weight) == (len(X), np.count_nonzero(full), full.sum())
        np.testing.assert_array_equal([found.low, found.high], [X.min(axis=0), X.max(axis=0)])


def test_a_sample_is_drawn_without_replacement_and_every_row_as_often():
    X = np.arange(400.0)[:, None]
    v = np.ones(400)
    v[:40] = 0
    pieces, drawn = Pieces(X, v, (7, 250)), np.zeros(400)
    for seed in range(2000):
        sample = pieces.total(Draw(30, seed, 0.3))
        assert len(np.unique(sample.rows)) == 30
        drawn[sample.rows[:, 0].astype(int)] += 1
    assert drawn[:40].sum() == 0
    # Binomial(2000, 30/360) for each of 360 rows: a spread of 12.4 about 167, five of them for the furthest
    assert np.abs(drawn[40:] - 2000 / 12).max() < 5 * np.sqrt(2000 / 12 * 11 / 12)
    np.testing.assert_array_equal(pieces.total(Draw(30, 3)).rows, pieces.total(Draw(30, 3, 0.3)).rows)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("accelerated", [False, True])
def test_from_the_same_start_blocks_end_where_memory_does(covariance_type, with_prior, accelerated):
    X, v = weighted(1)
    pieces = Pieces(X, v)
    seen = blocked.survey(pieces, 0)
    prior = ConjugatePrior.fraley_raftery(X, 3, v) if with_prior else None
    found_prior = blocked.resolve_prior("default" if with_prior else None, pieces, seen, 3, covariance_type)
    settings = {"reg_covar": 1e-6, "tol": 1e-9, "max_iter": 300}
    problem = blocked.problem_of(pieces, seen, covariance_type, found_prior, **settings)
    whole = em.Problem(X, structure(covariance_type), prior, v, **settings)
    start = em.start(whole, 3, "kmeans", np.random.default_rng(0))
    options = {"starts": [start], "accelerated": accelerated}
    ours = blocked.fit(problem, 3, rng=np.random.default_rng(0), **options).best
    options |= {"prior": prior, "sample_weight": v, "rng": np.random.default_rng(0)}
    theirs = em.fit(X, 3, covariance_type, **settings, **options).best
    # the order of the sums alone: 1e-15 of them, which some hundred steps of a slowly contracting map amplify
    assert ours.n_iter == theirs.n_iter > 10
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-12)
    for name in ("weights", "means", "precision_factors"):
        a, b = getattr(ours.parameters, name), getattr(theirs.parameters, name)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_every_pass_is_counted():
    X = rows()
    pieces = Pieces(X)
    problem = blocked.problem_of(pieces, blocked.survey(pieces, 0), "full", None, tol=1e-9)
    start = blocked.given_start(problem, 3, "kmeans", np.random.default_rng(0))
    seen = []
    pieces.passes = 0
    run = blocked.fit(problem, 3, rng=np.random.default_rng(0), starts=[start], callback=lambda *a: seen.append(a)).best
    # one at the start, and each after that is an iteration
    assert pieces.passes == run.n_iter + 1 == len(run.lower_bounds)
    assert [(i, bound) for i, _, bound in seen] == list(enumerate(run.lower_bounds))
    assert np.diff(run.lower_bounds).min() >= 0


def test_starts_on_a_subsample_reach_the_optimum_of_all_rows():
    X = rows(20_000, 3, spread=3.0)
    pieces = Pieces(X, cuts=(5000, 9000))
    seen = blocked.survey(pieces, 1, 1000)
    assert len(seen.sample.rows) == 1000
    problem = blocked.problem_of(pieces, seen, "full", None, tol=1e-10)
    ours = blocked.fit(problem, 3, rng=np.random.default_rng(0))
    theirs = em.fit(X, 3, tol=1e-10, rng=np.random.default_rng(0))
    # both stop where a step gains 1e-10
    assert ours.best.objective == pytest.approx(theirs.best.objective, abs=1e-7)
    assert ours.best.log_likelihood == pytest.approx(
        oracles.mixture_log_density(
            X, ours.best.parameters.weights, ours.best.parameters.means, ours.best.parameters.covariances
        ).sum(),
        rel=1e-11,
    )
    assert sum(mode.n_starts for mode in ours.modes) <= 10
    assert ours.modes[0].n_starts > 1


def test_optima_that_the_subsample_cannot_tell_apart_are_all_followed():
    """Four groups in a square and two components: across or along, equal by symmetry, so no sample says which is better."""
    rng = np.random.default_rng(0)
    square = np.array([[0, 0], [0, 6], [6, 0], [6, 6]])
    X = np.concatenate([rng.standard_normal((2500, 2)) + corner for corner in square])
    X = np.ascontiguousarray(X[rng.permutation(len(X))])
    pieces = Pieces(X, cuts=(4000,))
    problem = blocked.problem_of(pieces, blocked.survey(pieces, 0, 2000), "full", None, tol=1e-8)
    found = blocked.fit(problem, 2, n_init=20, rng=np.random.default_rng(0))
    assert len(found.modes) == 2
    # by symmetry alike but for the rows' noise: a nat is 1e-4 here
    assert found.modes[0].objective - found.modes[1].objective < 5e-3


def test_default_scale_of_a_prior_is_that_of_memory():
    X, v = weighted(2)
    pieces = Pieces(X, v)
    seen = blocked.survey(pieces, 0)
    asked = ConjugatePrior(mean_precision=0.3)
    ours = blocked.resolve_prior(asked, pieces, seen, 2, "full")
    theirs = asked.resolve(X, 2, "full", v)
    np.testing.assert_allclose(ours.mean_prior, theirs.mean_prior, rtol=1e-12)
    # S_w is of a fit that ends where a step gains 1e-6 of a nat a row
    np.testing.assert_allclose(ours.scale, theirs.scale, rtol=0.02)


def test_a_lost_component_is_started_anew_at_a_row_of_the_subsample():
    X = rows(500, 5)
    pieces = Pieces(X)
    problem = blocked.problem_of(pieces, blocked.survey(pieces, 0, 100), "full", None, tol=1e-8)
    parameters, packed = blocked.given_start(problem, 2, "kmeans", np.random.default_rng(0))
    far = dataclasses.replace(parameters, means=parameters.means + [[0, 0], [1e4, 1e4]])
    run = blocked.fit(problem, 2, rng=np.random.default_rng(0), starts=[(far, packed)]).best
    assert run.n_reseeded >= 1
    assert run.converged
    assert np.abs(run.parameters.means).max() < 50


def test_tasks_travel_and_rows_come_back_in_order():
    X = rows()
    task = pickle.loads(pickle.dumps(Gather(np.cumsum)))
    second, first = task(X[100:], None, 1), task(X[:100], None, 0)
    np.testing.assert_array_equal((second + first).values, np.concatenate([np.cumsum(X[:100]), np.cumsum(X[100:])]))


# Edges of a fit to blocks: what a survey asks of the table, what the subsample's fit is asked for, and which optima are followed


class Table:
    """Rows in memory as one block or two, and the tasks that they were asked."""

    def __init__(self, X, v=None, cut=None):
        self.parts = [(X, v)] if cut is None else [(X[:cut], v[:cut]), (X[cut:], v[cut:])]
        self.n_features, self.tasks = X.shape[1], []

    def total(self, task):
        self.tasks.append(task)
        parts = [task(X, v, block) for block, (X, v) in enumerate(self.parts)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def normal_rows(n=120, D=2, seed=0):
    return np.random.default_rng(seed).standard_normal((n, D))


def problem_of(X, v=None, **settings) -> blocked.BlockedProblem:
    table = Table(X, v)
    return blocked.problem_of(table, blocked.survey(table, 0), "full", None, **settings)


# The survey


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_one_observation_or_less_has_no_covariance(weight):
    seen = blocked.survey(Table(normal_rows(2), np.full(2, weight / 2)), 0)
    with pytest.raises(ValueError, match=f"sum to {weight:g}: "):
        _ = seen.mean_and_covariance


def test_a_little_more_than_one_observation_has():
    """Weights of 3/4 at 0 and at 2: scatter 1.5, over 1.5 − 1."""
    mean, covariance = blocked.survey(Table(np.array([[0.0], [2.0]]), np.full(2, 0.75)), 0).mean_and_covariance
    np.testing.assert_allclose(mean, [1.0], rtol=1e-15)
    np.testing.assert_allclose(covariance, [[3.0]], rtol=1e-15)


def test_a_survey_without_a_sample_looks_once_and_holds_no_row():
    table = Table(normal_rows(D=3))
    seen = blocked.survey(table, 0, 0)
    assert table.tasks == [moments]
    assert (seen.moments.n_rows, seen.sample.size) == (120, 0)
    assert (seen.sample.rows.shape, seen.sample.weights.shape) == ((0, 3), (0,))


def test_a_sample_of_one_row_is_one_row():
    table = Table(normal_rows())
    seen = blocked.survey(table, 0, 1)
    assert len(table.tasks) == 2
    assert seen.sample.rows.shape == (1, 2)


@pytest.mark.parametrize(
    ("n_rows", "share"),
    # Of 1000 rows that count, a sample of n is looked for among n + 10 √n of them: ten standard errors more than it takes.
    [(4, 0.024), (100, 0.2), (400, 0.6), (900, 1.0), (5000, 1.0)],
)
def test_little_more_of_a_table_is_looked_through_than_the_sample_takes(n_rows, share):
    X, v = normal_rows(1200), np.repeat([0.0, 2.0], [200, 1000])
    table = Table(X, v)
    seen = blocked.survey(table, 7, n_rows)
    _, draw = table.tasks
    assert isinstance(draw, Draw)
    assert (draw.size, draw.seed) == (n_rows, 7)
    # One division.
    assert draw.share == pytest.approx(share, rel=1e-14)
    assert len(seen.sample.rows) == min(n_rows, 1000)


def test_a_table_without_a_row_that_counts_is_surveyed_too():
    seen = blocked.survey(Table(normal_rows(5), np.zeros(5)), 0)
    assert (seen.moments.n_counted, len(seen.sample.rows)) == (0, 0)


# The problem


def test_the_weights_of_a_sample_are_told_unless_all_are_one():
    X = normal_rows(4)
    assert problem_of(X).sample_weight is None
    assert problem_of(X, np.ones(4)).sample_weight is None
    for v in (np.full(4, 2.0), np.array([1.0, 1.0, 2.0, 0.5])):
        np.testing.assert_array_equal(np.sort(problem_of(X, v).sample_weight), np.sort(v))


def test_the_total_weight_is_the_tables_not_the_samples():
    X, v = normal_rows(300), np.full(300, 2.0)
    table = Table(X, v)
    problem = blocked.problem_of(table, blocked.survey(table, 0, 50), "full", None)
    assert (len(problem.X), problem.total_weight) == (50, 600.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_constant_feature_has_unit_scale_whether_it_is_zero_or_large(weighted):
    X = np.column_stack([np.zeros(11), np.full(11, 1e8 / 3), np.arange(11.0), 1 + 1e-10 * np.arange(11.0)])
    v = np.linspace(0.5, 1.5, 11) if weighted else np.ones(11)
    deviation = np.sqrt(np.average((X[:, 2] - np.average(X[:, 2], weights=v)) ** 2, weights=v))
    # 1 ± 1e-10 is stored to 1e-16: six digits of the deviation.
    found = problem_of(X, v if weighted else None).feature_scale()
    np.testing.assert_allclose(found, [1.0, 1.0, deviation, 1e-10 * deviation], rtol=1e-5)


# The fit of the subsample


@pytest.mark.parametrize(
    ("tol", "max_iter", "asked"),
    [(1e-3, 7, (1e-3, 7)), (1e-9, 7, (1e-7, 7)), (0.0, 0, (1e-7, 1))],
)
def test_a_subsample_is_climbed_one_step_at_least_and_no_further_than_it_can_tell(tol, max_iter, asked, monkeypatch):
    seen = {}
    monkeypatch.setattr(em, "fit", lambda X, K, name, **options: seen.update(options, X=X, K=K, name=name))
    v = np.linspace(1, 2, 120)
    problem = problem_of(normal_rows(), v, tol=tol, max_iter=max_iter, reg_covar=0.25, n_threads=3)
    rng = np.random.default_rng(0)
    blocked._fit_sample(problem, 4, 12, "random", rng)
    assert (seen["tol"], seen["max_iter"]) == asked
    assert (seen["K"], seen["name"], seen["n_init"], seen["init_params"]) == (4, "full", 12, "random")
    assert (seen["reg_covar"], seen["n_threads"], seen["rng"]) == (0.25, 3, rng)
    assert seen["X"] is problem.X
    assert seen["sample_weight"] is problem.sample_weight


def test_a_prior_without_a_mode_is_refused_before_any_pass():
    X = normal_rows()
    problem = problem_of(X)
    prior = dataclasses.replace(ConjugatePrior.fraley_raftery(X, 2), weight_concentration=np.array([0.5, 1.0]))
    problem = dataclasses.replace(problem, prior=prior)
    problem.blocks.tasks.clear()
    start = (MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]), np.eye(2)[None])
    for starts in (None, [start]):
        with pytest.raises(ValueError, match="weight_concentration"):
            blocked.fit(problem, 2, rng=np.random.default_rng(0), starts=starts)
    assert problem.blocks.tasks == []


# Which optima are followed


def mode_at(mean: float, objective: float = 0.0, spurious: bool = False) -> em.Mode:
    """A standard normal distribution about a mean."""
    parameters = MixtureParameters(np.ones(1), np.array([[mean]]), np.ones((1, 1, 1)))
    run = em.EMRun(parameters, np.ones((1, 1, 1)), objective, objective, np.ones(1), (objective,), 0, True)
    return em.Mode(run, 1, 1.0, 1.0, spurious)


def followed(problem, *modes) -> list[int]:
    kept = blocked._followed(problem, em.EMFit(modes[0].run, tuple(modes)))
    return [modes.index(mode) for mode in kept]


def test_an_optimum_is_followed_within_three_standard_errors_of_the_best():
    """A hundred rows at ±1: N(0, 1) is better than N(d, 1) by d² / 2 ∓ d, by d² / 2 on the average with a standard error of d / 10."""
    problem = problem_of(np.tile([-1.0, 1.0], 50)[:, None])
    assert followed(problem, mode_at(0.0), mode_at(0.59)) == [0, 1]
    assert followed(problem, mode_at(0.0), mode_at(0.61)) == [0]
    assert followed(problem, mode_at(0.0), mode_at(-0.59)) == [0, 1]
    assert followed(problem, mode_at(0.0), mode_at(0.61), mode_at(0.59)) == [0, 2]
    assert followed(problem, mode_at(0.0), mode_at(9.0), mode_at(0.61)) == [0]
    # Better on the sample than what is called the best: it is followed.
    assert followed(problem, mode_at(5.0), mode_at(0.0)) == [0, 1]


def test_rows_count_by_their_weights_in_what_is_followed():
    """Weights of 3 at 1 and of 1 at −1: d² / 2 − d / 2 on the average, and a standard error of √¾ d / 10; equal at d = 1 + 0.6 √¾."""
    x = np.tile([-1.0, 1.0], 50)
    problem = problem_of(x[:, None], np.where(x > 0, 3.0, 1.0))
    limit = 1 + 0.6 * np.sqrt(0.75)
    assert followed(problem, mode_at(0.0), mode_at(limit - 0.01)) == [0, 1]
    assert followed(problem, mode_at(0.0), mode_at(limit + 0.01)) == [0]


def test_an_optimum_that_no_row_tells_from_the_best_is_followed_and_three_are_at_most():
    problem = problem_of(normal_rows(50, 1))
    alike = [mode_at(0.3) for _ in range(5)]
    assert followed(problem, *alike[:1]) == [0]
    assert followed(problem, *alike[:2]) == [0, 1]
    assert followed(problem, *alike) == [0, 1, 2]


def test_near_singular_optima_are_followed_where_there_are_no_others():
    problem = problem_of(normal_rows(50, 1))
    honest, near_singular = mode_at(0.3), mode_at(0.3, spurious=True)
    assert followed(problem, honest, near_singular) == [0]
    assert followed(problem, honest, near_singular, mode_at(0.3)) == [0, 2]
    assert followed(problem, near_singular, mode_at(0.3, spurious=True)) == [0, 1]


# What a prior is scaled by


def test_a_summary_of_blocks_is_numpys_of_all_rows():
    X = np.round(normal_rows(101, 2) * [1.0, 5.0], 1)
    v = np.random.default_rng(1).integers(1, 4, 101).astype(float)
    table = Table(X, v, 40)
    summary = blocked.BlockSummary(table, blocked.survey(table, 0), 2, "full")
    repeated = np.repeat(X, v.astype(int), axis=0)
    assert summary.n_features == 2
    # The same sums in another order, of some hundred numbers.
    np.testing.assert_allclose(summary.mean, repeated.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.covariance, np.cov(repeated.T), rtol=1e-12)
    # Means of two numbers of one decimal.
    np.testing.assert_allclose(summary.median, np.median(repeated, axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(summary.range, [X.min(axis=0), X.max(axis=0)])


def test_a_prior_by_name_is_fraley_and_rafterys_and_none_is_none():
    X = normal_rows()
    table = Table(X)
    seen = blocked.survey(table, 0)
    assert blocked.resolve_prior(None, table, seen, 3, "full") is None
    found, expected = blocked.resolve_prior("default", table, seen, 3, "full"), ConjugatePrior.fraley_raftery(X, 3)
    np.testing.assert_allclose(found.resolved_scale, expected.resolved_scale, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.resolved_mean, expected.resolved_mean, rtol=1e-12, atol=1e-15)
    given = ConjugatePrior(2.0, [0.0, 0.0], 5.0, 10.0, 3 * np.eye(2))
    again = blocked.resolve_prior(given, table, seen, 3, "full")
    np.testing.assert_array_equal(again.resolved_scale, 3 * np.eye(2))
    np.testing.assert_array_equal(again.resolved_concentration, [2.0, 2.0, 2.0])
