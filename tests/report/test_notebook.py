"""What notebooks show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn import config_context
from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, select
from tests.report.conftest import NAMES
from tests.report.reading import Reader


@pytest.mark.parametrize("estimator", [GaussianMixture(2), BayesianGaussianMixture(2), AnomalyDetector()])
def test_what_is_not_fitted_is_shown_by_scikit_learn(estimator):
    assert "sk-top-container" in estimator._repr_html_()
    assert estimator._repr_mimebundle_()["text/html"].count("sk-top-container") > 0


def test_a_posterior_shows_its_verdict_and_weights(post):
    text = post._repr_html_()
    read = Reader(text)
    assert NAMES[0] not in text
    assert post.diagnostics_.verdict in " ".join(read.paragraphs)
    _, *lines = next(iter(read.tables.values()))
    assert [line[1] for line in lines] == [f"{100 * w:.1f} %" for w in post.weights_]
    assert post._repr_mimebundle_()["text/html"] == text
    with config_context(display="text"):
        assert not hasattr(post, "_repr_html_")


def test_a_failed_posterior_shows_what_failed(post, monkeypatch):
    doubtful = replace(post.diagnostics_, ok=False, problems=("raise draws",), verdict="Not to be trusted yet.")
    monkeypatch.setattr(post, "diagnostics_", doubtful)
    shown = " ".join(Reader(post._repr_html_()).paragraphs)
    assert "Not to be trusted yet. Raise draws." in shown
    assert "can be trusted" not in shown


def test_em_and_a_detector(table, post):
    fit = GaussianMixture(2, random_state=0).fit(table)
    shown = Reader(fit._repr_html_())
    assert "there is no posterior" in " ".join(shown.paragraphs)
    detector = AnomalyDetector(FrozenEstimator(post), random_state=0).fit(None)
    lines = dict(next(iter(Reader(detector._repr_html_()).tables.values()))[1:])
    assert float(lines["threshold, log density"].replace("−", "-")) == pytest.approx(detector.offset_, rel=1e-3)
    assert lines["share of the model's own rows below it"] == "1.0 %"


def test_a_selection(table):
    found = select(table, range(1, 4), "full", random_state=0, progressbar=False)
    read = Reader(found._repr_html_())
    assert found.summary() in " ".join(read.paragraphs)
    head, *lines = next(iter(read.tables.values()))
    shown = [float(line[head.index("BIC")]) for line in lines]
    # tenths are shown
    np.testing.assert_allclose(shown, found.table["bic"].astype(float), atol=0.0501)
