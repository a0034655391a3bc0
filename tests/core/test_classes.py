"""Rows of known class in EM: sums over passes, held class priors, starts and priors common to all classes."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from bayesgmm import ConjugatePrior, SeparationPrior
from bayesgmm.core import em
from bayesgmm.core.classes import (
    ClassLayout,
    LabelledProblem,
    _combinations,
    _regularising_scale,
    class_counts,
    fit_classes,
    fraley_raftery,
    resolve_prior,
    within_class_covariance,
)
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import HierarchicalPrior
from bayesgmm.core.impropriety import check_class_posterior
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.exceptions import ImproperPosteriorError
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

GIVEN = np.array([0.35, 0.65])


def some_rows(seed=0, n=(50, 40), unlabelled=45, K=(2, 1), D=2, priors=None):
    """Rows of two overlapping classes, sorted; those of unknown class are of both."""
    rng = np.random.default_rng(seed)
    mixtures = [random_mixture(rng, k, D, spread=2.5) for k in K]
    half = unlabelled // 2
    parts = [mixtures[0].sample(rng, n[0]), mixtures[1].sample(rng, n[1])]
    parts += [mixtures[0].sample(rng, half), mixtures[1].sample(rng, unlabelled - half)]
    return np.concatenate(parts), ClassLayout(("a", "b"), K, n, unlabelled, priors), rng


def by_hand(X, v, layout, weights, means, covariances):
    """Log-likelihood and responsibilities (N, K), row by row; a row of known class has its components alone."""
    owner, codes = layout.class_of_component, layout.codes
    log_likelihood, r = 0.0, np.zeros((len(X), len(weights)))
    for n, x in enumerate(X):
        own = np.flatnonzero((owner == codes[n]) | (codes[n] < 0))
        terms = np.array(
            [np.exp(oracles.mixture_log_density(x[None], np.ones(1), means[[k]], covariances[[k]])[0]) for k in own]
        )
        terms *= weights[own]
        log_likelihood += v[n] * np.log(terms.sum())
        r[n, own] = terms / terms.sum()
    return log_likelihood, r


@pytest.mark.parametrize("priors", [None, GIVEN])
@pytest.mark.parametrize("weighted", [False, True])
def test_e_step_is_the_sum_over_rows(priors, weighted):
    X, layout, rng = some_rows(K=(2, 3), priors=priors)
    mixture = random_mixture(rng, 5, 2)
    v = rng.uniform(0, 3, len(X)) if weighted else None
    problem = LabelledProblem(X, structure("full"), sample_weight=v, classes=layout)
    found = problem.e_step(mixture.parameters)

    weights = mixture.weights.copy()
    if priors is not None:
        weights[:2] *= priors[0] / weights[:2].sum()
        weights[2:] *= priors[1] / weights[2:].sum()
    one = np.ones(len(X)) if v is None else v
    log_likelihood, r = by_hand(X, one, layout, weights, mixture.means, mixture.covariances)
    r *= one[:, None]
    d = X[:, None] - mixture.means
    # Sums of some hundred terms in another order: rounding.
    assert found.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert found.total_weight == pytest.approx(one.sum())
    np.testing.assert_allclose(found.counts, r.sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(found.first, np.einsum("nk,nkd->kd", r, d), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.second, np.einsum("nk,nkd,nke->kde", r, d, d), rtol=1e-9, atol=1e-9)


def test_without_labels_it_is_the_plain_problem():
    X, _, rng = some_rows()
    mixture = random_mixture(rng, 3, 2)
    layout = ClassLayout(("a", "b"), (2, 1), (0, 0), len(X))
    plain = em.Problem(X, structure("full")).e_step(mixture.parameters)
    labelled = LabelledProblem(X, structure("full"), classes=layout).e_step(mixture.parameters)
    assert labelled.log_likelihood == plain.log_likelihood
    np.testing.assert_array_equal(labelled.second, plain.second)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("priors", [None, GIVEN])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_climb_never_falls_and_ends_at_an_optimum(covariance_type, priors, with_prior):
    X, layout, rng = some_rows(3, priors=priors)
    prior = (
        resolve_prior(ConjugatePrior(weight_concentration=2.0), X, layout, covariance_type, None)
        if with_prior
        else None
    )
    v = rng.integers(1, 4, len(X)).astype(float)
    problem = LabelledProblem(X, structure(covariance_type), prior, v, tol=1e-12, max_iter=3000, classes=layout)
    run = em.climb(problem, *em.start(problem, 3, "random_from_data", rng), rng)
    assert run.converged
    assert run.n_iter > 3
    # A step may lose rounding of a mean of some hundred terms.
    assert np.min(np.diff(run.lower_bounds)) > -1e-12
    best = run.parameters
    if priors is not None:
        np.testing.assert_allclose(layout.totals(best.weights), priors, rtol=1e-12)
    for _ in range(20):
        moved = best.weights * np.exp(1e-3 * rng.standard_normal(3))
        moved = layout.scaled(moved / moved.sum())
        means = best.means + 1e-3 * rng.standard_normal(best.means.shape)
        for other in (
            MixtureParameters(moved, best.means, best.precision_factors),
            MixtureParameters(best.weights, means, best.precision_factors),
            MixtureParameters(best.weights, best.means, best.precision_factors * np.exp(1e-3 * rng.standard_normal())),
        ):
            # Scaling all factors keeps every structure. The objective is flat to tol there, 1e-12 a row.
            assert problem.objective(problem.e_step(other), other) < run.objective + 1e-11


def test_labelled_rows_alone_are_separate_fits():
    rng = np.random.default_rng(5)
    centres = np.repeat([[0.0, 0.0], [5.0, 1.0], [1.0, 4.0], [4.0, -4.0]], [50, 30, 60, 30], axis=0)
    X, layout = centres + rng.standard_normal((170, 2)), ClassLayout(("a", "b"), (2, 2), (80, 90))
    problem = LabelledProblem(X, structure("full"), reg_covar=1e-6, tol=1e-10, max_iter=2000, classes=layout)
    found = fit_classes(problem, rng=np.random.default_rng(1)).best
    np.testing.assert_allclose(layout.totals(found.parameters.weights), [80 / 170, 90 / 170])
    total = 0.0
    for rows, block in zip(layout.labelled, layout.blocks, strict=True):
        own = em.fit(X[rows], block.stop - block.start, reg_covar=1e-6, tol=1e-10, max_iter=2000, rng=rng).best
        total += own.log_likelihood + len(X[rows]) * np.log(len(X[rows]) / len(X))
        mine = np.sort(found.parameters.means[block, 0])
        np.testing.assert_allclose(mine, np.sort(own.parameters.means[:, 0]), atol=1e-3)  # both stop at 1e-10 a row
    assert found.log_likelihood == pytest.approx(total, abs=1e-4)


def test_a_shared_covariance_is_that_within_classes():
    X, layout, rng = some_rows(unlabelled=0, K=(1, 1))
    problem = LabelledProblem(X, structure("tied"), tol=1e-12, classes=layout)
    found = fit_classes(problem, rng=rng).best
    theirs = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(X, layout.codes)
    # scikit-learn's covariance_ is weighted by priors, of divisor n_c: maximum likelihood.
    np.testing.assert_allclose(found.covariances, theirs.covariance_, rtol=1e-9)
    np.testing.assert_allclose(within_class_covariance(X, layout, None), theirs.covariance_, rtol=1e-9)


def test_unlabelled_rows_are_used():
    rng = np.random.default_rng(8)
    X = np.concatenate(
        [rng.normal(0, 1, (4, 1)), rng.normal(5, 1, (4, 1)), rng.normal(0, 1, (300, 1)), rng.normal(5, 1, (100, 1))]
    )
    layout = ClassLayout(("a", "b"), (1, 1), (4, 4), 400)
    found = fit_classes(LabelledProblem(X, structure("full"), tol=1e-10, classes=layout), rng=rng).best.parameters
    # Four rows would leave standard errors of 0.5.
    np.testing.assert_allclose(found.means[:, 0], [0, 5], atol=4 / np.sqrt(100))
    np.testing.assert_allclose(found.weights, [304 / 408, 104 / 408], atol=0.05)


def test_a_second_component_is_found_among_the_unlabelled():
    rng = np.random.default_rng(9)
    X = np.concatenate(
        [rng.normal(0, 1, (20, 1)), rng.normal(20, 1, (20, 1)), rng.normal(7, 1, (60, 1)), rng.normal(20, 1, (60, 1))]
    )
    layout = ClassLayout(("a", "b"), (2, 1), (20, 20), 120)
    prior = resolve_prior(ConjugatePrior(), X, layout, "full", None)
    problem = LabelledProblem(X, structure("full"), prior, tol=1e-9, max_iter=2000, classes=layout)
    found = fit_classes(problem, rng=rng).best.parameters
    np.testing.assert_allclose(np.sort(found.means[:2, 0]), [0, 7], atol=4 / np.sqrt(20))


@pytest.mark.parametrize("method", ["random", "kmeans", "random_from_data"])
def test_starts_keep_labelled_rows_in_their_class(method):
    X, layout, rng = some_rows(K=(2, 2))
    problem = LabelledProblem(X, structure("full"), classes=layout)
    assignment = problem.initial_assignment(method, 4, rng)
    resp = np.eye(4)[assignment] if assignment.ndim == 1 else assignment
    share = np.add.reduceat(resp, [0, 2], axis=1)
    np.testing.assert_allclose(share.sum(axis=1), 1)
    np.testing.assert_allclose(share[:50, 0], 1)
    np.testing.assert_allclose(share[50:90, 1], 1)
    assert set(np.unique(share.round(12))) <= {0.0, 1.0}


def test_a_lost_component_starts_anew_among_rows_of_its_class():
    X, layout, rng = some_rows(K=(2, 2))
    mixture = random_mixture(rng, 4, 2)
    problem = LabelledProblem(X, structure("full"), classes=layout)
    for k, rows in ((0, range(50)), (3, range(50, 90))):
        lost = np.arange(4) == k
        chosen = problem.badly_fitted(mixture.parameters, lost, rng)
        assert chosen.shape == (1,)
        assert chosen[0] in rows


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("weighted", [False, True])
def test_priors_of_one_class_are_those_of_a_plain_mixture(covariance_type, weighted):
    X, _, rng = some_rows(2)
    layout = ClassLayout(("a",), (3,), (len(X),))
    v = rng.integers(1, 4, len(X)).astype(float) if weighted else None
    ours, plain = fraley_raftery(X, layout, v), ConjugatePrior.fraley_raftery(X, 3, v)
    np.testing.assert_allclose(ours.resolved_scale, plain.resolved_scale, rtol=1e-10)
    np.testing.assert_allclose(ours.resolved_mean, plain.resolved_mean, rtol=1e-12)
    ours = resolve_prior(ConjugatePrior(), X, layout, covariance_type, v)
    plain = ConjugatePrior().resolve(X, 3, covariance_type, v)
    # Two multi-start fits of the same objective.
    np.testing.assert_allclose(ours.resolved_scale, plain.resolved_scale, rtol=1e-6)


def test_the_distance_between_classes_does_not_enter_the_prior():
    X, layout, _ = some_rows(unlabelled=0)
    far = X.copy()
    far[50:] += 1000.0
    for make in (
        lambda Z: fraley_raftery(Z, layout, None),
        lambda Z: resolve_prior(ConjugatePrior(), Z, layout, "full", None),
    ):
        np.testing.assert_allclose(make(far).resolved_scale, make(X).resolved_scale, rtol=1e-6)


def test_a_hierarchical_prior_is_resolved_with_a_conjugate_one_for_em():
    X, layout, _ = some_rows()
    given = HierarchicalPrior(em_prior=ConjugatePrior())
    found = resolve_prior(given, X, layout, "full", None)
    expected = resolve_prior(ConjugatePrior(), X, layout, "full", None)
    np.testing.assert_array_equal(found.for_em.resolved_scale, expected.resolved_scale)
    np.testing.assert_array_equal(found.hyper_rate, HierarchicalPrior().resolve(X, 3).hyper_rate)


def test_collinear_columns_within_classes_are_refused():
    X, layout, _ = some_rows()
    X[:, 1] = np.repeat([0.0, 1.0, 2.0], [50, 40, 45])  # constant in each class, not over all
    with pytest.raises(ValueError, match="within the classes the data have a constant column"):
        resolve_prior(ConjugatePrior(), X, layout, "full", None)


def test_layout():
    layout = ClassLayout(("a", "b", "c"), (2, 1, 3), (4, 0, 2), 3, None, np.array([8, 7, 6, 5, 4, 3, 2, 1, 0]))
    np.testing.assert_array_equal(layout.groups, [[0, 4, 0, 2], [4, 6, 3, 6], [6, 9, 0, 6]])
    np.testing.assert_array_equal(layout.class_of_component, [0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(layout.codes, [0, 0, 0, 0, 2, 2, -1, -1, -1])
    np.testing.assert_array_equal(layout.in_table_order(np.arange(9)), np.arange(9)[::-1])
    np.testing.assert_array_equal(class_counts(layout, np.arange(9.0)), [6, 0, 9])
    weights = np.array([[0.1, 0.1, 0.2, 0.1, 0.2, 0.3], [0.3, 0.1, 0.1, 0.2, 0.2, 0.1]])
    np.testing.assert_allclose(layout.totals(weights), [[0.2, 0.2, 0.6], [0.4, 0.1, 0.5]])
    np.testing.assert_allclose(layout.within_class(weights)[0], [0.5, 0.5, 1, 1 / 6, 1 / 3, 1 / 2])


def test_accelerated_steps_hold_given_priors_too():
    X, layout, _ = some_rows(K=(2, 2), priors=GIVEN)
    problem = LabelledProblem(X, structure("full"), reg_covar=1e-3, tol=1e-10, classes=layout)
    start = em.start(problem, 4, "kmeans", np.random.default_rng(0))
    seen = []
    run = em.ascend(problem, *start, np.random.default_rng(0), lambda i, parameters, objective: seen.append(parameters))
    plain = em.climb(problem, *start, np.random.default_rng(0))
    assert run.n_iter < plain.n_iter
    # the start is as it was given, and no step has been made
    for parameters in seen[1:]:
        np.testing.assert_allclose(layout.totals(parameters.weights), GIVEN, rtol=1e-12)
    assert np.diff(run.lower_bounds).min() >= -1e-13
    assert run.objective > plain.objective - 1e-7


@pytest.mark.parametrize("weight", [1.0, 0.5, 3.0])
def test_the_regularising_scale_is_the_unbiased_covariance_within_the_classes(weight):
    """Divided by Σ v less one for each class, and by 1 where that is less."""
    X = np.array([[0.0], [1.0], [5.0], [10.0], [12.0]])
    layout = ClassLayout(("a", "b"), (1, 1), (3, 2), 0, None)
    squares = 4.0 + 1.0 + 9.0 + 1.0 + 1.0
    expected = weight * squares / max(5 * weight - 2, 1.0)
    assert _regularising_scale(X, layout, np.full(5, weight))[0, 0] == pytest.approx(expected, rel=1e-12)
    assert within_class_covariance(X, layout, np.full(5, weight))[0, 0] == pytest.approx(squares / 5, rel=1e-12)


def test_rows_of_unknown_class_have_a_likely_one_where_the_covariance_within_classes_is_singular():
    """A column that is the same in all rows of a class, another in the other: nothing varies within, and the column decides."""
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.standard_normal(30), np.repeat([0.0, 1.0, 0.0, 1.0], [10, 12, 5, 3])])
    layout = ClassLayout(("a", "b"), (1, 1), (10, 12), 8)
    problem = LabelledProblem(X, structure("full"), None, None, classes=layout)
    np.testing.assert_array_equal(problem._likely_classes(), np.repeat([0, 1, 0, 1], [10, 12, 5, 3]))


def test_of_many_combinations_of_the_classes_optima_the_best_come_first():
    """Five classes of eight optima each: 32,768 combinations, of which those of the worst are left out, and the best are not."""
    rng = np.random.default_rng(8)
    objectives = -np.sort(rng.uniform(0, 0.4, (5, 8)), axis=1)
    fits = [SimpleNamespace(modes=[SimpleNamespace(objective=o, spurious=False) for o in own]) for own in objectives]
    counts = (10, 12, 14, 16, 18)
    layout = ClassLayout(tuple("abcde"), (1,) * 5, counts, 0)
    found = _combinations(SimpleNamespace(classes=layout, sample_weight=None), fits, 6)
    lost = (objectives[:, :1] - objectives) * np.array(counts)[:, None]
    sums = sorted(sum(choice) for choice in product(*lost))[:6]
    told = [sum((own[0] - m.objective) * n for own, m, n in zip(objectives, modes, counts)) for modes in found]
    np.testing.assert_allclose(told, sums, rtol=1e-12)


def test_a_class_of_one_component_is_improper_on_all_its_rows_alone():
    """A component of a class with two may shrink on some of its rows; the only one of its class has all of them to explain."""
    rng = np.random.default_rng(1)
    prior = SeparationPrior(eta=4)

    def check(n_equal, K):
        X = rng.standard_normal((24, 2))
        X[:n_equal] = X[0]
        layout = ClassLayout(("a", "b"), (K, 1), (12, 12), 0)
        check_class_posterior(prior.resolve(X, K + 1), X, layout, "full", None, ["x", "y"])

    check(10, 1)
    with pytest.raises(ImproperPosteriorError, match="12 rows are the same"):
        check(12, 1)
    with pytest.raises(ImproperPosteriorError, match="1[01] rows"):
        check(10, 2)
