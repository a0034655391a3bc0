from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from bayesgmm.core import blocked, em
from bayesgmm.core.blocks import Draw, Gather, moments
from bayesgmm.core.covariance import structure
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
