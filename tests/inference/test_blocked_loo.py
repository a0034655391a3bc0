"""LOO, WAIC and the evidence of rows in blocks: the numbers of the same posterior with its rows in memory."""

from __future__ import annotations

import arviz as az
import numpy as np
import pandas as pd
import pytest

from bayesgmm import BayesianGaussianMixture, HierarchicalPrior, open_blocks
from bayesgmm.core.blocks import Take, size
from bayesgmm.exceptions import CriterionWarning, DataError, RowsNotHeldError
from bayesgmm.inference import evidence
from bayesgmm.inference.blocked_loo import loo_of_blocks
from bayesgmm.inference.laplace import log_densities
from bayesgmm.inference.loo import loo_posterior
from bayesgmm.stacking import compare_elpds
from tests.mixtures import random_mixture

# The same numbers a row, added in another order: 700 roundings of 1e-16 of sums that do not cancel.
RELATIVE = 1e-12


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    return random_mixture(rng, 2, 2, spread=3.0).sample(rng, 700)


@pytest.fixture(scope="module", params=["unweighted", "weighted"])
def fitted(request, rows):
    """A posterior, its rows and their weights."""
    v = np.random.default_rng(4).integers(0, 3, len(rows)) / 2 if request.param == "weighted" else None
    return _posterior(rows, 2, v), rows, v


def _posterior(rows, K, v=None):
    post = BayesianGaussianMixture(
        K, prior=HierarchicalPrior(), method="laplace", draws=100, random_state=0, progressbar=False
    )
    return post.fit(rows, sample_weight=v)


def blocks_of(rows, v, size=150):
    frame = pd.DataFrame(rows, columns=["a", "b"]).assign(v=1.0 if v is None else v)
    return open_blocks(lambda: (frame[i : i + size] for i in range(0, len(frame), size)), weights="v")


def assert_same(found, expected):
    for kind in ("loo", "waic"):
        for name in ("elpd", "se", "p", "n_data_points", "n_samples", "good_k", "warning", "scale"):
            got, wanted = getattr(getattr(found, kind), name), getattr(getattr(expected, kind), name)
            assert got == (wanted if isinstance(wanted, str | None) else pytest.approx(wanted, rel=RELATIVE)), name


def test_all_rows(fitted):
    post, rows, v = fitted
    found, expected = loo_of_blocks(post, blocks_of(rows, v)), loo_posterior(post)
    assert_same(found, expected)
    for name in ("elpd_i", "p_loo_i", "pareto_k"):
        np.testing.assert_allclose(getattr(found.loo, name), getattr(expected.loo, name), rtol=RELATIVE, atol=1e-11)
    assert found.notes == expected.notes


def test_a_subsample(fitted):
    post, rows, v = fitted
    settings = {"subsample_above": 500, "subsample_size": 80, "random_state": 7}
    found, expected = loo_of_blocks(post, blocks_of(rows, v), **settings), loo_posterior(post, **settings)
    assert_same(found, expected)
    assert found.loo.subsampling_se == pytest.approx(expected.loo.subsampling_se, rel=RELATIVE)
    at = expected.loo.loo_subsample_observations
    np.testing.assert_array_equal(found.loo.loo_subsample_observations, at)
    for name in ("elpd_i", "elpd_loo_approx", "pareto_k"):
        expected_i = np.asarray(getattr(expected.loo, name))[at]
        np.testing.assert_allclose(getattr(found.loo, name), expected_i, rtol=RELATIVE, atol=1e-11)
    assert found.notes[0] == expected.notes[0]


def test_rows_that_draws_do_not_reach_are_matched_and_named(rows):
    far = rows.copy()
    far[130] = [6.0, -5.0]
    post = _posterior(far, 2)
    with pytest.warns(CriterionWarning, match=r"1 of 700 rows \(row 130\)"):
        expected = loo_posterior(post, refits=0)
    with pytest.warns(CriterionWarning, match=r"1 of 700 rows \(row 130\).* fit a table in memory"):
        found = loo_of_blocks(post, blocks_of(far, None))
    assert_same(found, expected)
    (ours,), (theirs,) = found.treated, expected.treated
    assert ours.row == theirs.row == 130
    assert ours.pareto_k == pytest.approx(theirs.pareto_k, rel=1e-9)
    assert "moment matching left" in ours.why
    assert "not refitted" in ours.why
    seed = next(s for s in range(100) if 130 in np.random.default_rng(s).choice(700, 80, replace=False))
    with pytest.warns(CriterionWarning, match=r"1 of 80 rows \(row 130\).*raise subsample_size"):
        found = loo_of_blocks(post, blocks_of(far, None), subsample_above=500, subsample_size=80, random_state=seed)
    assert [item.row for item in found.treated] == [130]


def test_differences_of_subsampled_models(rows):
    posts = {K: _posterior(rows, K) for K in (1, 2)}
    settings = {"subsample_above": 500, "subsample_size": 300, "random_state": 7}
    in_blocks = {str(K): loo_of_blocks(post, blocks_of(rows, None), **settings).loo for K, post in posts.items()}
    in_memory = {str(K): loo_posterior(post, **settings).loo for K, post in posts.items()}
    found, weights = compare_elpds(in_blocks)
    expected, others = compare_elpds(in_memory)
    assert found["2"] == (0.0, 0.0)
    assert found["1"][0] == pytest.approx(expected["1"][0], rel=1e-9)
    # ArviZ takes the variance over all rows by the difference estimator, we from the subsample alone: 1 / √(2 × 300) for normal
    # differences, of which the 2.5-fold for their long tails
    assert found["1"][1] == pytest.approx(expected["1"][1], rel=0.1)
    np.testing.assert_allclose(weights, others, atol=0.05)


def test_a_table_that_is_large_enough_goes_to_arviz(fitted):
    post, rows, v = fitted
    if v is None:
        found = loo_of_blocks(post, blocks_of(rows, v)).loo
        assert az.compare({"a": found, "b": loo_posterior(post).loo}).loc["b", "elpd_diff"] == pytest.approx(
            0, abs=1e-9
        )


def test_the_evidence(fitted):
    post, rows, v = fitted
    found, expected = post.log_evidence(blocks_of(rows, v)), post.log_evidence()
    # The same density of the same draws
    (summed, _), (compiled, _) = evidence._posterior_of_blocks(post, blocks_of(rows, v)), evidence._posterior(post)
    theta = post._draws.unconstrained_by(compiled, range(0, 400, 40))
    np.testing.assert_allclose(log_densities(summed, theta), log_densities(compiled, theta), rtol=1e-10)
    # The Hessian at a mode is exact over blocks and by differences of steps of some size in memory: half a log determinant of 1e-3.
    # The proposals are scaled by it, so that the two bridges differ, by far less than their Monte Carlo error.
    assert abs(found.log_evidence - expected.log_evidence) < 0.05 * expected.standard_error
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.05)
    assert found.laplace == pytest.approx(expected.laplace, abs=5e-3)
    assert found.notes == expected.notes
    assert any("not whole" in note for note in found.notes) == (v is not None)


def test_a_fit_to_blocks_is_given_its_rows(rows):
    blocks = blocks_of(rows, None)
    post = BayesianGaussianMixture(2, draws=100, random_state=0, progressbar=False).fit(blocks)
    with pytest.raises(RowsNotHeldError, match="give the rows"):
        post.log_evidence()
    with pytest.raises(ValueError, match="does not hold its data: give X"):
        post.loo()
    assert post.loo(blocks).loo.n_data_points == 700
    assert post.log_evidence(blocks).converged
    with pytest.raises(ValueError, match="rows in blocks"):
        post.log_evidence(rows)


def test_the_method_in_memory_is_the_function(rows):
    post = _posterior(rows, 2)
    assert post.loo().loo.elpd == post.loo(rows).loo.elpd == loo_posterior(post, random_state=0).loo.elpd


def test_a_row_beyond_reach_is_named_by_its_block(rows):
    post = _posterior(rows, 2)
    with pytest.raises(DataError, match="block 2: .*row 0 has -inf"):
        loo_of_blocks(post, blocks_of(np.vstack([rows[:300], [[1e200, 0]], rows[300:]]), None))


def test_rows_are_taken_by_their_numbers(rows):
    blocks = blocks_of(rows, np.arange(700.0), 130)
    at = np.array([0, 129, 130, 131, 699])
    found = blocks.total(Take.of(at, blocks.total(size))).values
    np.testing.assert_array_equal(found, np.column_stack([rows[at], at]))
