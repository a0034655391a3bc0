from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy import stats

from bayesgmm import GaussianMixture, load, plots
from bayesgmm.plots.parameters import decimals, interval_text
from bayesgmm.plots.style import COLOURS
from tests.plots.conftest import all_text, laplace, panels, table


def panel(figure, title, name):
    return next(ax for ax in panels(figure) if ax.get_title() == title and ax.get_xlabel() == name)


def marks(ax, marker):
    return [line.get_xdata()[0] for line in ax.lines if line.get_marker() == marker]


def test_forest_shows_quantiles_medians_and_the_mode(post):
    figure = plots.forest(post)
    figure.canvas.draw()
    ax = panel(figure, "means", "feature b")
    draws = post.idata_["posterior"]["means"].sel(feature="feature b").values.reshape(600, 2)
    thin = [line.get_xdata() for line in ax.lines if line.get_linewidth() == 1.2]
    thick = [line.get_xdata() for line in ax.lines if line.get_linewidth() == 3.6]
    np.testing.assert_allclose(thin, np.quantile(draws, [0.05, 0.95], axis=0).T)
    np.testing.assert_allclose(thick, np.quantile(draws, [0.25, 0.75], axis=0).T)
    np.testing.assert_allclose(marks(ax, "o"), np.median(draws, axis=0))
    np.testing.assert_allclose(marks(ax, "D"), post.map_.means[:, 1])
    low, high = np.quantile(draws[:, 0], [0.05, 0.95])
    assert f"{np.median(draws[:, 0]):.2f} [{low:.2f}, {high:.2f}]".replace("-", "\u2212") in all_text(figure)
    assert "posterior of 120 rows, 2 components, covariance full (600 draws)" in all_text(figure)


@pytest.mark.parametrize("function", ["forest", "posterior"])
def test_every_kind_of_parameter_has_its_panels(function, post):
    figure = getattr(plots, function)(post)
    kinds = [ax.get_title() for ax in panels(figure)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "weights": 1,
        "means": 3,
        "standard deviations": 3,
        "correlations": 3,
    }


def test_correlations_and_deviations_are_those_of_the_mode(post):
    figure = plots.forest(post)
    matrices = post.map_.covariances
    ax = panel(figure, "correlations", "feature a and\nfeature c")
    expected = matrices[:, 0, 2] / np.sqrt(matrices[:, 0, 0] * matrices[:, 2, 2])
    np.testing.assert_allclose(marks(ax, "D"), expected)
    ax = panel(figure, "standard deviations", "feature c")
    np.testing.assert_allclose(marks(ax, "D"), np.sqrt(matrices[:, 2, 2]))


def test_features_can_be_in_any_order(post):
    figure = plots.forest(post, features=["feature c", "feature a"])
    matrices = post.map_.covariances
    expected = matrices[:, 0, 2] / np.sqrt(matrices[:, 0, 0] * matrices[:, 2, 2])
    np.testing.assert_allclose(marks(panel(figure, "correlations", "feature a and\nfeature c"), "D"), expected)
    chains = plots.trace(post, "correlations", features=["feature c", "feature b"]).viz["figure"].item()
    assert [ax.get_title() for ax in panels(chains)] == [
        f"correlation\ncomponent {k}\nfeature b : feature c" for k in range(2)
    ]


def test_a_fit_by_em_is_marked_in_the_order_of_the_posterior(post, X):
    em = GaussianMixture(2, n_init=2, random_state=0).fit(X)
    order = np.argsort(-em.weights_)[:: 1 if post.weights_[0] < post.weights_[1] else -1]
    turned = GaussianMixture.from_parameters(em.weights_[order], em.means_[order], em.covariances_[order])
    assert (turned.weights_[0] < turned.weights_[1]) != (post.weights_[0] < post.weights_[1])
    for fit in (em, turned):
        figure = plots.forest(post, fit)
        expected = np.sort(em.weights_)[np.argsort(np.argsort(post.weights_))]
        np.testing.assert_allclose(marks(panel(figure, "weights", "share of rows"), "D"), expected)
        assert "EM fit" in all_text(figure)
    with pytest.raises(ValueError, match="covariance_type differs"):
        plots.forest(post, GaussianMixture(2, covariance_type="diag", n_init=1, random_state=0).fit(X))
    with pytest.raises(TypeError):
        plots.posterior(post, post)


def test_densities_integrate_to_one_and_mark_the_mode(post):
    figure = plots.posterior(post)
    ax = panel(figure, "weights", "share of rows")
    curves = [line.get_xydata().T for line in ax.lines if len(line.get_xydata()) > 10]
    draws = post.idata_["posterior"]["weights"].values.reshape(600, 2)
    for k, (x, y) in enumerate(curves):
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
        # Two density estimates of the same 600 draws, with bandwidths of their own.
        np.testing.assert_allclose(y, stats.gaussian_kde(draws[:, k])(x), atol=0.15 * y.max())
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed, post.map_.weights)


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
def test_what_components_share_is_shown_once(covariance_type):
    X = table(2)
    fit = laplace(X, covariance_type=covariance_type)
    figure = plots.forest(fit)
    titles = [ax.get_title() for ax in panels(figure)]
    assert titles.count("standard deviations") == {"tied": 2, "diag": 2, "spherical": 1}[covariance_type]
    assert titles.count("correlations") == (covariance_type == "tied")
    rows = [len(marks(ax, "D")) for ax in panels(figure) if ax.get_title() == "standard deviations"]
    assert rows == {"tied": [1, 1], "diag": [2, 2], "spherical": [2]}[covariance_type]
    plots.posterior(fit).canvas.draw()


def test_a_constant_weight_is_left_out():
    fit = laplace(table(2), 1)
    assert "weights" not in [ax.get_title() for ax in panels(plots.forest(fit))]
    titles = [ax.get_title() for ax in panels(plots.trace(fit).viz["figure"].item())]
    assert len(titles) == 4
    assert not any(title.startswith("weight") for title in titles)
    with pytest.raises(ValueError, match="weights: the same in every draw"):
        plots.rank(fit, "weights")


def test_thirty_features_are_limited_and_it_is_said():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 30))
    X[:80, [3, 9, 20, 28]] += 6
    fit = laplace(X, covariance_type="diag")
    figure = plots.forest(fit)
    assert {ax.get_xlabel() for ax in panels(figure)} == {"share of rows", "x3", "x9", "x20", "x28"}
    assert "4 of 30 features: those in which the components differ most" in all_text(figure)
    assert "2 of 30 features" in all_text(plots.trace(fit).viz["figure"].item())


def test_numbers_have_the_decimals_that_their_intervals_give_a_meaning():
    assert decimals(np.array([0.5, 0.03])) == 3
    assert decimals(np.array([250.0])) == 0
    assert decimals(np.array([0.0, 0.0])) == 2
    assert interval_text([1.23456, -0.5, 2.0], 2) == "1.23 [\u22120.50, 2.00]"
    assert (
        interval_text([1.5e-9, 1.2e-9, 1.9e-9], decimals(np.array([7e-10])))
        == "1.5e\u221209 [1.2e\u221209, 1.9e\u221209]"
    )


def lines_of(ax):
    return [line.get_xydata().T for line in ax.lines if len(line.get_xydata()) == 150]


def test_trace_shows_the_draws_of_each_chain_by_arviz(post):
    collection = plots.trace(post, "means", features=["feature b"])
    assert type(collection).__name__ == "PlotCollection"
    shown = panels(collection.viz["figure"].item())
    assert [ax.get_title() for ax in shown] == ["mean\ncomponent 0, feature b", "mean\ncomponent 1, feature b"]
    draws = post.idata_["posterior"]["means"].sel(feature="feature b").values
    for k, ax in enumerate(shown):
        np.testing.assert_allclose([y for _, y in lines_of(ax)], draws[..., k])
        drawn = [to_rgb(line.get_color()) for line in ax.lines if len(line.get_xydata()) == 150]
        assert drawn == [to_rgb(c) for c in COLOURS[:4]]


def test_default_variables_and_another_backend(post):
    figure = plots.rank(post).viz["figure"].item()
    titles = [ax.get_title() for ax in panels(figure)]
    assert len(titles) == 2 + 2 * 2 + 2 * 2
    assert "ranks of each chain's draws, less even ones, one colour a chain" in all_text(figure)
    assert plots.trace(post, backend="none").backend == "none"
    with pytest.raises(ValueError, match="the posterior has no 'theta': it has weights"):
        plots.trace(post, "theta")


def test_a_loaded_posterior_gives_the_same_figures(post, tmp_path):
    again = load(post.save(tmp_path / "post"))
    for function in (plots.forest, plots.density, plots.predictive_check):
        ours, theirs = (panels(function(fit))[0] for fit in (post, again))
        for one, other in zip(ours.lines, theirs.lines, strict=True):
            np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
