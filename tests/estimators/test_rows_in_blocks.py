from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import ConjugatePrior, GaussianMixture, load, open_blocks
from bayesgmm.exceptions import DataError, DataWarning
from tests.mixtures import STRUCTURES, random_mixture


def rows(n=1500, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    return random_mixture(rng, 3, 2, spread=spread).sample(rng, n)


@pytest.fixture(scope="module")
def frame():
    return pd.DataFrame(rows(), columns=["a", "b"])


@pytest.fixture
def path(frame, tmp_path):
    pytest.importorskip("pyarrow")
    frame.assign(c=1.0)[["c", "b", "a"]].to_parquet(tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def start(frame):
    return {"weights_init": [0.2, 0.3, 0.5], "means_init": frame.to_numpy()[:3], "precisions_init": [np.eye(2)] * 3}


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_blocks_are_fitted_scored_and_classified_as_the_table_is(frame, covariance_type):
    v = np.random.default_rng(1).integers(0, 3, len(frame))
    table = open_blocks(frame.assign(v=v), weights="v", block_rows=400)
    options = {"covariance_type": covariance_type, "tol": 1e-9}
    if covariance_type == "full":
        options |= start(frame)
    ours = GaussianMixture(3, random_state=0, **options).fit(table)
    theirs = GaussianMixture(3, random_state=0, **options).fit(frame, sample_weight=v)
    assert list(ours.feature_names_in_) == ["a", "b"]
    assert ours.initialised_on_ == np.count_nonzero(v)
    if covariance_type == "full":
        np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-10)
        np.testing.assert_allclose(ours.covariances_, theirs.covariances_, rtol=1e-10)
        assert ours.n_iter_ == theirs.n_iter_
    # starts differ: the same optimum, within what a step of 1e-9 leaves
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-6)
    for name in ("score_samples", "predict_proba", "predict"):
        np.testing.assert_allclose(getattr(ours, name)(table), getattr(ours, name)(frame), rtol=1e-12, atol=1e-15)
    for name in ("score", "aic", "bic", "icl"):
        assert getattr(ours, name)(table) == pytest.approx(getattr(ours, name)(frame, sample_weight=v), rel=1e-12)


def test_a_path_is_read_by_the_names_of_the_fit(frame, path):
    table = open_blocks(path, columns=["a", "b"])
    em = GaussianMixture(3, random_state=0).fit(table)
    np.testing.assert_array_equal(em.score_samples(path), em.score_samples(frame))
    with pytest.raises(ValueError, match="open it with columns="):
        em.score(open_blocks(path, columns=["b", "a"]))
    with pytest.raises(ValueError, match="3 features"):
        em.score(open_blocks(path))
    with pytest.raises(DataError, match="no column 'a'"):
        em.score(open_blocks(path, columns=["c"]) and str(_other(path)))


def _other(path):
    pd.DataFrame({"x": [1.0, 2.0], "y": [2.0, 1.0]}).to_csv(path.with_name("other.csv"), index=False)
    return path.with_name("other.csv")


@pytest.mark.parametrize("prior", ["default", ConjugatePrior(mean_precision=0.1)])
def test_a_prior_is_resolved_on_all_rows(frame, prior):
    ours = GaussianMixture(3, prior=prior, random_state=0).fit(open_blocks(frame, block_rows=400))
    theirs = GaussianMixture(3, prior=prior, random_state=0).fit(frame)
    np.testing.assert_allclose(ours.prior_.resolved_mean, theirs.prior_.resolved_mean, rtol=1e-12)
    # of another fit where the scale is S_w: its last step was 1e-6
    np.testing.assert_allclose(
        ours.prior_.resolved_scale, theirs.prior_.resolved_scale, rtol=1e-12 if prior == "default" else 0.02, atol=1e-3
    )


def test_a_saved_fit_is_loaded(frame, tmp_path):
    em = GaussianMixture(2, random_state=0).fit(open_blocks(frame))
    again = load(em.save(tmp_path / "fit"))
    np.testing.assert_array_equal(again.means_, em.means_)
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["settings"]["acceleration"] == "squarem"


def test_what_cannot_be_fitted_is_refused(frame, path):
    with pytest.raises(DataError, match="gives its rows once"):
        GaussianMixture(2).fit(iter([frame]))
    with pytest.raises(ValueError, match="weights='column'"):
        GaussianMixture(2).fit(path, sample_weight=np.ones(len(frame)))
    with pytest.raises(ValueError, match="n_components = 4, n_samples = 3"):
        GaussianMixture(4).fit(open_blocks(frame[:3]))
    with pytest.raises(ValueError, match="leave the range of float64"):
        GaussianMixture(2).fit(open_blocks(frame * 1e160))
    with pytest.raises(ValueError, match="collinear"):
        GaussianMixture(2, prior="default").fit(open_blocks(frame.assign(c=frame["a"])))
    with pytest.raises(ValueError, match="distinct rows cannot carry"), pytest.warns(ConvergenceWarning):
        GaussianMixture(3, reg_covar=0).fit(open_blocks(np.repeat([[1.0, 2.0], [3.0, 1.0]], 50, axis=0)))
    with pytest.warns(DataWarning, match="'c' is constant"):
        em = GaussianMixture(2, random_state=0).fit(open_blocks(frame.assign(c=1.0)))
    with pytest.raises(TypeError, match="all rows in memory"):
        em.bootstrap(path)


@pytest.mark.parametrize("method", ["information", "sandwich"])
def test_standard_errors_are_those_of_memory(frame, method):
    v = np.random.default_rng(1).integers(1, 3, len(frame))
    em = GaussianMixture(3, random_state=0).fit(frame, sample_weight=v)
    ours = em.standard_errors(open_blocks(frame.assign(v=v), weights="v", block_rows=400), method)
    theirs = em.standard_errors(frame, method, sample_weight=v)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9)
    assert list(em.summary(open_blocks(frame.assign(v=v), weights="v")).columns) == ["em", "standard_error"]


class Stops:
    """Blocks whose reader presses Ctrl-C in a pass."""

    def __init__(self, frame, in_pass):
        self.frame, self.left = frame, in_pass

    def __call__(self):
        self.left -= 1
        yield self.frame[:700]
        if self.left == 0:
            raise KeyboardInterrupt
        yield self.frame[700:]


def test_an_interrupted_fit_keeps_its_last_iteration_and_can_be_resumed(frame):
    whole = GaussianMixture(3, tol=1e-10, **start(frame)).fit(frame)
    em = GaussianMixture(3, tol=1e-10, warm_start=True, **start(frame))
    # one pass for the columns, two for the survey, one at the start: nine iterations are complete
    with pytest.warns(ConvergenceWarning, match=r"interrupted: iteration 9 is kept.*warm_start=True"):
        em.fit(open_blocks(Stops(frame, 14)))
    assert (em.converged_, em.n_iter_) == (False, 9)
    assert em.lower_bound_ == whole.lower_bounds_[9] == pytest.approx(em.score(frame), rel=1e-12)
    em.fit(open_blocks(frame))
    assert em.converged_
    assert em.n_iter_ <= whole.n_iter_ - 9 + 5
    assert em.lower_bound_ == pytest.approx(whole.lower_bound_, abs=1e-8)


def test_an_interruption_before_the_first_iteration_is_one(frame):
    em = GaussianMixture(2)
    with pytest.raises(KeyboardInterrupt):
        em.fit(open_blocks(Stops(frame, 2)))
    assert not em.__sklearn_is_fitted__()


def test_an_interrupted_fit_in_memory_keeps_the_best_so_far(frame):
    seen = []

    def stop(iteration, parameters, objective):
        seen.append(objective)
        if len(seen) == 40:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        em = GaussianMixture(3, random_state=0).fit(frame, callback=stop)
    assert em.lower_bound_ == max(seen) == pytest.approx(em.score(frame), rel=1e-12)


def stream(X, size=500):
    return [X[i : i + size] for i in range(0, len(X), size)]


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("prior", [None, pytest.param("default", marks=pytest.mark.slow)])
def test_a_stream_comes_near_the_optimum_of_all_its_rows(covariance_type, prior):
    X = rows(40_000, 2, 2.5)
    batch = GaussianMixture(3, covariance_type=covariance_type, prior=prior, random_state=0).fit(X)
    em = GaussianMixture(3, covariance_type=covariance_type, prior=prior, random_state=0).partial_fit(X[:500])
    first = em.score(X)
    for part in stream(X[500:]):
        em.partial_fit(part)
    # 17 parameters from averages over the last 2 / γ batches or so, 14,000 rows: 17 / 28,000 = 6e-4, and more where components overlap
    assert batch.score(X) - em.score(X) < 6e-3
    assert batch.score(X) - em.score(X) < 0.5 * (batch.score(X) - first)
    assert (em.n_iter_, em.n_samples_seen_, em.converged_) == (80, 40_000, False)
    # each batch was scored before it was learned
    assert np.mean(em.lower_bounds_[40:]) == pytest.approx(batch.score(X), abs=0.03)


def test_steps_are_cappe_and_moulines():
    """One step written out: the averages of raw moments, and their M-step."""
    X = rows(900, 3)
    em = GaussianMixture(2, reg_covar=0, learning_decay=0.7, learning_offset=3, random_state=0).partial_fit(X[:400])

    def moments(rows):
        r = em.predict_proba(rows)
        return r.mean(axis=0), r.T @ rows / len(rows), np.einsum("nk,ni,nj->kij", r, rows, rows) / len(rows)

    old, new = moments(X[:400]), moments(X[400:800])
    gamma = 4.0**-0.7
    counts, first, second = ((1 - gamma) * a + gamma * b for a, b in zip(old, new, strict=True))
    em.partial_fit(X[400:800])
    np.testing.assert_allclose(em.weights_, counts, rtol=1e-10)
    means = first / counts[:, None]
    np.testing.assert_allclose(em.means_, means, rtol=1e-10)
    covariances = second / counts[:, None, None] - means[:, :, None] * means[:, None, :]
    np.testing.assert_allclose(em.covariances_, covariances, rtol=1e-8)
    # the next starts from moved centres; a batch of a quarter of the size moves a quarter as far
    gamma = 0.25 * 5.0**-0.7
    counts, first, _ = (
        (1 - gamma) * a + gamma * b for a, b in zip((counts, first, second), moments(X[800:]), strict=True)
    )
    em.partial_fit(X[800:])
    np.testing.assert_allclose(em.means_, first / counts[:, None], rtol=1e-10)


def test_a_prior_counts_once_against_all_rows_so_far():
    """Batches that are all the same: the stream ends where EM on that many copies does."""
    X = rows(300, 4)
    prior = ConjugatePrior.fraley_raftery(X, 2)
    em = GaussianMixture(2, prior=prior, tol=1e-12, random_state=0)
    for _ in range(200):
        em.partial_fit(X)
    copies = GaussianMixture(2, prior=prior, tol=1e-12, random_state=0).fit(X, sample_weight=np.full(300, 200.0))
    # γ is 0.04 at the end, and the prior's share moves by 1/200 a step
    np.testing.assert_allclose(np.sort(em.weights_), np.sort(copies.weights_), atol=2e-3)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_a_fit_goes_on_with_batches_and_a_new_fit_forgets_them(frame, covariance_type):
    X = frame.to_numpy()
    fitted = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(X)
    before = fitted.means_
    fitted.partial_fit(X)
    # at the optimum a batch of the same rows moves nothing
    np.testing.assert_allclose(fitted.means_, before, atol=1e-3)
    assert fitted.n_samples_seen_ == 2 * len(X)
    fitted.fit(X)
    assert not hasattr(fitted, "n_samples_seen_")
    np.testing.assert_array_equal(fitted.means_, before)


def test_batches_of_a_path_a_table_and_an_iterator(frame, path):
    parts = stream(frame, 300)
    one_by_one = GaussianMixture(2, random_state=0)
    for part in parts:
        one_by_one.partial_fit(part)
    table = open_blocks(path, columns=["a", "b"], block_rows=300)
    for X in (iter(parts), table):
        em = GaussianMixture(2, random_state=0).partial_fit(X)
        np.testing.assert_array_equal(em.means_, one_by_one.means_)
        assert list(em.feature_names_in_) == ["a", "b"]
    with pytest.raises(ValueError, match="n_samples = 3"):
        GaussianMixture(4).partial_fit(frame[:3])


def test_a_component_that_a_stream_lost_is_started_anew():
    rng = np.random.default_rng(0)
    em = GaussianMixture(2, reg_covar=0, random_state=0, learning_offset=0.0, learning_decay=1.0)
    em.partial_fit(rng.standard_normal((200, 1)) + 50 * rng.integers(2, size=(200, 1)))
    with pytest.warns(ConvergenceWarning, match="lost its rows in batch 2"):
        em.partial_fit(rng.standard_normal((200, 1)))
    for _ in range(20):
        em.partial_fit(rng.standard_normal((200, 1)))
    assert np.isfinite(em.means_).all()
    assert np.abs(em.means_).max() < 10
