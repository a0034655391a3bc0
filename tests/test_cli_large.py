"""`bayesgmm fit` of tables that are read in blocks, of folders and of patterns."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest

import bayesgmm
from bayesgmm import tables
from bayesgmm.cli import main
from bayesgmm.report.settings import fit_code
from tests.mixtures import random_mixture

pytest.importorskip("pyarrow")

WRITTEN = ["fit.json", "mixture.png", "report.html", "summary.csv"]


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(random_mixture(rng, 2, 2).sample(rng, 3000), columns=["a", "b"])


@pytest.fixture
def pattern(frame, tmp_path):
    for i, rows in enumerate(np.split(np.arange(len(frame)), 3)):
        frame.iloc[rows].to_parquet(tmp_path / f"{i}.parquet")
    return f"{tmp_path}/*.parquet"


def test_a_pattern_is_fitted_in_blocks(frame, pattern, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["fit", pattern, "-k", "2", "--method", "em", "--out-of-core", "--out", str(out)]) == 0
    assert sorted(os.listdir(out)) == WRITTEN
    printed = capsys.readouterr()
    for part in (
        "3000 rows, 2 columns (a, b)",
        "in blocks, once for each iteration, from 3 files",
        "a sample of 3000 of 3000 rows",
    ):
        assert part in printed.out
    assert printed.err == ""
    em = bayesgmm.load(out)
    whole = bayesgmm.GaussianMixture(2, random_state=0).fit(frame)
    assert em.score(frame) == pytest.approx(whole.score(frame), abs=1e-7)
    summary = pd.read_csv(out / "summary.csv", index_col="parameter")
    np.testing.assert_allclose(summary, em.summary(frame), rtol=1e-6)
    # the code of the report makes the fit again, and it knows the rows that were never in memory
    code = fit_code(em, em._provenance)
    assert "X = open_blocks(" in code
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    np.testing.assert_array_equal(namespace["fit"].means_, em.means_)
    assert main(["report", str(out), "--data", pattern, "--quiet"]) == 0


def test_what_is_large_on_disk_is_not_read_unasked(pattern, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "LARGE_BYTES", 1000)
    assert main(["fit", pattern, "-k", "1", "--method", "em", "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"]["n_rows"] == 3000
    assert "assignments.csv" not in result["files"]


@pytest.mark.slow
def test_a_folder_that_is_small_is_read(frame, pattern, tmp_path):
    folder = os.path.dirname(pattern)
    assert main(["fit", folder, "-k", "2", "--method", "em", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "assignments.csv")) == 3000
    em = bayesgmm.load(tmp_path / "out")
    assert "X = read_all(" in fit_code(em, em._provenance)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x.csv", "-k", "2"], "--out-of-core: not with --method nuts"),
        (["-", "-k", "2", "--method", "em"], "--out-of-core: not with standard input"),
    ],
)
def test_wrong_usage(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fit", *arguments, "--out-of-core", "--out", str(tmp_path / "out")])
    assert says in capsys.readouterr().err


def test_a_bad_row_is_named_and_nothing_is_written(frame, pattern, tmp_path, capsys):
    frame.assign(b=np.where(np.arange(3000) == 17, np.nan, frame["b"])).to_parquet(tmp_path / "3.parquet")
    out = tmp_path / "out"
    assert main(["fit", pattern, "-k", "2", "--method", "em", "--out-of-core", "--out", str(out)]) == 1
    assert "3.parquet: row 18, column 'b', in block 1: missing" in capsys.readouterr().err
    assert not out.exists()
    assert main(["fit", f"{tmp_path}/*.csv", "-k", "2", "--out", str(out)]) == 1
    assert "no file is called" in capsys.readouterr().err


def test_an_interrupted_fit_is_written_and_marked(pattern, tmp_path, monkeypatch, capsys):
    passes = []
    total = tables.BlockTable.total

    def stop(self, task):
        passes.append(task)
        # two looks of the command, two of the fit, one at the start, and one iteration
        if len(passes) == 7:
            raise KeyboardInterrupt
        return total(self, task)

    monkeypatch.setattr(tables.BlockTable, "total", stop)
    out = tmp_path / "out"
    assert main(["fit", pattern, "-k", "2", "--method", "em", "--out-of-core", "--out", str(out)]) == 130
    assert sorted(os.listdir(out)) == ["WARNING.txt", *WRITTEN]
    assert "EM was interrupted: iteration 1 is kept" in (out / "WARNING.txt").read_text()
    assert "EM was interrupted" in capsys.readouterr().out
    assert not bayesgmm.load(out).converged_


def test_a_fit_that_was_interrupted_goes_on(frame, pattern, tmp_path, monkeypatch, capsys):
    out, passes, total = tmp_path / "out", [], tables.BlockTable.total

    def stop(self, task):
        passes.append(task)
        if len(passes) == 7:
            raise KeyboardInterrupt
        return total(self, task)

    command = ["fit", pattern, "-k", "2", "--method", "em", "--out-of-core", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(tables.BlockTable, "total", stop)
        assert main(command) == 130
    assert "--resume" in (out / "WARNING.txt").read_text()
    kept = bayesgmm.load(out)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert "went on from the fit that was there" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == WRITTEN
    found, whole = bayesgmm.load(out), bayesgmm.GaussianMixture(2, random_state=0).fit(frame)
    assert found.lower_bounds_[0] == kept.lower_bound_
    assert found.score(frame) == pytest.approx(whole.score(frame), abs=1e-7)
    assert not found.warm_start
    for change, says in (
        (["-k", "3"], "has K = 2, and 3"),
        (["--columns", "a"], "has the columns a, b, and the table a"),
    ):
        assert main([*command, *change, "--resume"]) == 1
        assert says in capsys.readouterr().err
    assert sorted(os.listdir(out)) == WRITTEN
    with pytest.raises(SystemExit, match="2"):
        main(["fit", pattern, "-k", "2", "--method", "laplace", "--resume", "--out", str(out)])
    assert main(["fit", pattern, "-k", "2", "--method", "em", "--resume", "--out", str(tmp_path / "none")]) == 1
    assert "holds no saved fit" in capsys.readouterr().err


@pytest.mark.slow
def test_posteriors_are_fitted_and_compared_in_blocks(frame, pattern, tmp_path, capsys):
    few = ["--method", "laplace", "--draws", "100", "--out-of-core"]
    assert main(["fit", pattern, "-k", "2", *few, "--out", str(tmp_path / "fit"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["n_rows"] == 3000
    out = tmp_path / "select"
    command = [
        "select",
        pattern,
        "-k",
        "1-2",
        "--covariance",
        "full",
        *few,
        "--criteria",
        "waic,loo",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "in blocks, once for each iteration, from 3 files" in printed.out
    assert printed.err == ""
    expected = bayesgmm.select(
        frame, [1, 2], "full", "laplace", criteria=["loo"], draws=100, random_state=0, loo_refits=0
    )
    found = pd.read_csv(out / "selection.csv")
    # means over 400 draws of densities that vary by some nats in all
    np.testing.assert_allclose(found["elpd_loo"], expected.table["elpd_loo"].astype(float), atol=1.0)
    assert "picks K = 2" in (out / "report.html").read_text() or "pick K = 2" in (out / "report.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["select", pattern, "--out-of-core", "--labels", "a", "--out", str(out)])
    assert "not with --labels" in capsys.readouterr().err
