"""The file: one piece, escaped, small, whole or not there; what is in it where there is little to tell."""

from __future__ import annotations

import base64
import hashlib
import os
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from bayesgmm import BayesianGaussianMixture, GaussianMixture
from bayesgmm.datasets import load_faithful
from bayesgmm.report.blocks import Figure, Page
from bayesgmm.report.facts import facts_of
from bayesgmm.report.fit_sections import components_section, data_section, figures_section
from bayesgmm.report.page import fit_page, is_report, render, write_report
from bayesgmm.report.settings import settings_section
from bayesgmm.report.verdicts import fit_verdict
from tests.report.conftest import NAMES
from tests.report.reading import Reader

LIMIT = 5_000_000


def figures(page):
    return [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]


def test_the_page_needs_nothing_beside_it(html):
    read = Reader(html)
    sources = [value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in html
    assert "url(" not in html
    assert len(html.encode("utf-8")) < LIMIT
    policy = next(a["content"] for a in read.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        # the policy lets in what is there and nothing else: the hash is of the text between the tags
        text = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_of_features_are_text_and_nothing_else(html):
    read = Reader(html)
    assert len(read.attributes("script")) == 1
    assert NAMES[0] not in html
    features = [row[0] for row in read.tables["The features"][1:]]
    assert features == list(NAMES)
    assert "alert" not in str([attributes for tag, attributes in read.tags if tag != "img"])


def test_every_figure_has_words_a_size_and_is_svg_or_png(html, page):
    shown = Reader(html).attributes("img")
    assert len(shown) == len(figures(page)) >= 5
    for image in shown:
        kind, _, content = image["src"].partition(";base64,")
        start = base64.b64decode(content)[:8]
        assert (kind, start[:5]) == ("data:image/svg+xml", b"<?xml") or (kind, start[1:4]) == ("data:image/png", b"PNG")
        assert len(image["alt"]) > 20
        assert int(image["width"]) > 100 < int(image["height"])
    assert {figure.name for figure in figures(page)} >= {"density", "ellipses", "responsibilities", "forest"}


def test_headings_go_down_by_one_and_tables_have_their_names(html):
    read = Reader(html)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["aria-labelledby"] in ids for attributes in read.attributes("table"))
    anchors = [attributes["href"][1:] for attributes in read.attributes("a")]
    assert set(anchors) <= set(ids)


@pytest.mark.slow
def test_the_file_has_the_same_bytes_every_time_and_is_not_written_over_another(post, page, html, tmp_path):
    path = tmp_path / "report.html"
    assert post.report(path) == path
    assert path.read_text(encoding="utf-8") == html
    assert is_report(path)
    with pytest.raises(FileExistsError, match=r"report\.html exists; .*overwrite=True"):
        post.report(path)
    path.write_text("mine")
    assert not is_report(path)
    write_report(page, path, overwrite=True)
    assert path.read_text(encoding="utf-8") == html
    assert os.listdir(tmp_path) == ["report.html"]


def test_places_where_no_report_can_be_written_are_refused(post, tmp_path):
    with pytest.raises(FileExistsError, match="is a folder; name a file"):
        post.report(tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        post.report(tmp_path / "none" / "report.html")
    with pytest.raises(NotFittedError):
        BayesianGaussianMixture(2).report(tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(monkeypatch, post, page, tmp_path):
    from bayesgmm import io

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(OSError, match="cannot write the report .*No space left"):
        write_report(page, tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


def test_em_alone_says_so(table):
    fit = GaussianMixture(2, random_state=0).fit(table)
    page = fit_page(fit, table)
    assert page.verdict.level == "plain"
    assert "EM alone" in str(page.verdict)
    assert "trusted" not in str(page.verdict)
    read = Reader(render(page))
    assert "standard_deviations[0, " + NAMES[0] + "]" in [row[0] for row in read.tables["EM's estimates"]]
    assert "± se" in read.tables["EM's estimates"][0]
    assert "The 10 rows of lowest density" in read.tables


def test_em_without_rows_is_a_report_of_its_parameters(table):
    fit = GaussianMixture(2, random_state=0).fit(table)
    page = fit_page(fit)
    read = Reader(render(page))
    assert "none were given" in read.verdict
    assert "± se" not in read.tables["EM's estimates"][0]
    assert {figure.name for figure in figures(page)} == {"density", "ellipses"} | (
        {"modes"} if len(fit.modes_) > 1 else set()
    )
    with pytest.raises(ValueError, match="goes with X"):
        fit_page(fit, sample_weight=np.ones(272))


def test_one_component_and_one_feature(tmp_path):
    X = load_faithful()[["waiting"]]
    fit = BayesianGaussianMixture(1, method="laplace", draws=200, random_state=0, progressbar=False).fit(X)
    page = fit_page(fit)
    assert "one component, which holds everything" in str(page.verdict)
    assert {figure.name for figure in figures(page)} >= {"density", "forest"}
    assert "ellipses" not in {figure.name for figure in figures(page)}
    Reader(render(page))


@pytest.mark.slow
def test_many_features_are_limited_and_named():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 30))
    X[:80, [3, 17, 18, 19, 20, 29]] += 6.0
    table = pd.DataFrame(X, columns=[f"f{j}" for j in range(30)])
    facts = facts_of(GaussianMixture(2, covariance_type="diag", random_state=0).fit(table), table)
    verdict = fit_verdict(facts)
    sections = [components_section(facts), figures_section(facts)]
    page = Page("", "", verdict, sections)
    read = Reader(render(page))
    # the components differ in these six features and no other
    named = "“f3”, “f17”, “f18”, “f19”, “f20”, “f29”"
    assert any(
        f"6 of 30 features are shown, those in which the components differ most: {named}" in p for p in read.paragraphs
    )
    assert {row[0] for row in read.tables["Where the components lie"][1:]} == {"f3", "f17", "f18", "f19", "f20", "f29"}
    assert len(read.tables["EM's estimates"]) == 1 + 2 + 2 * 6 * 2
    density = next(block for block in figures(page) if block.name == "density")
    assert density.caption.count("“f") == 4
    assert "Shown are 4 of 30 features" in density.caption


def test_zero_anomalies_are_said(table):
    # even rows: hardly any lies where the model puts 1 % of its own
    X = np.linspace(-1, 1, 300)[:, None]
    verdict = str(fit_verdict(facts_of(GaussianMixture(1).fit(X), X)))
    assert "No row lies below the density" in verdict
    assert "no row is an anomaly" in verdict


def test_weights_are_told(table):
    v = np.arange(272) % 3
    fit = GaussianMixture(2, random_state=0).fit(table, sample_weight=v)
    facts = facts_of(fit, table, v)
    sections = [data_section(facts, None), settings_section(facts, None)]
    read = Reader(render(Page("", "", fit_verdict(facts), sections)))
    text = " ".join(read.paragraphs)
    assert "between 0.000 and 2.000" in text
    assert "91 rows of weight 0 did not count" in text
    assert ").fit(X, sample_weight=v)" in sections[1].blocks[-1].text


def test_the_code_makes_the_same_fit(table, post, page):
    code = next(
        block.text
        for section in page.sections
        for block in section.blocks
        if getattr(block, "title", "").startswith("Code that makes")
    )
    lines = [line for line in code.splitlines() if not line.startswith(("X =", "fit.report"))]
    space = {"X": table}
    exec("\n".join(lines).replace(").fit(X)", "    progressbar=False,\n).fit(X)"), space)
    np.testing.assert_array_equal(space["fit"].means_, post.means_)
