"""The sweep over K and structures: its numbers against other programs, its words, its folder, and how it fails."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import arviz as az
import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp, softmax
from sklearn.mixture import GaussianMixture as PeerMixture

import bayesgmm
from bayesgmm import ConjugatePrior, HierarchicalPrior, select, sweep
from bayesgmm.core.em import DegenerateFitError
from bayesgmm.exceptions import DataError, DataWarning
from bayesgmm.inference import sensitivity
from bayesgmm.inference.sensitivity import VARIATIONS, EvidenceChange, evidence_change, varied_priors
from bayesgmm.selection import COLUMNS, CRITERIA, Selection, compare_elpds, stacking_weights
from tests.mixtures import STRUCTURES, random_mixture
from tests.reference import data_set, em_fits


def rows(n_rows: int = 90, seed: int = 3) -> pd.DataFrame:
    """Two groups ten deviations apart."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, 2)) @ np.array([[1.0, 0.4], [0.0, 1.0]])
    X[: n_rows // 3] += 10
    return pd.DataFrame(X, columns=["a", "b"])


def quick(X=None, n_components=(1, 2), covariance_types=("full", "diag"), **options) -> Selection:
    options = {"random_state": 1, "progressbar": False, "n_init": 3} | options
    return select(rows() if X is None else X, n_components, covariance_types, **options)


@pytest.fixture(scope="module")
def labels():
    y = np.full(90, -1)
    y[20:40] = [0] * 10 + [1] * 10
    return y


@pytest.fixture(scope="module")
def posterior(labels, tmp_path_factory):
    """One sweep with everything, kept in a folder."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, quick(method="laplace", draws=100, y=labels, out=out)


# numbers


def test_em_is_no_worse_than_mclust_on_old_faithful():
    found = select(data_set("faithful"), range(1, 5), random_state=0, progressbar=False)
    compared = 0
    for fit in em_fits():
        key = (fit.covariance_type, fit.n_components)
        if fit.data != "faithful" or fit.near_singular or key not in found.em_fits:
            continue
        row = found.table.loc[key]
        assert row["n_parameters"] == fit.df
        # EM of either side stops some hundredths of a nat short of the optimum; several have better optima than the reference
        assert row["log_likelihood"] > fit.loglik - 0.02
        if abs(row["log_likelihood"] - fit.loglik) < 0.02:
            assert row["bic"] == pytest.approx(fit.bic, abs=0.05)
            if np.isfinite(fit.icl):
                # responsibilities move more than the maximum does
                assert row["icl"] == pytest.approx(fit.icl, abs=1.0)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("kind", STRUCTURES)
def test_criteria_are_those_of_scikit_learn_at_the_same_parameters(kind):
    X = rows()
    found = quick(covariance_types=kind)
    fit = found.em_fits[(kind, 2)]
    peer = PeerMixture(2, covariance_type=kind)
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        setattr(peer, name, getattr(fit, name))
    row = found.table.loc[(kind, 2)]
    # the same formula in another order of summation
    assert row["bic"] == pytest.approx(peer.bic(X.to_numpy()), rel=1e-10)
    assert row["aic"] == pytest.approx(peer.aic(X.to_numpy()), rel=1e-10)
    p = int(row["n_parameters"])
    assert row["aicc"] == pytest.approx(row["aic"] + 2 * p * (p + 1) / (len(X) - p - 1), rel=1e-10)
    assert row["icl"] == pytest.approx(fit.icl(X), rel=1e-10)
    # at ten deviations every row has its component
    assert row["smallest_component"] == pytest.approx(30, abs=1e-6)


def test_weights_count_as_repeated_rows():
    X = rows(45)
    twice = quick(pd.concat([X, X], ignore_index=True))
    weighted = quick(X, sample_weight=np.full(45, 2.0))
    # the starts differ, the optimum of two separated groups does not: EM's tolerance in 90 rows, twice for the deviance
    np.testing.assert_allclose(weighted.table["bic"].astype(float), twice.table["bic"].astype(float), atol=1e-2)


def test_a_model_does_not_depend_on_what_else_is_in_the_sweep_nor_on_n_jobs():
    many = quick(n_components=range(1, 4), covariance_types=STRUCTURES, n_jobs=2)
    one = quick(n_components=3, covariance_types="tied", n_jobs=1)
    np.testing.assert_array_equal(many.em_fits[("tied", 3)].means_, one.em_fits[("tied", 3)].means_)
    serial = quick(n_components=range(1, 4), covariance_types=STRUCTURES, n_jobs=1)
    pd.testing.assert_frame_equal(many.table, serial.table)
    assert list(many.table.index) == [(kind, K) for kind in STRUCTURES for K in (1, 2, 3)]


def test_loo_and_waic_stand_beside_em(posterior):
    _, found = posterior
    for key, fit in found.fits.items():
        row, name = found.table.loc[key], f"{key[0]}-{key[1]}"
        log_likelihood = fit.idata_["log_likelihood"]["x"].values.reshape(-1, 90)
        lppd = logsumexp(log_likelihood, axis=0) - np.log(len(log_likelihood))
        variance = log_likelihood.var(axis=0, ddof=1)
        assert row["elpd_waic"] == pytest.approx((lppd - variance).sum(), abs=1e-8)
        assert row["p_waic"] == pytest.approx(variance.sum(), abs=1e-8)
        if "k-hat" not in row["flags"] and "k̂" not in row["reason"]:
            with warnings.catch_warnings():
                # ArviZ finds another r_eff in resampled draws, hence another length of the tail and another k-hat
                warnings.simplefilter("ignore")
                theirs = az.loo(fit.idata_).elpd
            # which moves the few largest of 400 weights
            assert row["elpd_loo"] == pytest.approx(theirs, abs=0.1)
        assert row["elpd_loo"] == pytest.approx(float(found.elpds[name].elpd_i.sum()))
        assert row["bic"] == pytest.approx(found.em_fits[key].bic(rows()), rel=1e-10)


def test_refits_of_loo_are_those_asked_for(monkeypatch):
    from bayesgmm.inference import loo

    asked, plain = [], loo.loo_posterior
    monkeypatch.setattr(loo, "loo_posterior", lambda post, **kw: asked.append(kw["refits"]) or plain(post, **kw))
    for options in ({}, {"loo_refits": 0}):
        quick(n_components=1, covariance_types="full", method="laplace", draws=100, criteria="loo", **options)
    assert asked == [10, 0]


def test_differences_and_weights_are_those_of_az_compare(posterior):
    _, found = posterior
    theirs = az.compare(found.elpds, round_to="none")
    for kind, K in found.table.index:
        row, other = found.table.loc[(kind, K)], theirs.loc[f"{kind}-{K}"]
        assert row["elpd_diff"] == pytest.approx(other["elpd_diff"], abs=1e-8)
        # az.compare divides by N, R's loo and we by N − 1
        assert row["dse"] == pytest.approx(other["dse"] * np.sqrt(90 / 89), abs=1e-8)
        # its optimiser stops at 1e-6 of the score, where the weights are flat to about 1e-2
        assert row["weight"] == pytest.approx(other["weight"], abs=0.02)
    assert az.plot_compare(theirs) is not None


def test_probabilities_are_the_evidences_over_the_table(posterior):
    _, found = posterior
    evidences = found.table["log_evidence"].astype(float).to_numpy()
    np.testing.assert_allclose(found.table["probability"].astype(float), softmax(evidences), rtol=1e-12)
    # two groups ten deviations apart: no criterion prefers one component
    assert {K for _, K in found.picks.values()} == {2}
    assert not any("prior" in note for note in found.notes)
    assert set(found.table["prior"]) == {"hierarchical"}


def test_evidences_are_under_one_prior_common_to_all_models(posterior):
    _, found = posterior
    priors = [fit.prior_ for fit in found.fits.values()]
    assert all(type(prior) is HierarchicalPrior for prior in priors)
    for name in ("mean_prior", "mean_covariance", "precision_shape", "hyper_shape", "hyper_rate"):
        for prior in priors[1:]:
            np.testing.assert_array_equal(getattr(prior, name), getattr(priors[0], name))
    assert "another prior" not in found.summary()


@pytest.mark.parametrize(
    ("prior", "label", "depends"),
    [
        (ConjugatePrior(), "conjugate, scale from each model's fit", True),
        (ConjugatePrior(scale=np.eye(2)), "conjugate, scale given", False),
        (HierarchicalPrior(hyper_shape=2.0), "hierarchical with hyper_shape given", False),
    ],
)
def test_another_prior_is_labelled(prior, label, depends, tmp_path):
    found = quick(
        covariance_types="full",
        method="laplace",
        criteria="evidence",
        prior=prior,
        draws=60,
        out=tmp_path,
        sensitivity=False,
    )
    assert set(found.table["prior"]) == {label}
    (note,) = [note for note in found.notes if "another prior" in note]
    assert label in note
    assert ("depends on K" in note) == depends
    assert f"under another prior than the default: {label}." in found.summary()
    assert json.loads((tmp_path / "selection.json").read_text())["settings"]["prior"]["class"] == type(prior).__name__
    assert found.sensitivity is None
    with pytest.raises(DataError, match="another setting of prior"):
        quick(covariance_types="full", method="laplace", criteria="evidence", draws=60, out=tmp_path)


@pytest.mark.slow
def test_probabilities_have_a_prior_on_the_number_of_components():
    options = {"covariance_types": ("full", "tied"), "method": "laplace", "criteria": "evidence", "draws": 400}
    options |= {"X": np.random.default_rng(0).standard_normal((40, 1)), "sensitivity": False}
    found = quick(components_prior=("poisson", 0.3), **options)
    plain = quick(components_prior={1: 5, 2: 5}, **options)
    np.testing.assert_array_equal(plain.table["probability"], quick(**options).table["probability"])
    odds = [
        t.table["probability"].astype(float).xs(1, level=1) / t.table["probability"].astype(float).xs(2, level=1)
        for t in (found, plain)
    ]
    # Poisson(0.3): p(1) / p(2) = 2 / 0.3.
    np.testing.assert_allclose(odds[0] / odds[1], 2 / 0.3, rtol=1e-9)
    assert "p(model | data) has the prior on K 1: 0.87, 2: 0.13" in found.notes
    assert quick(components_prior={1: 0, 2: 1}, **options).table["probability"].xs(1, level=1).eq(0).all()


# the prior varied


def test_probabilities_under_varied_priors_stand_beside_those_as_given(posterior):
    _, found = posterior
    table = found.sensitivity
    assert list(table.index) == ["as given", *VARIATIONS]
    names = [f"{kind}-{K}" for kind, K in found.table.index]
    np.testing.assert_array_equal(
        table.loc["as given", "probability"][names].astype(float), found.table["probability"].astype(float)
    )
    for variation in table.index:
        evidences = table.loc[variation, "log_evidence"].astype(float)
        np.testing.assert_allclose(table.loc[variation, "probability"].astype(float), softmax(evidences), rtol=1e-9)
    for variation, prior in varied_priors(found.fits[("full", 2)].prior_).items():
        change = evidence_change(found.fits[("full", 2)], prior)
        row = table.loc[variation]
        if not row["refitted", "full-2"]:
            assert row["log_evidence", "full-2"] - table.loc["as given", ("log_evidence", "full-2")] == pytest.approx(
                change.change
            )
            assert row["pareto_k", "full-2"] == change.pareto_k
    assert "under the prior as given" in found.summary()


def sensitivity_of(chances: dict[str, list[float]]) -> pd.DataFrame:
    names = [f"full-{K}" for K in range(1, len(next(iter(chances.values()))) + 1)]
    table = pd.DataFrame.from_dict(
        chances, orient="index", columns=pd.MultiIndex.from_product([["probability"], names])
    )
    return table


@pytest.mark.parametrize(
    ("varied", "says"),
    [
        (
            [0.1, 0.6, 0.3],
            "0.70 under the prior as given, 0.60 to 0.70 where that is varied, and the most probable throughout.",
        ),
        ([0.1, 0.2, 0.7], "0.20 to 0.70 where that is varied; K = 3 (full) is the most probable with scale × 2."),
    ],
)
def test_summary_tells_what_the_probabilities_owe_to_the_prior(varied, says):
    found = made_up(log_evidence=[-9.0, -2.0, -3.0])
    found.table["prior"] = "hierarchical"
    found = replace(found, sensitivity=sensitivity_of({"as given": [0.1, 0.7, 0.2], "scale × 2": varied}))
    assert "The most probable model is K = 2 (full): " in found.summary()
    assert says in found.summary()


@pytest.mark.slow
def test_models_that_matter_are_fitted_anew_where_draws_do_not_reach_a_prior(tmp_path, monkeypatch):
    """k̂ is made high for every model and one variation: K = 1 is hundreds of nats behind, so K = 2 alone is fitted anew."""
    asked, real = [], sensitivity.evidence_change

    def change(post, prior):
        found = real(post, prior)
        high = str(prior) == str(varied_priors(post.prior_)["scale × 2"])
        return replace(found, pareto_k=0.9 if high else min(found.pareto_k, 0.5))

    def anew(post, prior, random_state):
        asked.append((post.n_components, str(prior)))
        if len(asked) == 1:
            raise ValueError("too few draws")
        return EvidenceChange(-1.5, 0.25, 0.1)

    monkeypatch.setattr(sensitivity, "evidence_change", change)
    monkeypatch.setattr(sensitivity, "change_by_refit", anew)
    options = {"covariance_types": "full", "method": "laplace", "criteria": "evidence", "draws": 60, "out": tmp_path}
    failed = quick(**options)
    assert [K for K, _ in asked] == [2]
    assert "the refit under another prior (scale × 2) failed: too few draws" in failed.table.loc[("full", 2), "reason"]
    assert failed.sensitivity.loc["scale × 2", ("pareto_k", "full-2")] == 0.9
    found = quick(**options)
    row = found.sensitivity.loc["scale × 2"]
    assert row["refitted"].tolist() == [False, True]
    assert row["log_evidence", "full-2"] - found.table.loc[("full", 2), "log_evidence"] == pytest.approx(-1.5)
    again = quick(**options)
    assert len(asked) == 2
    pd.testing.assert_frame_equal(again.sensitivity, found.sensitivity)
    assert asked[1][1] == str(varied_priors(found.fits[("full", 2)].prior_)["scale × 2"])


# labels


def test_labels_are_scored(posterior):
    _, found = posterior
    table = found.table
    # twenty labels, half of either group: one component knows nothing, two know all
    assert table.loc[("full", 2), ["ari", "accuracy"]].tolist() == [1.0, 1.0]
    assert table.loc[("full", 1), "accuracy"] <= 0.6
    assert table.loc[("full", 2), "log_loss"] < 0.2 < table.loc[("full", 1), "log_loss"]


def test_what_does_not_apply_is_missing_with_a_reason(posterior):
    em = quick(n_components=2)
    assert em.table[["elpd_loo", "log_evidence", "weight", "ari"]].isna().all(axis=None)
    assert all("posterior" in reason and "labels" in reason for reason in em.table["reason"])
    assert tuple(em.table.columns) == (*COLUMNS, "prior", "flags", "reason")
    _, found = posterior
    assert found.table[["divergences", "max_rhat"]].isna().all(axis=None)
    assert all("no R-hat" in reason for reason in found.table["reason"])
    few = quick(rows(6), n_components=2, covariance_types="full")
    assert few.table["aicc"].isna().all()
    assert "aicc: 11 parameters are too many for 6 rows" in few.table["reason"].iloc[0]


def test_nuts_reports_its_diagnostics():
    found = quick(
        n_components=2,
        covariance_types="full",
        method="nuts",
        criteria="waic",
        draws=50,
        tune=60,
        chains=2,
        target_ess=0,
    )
    row = found.table.loc[("full", 2)]
    diagnostics = found.fits[("full", 2)].diagnostics_
    assert row["divergences"] == diagnostics.n_divergent
    assert row["max_rhat"] == diagnostics.invariants["r_hat"].max()
    assert row[["elpd_loo", "log_evidence"]].isna().all()
    assert "LOO and evidence not asked for" in row["reason"]


# stacking


def test_stacking_finds_the_optimum_of_a_grid():
    rng = np.random.default_rng(0)
    elpd_i = rng.standard_normal((60, 3)) - 2
    w = np.linspace(0, 1, 201)
    a, b = np.meshgrid(w, w)
    inside = a + b <= 1
    grid = np.stack([a[inside], b[inside], 1 - a[inside] - b[inside]])
    scores = np.log(np.exp(elpd_i) @ grid).sum(axis=0)
    found = stacking_weights(elpd_i)
    assert found.sum() == pytest.approx(1)
    # steps of the grid are 0.005
    np.testing.assert_allclose(found, grid[:, np.argmax(scores)], atol=0.005)
    assert np.log(np.exp(elpd_i) @ found).sum() >= scores.max() - 1e-9


@pytest.mark.parametrize("shift", [-3000.0, 900.0])
def test_stacking_does_not_underflow(shift):
    rng = np.random.default_rng(1)
    elpd_i = rng.standard_normal((40, 3))
    # rows' own constants cancel
    np.testing.assert_allclose(
        stacking_weights(elpd_i + shift * np.arange(1, 41)[:, None]), stacking_weights(elpd_i), atol=1e-6
    )


def test_stacking_weighs_rows():
    rng = np.random.default_rng(2)
    elpd_i = rng.standard_normal((30, 3))
    repeated = np.repeat(elpd_i, 1 + np.arange(30) % 3, axis=0)
    # the optimiser's tolerance, 1e-12 of the score, where it is flat to its square root and some
    np.testing.assert_allclose(stacking_weights(elpd_i, 1.0 + np.arange(30) % 3), stacking_weights(repeated), atol=1e-4)


def test_differences_of_weighted_rows_are_those_of_repeated_ones(posterior):
    _, found = posterior
    elpds = {name: found.elpds[name] for name in ("full-1", "full-2")}
    v = 1.0 + np.arange(90) % 3
    weighted = {n: replace(e, elpd=float(v @ e.elpd_i.values), elpd_i=e.elpd_i * v) for n, e in elpds.items()}
    at = np.repeat(np.arange(90), v.astype(int))
    repeated = {
        n: replace(e, elpd=float(e.elpd_i.values[at].sum()), elpd_i=e.elpd_i.isel(obs_id=at)) for n, e in elpds.items()
    }
    ours, theirs = compare_elpds(weighted, v)[0], compare_elpds(repeated)[0]
    for name in elpds:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-10)


# words


def made_up(**columns) -> Selection:
    """A selection of three models with these columns."""
    index = pd.MultiIndex.from_tuples(
        [("full", 1), ("full", 2), ("full", 3)], names=["covariance_type", "n_components"]
    )
    table = pd.DataFrame(index=index)
    for name in COLUMNS:
        table[name] = pd.array(columns.get(name, [None] * 3), dtype="Float64")
    table["n_parameters"] = pd.array([5, 11, 17], dtype="Int64")
    table["flags"] = pd.array(columns.get("flags", [""] * 3), dtype="string")
    table["reason"] = pd.array([""] * 3, dtype="string")
    criteria = tuple(name for name, c in CRITERIA.items() if table[c.column].notna().any())
    return Selection(table, {}, {}, {}, "nuts", criteria, 100)


@pytest.mark.parametrize(
    ("diff", "dse", "says"),
    [
        # less than 4 apart
        ([-50.0, -3.9, 0.0], [9.0, 0.1, 0.0], "K = 2 (full), is 3.9 ± 0.1 behind: the two cannot be told apart"),
        # less than two errors apart
        ([-50.0, -9.9, 0.0], [9.0, 5.0, 0.0], "K = 2 (full), is 9.9 ± 5.0 behind: the two cannot be told apart"),
        ([-50.0, -9.9, 0.0], [9.0, 4.0, 0.0], "K = 2 (full), is 9.9 ± 4.0 behind: more than its error"),
    ],
)
def test_summary_tells_whether_the_runner_up_is_as_good(diff, dse, says):
    found = made_up(elpd_loo=[-150.0 + d for d in diff], elpd_diff=diff, dse=dse, bic=[20.0, 10.0, 30.0])
    assert found.picks == {"bic": ("full", 2), "loo": ("full", 3)}
    text = found.summary()
    assert says in text
    assert "BIC picks K = 2 (full); LOO picks K = 3 (full), of 3 models." in text
    if "cannot" in says:
        assert "simplest model that is as good is K = 2 (full), with 11 parameters against 17" in text
    else:
        assert "No simpler model is as good as K = 3 (full)" in text
    assert 2 <= text.count(". ") + 1 <= 4


def test_summary_by_bic_alone():
    text = made_up(bic=[11.5, 10.0, 30.0]).summary()
    assert "By BIC the runner-up, K = 1 (full), is 1.5 behind: the two cannot be told apart" in text
    assert "as good is K = 1 (full)" in text


def test_near_singular_fits_are_not_picked_for_their_likelihood():
    found = made_up(bic=[20.0, 10.0, -900.0], elpd_loo=[-9.0, -8.0, -7.0], flags=["", "", "near-singular"])
    assert found.best("bic") == ("full", 2)
    assert found.ranking("bic")[-1] == ("full", 3)
    assert found.best("loo") == ("full", 3)
    assert "K = 3" not in made_up(bic=[20.0, 10.0, -900.0], flags=["", "", "near-singular"]).summary()


def test_a_pick_that_did_not_converge_is_said():
    found = made_up(bic=[20.0, 10.0, 30.0], flags=["", "near-singular, EM not converged", "not converged"])
    assert found.best("bic") == ("full", 1)
    assert not found.doubtful
    found = made_up(bic=[20.0, 10.0, 30.0], flags=["", "modes disagree", ""])
    assert found.doubtful == ("K = 2 (full) is picked, but its fit is not to be trusted yet (modes disagree)",)


def test_best_says_which_criteria_there_are():
    with pytest.raises(ValueError, match="it has bic"):
        made_up(bic=[1.0, 2.0, 3.0]).best("loo")


# failures and interrupts


def test_a_model_that_fails_is_a_row_with_its_reason(monkeypatch):
    whole = sweep.em.race

    def race(problem, starts, *args, **kwargs):
        if problem.kind.name == "diag":
            raise DegenerateFitError("every component collapsed")
        return whole(problem, starts, *args, **kwargs)

    monkeypatch.setattr(sweep.em, "race", race)
    found = quick(method="laplace", draws=60, criteria=("bic", "loo"))
    assert found.table["bic"].isna().tolist() == [False, False, True, True]
    assert "every component collapsed" in found.table.loc[("diag", 2), "reason"]
    assert found.table.loc[("diag", 2), "flags"] == "failed"
    assert ("diag", 2) not in found.fits
    assert found.best("loo") == ("full", 2)
    assert any("failed" in note and "K = 2 (diag)" in note for note in found.notes)


def test_a_posterior_that_fails_leaves_em_in_its_row(monkeypatch):
    def fail(self, *_, **__):
        raise RuntimeError("no density at the start")

    monkeypatch.setattr(bayesgmm.BayesianGaussianMixture, "fit", fail)
    found = quick(method="laplace", criteria=("bic", "loo"))
    assert found.table["bic"].notna().all()
    assert found.table["elpd_loo"].isna().all()
    assert all("no density at the start" in reason for reason in found.table["reason"])
    assert found.picks == {"bic": ("full", 2)}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupt_keeps_what_is_finished_and_the_next_call_goes_on(tmp_path, monkeypatch, n_jobs):
    real, seen = sweep._em_criteria, []

    def second_time(plan, model, *args):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(model.key)
        real(plan, model, *args)

    monkeypatch.setattr(sweep, "_em_criteria", second_time)
    with warnings.catch_warnings():
        # the pool's thread hands the interrupt on
        warnings.simplefilter("ignore", pytest.PytestUnhandledThreadExceptionWarning)
        stopped = quick(n_components=(1, 2, 3), out=tmp_path / "out", n_jobs=n_jobs)
    assert stopped.interrupted == "stopped by the user: 2 of 6 models are finished"
    assert stopped.table["bic"].notna().sum() == 2
    assert stopped.table["reason"].str.contains("interrupted").sum() == 4
    done = []
    monkeypatch.setattr(
        sweep, "_em_criteria", lambda plan, model, *args: (done.append(model.key), real(plan, model, *args))
    )
    whole = quick(n_components=(1, 2, 3), out=tmp_path / "out", n_jobs=n_jobs)
    assert whole.interrupted is None
    assert not set(done) & set(seen)
    assert len(done) == 4
    pd.testing.assert_frame_equal(whole.table, quick(n_components=(1, 2, 3)).table)


def test_an_interrupt_before_anything_is_one(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_em_criteria", stop)
    with pytest.raises(KeyboardInterrupt, match="0 of 4"):
        quick(n_jobs=1)


# the folder


def test_a_finished_sweep_is_read_and_not_repeated(posterior, labels, monkeypatch):
    out, first = posterior
    monkeypatch.setattr(sweep.em, "race", lambda *_, **__: pytest.fail("fitted all the same"))
    monkeypatch.setattr(bayesgmm.BayesianGaussianMixture, "fit", lambda *_, **__: pytest.fail("sampled all the same"))
    again = quick(method="laplace", draws=100, y=labels, out=out, random_state=None)
    pd.testing.assert_frame_equal(again.table, first.table)
    pd.testing.assert_frame_equal(again.sensitivity, first.sensitivity)
    np.testing.assert_array_equal(again.elpds["full-2"].elpd_i, first.elpds["full-2"].elpd_i)
    np.testing.assert_array_equal(again.fits[("full", 2)].means_, first.fits[("full", 2)].means_)
    np.testing.assert_array_equal(again.em_fits[("diag", 1)].means_, first.em_fits[("diag", 1)].means_)
    fewer = quick(method="laplace", draws=100, y=labels, out=out, criteria="bic", covariance_types="full")
    assert list(fewer.table.index) == [("full", 1), ("full", 2)]
    assert fewer.table["elpd_loo"].isna().all()


@pytest.mark.slow
def test_a_sweep_can_be_widened(tmp_path, monkeypatch):
    quick(method="laplace", draws=60, criteria="bic", n_components=1, out=tmp_path)
    fitted, real = [], bayesgmm.BayesianGaussianMixture.fit

    def fit(self, *args, **kwargs):
        fitted.append(self.n_components)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(bayesgmm.BayesianGaussianMixture, "fit", fit)
    wider = quick(method="laplace", draws=60, criteria=("bic", "waic"), out=tmp_path)
    assert fitted == [2, 2]
    assert wider.table["elpd_waic"].notna().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"X": rows(90, seed=4)}, "other data"),
        ({"sample_weight": np.full(90, 2.0)}, "other data"),
        ({"n_init": 4}, "another setting of n_init"),
        ({"method": "laplace"}, "another setting of method"),
        ({"random_state": 2}, "another random_state"),
        ({"y": [0, 1] * 45}, "other labels"),
    ],
)
def test_fits_of_another_sweep_are_not_mixed_in(tmp_path, options, says):
    quick(n_components=1, covariance_types="full", out=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=says):
        quick(n_components=1, covariance_types="full", out=tmp_path, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis|not empty"):
        quick(out=tmp_path)
    quick(n_components=1, out=tmp_path, overwrite=True)
    other = quick(rows(90, seed=4), n_components=1, out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert other.table["bic"].tolist() == quick(rows(90, seed=4), n_components=1).table["bic"].tolist()


def test_altered_files_are_refused(tmp_path):
    quick(n_components=1, covariance_types="full", out=tmp_path)
    row = tmp_path / "models" / "full-1" / "row.json"
    row.write_text(row.read_text()[:40])
    with pytest.raises(DataError, match="row.json is truncated"):
        quick(n_components=1, covariance_types="full", out=tmp_path)
    manifest = json.loads((tmp_path / "selection.json").read_text())
    (tmp_path / "selection.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(DataError, match="later version"):
        quick(n_components=1, covariance_types="full", out=tmp_path)


# bad input


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"n_components": []}, ValueError, "n_components is empty"),
        ({"n_components": range(0, 3)}, ValueError, "at least 1; got 0"),
        ({"n_components": [1.5]}, ValueError, "whole numbers"),
        ({"n_components": 91}, ValueError, "up to 91, but X has 90 distinct rows"),
        ({"covariance_types": "ful"}, ValueError, "of full, tied, diag, spherical; got 'ful'"),
        ({"covariance_types": ()}, ValueError, "got none"),
        ({"method": "mcmc"}, ValueError, "one of em, laplace, nuts; got 'mcmc'"),
        ({"criteria": "bci"}, ValueError, "of aic, aicc, bic, .*; got 'bci'"),
        ({"criteria": ("bic", "loo")}, ValueError, "'loo' needs a posterior"),
        ({"criteria": "accuracy"}, ValueError, "needs labels: give y"),
        ({"y": [0, 1]}, ValueError, "y has 2 labels for 90 rows"),
        ({"y": [1] * 90}, ValueError, "single class"),
        ({"y": [None, -1, np.nan] * 30}, ValueError, "no known label"),
        ({"draws": 100}, TypeError, "no option 'draws' with method='em'; .*n_init"),
        ({"n_init": 0}, ValueError, "n_init"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be"),
        ({"loo_refits": -1}, ValueError, "loo_refits must be a whole number of at least 0; got -1"),
        ({"sample_weight": np.full(90, -1.0)}, ValueError, "sample_weight"),
        ({"random_state": -1}, ValueError, "random_state"),
        ({"components_prior": ("poisson", 2.0)}, ValueError, "needs the criterion 'evidence'"),
        (
            {"components_prior": {1: 1.0}, "method": "laplace"},
            ValueError,
            r"components_prior: .* no probability for K = \[2\]",
        ),
        ({"components_prior": "flat", "method": "laplace"}, TypeError, "components_prior: .*uniform"),
        ({"components_prior": ("poisson", 0.0), "method": "laplace"}, ValueError, "rate of a Poisson"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_fit(options, error, says, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_: pytest.fail("fitted all the same"))
    with pytest.raises(error, match=says):
        quick(**options)


def test_bad_data_are_named():
    X = rows()
    X.loc[7, "b"] = np.nan
    with pytest.raises(ValueError, match="row 7, column 'b'"):
        quick(X)
    X = rows()
    X["c"] = X["a"]
    with pytest.raises(ValueError, match="collinear"):
        quick(X, method="laplace")
    X["c"] = 1.0
    with pytest.warns(DataWarning, match="column 'c' is constant"):
        quick(X, n_components=1, covariance_types="diag")


def test_many_features_and_one_row_a_component_are_no_crash():
    mixture = random_mixture(np.random.default_rng(0), 2, 5)
    found = quick(mixture.sample(np.random.default_rng(1), 12), n_components=(2, 12), covariance_types=STRUCTURES)
    assert found.table["reason"].str.len().gt(0).all()
    assert np.isfinite(found.table["bic"].dropna().astype(float)).all()
