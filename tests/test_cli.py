"""The command: what it writes, prints and answers, with an estimator that is made up and so fails on demand."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import bayesgmm
from bayesgmm.cli import main
from bayesgmm.exceptions import DataError, SamplingInterrupted
from bayesgmm.results import OUTPUTS

WRITTEN = ["assignments.csv", "fit.json", "mixture.png", "posterior.nc", "report.html", "summary.csv"]


class MadeUpMixture:
    """Stands in for an estimator: classes are told apart by the sign of the first column."""

    converges = True
    on_fit = None
    on_save = None
    seen: SimpleNamespace

    def __init__(self, **options):
        type(self).seen = SimpleNamespace(**options)
        self.covariance_type = options.get("covariance_type", "full")

    def fit(self, X):
        type(self).seen.X = X
        self.diagnostics_ = SimpleNamespace(
            mode_weights=(),
            relabelling_agreement={},
            ok=self.converges,
            verdict="all is well" if self.converges else "not to be trusted",
            problems=() if self.converges else ("R-hat is 1.8: draw more",),
            notes=("the chains saw one mode",),
        )
        self.weights_, self.means_ = np.array([0.25, 0.75]), np.array([[-1.0], [1.0]])
        self.covariances_ = np.ones((2, 1, 1))
        if self.on_fit is not None:
            type(self).on_fit(self)
        return self

    def prior_sensitivity(self):
        return pd.DataFrame({"prior": [0.01], "likelihood": [0.1], "diagnosis": [""]}, index=["weights[0]"])

    def predict_proba(self, X):
        first = (np.asarray(X)[:, 0] < 0).astype(float)
        return np.column_stack([first, 1 - first])

    def score_samples(self, X):
        return -np.arange(len(X), dtype=float)

    def summary(self):
        return pd.DataFrame({"EM": [0.25, 0.75], "mean": [0.26, np.nan]}, index=["weights[0]", "weights[1]"])

    def save(self, path):
        if self.on_save is not None:
            type(self).on_save(path)
        (path / "posterior.nc").write_bytes(b"draws")
        (path / "fit.json").write_text("{}")


@pytest.fixture(autouse=True)
def mixture(monkeypatch):
    """The made-up estimator in the place of the real ones, fresh for each test."""
    fresh = type("Mixture", (MadeUpMixture,), {})
    monkeypatch.setitem(vars(bayesgmm), "BayesianGaussianMixture", fresh)
    plots = types.ModuleType("bayesgmm.plots")
    plots.mixture = lambda estimator, X: SimpleNamespace(savefig=lambda path, dpi: path.write_bytes(b"png"))
    monkeypatch.setitem(sys.modules, "bayesgmm.plots", plots)
    report = types.ModuleType("bayesgmm.report.page")
    report.fit_page = lambda estimator, *rows: "<p>report"
    report.write_report = lambda page, path: path.write_text(page)
    monkeypatch.setitem(sys.modules, "bayesgmm.report.page", report)
    return fresh


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("kind,a,b\nx,-1,2\ny,3,4\nz,-5,6\n")
    return str(path)


def test_a_fit_writes_its_folder_and_answers_0(data, tmp_path, mixture, capsys):
    out = tmp_path / "out"
    options = ["--columns", "b, a", "--covariance", "diag", "--seed", "7", "--draws", "50", "--target-ess", "90"]
    assert main(["fit", data, "-k", "2", "--out", str(out), *options]) == 0
    assert sorted(os.listdir(out)) == WRITTEN
    pd.testing.assert_frame_equal(mixture.seen.X, pd.DataFrame({"b": [2.0, 4.0, 6.0], "a": [-1.0, 3.0, -5.0]}))
    del mixture.seen.X
    assert vars(mixture.seen) == {
        "method": "nuts",
        "progressbar": False,
        "n_components": 2,
        "covariance_type": "diag",
        "random_state": 7,
        "draws": 50,
        "target_ess": 90,
    }
    printed = capsys.readouterr()
    for part in ("data.csv: 3 rows, 2 columns (b, a)", "weights[0]", "0.2600", "all is well", str(out)):
        assert part in printed.out.replace("\n", "") or part in printed.out
    assert printed.err == ""


def test_assignments_and_summary_are_tables(data, tmp_path):
    main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a", "--quiet"])
    assignments = pd.read_csv(tmp_path / "out" / "assignments.csv")
    expected = pd.DataFrame(
        {
            "row": [1, 2, 3],
            "component": [0, 1, 0],
            "responsibility_0": [1.0, 0.0, 1.0],
            "responsibility_1": [0.0, 1.0, 0.0],
            "log_density": [0.0, -1.0, -2.0],
        }
    )
    pd.testing.assert_frame_equal(assignments, expected)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary.columns.tolist() == ["parameter", "EM", "mean"]
    assert summary["parameter"].tolist() == ["weights[0]", "weights[1]"]


def test_json_is_one_object_and_nothing_else(data, tmp_path, mixture, capsys):
    mixture.on_fit = lambda self: warnings.warn("of a library", UserWarning, stacklevel=1)
    out = tmp_path / "out"
    assert main(["fit", data, "-k", "2", "--out", str(out), "--columns", "a", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err == ""
    assert result["data"] == {"source": data, "n_rows": 3, "columns": ["a"], "notes": []}
    assert result["weights"] == [0.25, 0.75]
    assert result["summary"][1] == {"parameter": "weights[1]", "EM": 0.75, "mean": None}
    assert (result["converged"], result["verdict"], result["warnings"]) == (True, "all is well", [])
    assert (result["out"], result["files"]) == (str(out), WRITTEN)


def test_quiet_prints_nothing(data, tmp_path, capsys):
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_failed_diagnostics_write_mark_and_answer_3(data, tmp_path, mixture, capsys):
    mixture.converges = False
    # scikit-learn wraps fit, so that the estimator's own warning names a file of scikit-learn
    mixture.on_fit = lambda self: warnings.warn_explicit(
        "R-hat is 1.8: draw more", UserWarning, os.path.join("site-packages", "sklearn", "base.py"), 1
    )
    out = tmp_path / "out"
    assert main(["fit", data, "-k", "2", "--out", str(out), "--columns", "a"]) == 3
    assert sorted(os.listdir(out)) == ["WARNING.txt", *WRITTEN]
    assert (out / "WARNING.txt").read_text() == "not to be trusted\nR-hat is 1.8: draw more\n"
    printed = capsys.readouterr()
    for part in ("not to be trusted", "- R-hat is 1.8: draw more", "- the chains saw one mode"):
        assert part in printed.out
    assert printed.err == ""
    assert main(["fit", data, "-k", "2", "--out", str(out), "--columns", "a", "--force", "--quiet"]) == 3
    assert capsys.readouterr() == ("", "bayesgmm: warning: R-hat is 1.8: draw more\n")
    mixture.converges, mixture.on_fit = True, None
    assert main(["fit", data, "-k", "2", "--out", str(out), "--columns", "a", "--force", "--quiet"]) == 0
    assert sorted(os.listdir(out)) == WRITTEN


def test_interruption_keeps_what_was_drawn(data, tmp_path, mixture, capsys):
    def stop(self):
        raise SamplingInterrupted("120 of 1000 draws are kept", self)

    mixture.on_fit = stop
    out = tmp_path / "out"
    assert main(["fit", data, "-k", "2", "--out", str(out), "--columns", "a"]) == 130
    assert sorted(os.listdir(out)) == ["WARNING.txt", *WRITTEN]
    assert "120 of 1000 draws are kept" in (out / "WARNING.txt").read_text()
    assert "120 of 1000 draws are kept" in capsys.readouterr().out


@pytest.mark.parametrize("error", [SamplingInterrupted("too early"), KeyboardInterrupt()])
def test_interruption_without_draws_writes_nothing(data, tmp_path, mixture, capsys, error):
    def stop(self):
        raise error

    mixture.on_fit = stop
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a"]) == 130
    assert os.listdir(tmp_path) == ["data.csv"]
    assert capsys.readouterr().err == "bayesgmm: interrupted; nothing was written\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DataError("column 'a' is constant"), "column 'a' is constant"),
        (ValueError("two\n   lines"), "two lines"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache"), "cache: No space left on device"),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(data, tmp_path, mixture, capsys, error, says):
    def fail(self):
        raise error

    mixture.on_fit = fail
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bayesgmm: error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["data.csv"]


def test_a_full_disk_is_one_line_and_leaves_nothing(data, tmp_path, mixture, capsys):
    def fill(path):
        (path / "posterior.nc").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    mixture.on_save = fill
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a", "--quiet"]) == 1
    assert capsys.readouterr().err == "bayesgmm: error: cannot write the results: No space left on device\n"
    assert os.listdir(tmp_path) == ["data.csv"]


def test_own_warnings_are_told_and_those_of_libraries_are_not(data, tmp_path, mixture, capsys):
    class MixtureWarning(UserWarning):
        __module__ = "bayesgmm.exceptions"

    def warn(self):
        warnings.warn("of a library", FutureWarning, stacklevel=1)
        warnings.warn("the third component is nearly empty", MixtureWarning, stacklevel=1)

    mixture.on_fit = warn
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out"), "--columns", "a", "--quiet"]) == 0
    assert capsys.readouterr().err == "bayesgmm: warning: the third component is nearly empty\n"


def test_bad_data_is_refused_before_anything_is_made(data, tmp_path, capsys):
    assert main(["fit", data, "-k", "2", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "column 'kind' holds text" in error
    assert "--columns a,b" in error
    assert main(["fit", str(tmp_path / "none.csv"), "-k", "2", "--out", str(tmp_path / "out")]) == 1
    assert "none.csv: No such file" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["data.csv"]


def test_a_full_folder_is_refused_before_the_work(data, tmp_path, mixture, capsys):
    mixture.on_fit = lambda self: pytest.fail("fitted all the same")
    assert main(["fit", data, "-k", "2", "--columns", "a", "--out", str(tmp_path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["fit", data, "-k", "2", "--columns", "a", "--out", str(tmp_path / "data.csv" / "out")]) == 1
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "d.csv", "-k", "2", "--out", "o", "--colums", "a"], ["unrecognized arguments: --colums", "--columns"]),
        (["fit", "d.csv", "-k", "2", "--out", "o", "--covariance", "ful"], ["invalid choice: 'ful'", "spherical"]),
        (
            ["fit", "d.csv", "-k", "0", "--out", "o"],
            ["-k/--components: expected a whole number of at least 1, not '0'"],
        ),
        (["fit", "d.csv", "-k", "2", "--out", "o", "--tune", "-1"], ["--tune: expected a whole number of at least 10"]),
        (["fit", "d.csv", "-k", "2"], ["required: --out"]),
        (
            ["fit", "d.csv", "-k", "2", "--out", "o", "--method", "em", "--draws", "9"],
            ["--draws: not with --method em"],
        ),
        (["fitt"], ["invalid choice: 'fitt'", "demo"]),
        ([], ["required", "fit", "demo"]),
    ],
)
def test_wrong_usage_lists_what_is_allowed_and_answers_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(part in error for part in says), error


def test_demo_fits_old_faithful_and_can_be_run_again(tmp_path, monkeypatch, mixture, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert sorted(os.listdir("bayesgmm-demo")) == WRITTEN
    assert mixture.seen.X.shape == (272, 2)
    assert mixture.seen.n_components == 2
    assert main(["demo", "--quiet"]) == 0
    (tmp_path / "bayesgmm-demo" / "thesis.tex").write_text("years of work")
    capsys.readouterr()
    assert main(["demo"]) == 1
    assert "not empty" in capsys.readouterr().err


def test_the_folder_knows_every_file_that_a_run_writes():
    assert sorted(OUTPUTS) == ["WARNING.txt", *WRITTEN]
