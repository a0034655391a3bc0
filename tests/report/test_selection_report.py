"""The report of a selection, and a selection kept in its folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bayesgmm import select
from bayesgmm.exceptions import DataError
from bayesgmm.report.blocks import Page
from bayesgmm.report.facts import facts_of
from bayesgmm.report.page import render, selection_page
from bayesgmm.report.selection_sections import choice_section
from bayesgmm.report.verdicts import selection_verdict
from bayesgmm.selection_files import load_selection
from tests.report.reading import Reader, numeral


@pytest.fixture(scope="module")
def separated():
    """Two groups that no criterion misses, and a posterior that is nearly normal."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((120, 1))
    X[:50] += 12.0
    return pd.DataFrame(X, columns=["x"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("selection") / "out"


@pytest.fixture(scope="module")
def found(separated, folder):
    return select(
        separated, [1, 2], "full", method="laplace", draws=400, chains=2, random_state=0, progressbar=False, out=folder
    )


def test_a_kept_selection_is_the_same(found, folder, separated):
    again = load_selection(folder)
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.sensitivity, found.sensitivity)
    assert again.summary() == found.summary()
    assert (again.picks, again.notes, again.method, again.n_rows) == (found.picks, found.notes, found.method, 120)
    assert again.elpds.keys() == found.elpds.keys()
    np.testing.assert_array_equal(again.score_samples(separated), found.score_samples(separated))


def test_a_damaged_or_unfinished_selection_is_refused(found, folder, tmp_path):
    manifest = json.loads((folder / "selection.json").read_text())
    (tmp_path / "selection.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "result"}))
    with pytest.raises(DataError, match="is not finished"):
        load_selection(tmp_path)
    manifest["result"]["columns"]["bic"]["values"].pop()
    (tmp_path / "selection.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="truncated or altered"):
        load_selection(tmp_path)


def test_the_report_says_what_the_selection_says(found):
    page = selection_page(found)
    read = Reader(render(page))
    assert found.best("loo") == ("full", 2)
    assert page.verdict.level == "good"
    assert page.verdict.headline.startswith("LOO picks K = 2 (full)")
    assert found.summary() in read.verdict
    assert found.fits[("full", 2)].diagnostics_.verdict in read.verdict
    assert "was set to" not in read.verdict
    head, *lines = read.tables["All models"]
    for title, column in (("BIC", "bic"), ("elpd LOO", "elpd_loo"), ("log evidence", "log_evidence")):
        shown = [numeral(line[head.index(title)]) for line in lines]
        # tenths are shown
        np.testing.assert_allclose(shown, found.table[column].astype(float), atol=0.0501)
    chances = {line[0]: line[1] for line in read.tables["The number of components, given the data"][1:]}
    assert f"is {chances['2']} for K = 2" in read.verdict or f"{chances['2']} for K = 2" in read.verdict
    assert len(read.tables["p(model | data) under other priors"]) == 1 + len(found.sensitivity)


def test_a_doubtful_pick_gives_no_confident_sentence(found):
    table = found.table.copy()
    table.loc[("full", 2), "flags"] = "Laplace k-hat high"
    doubtful = replace(found, table=table)
    verdict = selection_verdict(doubtful, facts_of(found.fits[("full", 2)]))
    assert verdict.level == "bad"
    assert "K = 2 (full) is picked, but its fit is not to be trusted yet (Laplace k-hat high)." in str(verdict)
    page = Page("", "", verdict, [choice_section(doubtful, ok=False)])
    said = Reader(render(page)).paragraphs
    assert not [text for text in said if "runner-up" in text or found.summary() in text]


def test_a_doubtful_pick_of_another_criterion_is_a_reservation(found):
    table = found.table.copy()
    table.loc[("full", 1), "flags"] = "Laplace k-hat high"
    table.loc[("full", 1), "aic"] = -1e6
    verdict = selection_verdict(replace(found, table=table), facts_of(found.fits[("full", 2)]))
    assert verdict.level == "caution"
    assert "criteria differ between 1 and 2 components" in verdict.headline
    assert "K = 1 (full) is picked, but its fit is not to be trusted yet" in str(verdict)


def test_selections_by_em_take_their_rows(separated, tmp_path):
    found = select(separated, [1, 2], ("full", "diag"), random_state=0, progressbar=False)
    path = found.report(tmp_path / "report.html", separated)
    read = Reader(path.read_text(encoding="utf-8"))
    assert read.level == "plain"
    assert "The 10 rows of lowest density" in read.tables
    with pytest.raises(FileExistsError, match="exists"):
        found.report(path)
    without = Reader(render(selection_page(found)))
    assert "none were given" in " ".join(without.paragraphs)
    assert "The 10 rows of lowest density" not in without.tables
