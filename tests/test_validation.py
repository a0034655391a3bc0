"""What the studies of `make validate` rest on: the simulated truth, the reckoning of choices and losses, the file of results."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bayesgmm.core.parameters import factors_from_covariances
from tests.oracles import mixture_log_density

criteria = pytest.importorskip("benchmarks.validation.criteria")
runs = pytest.importorskip("benchmarks.validation.runs")


@pytest.mark.parametrize("n_features", [1, 2, 5])
@pytest.mark.parametrize("kind", ["separated", "overlapping"])
def test_every_centre_has_a_neighbour_at_the_distance_and_none_nearer(kind, n_features):
    truth = criteria.draw_truth(kind, n_features, 5, np.random.default_rng(n_features))
    gaps = np.linalg.norm(truth.means[:, None] - truth.means[None], axis=2) + np.diag(np.full(5, np.inf))
    # One subtraction after one addition: a few rounding errors.
    np.testing.assert_allclose(gaps.min(axis=1), criteria.KINDS[kind], rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(truth.covariances, axis1=1, axis2=2), 1.0, rtol=1e-12)


def test_density_of_the_truth_and_its_rows():
    rng = np.random.default_rng(3)
    truth = criteria.draw_truth("separated", 2, 3, rng)
    X = criteria.sample(truth, 20_000, rng)
    ours = criteria.log_density(truth, X[:50])
    np.testing.assert_allclose(ours, mixture_log_density(X[:50], truth.weights, truth.means, truth.covariances))
    owner = np.linalg.norm(X[:, None] - truth.means, axis=2).argmin(axis=1)
    for k in range(3):
        own = X[owner == k]
        # 6 sd apart about 1 row in 700 falls to a neighbour; some 5,000 rows have errors of 0.015 to 0.03.
        assert len(own) / len(X) == pytest.approx(truth.weights[k], abs=0.015)
        np.testing.assert_allclose(np.cov(own.T), truth.covariances[k], atol=0.1)


def test_choices_losses_and_excess():
    result = {
        "picks": {"bic": 1, "loo": 2},
        "losses": {"em": [0.5, 0.2, 0.3], "posterior": [0.4, None, 0.25]},
        "peer": {"K": 3, "loss": 0.1},
    }
    key = ("separated", 1, 3, 0)
    assert criteria.choice("bic", key, result) == (1, 0.5, pytest.approx(0.2))
    assert criteria.choice("peer", key, result) == (3, 0.1, pytest.approx(-0.2))
    assert criteria.choice("true_posterior", key, result) == (3, 0.25, 0.0)
    assert criteria.choice("loo", key, result) is None
    assert criteria.choice("evidence", key, result) is None


def test_simplest_model_as_good():
    index = pd.MultiIndex.from_tuples([("full", K) for K in (1, 2, 3, 4)])
    columns = {"n_parameters": [2, 5, 8, 11], "elpd_diff": [-60.0, -9.0, -3.0, 0.0], "dse": [10.0, 5.0, 0.1, 0.0]}
    assert criteria.simplest_as_good(pd.DataFrame(columns, index=index)) == 2
    assert criteria.simplest_as_good(pd.DataFrame(columns | {"dse": [9.0, 4.0, 0.1, 0.0]}, index=index)) == 3


def test_errors_are_taken_within_cells_where_these_hold_two():
    values, cell = np.array([1.0, 3.0, 11.0, 13.0]), [(1, 1), (1, 1), (2, 1), (2, 1)]
    # Each cell has variance 2; of the mean of four: (2·2 + 2·2) / 16.
    assert criteria.mean_and_error(values, cell) == (7.0, pytest.approx(np.sqrt(0.5)))
    alone = [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert criteria.mean_and_error(values, alone) == (7.0, pytest.approx(values.std(ddof=1) / 2))


def test_stored_results_are_those_of_the_same_settings(tmp_path):
    file = tmp_path / "results.jsonl"
    settings = {"draws": 10, "version": "1"}
    lines = [
        {"study": "a", "settings": settings, "key": ["x", 1], "result": {"z": 0.5}},
        {"study": "a", "settings": settings | {"draws": 20}, "key": ["x", 2], "result": {}},
        {"study": "b", "settings": settings, "key": ["x", 3], "result": {}},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"study": "a", "sett', encoding="utf-8")
    assert runs.stored("a", settings, file) == {("x", 1): {"z": 0.5}}
    assert runs.stored("a", settings, tmp_path / "none") == {}


def alarms(posterior, em, n_data_sets=20):
    """Results of the false-alarm study with these mean rates, in multiples of the nominal one, and a little scatter."""
    study = pytest.importorskip("benchmarks.validation.anomaly")
    scatter = np.linspace(-0.05, 0.05, n_data_sets)
    sides = {"posterior": posterior, "em": em, "conformal": 1.0}
    return {
        (*cell, i): {
            "rates": {side: [rate * (at + scatter[i]) for rate in study.RATES] for side, at in sides.items()},
            "content": True,
        }
        for cell in study.CELLS
        for i in range(n_data_sets)
    }


@pytest.mark.parametrize(
    ("posterior", "em", "missed_a_cell"),
    [(1.0, 2.0, 0), (1.15, 1.3, 0), (1.3, 2.0, 2), (1.15, 1.05, 2), (0.7, 0.9, 4)],
)
def test_false_alarm_targets_are_judged_at_two_rates(posterior, em, missed_a_cell):
    study = pytest.importorskip("benchmarks.validation.anomaly")
    # Two rates judged in each cell: within 20 % of nominal, and no further from it than EM.
    assert study.report(alarms(posterior, em), "laplace", judged=True) == missed_a_cell * len(study.CELLS)
    assert study.report(alarms(posterior, em), "laplace", judged=False) == 0


def test_rows_of_the_false_alarm_study_have_the_stated_distances():
    study = pytest.importorskip("benchmarks.validation.anomaly")
    truth = study.draw_truth(2, np.random.default_rng(0))
    gaps = np.linalg.norm(truth.means[:, None] - truth.means, axis=2)
    assert gaps[gaps > 0].min() == pytest.approx(study.DISTANCE)
    np.testing.assert_allclose(np.diagonal(truth.covariances, axis1=1, axis2=2), 1.0)


sbc = pytest.importorskip("benchmarks.validation.sbc")
coverage = pytest.importorskip("benchmarks.validation.coverage")


def test_cells_hold_every_structure_family_and_number_of_components():
    for K in sbc.COMPONENTS:
        for kind in sbc.STRUCTURES:
            assert any(cell[0] in sbc.SEPARATION and cell[1:] == (kind, K) for cell in sbc.CELLS)
        assert {cell[0] for cell in sbc.CELLS if cell[2] == K} == set(sbc.FAMILIES)
    assert set(sbc.CELLS) < set(sbc.FULL_CELLS)


@pytest.mark.parametrize("n", [100, 400])
def test_bands_hold_the_whole_distribution_of_uniform_ranks(n):
    low, high = sbc.band(n, 0.95)
    rng, hits = np.random.default_rng(7), 0
    for _ in range(2000):
        counts = np.searchsorted(np.sort(rng.integers(0, sbc.RANKS, n)), np.arange(1, sbc.RANKS), side="left")
        hits += bool(np.all((low <= counts / n) & (counts / n <= high)))
    # Counts are whole numbers: the band holds what is asked for or a little more; binomial error 0.005.
    assert 0.935 <= hits / 2000 <= 0.985


def test_faults_are_what_they_say():
    """The log of what a fault leaves is the change of the density that it is a fault of."""
    for family in ("lognormal", "gamma"):
        prior = sbc.prior_of(family, 2)
        weights, means, packed = prior.draw(np.random.default_rng(3), 6, "full")
        factors = factors_from_covariances(packed)
        sigma = np.sqrt(np.diagonal(packed, axis1=2, axis2=3))
        # In log σ the density has the factor σ; without it ∏ 1/σ is left.
        np.testing.assert_allclose(sbc.log_fault(prior, factors, "Jacobian"), -np.log(sigma).sum(axis=(1, 2)))
        flat = replace(prior, eta=1.0)
        left = flat.log_density(weights, means, packed) - prior.log_density(weights, means, packed)
        # Up to the constant of the LKJ.
        np.testing.assert_allclose(np.ptp(sbc.log_fault(prior, factors, "LKJ") - left), 0, atol=1e-9)
    shape = sbc.faulty_prior(sbc.prior_of("gamma", 2), "shape")
    assert shape.deviation_shape == sbc.SEPARATION["gamma"][1] + 1


def test_entries_are_counted_where_their_interval_holds_the_truth():
    means, covariances = coverage.truth(2)
    sure = {"weights": coverage.WEIGHTS, "means": means, "covariances": covariances}
    wide = {name: (value - 1.0, value + 1.0) for name, value in sure.items()}
    beside = wide | {"means": (means + np.array([0.5, -0.5]), means + 2.0)}
    beside["covariances"] = (covariances + 0.1 * np.eye(2), covariances + 1.0)
    found = coverage.judged([wide, beside, wide, wide], 2)
    assert found["weights"] == [1, 1, 1, 1, pytest.approx(np.log(2.0))]
    assert found["means"][:2] == [1, 0.5]
    assert (found["variances"][1], found["covariances"][1]) == (0, 1)


@pytest.mark.slow
def test_page_has_tables_figures_and_what_was_missed(tmp_path, monkeypatch):
    validate = pytest.importorskip("benchmarks.validate")
    rng = np.random.default_rng(0)

    def stored_ranks(study, task, keys, settings, options):
        n = len(sbc.QUANTITIES)
        return {key: {"ranks": rng.integers(0, 100, n).tolist(), "content": True} for key in keys}, 0

    monkeypatch.setattr(sbc, "collect", stored_ranks)
    page = tmp_path / "new" / "page.md"
    # Uniform ranks have no fault to be seen: five targets are missed.
    assert validate.main(["--only", "sbc", "--markdown", str(page)]) == 1
    text = page.read_text(encoding="utf-8")
    assert "| [sbc](#sbc) | Simulation-based calibration" in text
    assert "NOT SEEN" in text
    assert "| 5 |" in text
    assert "![Simulation-based calibration" in text
    assert (page.parent / "page_sbc.png").stat().st_size > 10_000


def test_the_time_of_a_study_is_that_of_all_runs_that_it_goes_on_from(tmp_path):
    options = runs.Options(out=tmp_path / "results.jsonl")
    assert runs.times("sbc", 5.0, 8.0, options) == (5.0, 8.0)
    options.out.write_text("")
    assert runs.times("sbc", 5.0, 8.0, options) == (5.0, 8.0)
    assert runs.times("sbc", 1.5, 2.0, options) == (6.5, 10.0)
    assert runs.times("coverage", 3.0, 4.0, options) == (3.0, 4.0)
    # What is only printed takes no time of its own.
    assert runs.times("sbc", 0.1, 0.1, runs.Options(out=options.out, report=True)) == (6.5, 10.0)
