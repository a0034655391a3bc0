"""The command ``report``."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bayesgmm import GaussianMixture
from bayesgmm.cli import main
from tests.report.reading import Reader


@pytest.fixture(scope="module")
def data(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("data") / "faithful.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "out"
    assert main(["fit", str(data), "-k", "2", "--method", "em", "--out", str(out), "--quiet"]) == 0
    return out


def test_a_fit_writes_its_report_and_the_command_writes_it_again(folder, data, capsys):
    first = (folder / "report.html").read_text(encoding="utf-8")
    assert f"Read from {data}." in Reader(first).paragraphs
    assert main(["report", str(folder), "--data", str(data)]) == 0
    printed = capsys.readouterr()
    assert str(folder / "report.html") in printed.out
    assert "2 components for 272 rows by EM" in printed.out
    assert (folder / "report.html").read_text(encoding="utf-8") == first


def test_without_the_rows_it_is_a_report_of_em_alone(folder, tmp_path, capsys):
    out = tmp_path / "alone.html"
    assert main(["report", str(folder), "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["out"] == str(out)
    assert answer["level"] == "plain"
    read = Reader(out.read_text(encoding="utf-8"))
    assert "none were given" in answer["verdict"]
    assert "none were given" in read.verdict
    assert main(["report", str(folder), "--out", str(out)]) == 1
    assert "exists; name another file" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(out), "--force", "--quiet"]) == 0


def test_a_file_that_is_no_report_of_ours_is_kept(folder, table, tmp_path, capsys):
    GaussianMixture(1).fit(table).save(tmp_path)
    (tmp_path / "report.html").write_text("<p>mine")
    assert main(["report", str(tmp_path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "<p>mine"


def test_a_posterior_that_failed_answers_3(failed, failed_page, tmp_path, capsys, monkeypatch):
    failed.save(tmp_path)
    made = []
    monkeypatch.setattr("bayesgmm.report.page.fit_page", lambda fit, X: made.append(fit) or failed_page)
    assert main(["report", str(tmp_path)]) == 3
    np.testing.assert_array_equal(made[0].means_, failed.means_)
    assert "cannot be relied on" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--data", "x.csv"]) == 1
    assert "holds its own rows" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "says"), [("none", "is not a folder"), ("empty", "holds no results")])
def test_folders_without_results_are_refused_in_one_line(tmp_path, name, says, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["empty"]


def test_other_rows_are_refused(folder, table, tmp_path, capsys):
    table.iloc[:100].to_csv(tmp_path / "other.csv", index=False)
    assert main(["report", str(folder), "--data", str(tmp_path / "other.csv"), "--quiet"]) == 1
    assert "does not hold the rows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_selection_writes_its_report_and_the_command_writes_it_again(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["select", str(data), "-k", "1-2", "--covariance", "full", "--out", str(out), "--quiet"]) == 0
    first = (out / "report.html").read_text(encoding="utf-8")
    assert "BIC picks K = 2 (full)" in Reader(first).verdict
    assert main(["report", str(out), "--data", str(data), "--quiet"]) == 0
    assert (out / "report.html").read_text(encoding="utf-8") == first
