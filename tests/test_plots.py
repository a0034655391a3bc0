from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bayesgmm import BayesianGaussianMixture, GaussianMixture, select
from bayesgmm.plots import mixture as mixture_figure
from bayesgmm.plots import selection as selection_figure
from bayesgmm.plots.shapes import SHOWN_FEATURES, SHOWN_ROWS, ellipse

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def table(D: int, n_rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(D)
    X = rng.standard_normal((n_rows, D))
    X[: n_rows // 3] += 8
    return pd.DataFrame(X, columns=[f"feature {chr(97 + j)}" for j in range(D)])


def fitted(kind: str, D: int, K: int = 2, covariance_type: str = "full"):
    if kind == "em":
        return GaussianMixture(K, covariance_type=covariance_type, n_init=2, random_state=0).fit(table(D))
    fit = BayesianGaussianMixture(
        K, covariance_type=covariance_type, method="laplace", draws=150, random_state=0, progressbar=False
    )
    return fit.fit(table(D))


def panels(figure):
    return [ax for ax in figure.axes if ax.axison]


def all_text(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(mpl.text.Text))


@pytest.mark.parametrize("kind", ["em", "posterior"])
@pytest.mark.parametrize(("D", "n_panels"), [(1, 1), (2, 1), (3, 3), (6, 6)])
def test_panels_and_their_labels(kind, D, n_panels):
    figure = mixture_figure(fitted(kind, D), table(D))
    figure.canvas.draw()
    shown = panels(figure)
    assert len(shown) == n_panels
    names = list(table(D).columns)[: min(D, SHOWN_FEATURES)]
    labels = {ax.get_xlabel() for ax in shown} | {ax.get_ylabel() for ax in shown}
    if D == 1:
        assert shown[0].get_xlabel() == names[0]
        assert names[0] in shown[0].get_ylabel()
    else:
        assert labels - {""} == set(names)
    assert "120 rows, 2 components, covariance full" in all_text(figure)
    text = all_text(figure)
    for k in range(2):
        assert f"component {k}: weight 0." in text
    assert ("EM fit" in text) == (kind == "em")


@pytest.mark.parametrize("kind", ["em", "posterior"])
@pytest.mark.parametrize("D", [1, 2, 3])
def test_one_component(kind, D):
    figure = mixture_figure(fitted(kind, D, K=1), table(D))
    figure.canvas.draw()
    assert "1 component," in all_text(figure)
    assert "weight 1.00" in all_text(figure)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_every_structure_and_more_components_than_colours(covariance_type):
    figure = mixture_figure(fitted("posterior", 2, covariance_type=covariance_type), table(2))
    figure.canvas.draw()
    many = GaussianMixture.from_parameters(np.full(10, 0.1), np.arange(20.0).reshape(10, 2), np.stack([np.eye(2)] * 10))
    mixture_figure(many, table(2).to_numpy()).canvas.draw()


def test_lines_and_points_stand_where_the_fit_has_them():
    fit = fitted("posterior", 2)
    ax = panels(mixture_figure(fit, table(2)))[0]
    crosses = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "+"])
    np.testing.assert_allclose(crosses, fit.means_)
    curves = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) > 10]
    assert len(curves) == 4
    inverse = np.linalg.inv(fit.covariances_)
    for curve, k, level in zip(curves, (0, 0, 1, 1), (0.5, 0.9, 0.5, 0.9), strict=True):
        d = curve - fit.means_[k]
        np.testing.assert_allclose(np.einsum("nd,de,ne->n", d, inverse[k], d), stats.chi2(2).ppf(level), rtol=1e-8)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, table(2))


def test_panels_of_a_matrix_show_the_pair_that_their_labels_say():
    X = table(3)
    figure = mixture_figure(fitted("em", 3), X)
    columns = {name: X[name].to_numpy() for name in X.columns}
    corner = next(ax for ax in panels(figure) if ax.get_xlabel() and ax.get_ylabel())
    points = corner.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], columns[corner.get_xlabel()])
    np.testing.assert_allclose(points[:, 1], columns[corner.get_ylabel()])


def test_density_of_one_feature_is_the_predictive_one():
    fit = fitted("posterior", 1)
    ax = panels(mixture_figure(fit, table(1)))[0]
    line = next(line for line in ax.lines if line.get_label() == "density")
    x, y = line.get_xydata().T
    density = np.exp(fit.score_samples(pd.DataFrame({"feature a": x})))
    # The line is the mean over 500 of the 600 draws or all of them.
    np.testing.assert_allclose(y, density, rtol=0.02, atol=1e-4)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() > y.max()


def test_large_tables_are_thinned():
    X = table(2, 40_001)
    fit = GaussianMixture(2, n_init=1, random_state=0).fit(X)
    ax = panels(mixture_figure(fit, X))[0]
    assert len(ax.collections[0].get_offsets()) <= 1.1 * SHOWN_ROWS
    assert "40001 rows" in all_text(ax.figure)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_unidentified_components_are_said_to_be_the_modes():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 2))
    fit = BayesianGaussianMixture(4, draws=50, tune=60, chains=2, target_ess=0, random_state=0, progressbar=False)
    fit.fit(X)
    assert not fit.diagnostics_.labels_identified
    figure = mixture_figure(fit, X)
    assert "the mode found by EM" in all_text(figure)
    ax = panels(figure)[0]
    crosses = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "+"])
    np.testing.assert_allclose(crosses, fit.map_.means)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_ellipse_holds_its_probability(level):
    rng = np.random.default_rng(2)
    mean, covariance = np.array([3.0, -1.0]), np.array([[4.0, 1.5], [1.5, 1.0]])
    path = mpl.path.Path(ellipse(mean, covariance, level, points=400))
    inside = path.contains_points(rng.multivariate_normal(mean, covariance, 20_000))
    # Binomial error, at four of them.
    assert inside.mean() == pytest.approx(level, abs=4 * 0.5 / np.sqrt(20_000))


# the figure of a selection


@pytest.fixture(scope="module")
def selections():
    options = {"random_state": 0, "progressbar": False, "n_init": 3}
    em = select(table(2), range(1, 5), **options)
    return em, select(table(2), (1, 2, 3), ("full", "diag"), method="laplace", draws=100, **options)


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in panels(figure)]


def test_selection_has_a_panel_for_each_criterion(selections):
    em, posterior = selections
    figure = selection_figure(em)
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
    ax = next(ax for ax in panels(selection_figure(found)) if ax.get_title().startswith("LOO"))
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
    ax = next(ax for ax in panels(selection_figure(found)) if ax.get_title().startswith("p("))
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, found.table["probability"].astype(float))


def test_selection_marks_near_singular_fits_and_says_what_it_cuts_off(selections):
    em, _ = selections
    changed = em.table.copy()
    changed.loc[("full", 4), "flags"] = "near-singular"
    changed.loc[("spherical", 1), "bic"] = changed["bic"].max() + 1e6
    ax = panels(selection_figure(replace(em, table=changed)))[0]
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
    figure = selection_figure(replace(found, table=changed))
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
    figure = selection_figure(select(table(2), (1, 2), "diag", y=y, random_state=0, progressbar=False))
    figure.canvas.draw()
    labels = ["Accuracy: higher is better", "Log loss: lower is better", "Adjusted Rand index: higher is better"]
    assert titles(figure)[-3:] == labels


def test_selection_of_one_model(selections):
    one = select(table(1), 1, "full", random_state=0, progressbar=False)
    selection_figure(one).canvas.draw()
