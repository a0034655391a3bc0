from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bayesgmm import plots, select
from bayesgmm.inference.components import posterior_over_components
from tests.plots.conftest import all_text, panels, table


@pytest.fixture(scope="module")
def selections():
    options = {"random_state": 0, "progressbar": False, "n_init": 3}
    em = select(table(2), range(1, 5), **options)
    return em, select(table(2), (1, 2, 3), ("full", "diag"), method="laplace", draws=100, **options)


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in panels(figure)]


def test_selection_has_a_panel_for_each_criterion(selections):
    em, posterior = selections
    figure = plots.selection(em)
    figure.canvas.draw()
    assert titles(figure) == ["BIC: lower is better", "ICL: lower is better", "AICc: lower is better"]
    text = all_text(figure)
    assert all(part in text for part in ("120 rows, 16 models (EM)", "full", "tied", "diag", "spherical", "picked"))
    figure = posterior.plot()
    figure.canvas.draw()
    assert titles(figure)[3:] == [
        "WAIC: higher is better",
        "LOO: higher is better",
        "Evidence: higher is better",
        "Stacking weight (LOO)",
        "p(model | data)",
    ]
    assert "EM; posterior by Laplace" in all_text(figure)


def test_selection_lines_are_differences_to_the_pick_with_their_errors(selections):
    _, found = selections
    ax = next(ax for ax in panels(plots.selection(found)) if ax.get_title().startswith("LOO"))
    curves = [line.get_xydata() for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xydata()) == 3]
    for kind, curve in zip(("full", "diag"), curves, strict=True):
        np.testing.assert_allclose(curve[:, 1], found.table.loc[kind, "elpd_diff"].astype(float), atol=1e-9)
        # the lines stand side by side
        np.testing.assert_array_equal(np.round(curve[:, 0]), [1, 2, 3])
    bars = [segment for c in ax.collections for segment in c.get_segments()]
    lengths = np.array([segment[1, 1] - segment[0, 1] for segment in bars])
    np.testing.assert_allclose(lengths, 2 * found.table["dse"].astype(float), atol=1e-9)
    ring = next(line for line in ax.lines if line.get_markersize() == 12).get_xydata()[0]
    assert (round(ring[0]), ring[1]) == (found.best("loo")[1], 0.0)


def test_selection_bars_are_the_shares(selections):
    _, found = selections
    ax = next(ax for ax in panels(plots.selection(found)) if ax.get_title().startswith("p("))
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, found.table["probability"].astype(float))


def test_selection_marks_near_singular_fits_and_says_what_it_cuts_off(selections):
    em, _ = selections
    changed = em.table.copy()
    changed.loc[("full", 4), "flags"] = "near-singular"
    changed.loc[("spherical", 1), "bic"] = changed["bic"].max() + 1e6
    ax = panels(plots.selection(replace(em, table=changed)))[0]
    assert [len(line.get_xydata()) for line in ax.lines if line.get_markerfacecolor() == "white"] == [1, 0, 0, 0]
    assert "beyond the axis" in ax.get_xlabel()
    assert ax.get_ylim()[1] < 1e6


@pytest.mark.parametrize(
    ("flag", "hollow"),
    [
        ("near-singular", {"BIC", "ICL", "AICc"}),
        ("k-hat high", {"LOO"}),
        ("evidence doubtful", {"Evidence"}),
        ("labels not identified, not converged", {"WAIC", "LOO", "Evidence"}),
        ("labels not identified", set()),
    ],
)
def test_selection_marks_what_is_not_reliable(selections, flag, hollow):
    _, found = selections
    changed = found.table.assign(flags=pd.array([""] * len(found.table), dtype="string"))
    changed.loc[("full", 2), "flags"] = flag
    figure = plots.selection(replace(found, table=changed))
    marked = {
        ax.get_title().partition(":")[0]
        for ax in panels(figure)
        for line in ax.lines
        if line.get_markerfacecolor() == "white" and len(line.get_xydata())
    }
    assert marked == hollow
    assert ("hollow" in all_text(figure)) == bool(hollow)


def test_selection_with_labels_has_their_panels():
    y = np.where(np.arange(120) % 2, -1, np.arange(120) % 4)
    figure = plots.selection(select(table(2), (1, 2), "diag", y=y, random_state=0, progressbar=False))
    figure.canvas.draw()
    labels = ["Accuracy: higher is better", "Log loss: lower is better", "Adjusted Rand index: higher is better"]
    assert titles(figure)[-3:] == labels


def test_selection_of_one_model(selections):
    one = select(table(1), 1, "full", random_state=0, progressbar=False)
    plots.selection(one).canvas.draw()


# p(K given the data)


def test_bars_add_up_over_structures(selections):
    _, found = selections
    figure = plots.number_of_components(found)
    ax = panels(figure)[0]
    expected = found.table["probability"].astype(float)
    tops = {}
    for bar in ax.patches:
        k = round(bar.get_x() + bar.get_width() / 2)
        tops[k] = max(tops.get(k, 0.0), bar.get_y() + bar.get_height())
    np.testing.assert_allclose([tops[k] for k in (1, 2, 3)], expected.groupby(level=1).sum())
    best = expected.groupby(level=1).sum().idxmax()
    assert f"most probable K = {best}" in all_text(figure)


def test_posterior_over_components_has_errors_and_a_prior():
    found = posterior_over_components({1: -1130, 2: -1115.2, 3: -1116}, ("poisson", 2), {1: 0.1, 2: 0.2, 3: 0.3})
    ax = panels(plots.number_of_components(found))[0]
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], found.probabilities)
    bars = np.array([segment[:, 1] for c in ax.collections for segment in c.get_segments()])
    np.testing.assert_allclose(bars, np.column_stack([found.lower, found.upper]))
    prior = next(line for line in ax.lines if line.get_marker() == "D")
    np.testing.assert_allclose(prior.get_ydata(), found.prior)
    assert [text.get_text() for text in ax.texts] == ["", *(f"{p:.2f}" for p in found.probabilities[1:])]


def test_without_evidences_there_is_no_posterior_over_components(selections):
    em, _ = selections
    with pytest.raises(ValueError, match="it needs evidences"):
        plots.number_of_components(em)
    with pytest.raises(TypeError, match="of a Selection or a ComponentsPosterior; got list"):
        plots.number_of_components([0.5, 0.5])
