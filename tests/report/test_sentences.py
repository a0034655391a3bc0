"""What is said is what the tables and the fit say, and no more than the diagnostics allow."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, GaussianMixture
from bayesgmm.report.blocks import number, percent, rounded, spelled
from bayesgmm.report.facts import facts_of
from bayesgmm.report.page import render
from bayesgmm.report.verdicts import fit_verdict
from tests.report.reading import Reader, numeral

CONFIDENT = ("can be trusted", "has a weight of", "one component has a probability", "is an anomaly", "agree in")


def shown_as(text: str, value: float) -> bool:
    """Whether a cell is a number rounded to the digits that the cell has: half a unit of the last one."""
    share = text.endswith("%")
    digits = re.search(r"\.(\d+)", text)
    unit = 10.0 ** -(len(digits[1]) if digits else 0)
    return abs(numeral(text) - value * (100 if share else 1)) <= 0.5 * unit * (1 + 1e-9)


def test_weights_of_the_verdict_are_those_of_the_table_and_of_the_summary(post, page, html):
    summary, read = post.summary(0.9), Reader(html)
    head, *lines = read.tables["The components"]
    assert head[:4] == ["component", "weight", "90 % interval: from", "to"]
    for k, line in enumerate(lines):
        of_fit = summary.loc[f"weights[{k}]", ["mean", "5%", "95%"]].to_numpy(dtype=float)
        assert all(shown_as(text, value) for text, value in zip(line[1:4], of_fit, strict=True))
        low = line[2].removesuffix(" %")
        assert f"omponent {k} has a weight of {line[1]} (90 % interval {low} to {line[3]})" in read.verdict
    assert read.level == page.verdict.level == "good"


def test_counts_of_rows_are_those_of_the_fit(post, table, html):
    read = Reader(html)
    r = post.predict_proba(table)
    lines = read.tables["The components"][1:]
    assert [int(line[4]) for line in lines] == np.bincount(r.argmax(axis=1), minlength=2).tolist()
    unsure = int((r.max(axis=1) < 0.9).sum())
    assert sum(int(line[5]) for line in lines) == unsure
    assert f"For {272 - unsure} of 272 rows one component has a probability of at least 90 %" in read.verdict


def test_anomalies_are_those_of_the_detector(post, table, html):
    read = Reader(html)
    detector = AnomalyDetector(FrozenEstimator(post), false_alarm=0.01, refits=0, random_state=0).fit(None)
    density = detector.table()["log_density"].to_numpy()
    flagged = int((density < detector.offset_).sum())
    assert f"{flagged} row" in read.verdict
    assert "about 2.7 would by chance" in read.verdict
    thresholds = read.tables["Thresholds"][1:]
    assert [thresholds[0][1], thresholds[0][2]] == [str(flagged), "2.7"]
    top = read.tables["The 10 rows of lowest density"][1:]
    assert [int(line[0]) for line in top] == (np.argsort(density, kind="stable")[:10] + 1).tolist()
    explained = detector.explain(table.iloc[np.argsort(density, kind="stable")[:10]])
    assert all(shown_as(line[7], value) for line, value in zip(top, explained["mahalanobis"], strict=True))


def test_tables_of_parameters_are_the_summary(post, html):
    summary, read = post.summary(0.9), Reader(html)
    head, *lines = read.tables["EM beside the posterior"]
    assert [line[0] for line in lines] == list(summary.index)
    columns = {"posterior median": "median", "sd": "sd", "90 % interval: from": "5%", "to": "95%"}
    for line in lines:
        for title, column in columns.items():
            assert shown_as(line[head.index(title)], summary.loc[line[0], column]), (line, title)
    em = GaussianMixture(2, random_state=0).fit(post._X)
    weights = sorted(float(line[1]) for line in lines[:2])
    # the climb from the posterior's mode ends at the same maximum; two digits of the standard error are shown
    np.testing.assert_allclose(weights, np.sort(em.weights_), atol=1e-3)


def test_the_diagnostics_are_those_of_the_fit(post, html):
    read = Reader(html)
    assert post.diagnostics_.verdict in read.verdict
    lines = {line[0]: line for line in read.tables["Diagnostics"][1:]}
    assert shown_as(lines["Pareto k̂"][1], post.diagnostics_.pareto_k)
    assert {line[3] for line in lines.values()} == {"yes"}


def test_failed_diagnostics_give_no_confident_sentence(failed, failed_page):
    assert not failed.diagnostics_.ok
    page = failed_page
    read = Reader(render(page))
    assert page.verdict.level == read.level == "bad"
    assert failed.diagnostics_.verdict in read.verdict
    assert all(problem[1:] in read.verdict for problem in failed.diagnostics_.problems)
    said = " ".join([read.verdict, *read.paragraphs])
    assert not [words for words in CONFIDENT if words in said]
    assert said.count("The diagnostics of this fit failed") >= 3
    assert "NO" in [line[3] for line in read.tables["Diagnostics"][1:]]
    assert "rank" in [block.name for section in page.sections for block in section.blocks if hasattr(block, "source")]


def test_components_that_are_not_identified_are_said_to_be_so(post, monkeypatch):
    problem = "the components cannot be told apart from draw to draw: use fewer components"
    verdict = "The draws cannot be trusted component by component: largest R-hat 1.400"
    doubtful = replace(post.diagnostics_, ok=False, labels_identified=False, problems=(problem,), verdict=verdict)
    monkeypatch.setattr(post, "diagnostics_", doubtful)
    said = fit_verdict(facts_of(post))
    assert said.level == "bad"
    assert said.headline.startswith("The components of this fit cannot be told apart")
    assert said.sentences[:2] == (verdict, problem[0].upper() + problem[1:] + ".")
    assert not [words for words in CONFIDENT if words in str(said)]


def test_a_mode_that_no_chain_visited_is_a_reservation(post, monkeypatch):
    monkeypatch.setattr(post, "diagnostics_", replace(post.diagnostics_, unvisited_modes=(1,)))
    said = fit_verdict(facts_of(post))
    assert said.level == "caution"
    assert "optimum 1" in str(said)
    assert "and the draws can be trusted" not in said.headline


@pytest.mark.parametrize("spurious", [True, False])
def test_em_that_failed_is_not_reported_as_a_result(table, spurious, monkeypatch):
    fit = GaussianMixture(2, random_state=0).fit(table)
    if spurious:
        fit.modes_ = (replace(fit.modes_[0], spurious=True),)
    else:
        fit.converged_ = False
    said = fit_verdict(facts_of(fit, table))
    assert said.level == "bad"
    assert ("singularity" if spurious else "did not converge") in said.headline
    assert not [words for words in CONFIDENT if words in str(said)]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (4.2895, 0.0314, "4.290"),
        (-0.0001, 0.05, "0.000"),
        (-54.48, 1.0, "−54.5"),
        (12345.6, 250.0, "12,346"),
        (1.0, 0.0, "1.000"),
    ],
)
def test_numbers_have_the_digits_that_their_error_leaves(value, error, text):
    assert rounded(value, error).text == text


def test_numbers_as_text():
    assert [percent(x).text for x in (0, 0.0001, 0.6436, 0.9999, 1)] == [
        "0.0 %",
        "< 0.1 %",
        "64.4 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert [number(x) for x in (0.0, 12345.678, 0.00001234, np.nan, np.inf)] == [
        "0.000",
        "12346",
        "1.234e-05",
        "",
        "inf",
    ]
    assert [spelled(x) for x in (None, -1.5, 1234567, True, "a-b")] == ["–", "−1.500", "1,234,567", "yes", "a-b"]
