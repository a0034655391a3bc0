"""The command ``select``: what it writes, prints and answers."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest

import bayesgmm
from bayesgmm import results, select, sweep
from bayesgmm.cli import main

WRITTEN = ["models", "report.html", "selection.csv", "selection.json", "selection.png"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 2))
    X[:30] += 9
    path = tmp_path_factory.mktemp("data") / "data.csv"
    pd.DataFrame(X, columns=["a", "b"]).to_csv(path, index=False)
    return str(path)


def test_a_selection_writes_its_folder_and_goes_on_with_it(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["select", data, "-k", "1-3", "--covariance", "full,diag", "--seed", "4", "--out", str(out)]
    assert main(arguments) == 0
    assert sorted(os.listdir(out)) == WRITTEN
    printed = capsys.readouterr()
    for part in ("80 rows, 2 columns (a, b)", "6 models by EM", "BIC", "picked by", "the runner-up", str(out)):
        assert part in printed.out.replace("\n", " ") or part in printed.out
    assert printed.err == ""
    table = pd.read_csv(out / "selection.csv", index_col=[0, 1])
    found = select(pd.read_csv(data), range(1, 4), ("full", "diag"), random_state=4, progressbar=False)
    np.testing.assert_array_equal(table["bic"], found.table["bic"].astype(float))
    assert table["elpd_loo"].isna().all()
    fit = bayesgmm.load(out / "models" / "full-2" / "em")
    np.testing.assert_array_equal(fit.means_, found.em_fits[("full", 2)].means_)
    assert (out / "selection.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(sweep.em, "race", lambda *_, **__: pytest.fail("fitted all the same"))
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object_and_nothing_else(data, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["select", data, "-k", "2,3", "--covariance", "full", "--criteria", "bic,waic", "--method", "laplace"]
    assert main([*arguments, "--draws", "60", "--out", out, "--json"]) in (0, 3)
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err == ""
    assert [(row["covariance_type"], row["n_components"]) for row in result["models"]] == [("full", 2), ("full", 3)]
    assert result["models"][0]["elpd_waic"] < 0
    assert result["models"][0]["elpd_loo"] is None
    assert result["picks"]["bic"] == {"covariance_type": "full", "n_components": 2}
    assert set(WRITTEN) <= set(result["files"])
    assert result["criteria"] == ["bic", "waic"]


def test_a_folder_of_something_else_needs_force(data, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    arguments = ["select", data, "-k", "1", "--out", str(tmp_path), "--quiet"]
    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert sorted(os.listdir(tmp_path)) == sorted([*WRITTEN, "thesis.tex"])
    assert main([*arguments, "--seed", "9"]) == 1
    assert "another random_state" in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_finished(data, tmp_path, capsys, monkeypatch):
    real, seen = sweep._em_criteria, []

    def second_time(plan, model, *args):
        if seen:
            raise KeyboardInterrupt
        seen.append(model)
        real(plan, model, *args)

    monkeypatch.setattr(sweep, "_em_criteria", second_time)
    assert main(["select", data, "-k", "1-2", "--covariance", "full", "--out", str(tmp_path / "o"), "--quiet"]) == 130
    assert "1 of 2 models are finished; the same command goes on from there" in capsys.readouterr().err
    assert "WARNING.txt" in os.listdir(tmp_path / "o")
    monkeypatch.setattr(sweep, "_em_criteria", real)
    assert main(["select", data, "-k", "1-2", "--covariance", "full", "--out", str(tmp_path / "o"), "--quiet"]) == 0
    assert sorted(os.listdir(tmp_path / "o")) == WRITTEN


def test_a_pick_that_did_not_converge_answers_3(data, tmp_path, capsys, monkeypatch):
    real = sweep._em_criteria

    def flag(plan, model, *args):
        real(plan, model, *args)
        model.flag("EM not converged")

    monkeypatch.setattr(sweep, "_em_criteria", flag)
    out = tmp_path / "o"
    assert main(["select", data, "-k", "2", "--covariance", "full", "--out", str(out), "--quiet"]) == 3
    assert "not to be trusted yet (EM not converged)" in capsys.readouterr().err
    assert "K = 2 (full)" in (out / "WARNING.txt").read_text()


def test_when_every_model_fails_it_is_an_error(data, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no start led anywhere")

    monkeypatch.setattr(sweep.em, "race", fail)
    assert main(["select", data, "-k", "1-2", "--out", str(tmp_path / "o"), "--quiet"]) == 1
    assert "No model could be judged: EM failed: no start led anywhere" in capsys.readouterr().err


def test_too_many_components_are_refused(data, tmp_path, capsys):
    assert main(["select", data, "-k", "81", "--out", str(tmp_path / "o")]) == 1
    assert "X has 80 distinct rows" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory):
    """Every second row of either group has its name, in text."""
    table = pd.read_csv(data)
    table.insert(1, "group", np.where(np.arange(80) % 2, np.where(np.arange(80) < 30, "left", "right"), None))
    path = tmp_path_factory.mktemp("labelled") / "labelled.csv"
    table.to_csv(path, index=False)
    return str(path)


def test_labels_are_scored_and_not_fitted(data, labelled, tmp_path, capsys):
    arguments = ["-k", "1-2", "--covariance", "full", "--labels", "group", "--criteria", "bic"]
    assert main(["select", labelled, *arguments, "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    for part in ("2 columns (a, b)", "labels group: 40 of 80 rows known, 2 classes (left, right)", "log loss", "ARI"):
        assert part in printed
    table = pd.read_csv(tmp_path / "o" / "selection.csv", index_col=[0, 1])
    # the groups lie nine deviations apart
    assert table.loc[("full", 2), ["accuracy", "ari"]].tolist() == [1.0, 1.0]
    assert table.loc[("full", 1), "ari"] == 0.0
    y = pd.read_csv(labelled)["group"].astype(object)
    found = select(pd.read_csv(data), (1, 2), "full", y=y.where(y.notna(), None), random_state=0, progressbar=False)
    for column in ("bic", "accuracy", "log_loss", "ari"):
        np.testing.assert_array_equal(table[column], found.table[column].astype(float))
    # the same command goes on; another column of labels is another selection
    assert main(["select", labelled, *arguments, "--out", str(tmp_path / "o"), "--quiet"]) == 0
    assert main(["select", data, "-k", "1", "--out", str(tmp_path / "o"), "--quiet"]) == 1
    assert "other labels" in capsys.readouterr().err


def test_json_tells_of_the_labels(labelled, tmp_path, capsys):
    arguments = ["--labels", "group", "-k", "2", "--covariance", "diag", "--criteria", "accuracy", "--json"]
    assert main(["select", labelled, *arguments, "--out", str(tmp_path / "o")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"]["labels"] == {"column": "group", "n_known": 40, "classes": ["left", "right"]}
    assert result["criteria"] == ["accuracy"]
    assert (result["models"][0]["accuracy"], result["models"][0]["log_loss"]) == (1.0, None)


def test_labels_at_fault_are_one_line_before_any_fit(labelled, tmp_path, capsys):
    for options, says in ((["--labels", "grp"], "no column 'grp'"), (["--labels", "a"], "80 different labels in 80")):
        assert main(["select", labelled, *options, "--out", str(tmp_path / "o")]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 90, 140])
def test_what_does_not_fit_the_width_is_another_table(labelled, tmp_path, capsys, monkeypatch, width):
    from rich.console import Console

    monkeypatch.setattr(results, "_console", lambda: Console(highlight=False, width=width))
    arguments = ["--labels", "group", "-k", "2,3", "--covariance", "full", "--method", "laplace", "--draws", "60"]
    main(["select", labelled, *arguments, "--out", str(tmp_path / "o")])
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "o" / "selection.csv")
    for row in table.itertuples():
        # every number whole, whatever the width
        for number in (
            f"{row.log_likelihood:.1f}",
            f"{row.elpd_loo:.1f}",
            f"{row.log_evidence:.1f}",
            f"{row.log_loss:.3f}",
        ):
            assert number in printed
    heads = [line for line in printed.splitlines() if line.startswith("covariance")]
    assert len(heads) > 1 or width == 140
    assert "…" not in printed
    assert max(map(len, heads)) <= width
    assert "picked by" in "".join(heads)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-k", "3-1"], "numbers of components such as 1-6 or 2,4,8, not '3-1'"),
        (["-k", "0-2"], "not '0-2'"),
        (["-k", ""], "not ''"),
        (["--covariance", "ful"], "choose from full, tied, diag, spherical, not ful"),
        (
            ["--criteria", "bci"],
            "choose from aic, aicc, bic, icl, waic, loo, evidence, accuracy, log_loss, ari, not bci",
        ),
        (["--method", "em", "--criteria", "bic,loo"], "loo: not with --method em"),
        (["--draws", "90"], "--draws: not with --method em"),
        (["--criteria", "bic,accuracy"], "--criteria accuracy: not without --labels COLUMN"),
        (["--colums", "a"], "--columns"),
    ],
)
def test_wrong_usage_lists_what_is_allowed_and_answers_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["select", "d.csv", "--out", "o", *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
