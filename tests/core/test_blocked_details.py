"""Edges of a fit to blocks: what a survey asks of the table, what the subsample's fit is asked for, and which optima are followed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bayesgmm.core import blocked, em
from bayesgmm.core.blocks import Draw, moments
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.core.priors import ConjugatePrior


class Table:
    """Rows in memory as one block or two, and the tasks that they were asked."""

    def __init__(self, X, v=None, cut=None):
        self.parts = [(X, v)] if cut is None else [(X[:cut], v[:cut]), (X[cut:], v[cut:])]
        self.n_features, self.tasks = X.shape[1], []

    def total(self, task):
        self.tasks.append(task)
        parts = [task(X, v, block) for block, (X, v) in enumerate(self.parts)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def rows(n=120, D=2, seed=0):
    return np.random.default_rng(seed).standard_normal((n, D))


def problem_of(X, v=None, **settings) -> blocked.BlockedProblem:
    table = Table(X, v)
    return blocked.problem_of(table, blocked.survey(table, 0), "full", None, **settings)


# The survey


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_one_observation_or_less_has_no_covariance(weight):
    seen = blocked.survey(Table(rows(2), np.full(2, weight / 2)), 0)
    with pytest.raises(ValueError, match=f"sum to {weight:g}: "):
        _ = seen.mean_and_covariance


def test_a_little_more_than_one_observation_has():
    """Weights of 3/4 at 0 and at 2: scatter 1.5, over 1.5 − 1."""
    mean, covariance = blocked.survey(Table(np.array([[0.0], [2.0]]), np.full(2, 0.75)), 0).mean_and_covariance
    np.testing.assert_allclose(mean, [1.0], rtol=1e-15)
    np.testing.assert_allclose(covariance, [[3.0]], rtol=1e-15)


def test_a_survey_without_a_sample_looks_once_and_holds_no_row():
    table = Table(rows(D=3))
    seen = blocked.survey(table, 0, 0)
    assert table.tasks == [moments]
    assert (seen.moments.n_rows, seen.sample.size) == (120, 0)
    assert (seen.sample.rows.shape, seen.sample.weights.shape) == ((0, 3), (0,))


def test_a_sample_of_one_row_is_one_row():
    table = Table(rows())
    seen = blocked.survey(table, 0, 1)
    assert len(table.tasks) == 2
    assert seen.sample.rows.shape == (1, 2)


@pytest.mark.parametrize(
    ("n_rows", "share"),
    # Of 1000 rows that count, a sample of n is looked for among n + 10 √n of them: ten standard errors more than it takes.
    [(4, 0.024), (100, 0.2), (400, 0.6), (900, 1.0), (5000, 1.0)],
)
def test_little_more_of_a_table_is_looked_through_than_the_sample_takes(n_rows, share):
    X, v = rows(1200), np.repeat([0.0, 2.0], [200, 1000])
    table = Table(X, v)
    seen = blocked.survey(table, 7, n_rows)
    _, draw = table.tasks
    assert isinstance(draw, Draw)
    assert (draw.size, draw.seed) == (n_rows, 7)
    # One division.
    assert draw.share == pytest.approx(share, rel=1e-14)
    assert len(seen.sample.rows) == min(n_rows, 1000)


def test_a_table_without_a_row_that_counts_is_surveyed_too():
    seen = blocked.survey(Table(rows(5), np.zeros(5)), 0)
    assert (seen.moments.n_counted, len(seen.sample.rows)) == (0, 0)


# The problem


def test_the_weights_of_a_sample_are_told_unless_all_are_one():
    X = rows(4)
    assert problem_of(X).sample_weight is None
    assert problem_of(X, np.ones(4)).sample_weight is None
    for v in (np.full(4, 2.0), np.array([1.0, 1.0, 2.0, 0.5])):
        np.testing.assert_array_equal(np.sort(problem_of(X, v).sample_weight), np.sort(v))


def test_the_total_weight_is_the_tables_not_the_samples():
    X, v = rows(300), np.full(300, 2.0)
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
    problem = problem_of(rows(), v, tol=tol, max_iter=max_iter, reg_covar=0.25, n_threads=3)
    rng = np.random.default_rng(0)
    blocked._fit_sample(problem, 4, 12, "random", rng)
    assert (seen["tol"], seen["max_iter"]) == asked
    assert (seen["K"], seen["name"], seen["n_init"], seen["init_params"]) == (4, "full", 12, "random")
    assert (seen["reg_covar"], seen["n_threads"], seen["rng"]) == (0.25, 3, rng)
    assert seen["X"] is problem.X
    assert seen["sample_weight"] is problem.sample_weight


def test_a_prior_without_a_mode_is_refused_before_any_pass():
    X = rows()
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
    problem = problem_of(rows(50, 1))
    alike = [mode_at(0.3) for _ in range(5)]
    assert followed(problem, *alike[:1]) == [0]
    assert followed(problem, *alike[:2]) == [0, 1]
    assert followed(problem, *alike) == [0, 1, 2]


def test_near_singular_optima_are_followed_where_there_are_no_others():
    problem = problem_of(rows(50, 1))
    honest, near_singular = mode_at(0.3), mode_at(0.3, spurious=True)
    assert followed(problem, honest, near_singular) == [0]
    assert followed(problem, honest, near_singular, mode_at(0.3)) == [0, 2]
    assert followed(problem, near_singular, mode_at(0.3, spurious=True)) == [0, 1]


# What a prior is scaled by


def test_a_summary_of_blocks_is_numpys_of_all_rows():
    X = np.round(rows(101, 2) * [1.0, 5.0], 1)
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
    X = rows()
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
