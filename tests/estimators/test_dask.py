"""Fits to Dask collections are those to the same rows in memory, on a cluster that loses a worker on the way too."""

from __future__ import annotations

import os
import signal

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, ConjugatePrior, GaussianMixture, open_blocks, select
from bayesgmm.exceptions import DataError, RowsNotHeldError
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.summed import SummedPosterior

da = pytest.importorskip("dask.array", reason="Dask is not installed: pip install 'bayesgmm[dask]'")
dd = pytest.importorskip("dask.dataframe", reason="Dask is not installed: pip install 'bayesgmm[dask]'")
pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")

from bayesgmm.distributed import DaskBlocks  # noqa: E402

# The same iterations on sums that were added in another order.
RELATIVE = 1e-10


@pytest.fixture(scope="module")
def rows():
    """Three groups that overlap."""
    rng = np.random.default_rng(11)
    groups = [
        rng.normal(centre, size, (n, 2)) for centre, size, n in ((0, 1, 900), (2.5, 1.5, 700), ((-2, 2), 0.8, 400))
    ]
    return rng.permutation(np.concatenate(groups))


@pytest.fixture(scope="module")
def weights(rows):
    return np.random.default_rng(12).integers(0, 4, len(rows)).astype(float)


def from_a_start(**settings):
    """Twenty plain steps of EM from one start."""
    start = [[0.0, 0.0], [3.0, 3.0], [-1.0, 3.0]]
    settings = {"weights_init": np.full(3, 1 / 3), "means_init": start, "max_iter": 20, "tol": 0} | settings
    return GaussianMixture(3, precisions_init=PRECISIONS[settings["covariance_type"]], **settings)


PRECISIONS = {"full": [np.eye(2)] * 3, "tied": np.eye(2), "diag": np.ones((3, 2)), "spherical": np.ones(3)}


def assert_same(found, expected, relative=RELATIVE):
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=relative, atol=relative, err_msg=name
        )


@pytest.mark.filterwarnings("ignore:EM did not converge")
@pytest.mark.parametrize(
    ("covariance_type", "weighted"),
    [
        ("full", False),
        ("tied", True),
        ("diag", False),
        ("spherical", True),
        *(
            pytest.param(name, weighted, marks=pytest.mark.slow)
            for name, weighted in (("full", True), ("tied", False), ("diag", True), ("spherical", False))
        ),
    ],
)
def test_em_is_that_in_memory_step_by_step(covariance_type, weighted, rows, weights, monkeypatch):
    # on threads of this process, where a pass is quick; the cluster gives the same bits
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    X = da.from_array(rows, chunks=((900, 0, 300, 800), 1))
    fit = from_a_start(covariance_type=covariance_type)
    in_memory = clone(fit).fit(rows, sample_weight=weights if weighted else None)
    found = clone(fit).fit(X, sample_weight=da.from_array(weights, chunks=500) if weighted else None)
    assert found.n_iter_ == in_memory.n_iter_ == 20
    assert_same(found, in_memory)


@pytest.mark.slow
def test_a_fit_from_a_subsample_finds_the_optimum_in_memory(rows, weights, client):
    frame = pd.DataFrame(rows, columns=["a", "b"]).assign(v=weights)
    X = dd.from_pandas(frame, npartitions=5)
    found = GaussianMixture(3, random_state=0, prior="default").fit(X[["a", "b"]], sample_weight=X.v)
    expected = GaussianMixture(3, random_state=0, prior="default").fit(frame[["a", "b"]], sample_weight=weights)
    assert found.feature_names_in_.tolist() == ["a", "b"]
    # tol=1e-8 per row on the objective, which is quadratic at the optimum: parameters within √1e-8 times some units
    assert abs(found.lower_bound_ - expected.lower_bound_) < 1e-7
    order, other = np.argsort(found.weights_), np.argsort(expected.weights_)
    np.testing.assert_allclose(found.means_[order], expected.means_[other], atol=5e-3)


@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_a_worker_killed_in_mid_fit_does_not_show(rows, client):
    X = da.from_array(rows, chunks=(250, 2)).persist()
    expected = from_a_start(covariance_type="full").fit(X)
    deaths = []

    def kill(iteration, parameters, objective):
        if iteration == 7:
            deaths.append(min(client.run(os.getpid).values()))
            os.kill(deaths[0], signal.SIGKILL)

    found = from_a_start(covariance_type="full").fit(X, callback=kill)
    assert deaths
    assert_same(found, expected)


@pytest.mark.slow
def test_what_is_said_of_rows_is_said_when_it_is_asked_for(rows, weights, client):
    frame = pd.DataFrame(rows, columns=["a", "b"])
    fit = GaussianMixture(3, random_state=0, tol=1e-11).fit(frame, sample_weight=weights)
    X = dd.from_pandas(frame.assign(more=1.0), npartitions=4)[["more", "b", "a"]]
    for name in ("score_samples", "predict_proba", "predict"):
        lazily, expected = getattr(fit, name)(X), getattr(fit, name)(frame)
        assert isinstance(lazily, da.Array)
        assert lazily.dtype == expected.dtype
        np.testing.assert_allclose(lazily.compute(), expected, rtol=1e-12, atol=1e-12)
    v = dd.from_pandas(pd.Series(weights), npartitions=4)
    errors = fit.standard_errors(X, sample_weight=v), fit.standard_errors(frame, sample_weight=weights)
    np.testing.assert_allclose(errors[0].means, errors[1].means, rtol=1e-9)
    for name in ("score", "aic", "bic", "icl"):
        found, expected = getattr(fit, name)(X, sample_weight=v), getattr(fit, name)(frame, sample_weight=weights)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bad_rows_are_told_at_the_door_or_when_they_are_met(rows, client):
    fit = GaussianMixture(2, random_state=0).fit(pd.DataFrame(rows, columns=["a", "b"]))
    wrong = rows.copy()
    wrong[1300, 1] = np.nan
    X = dd.from_pandas(pd.DataFrame(wrong, columns=["a", "b"]), npartitions=4)
    with pytest.raises(DataError, match="partition 2, row 300, column 'b'"):
        GaussianMixture(2).fit(X)
    with pytest.raises(DataError, match="partition 2, row 300, column 'b'"):
        fit.predict(X).compute()
    with pytest.raises(ValueError, match="column 'b' is missing"):
        fit.predict(X[["a"]])
    with pytest.raises(ValueError, match="3 features"):
        GaussianMixture(2, random_state=0).fit(rows).score(da.ones((10, 3)))
    with pytest.raises(DataError, match="column 'c' is not numeric"):
        GaussianMixture(2).fit(X.assign(c="text"))
    with pytest.raises(ValueError, match="n_components = 5, n_samples = 3"):
        GaussianMixture(5).fit(da.from_array(rows[:3]))
    with pytest.raises(TypeError, match="compute"):
        fit.bootstrap(X)
    with pytest.raises(TypeError, match="use fit"):
        GaussianMixture(2).partial_fit(da.from_array(rows))


def test_log_posterior_and_gradient_are_those_in_memory(rows, weights, client):
    prior = ConjugatePrior().resolve(rows, 3, "full", weights)
    compiled = CompiledPosterior.from_data(rows, 3, "full", prior, weights)
    summed = SummedPosterior.from_prior(DaskBlocks(da.from_array(rows, chunks=(600, 2)), weights), "full", prior)
    em = GaussianMixture(3, random_state=0).fit(rows, sample_weight=weights)
    parameters = em._parameters
    theta = compiled.unconstrain(parameters.weights, parameters.means, parameters.precision_factors)
    theta = theta + 0.05 * np.random.default_rng(1).standard_normal(len(theta))
    (found, gradient), (expected, wanted) = summed.logp_and_grad(theta), compiled.logp_and_grad(theta)
    np.testing.assert_allclose(found, expected, rtol=RELATIVE)
    np.testing.assert_allclose(gradient, wanted, rtol=RELATIVE, atol=RELATIVE * np.abs(wanted).max())


def test_a_laplace_posterior_is_that_in_memory_within_monte_carlo_error(rows, weights, client):
    frame = pd.DataFrame(rows, columns=["a", "b"]).assign(v=weights)
    X = dd.from_pandas(frame, npartitions=4).persist()
    found = BayesianGaussianMixture(3, random_state=0, progressbar=False).fit(X[["a", "b"]], sample_weight=X.v)
    assert found.method_ == "laplace"
    expected = BayesianGaussianMixture(3, method="laplace", random_state=0, progressbar=False)
    expected.fit(frame[["a", "b"]], sample_weight=weights)
    assert found.diagnostics_.pareto_k < 0.7
    ours, theirs = np.argsort(found.means_[:, 0]), np.argsort(expected.means_[:, 0])
    sd = found._draws.flat()[1].std(axis=0)[ours]
    # 4 × 1000 draws worth some 1,000 after resampling: means within 4 √(2 / 1000) posterior standard deviations
    assert np.all(np.abs(found.means_[ours] - expected.means_[theirs]) < 0.18 * sd)
    lazily = found.predict_proba(X[["b", "a"]])
    assert lazily.shape[1] == 3
    np.testing.assert_allclose(lazily.compute(), found.predict_proba(frame[["a", "b"]]), atol=1e-12)
    np.testing.assert_allclose(found.score(X, sample_weight=X.v), found.score(frame[["a", "b"]], sample_weight=weights))
    with pytest.raises(RowsNotHeldError):
        found.coclustering()


@pytest.mark.parametrize("posterior", [pytest.param(False, marks=pytest.mark.slow), True])
def test_anomalies_are_those_in_memory(posterior, rows, monkeypatch):
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    frame = pd.DataFrame(rows, columns=["a", "b"], index=np.arange(len(rows)) + 7)
    make = BayesianGaussianMixture(3, method="laplace", progressbar=False) if posterior else GaussianMixture(3)
    fit = make.set_params(random_state=0).fit(frame)
    detector = AnomalyDetector(FrozenEstimator(fit), n_draws=100, n_simulated=2000, random_state=0).fit(None)
    X = dd.from_pandas(frame, npartitions=3)
    said = ["score_samples", "decision_function", "predict", "predictive_tail_probability"]
    for name in said + ["anomaly_probability"] * posterior:
        lazily = getattr(detector, name)(X)
        assert isinstance(lazily, da.Array)
        np.testing.assert_allclose(lazily.compute(), getattr(detector, name)(frame), atol=1e-12)
    table = detector.table(X, min_responsibility=0.8)
    pd.testing.assert_frame_equal(table.compute(), detector.table(frame, min_responsibility=0.8), check_dtype=False)
    p, error = detector.predictive_tail_probability(X, return_error=True)
    np.testing.assert_allclose(error.compute(), detector.predictive_tail_probability(frame, return_error=True)[1])


@pytest.mark.parametrize("posterior", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tables_of_rows_come_lazily_or_block_by_block(posterior, rows, monkeypatch):
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    frame = pd.DataFrame(rows, columns=["a", "b"])
    make = BayesianGaussianMixture(3, method="laplace", progressbar=False) if posterior else GaussianMixture(3)
    fit = make.set_params(random_state=0).fit(frame)
    detector = AnomalyDetector(FrozenEstimator(fit), n_draws=100, n_simulated=2000, random_state=0).fit(None)
    X, blocks = dd.from_pandas(frame, npartitions=3), open_blocks([frame[:700], frame[700:1400], frame[1400:]])
    far = float(np.quantile(fit.score_samples(frame), 0.02))
    for say in (
        lambda each: fit.assign(each, min_log_density=far, min_responsibility=0.8),
        lambda each: detector.assign(each, min_responsibility=0.8),
        detector.table,
        detector.explain,
    ):
        expected = say(frame)
        pd.testing.assert_frame_equal(say(X).compute(), expected, check_dtype=False)
        parts = list(say(blocks))
        assert len(parts) == 3
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), expected)
    with pytest.raises(ValueError, match="min_responsibility"):
        fit.assign(blocks, min_responsibility=2.0)
    for each in (X, blocks):
        pd.testing.assert_frame_equal(detector.flagged(each), detector.flagged(frame), rtol=1e-10)
        pd.testing.assert_frame_equal(detector.discoveries(each, rate=0.2), detector.discoveries(frame, rate=0.2))
    if posterior:
        expected = detector.conformal_pvalue(frame)
        np.testing.assert_array_equal(detector.conformal_pvalue(X).compute(), expected)
        np.testing.assert_array_equal(detector.conformal_pvalue(blocks), expected)


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_threshold_of_a_share_of_all_rows_is_exact(weighted, rows, weights, monkeypatch):
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    monkeypatch.setattr("bayesgmm.core.quantiles.FEW", 10)
    monkeypatch.setattr("bayesgmm.core.quantiles.BINS", 7)
    v = weights if weighted else None
    fit = GaussianMixture(3, random_state=0).fit(rows)
    for share in (0.001, 0.03, 0.5):
        detector = AnomalyDetector(FrozenEstimator(fit), contamination=share, random_state=0)
        in_memory = clone(detector).fit(rows, sample_weight=v).offset_
        assert clone(detector).fit(da.from_array(rows, chunks=(300, 2)), sample_weight=v).offset_ == in_memory


def test_a_detector_is_fitted_on_the_workers(rows, client):
    X = da.from_array(rows, chunks=(500, 2)).persist()
    detector = AnomalyDetector(GaussianMixture(3, random_state=0), contamination=0.02, random_state=0).fit(X)
    flagged = (detector.predict(X) == -1).sum().compute()
    assert abs(flagged - 0.02 * len(rows)) <= 1


def test_a_selection_by_the_criteria_of_em(rows, weights, monkeypatch, tmp_path):
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    X = da.from_array(rows, chunks=(700, 2))
    grid = {"n_components": [1, 3], "covariance_types": ["full", "diag"], "random_state": 0, "progressbar": False}
    found = select(X, **grid, sample_weight=weights, tol=1e-10, out=tmp_path / "sweep")
    expected = select(rows, **grid, sample_weight=weights, tol=1e-10)
    columns = ["log_likelihood", "aic", "aicc", "bic", "icl"]
    # ICL takes the logarithm of single responsibilities: it moves with the square root of what is left of the climb
    np.testing.assert_allclose(found.table[columns].astype(float), expected.table[columns].astype(float), rtol=1e-5)
    np.testing.assert_allclose(found.table["bic"].astype(float), expected.table["bic"].astype(float), rtol=1e-7)
    assert found.best("bic") == expected.best("bic")
    assert found.n_rows == len(rows)
    again = select(X, **grid, sample_weight=weights, tol=1e-10, out=tmp_path / "sweep")
    assert again.table["bic"].tolist() == found.table["bic"].tolist()
    with pytest.raises(ValueError, match="labels"):
        select(X, **grid, y=np.zeros(len(rows)))


@pytest.mark.slow
def test_a_selection_by_all_criteria(rows, monkeypatch, tmp_path):
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    X = da.from_array(rows, chunks=(700, 2))
    grid = {"n_components": [1, 3], "covariance_types": "diag", "method": "laplace", "draws": 200, "random_state": 0}
    found = select(X, **grid, progressbar=False, out=tmp_path / "sweep")
    expected = select(rows, **grid, progressbar=False)
    ours, theirs = found.table.astype({"prior": str}), expected.table
    assert ours["flags"].tolist() == ["", ""]
    # Two sets of 800 draws: the mean over them of a density that varies by √p_loo nats in all
    for name, size in (("elpd_waic", 1.0), ("elpd_loo", 1.0), ("p_loo", 1.0), ("log_evidence", 0.1)):
        assert np.all(np.abs(ours[name].astype(float) - theirs[name].astype(float)) < size), name
    np.testing.assert_allclose(ours["se"].astype(float), theirs["se"].astype(float), rtol=0.01)
    np.testing.assert_allclose(ours["dse"].astype(float), theirs["dse"].astype(float), rtol=0.01)
    assert found.best("loo") == found.best("evidence") == ("diag", 3)
    assert found.sensitivity is not None
    again = select(X, **grid, progressbar=False, out=tmp_path / "sweep")
    pd.testing.assert_frame_equal(again.table, found.table)


@pytest.mark.parametrize("method", ["em", pytest.param("laplace", marks=pytest.mark.slow)])
def test_the_models_of_a_selection_are_fitted_on_the_workers(method, rows, client):
    grid = {"n_components": [1, 2], "covariance_types": ["full", "tied"], "random_state": 0, "progressbar": False}
    if method == "laplace":
        grid |= {"method": method, "criteria": ["waic"], "draws": 100, "covariance_types": "full"}
    found, expected = select(rows[:300], **grid, client=client), select(rows[:300], **grid)
    pd.testing.assert_frame_equal(found.table, expected.table)
    for key, fit in expected.fits.items():
        np.testing.assert_array_equal(found.fits[key].means_, fit.means_)
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert {"bayesgmm-model", "bayesgmm-common"} <= set(names)
