"""The command with the real estimators: its files against other programs and against each other."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as PeerMixture

import bayesgmm
from bayesgmm.cli import main
from bayesgmm.datasets import load_faithful

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def by_weight(summary, column, variable):
    """Values of one variable, (K, ...) with the heaviest component first."""
    table = summary.set_index("parameter")
    weights = table.iloc[:, 0].filter(like="weights[").to_numpy()
    values = table[column].filter(like=f"{variable}[").to_numpy().reshape(len(weights), -1)
    return values[np.argsort(-weights)]


@pytest.fixture(scope="module")
def peer():
    """Old Faithful by scikit-learn, heaviest component first."""
    mixture = PeerMixture(2, tol=1e-10, max_iter=1000, random_state=0).fit(load_faithful().to_numpy())
    order = np.argsort(-mixture.weights_)
    return mixture.weights_[order], mixture.means_[order], mixture.covariances_[order]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, main(["demo", "--out", str(out), "--quiet"])


def test_demo_agrees_with_scikit_learn_and_passes_its_diagnostics(demo, peer):
    out, code = demo
    assert code == 0
    summary = pd.read_csv(out / "summary.csv")
    weights, means, covariances = peer
    deviations = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    for variable, theirs in {"weights": weights[:, None], "means": means, "standard_deviations": deviations}.items():
        spread = by_weight(summary, "sd", variable)
        # the default prior moves the estimates by less than one posterior standard deviation at 272 rows
        assert (np.abs(by_weight(summary, "mean", variable) - theirs) < spread).all()
        assert (np.abs(by_weight(summary, "map", variable) - theirs) < spread).all()
    # an asymptotic standard error of a mean: sd / sqrt(N weight); 25 % for the overlap, the prior and Monte Carlo
    asymptotic = deviations / np.sqrt(272 * weights[:, None])
    np.testing.assert_allclose(by_weight(summary, "sd", "means"), asymptotic, rtol=0.25)


def test_demo_can_be_loaded_and_tells_what_its_files_tell(demo):
    out, _ = demo
    assert sorted(os.listdir(out)) == [
        "assignments.csv",
        "fit.json",
        "mixture.png",
        "posterior.nc",
        "report.html",
        "summary.csv",
    ]
    assert (out / "mixture.png").read_bytes().startswith(PNG_SIGNATURE)
    post = bayesgmm.load(out)
    assignments = pd.read_csv(out / "assignments.csv")
    faithful = load_faithful().astype(float)
    # text holds every digit, and the draws are stored in full: what is left is the order of sums over threads
    np.testing.assert_allclose(assignments["log_density"], post.score_samples(faithful), rtol=1e-12)
    responsibilities = assignments.filter(like="responsibility_").to_numpy()
    np.testing.assert_allclose(responsibilities, post.predict_proba(faithful), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(assignments["component"], post.predict(faithful))
    assert assignments["row"].tolist() == list(range(1, 273))


def test_em_agrees_with_scikit_learn_and_scipy(tmp_path, peer, capsys):
    data = tmp_path / "faithful.csv"
    load_faithful().to_csv(data, index=False)
    assert main(["fit", str(data), "-k", "2", "--method", "em", "--out", str(tmp_path / "em"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == ["assignments.csv", "fit.json", "mixture.png", "report.html", "summary.csv"]
    weights, means, covariances = peer
    order = np.argsort(-np.array(result["weights"]))
    # both stop when the mean log-likelihood changes by 1e-6 or less; EM's steps are then about 1e-4 of a standard error
    np.testing.assert_allclose(np.array(result["weights"])[order], weights, rtol=1e-3)
    np.testing.assert_allclose(np.array(result["means"])[order], means, rtol=1e-3)
    density = sum(
        w * multivariate_normal(m, c).pdf(load_faithful().to_numpy())
        for w, m, c in zip(result["weights"], result["means"], result["covariances"], strict=True)
    )
    log_density = pd.read_csv(tmp_path / "em" / "assignments.csv")["log_density"]
    # the same parameters in two programs: rounding only
    np.testing.assert_allclose(log_density, np.log(density), rtol=1e-10)
    summary = pd.read_csv(tmp_path / "em" / "summary.csv")
    assert (summary["standard_error"] > 0).all()
    asymptotic = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2)) / np.sqrt(272 * weights[:, None])
    # complete-data standard errors; the overlap of the two clusters adds a few per cent
    np.testing.assert_allclose(by_weight(summary, "standard_error", "means"), asymptotic, rtol=0.1)


@pytest.mark.parametrize(
    ("columns", "covariance"),
    [
        ("eruptions,waiting", "tied"),
        ("waiting", "full"),
        *(pytest.param("eruptions,waiting", name, marks=pytest.mark.slow) for name in ("full", "diag", "spherical")),
        *(pytest.param("waiting", name, marks=pytest.mark.slow) for name in ("tied", "diag", "spherical")),
    ],
)
def test_every_structure_and_one_column_give_a_named_summary(tmp_path, covariance, columns):
    data = tmp_path / "faithful.csv"
    load_faithful().to_csv(data, index=False)
    options = ["--columns", columns, "--covariance", covariance, "--method", "em", "--quiet"]
    assert main(["fit", str(data), "-k", "2", "--out", str(tmp_path / "out"), *options]) == 0
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    mixture = bayesgmm.load(tmp_path / "out")
    table = summary.set_index("parameter")["em"]
    assert table["weights[1]"] == pytest.approx(mixture.weights_[1], rel=1e-12)
    assert table["means[1, waiting]"] == pytest.approx(mixture.means_[1, -1], rel=1e-12)
    assert summary.notna().all(axis=None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n1,2\n1,2\n3,4\n", "distinct"),
        ("a,b\n1,5\n2,5\n3,5\n5,5\n8,5\n", "'b'"),
    ],
)
def test_data_without_a_posterior_are_refused_in_one_line(tmp_path, capsys, text, says):
    (tmp_path / "data.csv").write_text(text)
    code = main(["fit", str(tmp_path / "data.csv"), "-k", "3", "--out", str(tmp_path / "out"), "--quiet"])
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("bayesgmm: error: ")
    assert says in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["data.csv"]
