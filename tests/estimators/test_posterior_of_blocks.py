"""`BayesianGaussianMixture` on rows that do not stand in memory, beside the same rows in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.frozen import FrozenEstimator

import bayesgmm
from bayesgmm import AnomalyDetector, BayesianGaussianMixture, HierarchicalPrior, open_blocks
from bayesgmm.exceptions import CostWarning, RowsNotHeldError
from tests.mixtures import random_mixture

N = 30_000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    return random_mixture(rng, 2, 2, "full", spread=4.0).sample(rng, N)


def blocks_of(X, size=7000):
    return open_blocks(lambda: (X[start : start + size] for start in range(0, len(X), size)))


def moments(post):
    """Means and standard deviations of all parameters, components in the order of their weights."""
    draws = post._draws
    order = np.argsort(draws.weights.mean(axis=(0, 1)))
    parts = (draws.weights[:, :, order], draws.means[:, :, order], draws.covariances[:, :, order])
    values = np.concatenate([part.reshape(draws.n_chains * draws.n_draws, -1) for part in parts], axis=1)
    return values.mean(axis=0), values.std(axis=0)


def assert_same_posterior(ours, theirs, size):
    """Means and sds within four Monte Carlo errors of two sets of ``size`` independent draws."""
    (mean, sd), (expected, spread) = moments(ours), moments(theirs)
    assert np.all(np.abs(mean - expected) < 4 * np.sqrt(2 / size) * spread)
    np.testing.assert_allclose(sd, spread, rtol=4 * np.sqrt(1 / size))


def laplace(X, prior="default", **changes):
    return BayesianGaussianMixture(
        2, prior=prior, method="laplace", draws=500, n_init=2, random_state=0, progressbar=False, **changes
    ).fit(X)


@pytest.fixture(scope="module")
def in_blocks(table):
    return laplace(blocks_of(table))


@pytest.mark.parametrize("prior", ["default", HierarchicalPrior()])
def test_laplace_posterior_is_that_of_rows_in_memory(table, prior):
    ours, theirs = laplace(blocks_of(table), prior), laplace(table, prior)
    assert ours.diagnostics_.ok
    assert ours.diagnostics_.pareto_k < 0.5
    assert_same_posterior(ours, theirs, 2000)
    assert ours.idata_.attrs["passes_over_rows"] <= 8


def test_weights_stand_in_a_column(table, tmp_path):
    v = np.random.default_rng(1).integers(0, 3, N)
    file = tmp_path / "rows.parquet"
    pd.DataFrame(table, columns=["a", "b"]).assign(w=v).to_parquet(file)
    ours = laplace(open_blocks(file, weights="w"))
    repeated = laplace(pd.DataFrame(np.repeat(table, v, axis=0), columns=["a", "b"]))
    assert list(ours.feature_names_in_) == ["a", "b"]
    assert_same_posterior(ours, repeated, 2000)


@pytest.mark.slow
def test_nuts_says_its_cost_first_and_agrees(table):
    few = table[:600]

    def nuts(X):
        return BayesianGaussianMixture(
            2, method="nuts", draws=1500, tune=100, chains=2, target_ess=0, n_init=2, random_state=0, progressbar=False
        ).fit(X)

    with pytest.warns(CostWarning, match=r"about 25,600 passes .* s a pass"):
        ours = nuts(blocks_of(few, 250))
    theirs = nuts(few)
    assert ours.diagnostics_.ok
    assert_same_posterior(ours, theirs, min(ours.diagnostics_.ess_bulk, theirs.diagnostics_.ess_bulk))


def test_what_a_posterior_says_of_rows_it_says_of_blocks(table, in_blocks):
    blocks = blocks_of(table[:9000], 2000)
    np.testing.assert_allclose(in_blocks.score_samples(blocks), in_blocks.score_samples(table[:9000]), rtol=1e-12)
    np.testing.assert_allclose(in_blocks.predict_proba(blocks), in_blocks.predict_proba(table[:9000]), atol=1e-12)
    np.testing.assert_array_equal(in_blocks.predict(blocks), in_blocks.predict(table[:9000]))
    assert in_blocks.score(blocks) == pytest.approx(in_blocks.score(table[:9000]), rel=1e-12)
    detector = AnomalyDetector(FrozenEstimator(in_blocks), false_alarm=0.01, n_draws=50, random_state=0).fit(None)
    assert list(detector.predict(np.array([[-3.0, 1000.0], in_blocks.means_[0]]))) == [-1, 1]


def test_what_needs_the_rows_of_the_fit_says_so(table, in_blocks):
    assert "observed_data" not in in_blocks.idata_.children
    assert "log_likelihood" not in in_blocks.idata_.children
    for need in (
        in_blocks.compute_log_likelihood,
        in_blocks.coclustering,
        in_blocks.partition,
        in_blocks.log_evidence,
        in_blocks.assign,
        lambda: in_blocks.pymc_model_,
    ):
        with pytest.raises(RowsNotHeldError, match="read in blocks .* give the rows"):
            need()
    assert in_blocks.coclustering(table[:10]).shape == (10, 10)
    # Fitted again, in memory, it has them.
    again = BayesianGaussianMixture(1, method="laplace", draws=150, random_state=0, progressbar=False)
    with pytest.raises(AttributeError, match="not fitted"):
        _ = again._X
    again.fit(table[:100])
    assert len(again._X) == 100
    again.fit(blocks_of(table[:100], 30))
    with pytest.raises(RowsNotHeldError):
        _ = again._X


def test_weights_beside_blocks_are_refused(table):
    with pytest.raises(ValueError, match="open_blocks"):
        BayesianGaussianMixture(2).fit(blocks_of(table), sample_weight=np.ones(N))


def test_saved_loaded_and_reported_without_rows(in_blocks, tmp_path):
    in_blocks.save(tmp_path / "fit")
    loaded = bayesgmm.load(tmp_path / "fit")
    pd.testing.assert_frame_equal(loaded.summary(), in_blocks.summary())
    with pytest.raises(RowsNotHeldError):
        loaded.assign()
    page = in_blocks.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 components, and the draws can be trusted" in page
